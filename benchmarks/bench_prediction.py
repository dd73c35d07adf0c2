"""Predicted against simulated accuracy drop over many K maps, on evaluation data that took no part in any prediction.

For every fixture and noise kind the network is profiled, compensated and calibrated on its calibration data alone. K
maps (uniform, per layer, per channel) are then allocated at budgets whose predicted drops run from 0.3 to 4.5 points,
predicted, and simulated on the evaluation data. A pair counts as covered where the difference lies within both 95 %
intervals taken together (root of the sum of squares), since both numbers come from samples of examples. Pairs whose
simulated drop is above 5 points are left out of the summary and counted.

Prints the table and the summary, and draws the scatter plot with --picture. With --rows, pairs are kept in that file as
they are found, and an interrupted run goes on. Needs the fixtures:

    python benchmarks/bench_prediction.py [--fixtures DIR] [--only kws-dscnn ...] [--examples N] [--seeds N]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import precalloc
from precalloc.allocator import Allocator
from precalloc.budgets import Budget, BudgetKind
from precalloc.network.data import data_hash
from precalloc.network.data_files import load_data
from precalloc.network.data_parts import first
from precalloc.network.models import load_model
from precalloc.objective import parse_granularity
from precalloc.search import least

DEFAULT_FIXTURES = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
NETWORKS = ("cifar10-resnet20", "kws-dscnn", "sst2-minilm")
PRESETS = ("homodyne-1550nm", "crossbar-thermal", "crossbar-weight")
DROPS = (0.003, 0.008, 0.015, 0.025, 0.035, 0.045)
LARGEST = 0.05


def pairs(fixtures: Path, network: str, preset: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Predict and simulate the K maps of one network on one hardware."""
    spec = fixtures / network
    model = load_model(f"{spec / 'model.py'}:build")
    calibration, evaluation = load_data(str(spec / "calib.npz")), load_data(str(spec / "eval.npz"))
    assert data_hash(calibration) != data_hash(evaluation)
    evaluation = first(evaluation, arguments.examples)
    hardware = precalloc.Hardware.load(preset)
    profile = precalloc.profile(model, calibration, hardware)
    for granularity in ("layer", "channel"):
        calibrated = precalloc.calibrate(
            model, calibration, profile, granularity=granularity, examples=arguments.calibration_examples
        )
        allocator = Allocator.of(calibrated, hardware, parse_granularity(granularity))
        for family in ("allocated", "uniform") if granularity == "layer" else ("allocated",):
            yield from family_pairs(model, calibration, evaluation, allocator, family, arguments.seeds)


def family_pairs(
    model: Any, calibration: Any, evaluation: Any, allocator: Allocator, family: str, seeds: int
) -> Iterator[dict[str, Any]]:
    """Predict and simulate uniform or allocated K maps; each budget once."""
    done = set()
    for drop in DROPS:
        energy = energy_for(allocator, family, drop)
        found = allocator.within(Budget(BudgetKind.ENERGY, energy))
        source = found.uniform if family == "uniform" else found
        if source.energy_joule in done:  # few realisable K
            continue
        done.add(source.energy_joule)
        plain = found.uniform_kmap() if family == "uniform" else found.kmap()
        kmap = precalloc.compensate(model, calibration, plain) if allocator.hardware.digital_biases else plain
        simulated = precalloc.validate(model, evaluation, kmap, seeds=seeds, seed=1000)
        predicted = source.predicted
        assert predicted is not None
        yield {
            "map": "uniform" if family == "uniform" else str(found.granularity),
            "budget": source.energy_joule / allocator.objective.cost_at_k1,
            "predicted": [predicted.drop, predicted.drop_low, predicted.drop_high],
            "simulated": [simulated.drop, simulated.drop_low, simulated.drop_high],
        }


def energy_for(allocator: Allocator, family: str, drop: float) -> float:
    """Least energy with at most this predicted drop."""

    def small(energy: float) -> bool:
        k = allocator.uniform_k(energy) if family == "uniform" else allocator.solve(energy)[0]
        predicted = allocator.predict(k, family)
        assert predicted is not None
        return predicted.drop <= drop

    lowest = allocator.least_joule * (1.0 + 1e-9)
    return (
        least(small, lowest, max(lowest, allocator.objective.cost_at_k1 * allocator.hardware.repetition.k_max))
        or lowest
    )


def summary(rows: list[dict[str, Any]]) -> str:
    """Mean absolute error and coverage of the pairs with drops up to 5 points."""
    predicted, simulated = (np.array([row[key] for row in rows]) for key in ("predicted", "simulated"))
    kept = simulated[:, 0] <= LARGEST
    error = predicted[kept, 0] - simulated[kept, 0]
    widths = np.hypot(*((values[kept, 2] - values[kept, 1]) / 2.0 for values in (predicted, simulated)))
    covered = int((np.abs(error) <= widths).sum())
    spread = np.abs(error).std(ddof=1) / np.sqrt(len(error))
    return (
        f"{len(error)} K maps with simulated drops up to 5 points ({int((~kept).sum())} above are left out): mean "
        f"absolute error {100 * np.abs(error).mean():.2f} +- {100 * spread:.2f} points, "
        f"mean error {100 * error.mean():+.2f}; {covered} of {len(error)} ({100 * covered / len(error):.0f} %) covered"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Scatter plot of the pairs with their intervals."""
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=(5.5, 5.0))
    for network in dict.fromkeys(row["network"] for row in rows):
        values = [
            100.0 * np.array([row[key] for row in rows if row["network"] == network])
            for key in ("predicted", "simulated")
        ]
        bars = [np.maximum(np.abs(v[:, 1:].T - v[:, 0]), 0.0) for v in values]
        ax.errorbar(values[0][:, 0], values[1][:, 0], bars[1], bars[0], fmt="o", ms=3, lw=0.6, label=network)
    ax.plot([0, 8], [0, 8], color="black", lw=0.8)
    ax.set(
        xlabel="predicted drop, points",
        ylabel="simulated drop on evaluation data, points",
        xlim=(-0.5, 8),
        ylim=(-0.5, 8),
    )
    ax.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--only", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--examples", type=int, default=5000, help="evaluation examples at most")
    parser.add_argument("--calibration-examples", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rows", type=Path, help="JSON lines to keep pairs in")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    if not arguments.fixtures.is_dir():
        print(f"Skipped: no fixtures in {arguments.fixtures}; give their folder with --fixtures.")
        return
    rows = (
        [json.loads(line) for line in arguments.rows.read_text().splitlines()]
        if arguments.rows and arguments.rows.is_file()
        else []
    )
    for network in arguments.only:
        for preset in arguments.presets:
            if any((row["network"], row["hardware"]) == (network, preset) for row in rows):
                continue
            fresh = [
                {"network": network, "hardware": preset, **pair}
                for pair in pairs(arguments.fixtures, network, preset, arguments)
            ]
            rows += fresh
            if arguments.rows:
                with arguments.rows.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in fresh)
    show(rows)
    if arguments.picture:
        draw(rows, arguments.picture)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table and the summaries."""
    table = Table(title="drop in points, 95 % intervals")
    for column in ("network", "hardware", "K", "mean K", "predicted", "simulated"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*(100.0 * np.array(row[key]))) for key in ("predicted", "simulated")]
        table.add_row(row["network"], row["hardware"], row["map"], f"{row['budget']:.3g}", *cells)
    Console(width=130).print(table)
    for network in dict.fromkeys(row["network"] for row in rows):
        print(f"{network}: {summary([row for row in rows if row['network'] == network])}")
    print(f"all: {summary(rows)}")


if __name__ == "__main__":
    main()
