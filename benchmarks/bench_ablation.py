"""Which labels, and how many examples, the choice of K needs: drop at one budget, simulated on evaluation data.

Labels are those of the data; or drawn by the model itself from its own predictions; or none, so that agreement with the
noiseless network counts. Curvature draws labels itself in any case, so it is the same for all three; what
differs is the refinement, which follows the loss. Calibration sets are the first 50, 200, 1000, 2000 examples, as far
as there are so many. Intervals are 95 %, over examples and noise draws. Needs the fixtures, by default in
``../shared/fixtures`` beside the repository:

    python benchmarks/bench_ablation.py [--case kws-dscnn:shot] [--budget 20x] [--granularity channel] [--sizes 50 200]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import precalloc
from benchmarks.bench_least_energy import DEFAULT_FIXTURES, PRESETS, first
from precalloc.network.data import ArrayData, Data
from precalloc.network.data_files import load_data
from precalloc.network.models import load_model
from precalloc.network.overlap import unseen
from precalloc.network.tasks import Task

LABELS = ("labels", "model-drawn", "agreement")


def relabelled(model, data: ArrayData, labels: str) -> ArrayData:
    """The data with the labels of its own, with labels that the model draws, or without."""
    if labels == "labels":
        return data
    if labels == "agreement":
        return ArrayData(data.inputs)
    with torch.no_grad():
        logits = torch.cat([Task().output(model, batch) for batch in data.batches(100)])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return ArrayData(data.inputs, drawn[np.argsort(data.order)])


def drop(model, evaluation: Data, plan, seeds: int) -> str:
    """Simulated drop in points with its interval."""
    found = precalloc.validate(model, evaluation, plan, seeds=seeds, seed=1000)
    return f"{100 * found.drop:.1f} [{100 * found.drop_low:.1f}, {100 * found.drop_high:.1f}]"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--case", default="kws-dscnn:shot")
    parser.add_argument("--budget", default="20x")
    parser.add_argument("--granularity", default="channel")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 200, 1000, 2000])
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    if not arguments.fixtures.is_dir():
        print(f"Skipped: no fixtures in {arguments.fixtures}; give their folder with --fixtures.")
        return
    fixture, noise = arguments.case.split(":")
    folder, hardware = arguments.fixtures / fixture, precalloc.Hardware.load(PRESETS[noise])
    model = load_model(f"{folder / 'model.py'}:build")
    calibration = load_data(str(folder / "calib.npz"))
    evaluation = unseen(first(load_data(str(folder / "eval.npz")), arguments.examples), calibration)
    table = Table(title=f"{arguments.case} at {arguments.budget} per {arguments.granularity}: drop in points")
    for column in ("examples", "labels", "curvature", "refined", "kept"):
        table.add_column(column, no_wrap=True)
    for size in (size for size in arguments.sizes if size <= calibration.examples):
        for labels in LABELS:
            data = relabelled(model, first(calibration, size), labels)
            profile = precalloc.profile(model, data, hardware, margins=0)
            start = precalloc.allocate(profile, arguments.budget, hardware=hardware, granularity=arguments.granularity)
            refined = precalloc.refine(model, data, profile, start)
            plain = drop(model, evaluation, start, arguments.seeds)
            better = drop(model, evaluation, refined, arguments.seeds)
            table.add_row(str(size), labels, plain, better, "yes" if refined.refinement.kept else "no")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
