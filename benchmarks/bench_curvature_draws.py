"""How far damages go apart from one seed to the next: labels drawn from the model, and by what they tell.

Both draws give unbiased curvature (`precalloc.network.criteria.draw_classes`); what differs is chance. The spread is
the standard deviation over seeds in per cent of the mean: of the sum of all channels' damages, which sets predicted
drops, and the median over channels of their shares of it, which set K. Its own error is one standard deviation
(spread / sqrt(2 (seeds - 1)); of a median less). Needs the fixtures, by default in ``../shared/fixtures`` beside the
repository:

    python -m benchmarks.bench_curvature_draws [--cases kws-dscnn:shot] [--calibration N] [--seeds N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import precalloc
from benchmarks.bench_least_energy import DEFAULT_FIXTURES, PRESETS, first, without_padding
from precalloc.network.criteria import Classification
from precalloc.network.data_files import load_data
from precalloc.network.models import load_model
from precalloc.network.tasks import Task

CASES = ("kws-dscnn:shot", "cifar10-resnet20:shot", "sst2-minilm:shot")


class FromModel(Classification):
    """Labels drawn from the model's own predictions (Martens 2020, section 9)."""

    def sampled_loss(self, output, reference, draws):  # noqa: ARG002
        """Sum of +-cross-entropy against a label drawn from the model."""
        cumulative = output.detach().double().softmax(1).cumsum(1)
        labels = (draws.uniform()[:, None] > cumulative).sum(1).clamp(max=output.shape[1] - 1)
        return (F.cross_entropy(output, labels, reduction="none") * draws.signs().to(output.dtype)).sum()


def damages(fixtures: Path, case: str, calibration: int, criterion: Classification, seeds: int) -> np.ndarray:
    """Damage of every channel, (seeds, channels)."""
    fixture, noise = case.split(":")
    model = load_model(f"{fixtures / fixture / 'model.py'}:build")
    data = without_padding(first(load_data(str(fixtures / fixture / "calib.npz")), calibration))
    hardware = precalloc.Hardware.load(PRESETS[noise])
    found = [
        precalloc.profile(model, data, hardware, margins=0, seed=seed, task=Task(criterion)) for seed in range(seeds)
    ]
    return np.array([sum(profile.damage.values()) for profile in found])


def spread(values: np.ndarray) -> float:
    """Standard deviation over seeds in per cent of the mean, the median over columns."""
    used = values[:, values.mean(0) > 0.0]
    return float(np.median(100.0 * used.std(0, ddof=1) / used.mean(0)))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="network:noise")
    parser.add_argument("--calibration", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=8)
    arguments = parser.parse_args()
    if not arguments.fixtures.is_dir():
        print(f"Skipped: no fixtures in {arguments.fixtures}; give their folder with --fixtures.")
        return
    torch.set_num_threads(1)
    title = f"spread of damages over {arguments.seeds} seeds, {arguments.calibration} examples, in per cent"
    table = Table(title=title)
    for column in ("network", "labels drawn", "sum of all", "a channel's share"):
        table.add_column(column, no_wrap=True)
    for case in arguments.cases:
        for name, criterion in (("from the model", FromModel()), ("by what they tell", Classification())):
            found = damages(arguments.fixtures, case, arguments.calibration, criterion, arguments.seeds)
            total = found.sum(1, keepdims=True)
            each = (spread(total), spread(found / total))
            error = 1.0 / np.sqrt(2.0 * (arguments.seeds - 1))
            table.add_row(case, name, *(f"{value:.1f} ± {value * error:.1f}" for value in each))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
