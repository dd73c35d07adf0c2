"""Where refinement earns its place: what it wins over curvature's K map, by noise kind, granularity and budget.

Every refinement is judged as it judges itself: by the loss under noise on the third of the calibration examples that
its steps did not see. Evaluation data takes no part. Each budget is refined with several seeds of the noise, in steps
and comparison; the gain is the mean over them with its range, "kept" counts those whose refined map had the lower loss,
and "surely" those whose 95 % interval over examples and draws lies on one side of zero. No bias corrections. Needs the
fixtures, by default in ``../shared/fixtures`` beside the repository:

    python -m benchmarks.bench_refinement [--cases kws-dscnn:shot] [--budgets 4 8 16 32 64] [--seeds 3]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import precalloc
from benchmarks.bench_least_energy import DEFAULT_FIXTURES, PRESETS, first
from precalloc.network.data_files import load_data
from precalloc.network.models import load_model

CASES = ("kws-dscnn:shot", "kws-dscnn:thermal", "kws-dscnn:weight", "cifar10-resnet20:weight")
CALIBRATION = 300


def rows(folder: Path, noise: str, budgets: list[float], seeds: int) -> Iterator[tuple[str, ...]]:
    """Gains of one network under one noise, a row for each granularity and budget."""
    hardware = precalloc.Hardware.load(PRESETS[noise])
    model = load_model(f"{folder / 'model.py'}:build")
    calibration = first(load_data(str(folder / "calib.npz")), CALIBRATION)
    profile = precalloc.profile(model, calibration, hardware, margins=0)
    for granularity in ("layer", "channel"):
        for budget in budgets:
            start = precalloc.allocate(profile, f"{budget}x", hardware=hardware, granularity=granularity)
            seen = [precalloc.refine(model, calibration, profile, start, seed=seed).refinement for seed in range(seeds)]
            gain = np.array([each.gain for each in seen])
            lower, higher = (sum(sure) for sure in zip(*((s.gain_low > 0, s.gain_high < 0) for s in seen), strict=True))
            yield (
                folder.name,
                noise,
                granularity,
                f"{budget:g}",
                f"{gain.mean():+.3f} [{gain.min():+.3f}, {gain.max():+.3f}]",
                f"{sum(each.kept for each in seen)} of {seeds}",
                f"{lower} better, {higher} worse",
            )


def main() -> None:
    """Refine at all budgets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="network:noise")
    parser.add_argument("--budgets", type=float, nargs="+", default=[4.0, 8.0, 16.0, 32.0, 64.0])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if not arguments.fixtures.is_dir():
        print(f"Skipped: no fixtures in {arguments.fixtures}; give their folder with --fixtures.")
        return
    torch.set_num_threads(1)
    table = Table(title=f"gain in loss by refinement, held-out calibration examples, {arguments.seeds} seeds")
    for column in ("network", "noise", "K per", "mean K", "gain, mean and range", "kept", "surely"):
        table.add_column(column, no_wrap=True)
    for fixture, noise in (name.split(":") for name in arguments.cases):
        for row in rows(arguments.fixtures / fixture, noise, arguments.budgets, arguments.seeds):
            table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
