"""How often intervals of predicted drops hold, over random splits of a fixture network's examples.

The K maps of `bench_prediction` share one calibration and one evaluation sample, so that their errors go together:
which examples are fragile is the same for all of them. Here the fixture's examples are pooled and dealt out anew,
split by split, into samples as large as the fixture's; profile, calibration, K maps and corrections are made anew from
one, and simulated on the other.

Prints the mean absolute error of predicted drops and their mean error, with the spread over splits,
and how many simulated drops lie within both 95 % intervals. With --rows, pairs are kept in that file as they are found,
and an interrupted run goes on. Needs the fixtures:

    python -m benchmarks.bench_coverage [--fixtures DIR] [--network NAME] [--splits N] [--first N] [--rows FILE]
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench_prediction import (
    DEFAULT_FIXTURES,
    EFFORTS,
    LARGEST,
    PARTS,
    PRESETS,
    Network,
    own_summary,
    pairs,
    read,
    summary,
)
from precalloc.network.batches import Batch, join
from precalloc.network.data import ArrayData, Data
from precalloc.network.data_files import load_data

# As in `bench_prediction`, but two drops of each family of K maps, and two pairs of noise draws at most.
EFFORTS_OF_SPLITS = {
    name: replace(effort, drops=(0.01, 0.03), draws=min(4, effort.draws)) for name, effort in EFFORTS.items()
}


def split(folder: Path, seed: int) -> tuple[Data, Data]:
    """Deal the examples of a fixture out anew, as many to either sample as it has."""
    loaded = [load_data(str(folder / part)) for part in PARTS]
    pool = join([Batch(data.inputs, data.labels) for data in loaded])
    order = torch.randperm(pool.size, generator=torch.Generator().manual_seed(seed))
    parts = [pool.rows(some) for some in order.split([data.examples for data in loaded])]
    return ArrayData(parts[0].inputs, parts[0].labels), ArrayData(parts[1].inputs, parts[1].labels)


def over_splits(rows: list[dict[str, Any]], key: str = "predicted") -> str:
    """Error of each split, and from that the spread of the mean over splits."""
    of_split: dict[int, list[float]] = {}
    for row in rows:
        if row["simulated"][0] <= LARGEST:
            of_split.setdefault(row["split"], []).append(100.0 * (row[key][0] - row["simulated"][0]))
    absolute, mean = (
        np.array([float(np.mean(measure(errors))) for errors in of_split.values()]) for measure in (np.abs, np.array)
    )
    parts = (f"{v.mean():.2f} +- {v.std(ddof=1) / math.sqrt(len(v)):.2f}" for v in (absolute, mean))
    return "over {} splits: mean absolute error {}, mean error {} points".format(len(of_split), *parts)


def main() -> None:
    """Run all splits and print what holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--network", default="kws-dscnn", choices=list(EFFORTS_OF_SPLITS))
    parser.add_argument("--splits", type=int, default=16)
    parser.add_argument("--first", type=int, default=0, help="number of the first split")
    parser.add_argument("--rows", type=Path, help="JSON lines to keep pairs in")
    parser.add_argument("--device", default="cpu", help="where the network runs")
    arguments = parser.parse_args()
    if not arguments.fixtures.is_dir():
        print(f"Skipped: no fixtures in {arguments.fixtures}; give their folder with --fixtures.")
        return
    rows = read(arguments.rows) if arguments.rows is not None and arguments.rows.is_file() else []
    for seed in range(arguments.first, arguments.first + arguments.splits):
        known = {(row["network"], row["hardware"], row["map"], row["target"]) for row in rows if row["split"] == seed}
        data = split(arguments.fixtures / arguments.network, seed)
        effort = EFFORTS_OF_SPLITS[arguments.network]
        network = Network(arguments.fixtures, arguments.network, effort, data, seed=seed, device=arguments.device)
        for preset in PRESETS:
            for found in pairs(network, preset, known):
                rows.append({"split": seed, **found})
                if arguments.rows is not None:
                    with arguments.rows.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(f"from the calibration examples {over_splits(rows)}; {summary(rows)}")
    print(f"from the examples' own margins {over_splits(rows, 'own')}; {own_summary(rows)}")


if __name__ == "__main__":
    main()
