"""K alone, on hardware that adds no biases digitally: accuracy drop of uniform K, of curvature's K, and of the default.

The default of ``precalloc allocate MODEL`` on such hardware is curvature's K map, refined under its own noise, with
uniform K in its place where that is seen to be better on held-out calibration data. All three have the same energy.
Drops are simulated on the evaluation data, less the examples that are in the calibration data too, with 95 % intervals
over examples and noise draws. Needs the fixtures, by default in ``../shared/fixtures`` beside the repository:

    python benchmarks/bench_k_only.py [--case kws-dscnn:shot] [--budgets 5 10 20 40 80 160] [--granularity layer]
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

import precalloc
from benchmarks.bench_least_energy import DEFAULT_FIXTURES, PRESETS
from precalloc.network.data_files import load_data
from precalloc.network.models import load_model
from precalloc.network.overlap import unseen


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Drops at one budget after the other."""
    fixture, noise = arguments.case.split(":")
    folder = arguments.fixtures / fixture
    hardware = dataclasses.replace(precalloc.Hardware.load(PRESETS[noise]), digital_biases=False)
    model, calibration = load_model(f"{folder / 'model.py'}:build"), load_data(str(folder / "calib.npz"))
    evaluation = unseen(load_data(str(folder / "eval.npz")), calibration)
    profile = precalloc.profile(model, calibration, hardware, margins=0)

    def drop(kmap) -> str:
        found = precalloc.validate(model, evaluation, kmap, seeds=arguments.seeds, seed=1000)
        return f"{100 * found.drop:.1f} [{100 * found.drop_low:.1f}, {100 * found.drop_high:.1f}]"

    for budget in arguments.budgets:
        start = precalloc.allocate(profile, f"{budget}x", hardware=hardware, granularity=arguments.granularity)
        refined = precalloc.refine(model, calibration, profile, start)
        kept = precalloc.safeguard(model, calibration, profile, refined)
        what = "refined" if refined.refinement.kept else "curvature"
        what = "uniform" if (kept.repetitions == kept.repetitions[0]).all() else what
        yield f"{budget}x", drop(start.uniform_kmap()), drop(start.kmap()), drop(kept.kmap()), what


def main() -> None:
    """Run the budgets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--case", default="kws-dscnn:shot")
    parser.add_argument("--budgets", type=float, nargs="+", default=[5, 10, 20, 40, 80, 160])
    parser.add_argument("--granularity", default="layer")
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    if not arguments.fixtures.is_dir():
        print(f"Skipped: no fixtures in {arguments.fixtures}; give their folder with --fixtures.")
        return
    table = Table(title=f"{arguments.case} per {arguments.granularity}, no corrections: drop in points")
    for column in ("budget", "uniform", "curvature", "default", "which is"):
        table.add_column(column, no_wrap=True)
    for row in rows(arguments):
        table.add_row(*row)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
