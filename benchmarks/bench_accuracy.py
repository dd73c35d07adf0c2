"""Accuracy at equal energy: uniform K against precalloc's per layer and per channel, simulated on evaluation data.

Prints one row a case: drop against the clean network in points with its 95 % interval (examples and noise draws), the
drop that was predicted from the profile, and the seconds of the profile. Needs the fixtures (CIFAR-10 ResNet20 and
keyword-spotting DS-CNN, trained, with their data), by default in ``../shared/fixtures`` beside the repository:

    python benchmarks/bench_accuracy.py [--fixtures DIR] [--seeds N]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

import precalloc
from precalloc.allocation import Allocation
from precalloc.network.data_files import load_data
from precalloc.network.models import load_model

DEFAULT_FIXTURES = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
CASES = (
    ("cifar10-resnet20", "homodyne-1550nm", "15x"),
    ("cifar10-resnet20", "crossbar-thermal", "3x"),
    ("cifar10-resnet20", "crossbar-weight", "8x"),
    ("kws-dscnn", "homodyne-1550nm", "20x"),
    ("kws-dscnn", "crossbar-thermal", "20x"),
    ("kws-dscnn", "crossbar-weight", "32x"),
)


def rows(fixtures: Path, fixture: str, preset: str, budget: str, seeds: int) -> list[tuple[str, ...]]:
    """Simulate one case: uniform, per layer, per channel."""
    spec = fixtures / fixture
    model = load_model(f"{spec / 'model.py'}:build")
    calibration, evaluation = load_data(str(spec / "calib.npz")), load_data(str(spec / "eval.npz"))
    hardware = precalloc.Hardware.load(preset)
    start = time.perf_counter()
    profile = precalloc.profile(model, calibration, hardware)
    seconds = time.perf_counter() - start
    layer = precalloc.allocate(profile, budget, hardware=hardware)
    channel = precalloc.allocate(profile, budget, hardware=hardware, granularity="channel")
    plans = (("uniform", layer.uniform_kmap(), layer.uniform), ("layer", layer, layer), ("channel", channel, channel))
    result = []
    for name, plan, source in plans:
        simulated = precalloc.validate(model, evaluation, plan, seeds=seeds)
        predicted = source.predicted
        assert predicted is not None
        interval = f"[{100 * simulated.drop_low:.1f}, {100 * simulated.drop_high:.1f}]"
        energy = source.energy_joule / layer.macs
        measured = f"{100 * simulated.drop:.1f} {interval}"
        took = f"{seconds:.1f}" if isinstance(source, Allocation) else ""
        result.append(
            (fixture, preset, budget, name, f"{energy * 1e18:.3g}", measured, f"{100 * predicted.drop:.1f}", took)
        )
    return result


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    if not arguments.fixtures.is_dir():
        print(f"Skipped: no fixtures in {arguments.fixtures}; give their folder with --fixtures.")
        return
    table = Table(title=f"drop in points, {arguments.seeds} noise draws, 95 % intervals")
    for column in ("model", "hardware", "budget", "K", "aJ/MAC", "drop", "predicted", "profile s"):
        table.add_column(column, no_wrap=True)
    console = Console(width=130)
    for case in track(CASES, console=Console(stderr=True)):
        for row in rows(arguments.fixtures, *case, arguments.seeds):
            table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
