"""Accuracy at equal energy: uniform K against precalloc's per layer and per channel, simulated on evaluation data.

Prints one row a K map: drop against the clean network in points with its 95 % interval (examples and noise draws), and
the seconds that choosing took. As ``precalloc allocate`` does, K maps are compensated and, where noise is not of
weights alone, refined; those of curvature alone stand beside them. K is chosen on the calibration data alone, and
evaluation examples that are in it too are left out. Needs the fixtures (CIFAR-10 ResNet20 and keyword-spotting DS-CNN,
trained, with their data), by default in ``../shared/fixtures`` beside the repository:

    python -m benchmarks.bench_accuracy [--fixtures DIR] [--network NAME] [--seeds N]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import precalloc
from benchmarks.bench_least_energy import DEFAULT_FIXTURES
from precalloc.allocation import Allocation
from precalloc.kmaps import KMap
from precalloc.network.data import Data
from precalloc.network.data_files import load_data
from precalloc.network.models import load_model
from precalloc.network.overlap import unseen
from precalloc.refinements import is_promising

CASES = (
    ("cifar10-resnet20", "homodyne-1550nm", "15x"),
    ("cifar10-resnet20", "crossbar-thermal", "3x"),
    ("cifar10-resnet20", "crossbar-weight", "8x"),
    ("kws-dscnn", "homodyne-1550nm", "20x"),
    ("kws-dscnn", "crossbar-thermal", "20x"),
    ("kws-dscnn", "crossbar-weight", "32x"),
)
Plan = tuple[str, Allocation | KMap, float | None]


def plans(model: nn.Module, calibration: Data, preset: str, budget: str) -> Iterator[Plan]:
    """Every K map of a case with its name and the seconds that choosing it took (None for uniform K)."""
    start, hardware = time.perf_counter(), precalloc.Hardware.load(preset)
    profile, refines = precalloc.profile(model, calibration, hardware), is_promising(hardware)
    profiled = time.perf_counter() - start
    for granularity in ("layer", "channel"):
        start = time.perf_counter() - profiled
        found = precalloc.allocate(profile, budget, granularity=granularity)
        plain = time.perf_counter() - start
        if granularity == "layer":
            yield "uniform", found.uniform_kmap(), None
        yield granularity, found, plain
        start = time.perf_counter() - plain
        compensated = precalloc.compensate(model, calibration, found, check=not refines)
        chosen = precalloc.refine(model, calibration, profile, compensated) if refines else compensated
        seconds = time.perf_counter() - start
        if granularity == "layer":
            yield "uniform, compensated", compensated.uniform_kmap(), None
        yield f"{granularity}, compensated{', refined' if refines else ''}", chosen, seconds


def rows(fixtures: Path, fixture: str, preset: str, budget: str, seeds: int) -> Iterator[tuple[str, ...]]:
    """Simulate one case."""
    spec = fixtures / fixture
    model = load_model(f"{spec / 'model.py'}:build")
    calibration = load_data(str(spec / "calib.npz"))
    evaluation = unseen(load_data(str(spec / "eval.npz")), calibration)
    for name, plan, seconds in plans(model, calibration, preset, budget):
        simulated = precalloc.validate(model, evaluation, plan, seeds=seeds)
        drop = f"{100 * simulated.drop:.1f} [{100 * simulated.drop_low:.1f}, {100 * simulated.drop_high:.1f}]"
        yield fixture, preset, budget, name, drop, "" if seconds is None else f"{seconds:.1f}"


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--network", choices=sorted({case[0] for case in CASES}), help="this one alone")
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    if not arguments.fixtures.is_dir():
        print(f"Skipped: no fixtures in {arguments.fixtures}; give their folder with --fixtures.")
        return
    table = Table(title=f"drop in points, {arguments.seeds} noise draws, 95 % intervals")
    for column in ("model", "hardware", "budget", "K", "drop", "seconds"):
        table.add_column(column, no_wrap=True)
    cases = [case for case in CASES if arguments.network in (None, case[0])]
    for case in track(cases, console=Console(stderr=True)):
        for row in rows(arguments.fixtures, *case, arguments.seeds):
            table.add_row(*row)
            print(" | ".join(row), flush=True)  # long runs show what they have
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
