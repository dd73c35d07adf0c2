"""Where refinement earns its place: what it wins over curvature's K map, by noise kind, granularity and budget.

Every refinement is judged as it judges itself: by the loss under noise on the third of the calibration examples that
its steps did not see. Evaluation data takes no part. Each budget is refined with several seeds of the noise, in steps
and comparison; the gain is the mean over them with its range, "kept" counts those whose refined map had the lower loss,
and "surely" those whose 95 % interval over examples and draws lies on one side of zero. No bias corrections.

With ``--compensated`` the starts have bias corrections. What these win alone, and what refinement then has made of them
and of K, is told as the gain over the same start without any, on the same third of the examples under noise that took
no part in the choice. Needs the fixtures, by default in ``../shared/fixtures`` beside the repository:

    python -m benchmarks.bench_refinement [--cases kws-dscnn:shot] [--budgets 4 8 16 32 64] [--seeds 3] [--compensated]
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
from precalloc.network.comparison import Comparison
from precalloc.network.data_files import load_data
from precalloc.network.models import load_model
from precalloc.network.preparation import TaskChoices, prepared
from precalloc.network.splitting import hold_out

CASES = ("kws-dscnn:shot", "kws-dscnn:thermal", "kws-dscnn:weight", "cifar10-resnet20:weight")
CALIBRATION = 300
# Seed of the noise that judges compensated K maps: of neither their steps nor their comparison.
JUDGED = 10_000
COLUMNS = {
    False: ("network", "noise", "K per", "mean K", "gain, mean and range", "kept", "surely"),
    True: ("network", "noise", "K per", "mean K", "corrections", "scaled and refined", "K kept"),
}


class Case:
    """One network under one noise, with its calibration examples and their profile."""

    def __init__(self, folder: Path, noise: str) -> None:
        self.hardware = precalloc.Hardware.load(PRESETS[noise])
        self.model = load_model(f"{folder / 'model.py'}:build")
        self.calibration = first(load_data(str(folder / "calib.npz")), CALIBRATION)
        self.profile = precalloc.profile(self.model, self.calibration, self.hardware, margins=0)

    def start(self, granularity: str, budget: float) -> precalloc.Allocation:
        """Curvature's allocation."""
        return precalloc.allocate(self.profile, f"{budget}x", hardware=self.hardware, granularity=granularity)

    def refined(self, start: precalloc.Allocation, seed: int) -> precalloc.Allocation:
        """What refinement makes of a start."""
        return precalloc.refine(self.model, self.calibration, self.profile, start, seed=seed)

    def plain(self, start: precalloc.Allocation, seeds: int) -> tuple[str, ...]:
        """Gains of refinement without corrections."""
        seen = [self.refined(start, seed).refinement for seed in range(seeds)]
        lower, higher = (sum(sure) for sure in zip(*((s.gain_low > 0, s.gain_high < 0) for s in seen), strict=True))
        kept = f"{sum(each.kept for each in seen)} of {seeds}"
        return spread([each.gain for each in seen]), kept, f"{lower} better, {higher} worse"

    def compensated(self, bare: precalloc.Allocation, seeds: int) -> tuple[str, ...]:
        """Gains of corrections, and of what refinement makes of them and of K."""
        alone, both, kept = [], [], 0
        for seed in range(seeds):
            found = precalloc.compensate(self.model, self.calibration, bare.kmap(), seed=seed, check=False)
            start = bare.with_bias_corrections(found.bias_corrections, {})
            refined = self.refined(start, seed)
            held_out, kmaps = hold_out(self.calibration)[1], [plan.kmap() for plan in (bare, start, refined)]
            with prepared(self.model, held_out, kmaps[0], TaskChoices(), 32) as ready:
                seen = Comparison.of(ready, held_out, kmaps, [JUDGED + seed], 32)
            alone.append(seen.gain(1, over=0)[0])
            both.append(seen.gain(2, over=0)[0])
            kept += refined.refinement.kept
        return spread(alone), spread(both), f"{kept} of {seeds}"


def spread(values: list[float]) -> str:
    """Mean and range."""
    return f"{np.mean(values):+.3f} [{min(values):+.3f}, {max(values):+.3f}]"


def rows(folder: Path, noise: str, budgets: list[float], seeds: int, compensated: bool) -> Iterator[tuple[str, ...]]:
    """Gains of one network under one noise, a row for each granularity and budget."""
    case = Case(folder, noise)
    measure = case.compensated if compensated else case.plain
    for granularity in ("layer", "channel"):
        for budget in budgets:
            found = measure(case.start(granularity, budget), seeds)
            yield folder.name, noise, granularity, f"{budget:g}", *found


def main() -> None:
    """Refine at all budgets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="network:noise")
    parser.add_argument("--budgets", type=float, nargs="+", default=[4.0, 8.0, 16.0, 32.0, 64.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--compensated", action="store_true", help="start with bias corrections")
    arguments = parser.parse_args()
    if not arguments.fixtures.is_dir():
        print(f"Skipped: no fixtures in {arguments.fixtures}; give their folder with --fixtures.")
        return
    torch.set_num_threads(1)
    table = Table(title=f"gain in loss by refinement, held-out calibration examples, {arguments.seeds} seeds")
    for column in COLUMNS[arguments.compensated]:
        table.add_column(column, no_wrap=True)
    for fixture, noise in (name.split(":") for name in arguments.cases):
        for row in rows(arguments.fixtures / fixture, noise, arguments.budgets, arguments.seeds, arguments.compensated):
            table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
