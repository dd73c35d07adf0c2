"""How far the linearised noise of the margins holds, from vanishing noise to strong.

Printed per K (uniform, without bias corrections): the variance of the nearest margin over noise draws, which come in
pairs of opposite noise, against the linearised one, as the ratio of their means over examples; by how much mean margins
shrink (slope of their change over the margin itself, beside shifts by class, where noise reaches it); the drop,
linearised and simulated on the same calibration examples. With --sites also the ratio of variances with noise at one
site alone, at the last K. Needs the fixtures:

    python benchmarks/bench_linearisation.py [--network kws-dscnn] [--preset NAME] [--k 10 100 1e6] [--sites]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import precalloc
from precalloc.calibration import SimulatedPoint
from precalloc.kmaps import KMap
from precalloc.network.data_files import load_data
from precalloc.network.data_parts import first
from precalloc.network.models import load_model
from precalloc.network.noisy_margins import NoisyMargins
from precalloc.network.preparation import TaskChoices, prepared
from precalloc.objective import Granularity
from precalloc.prediction import Predictor

DEFAULT_FIXTURES = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
NOISELESS = 1e30


class Case:
    """One network on one hardware."""

    def __init__(self, folder: Path, preset: str, examples: int, draws: int) -> None:
        self.model, self.draws = load_model(f"{folder / 'model.py'}:build"), draws
        self.data = first(load_data(str(folder / "calib.npz")), examples)
        self.profile = precalloc.profile(self.model, self.data, precalloc.Hardware.load(preset))
        self.predictor = Predictor.of(self.profile, self.profile.hardware, Granularity.LAYER)
        self.kmap = precalloc.allocate(self.profile, "64x").uniform_kmap()
        self.names = [site.name for site in self.profile.sites]

    def compare(self, k: np.ndarray) -> tuple[float, float, SimulatedPoint]:
        """Ratio of variances with its standard error over examples, and the simulated point."""
        repetitions = {name: np.array([own]) for name, own in zip(self.names, k, strict=True)}
        kmap: KMap = replace(self.kmap, repetitions=repetitions)
        with prepared(self.model, self.data, kmap, TaskChoices(), 64) as ready:
            margins = NoisyMargins(ready, self.data, 64, self.predictor.margins.shape[1]).under(kmap, self.draws, 0)
        linearised = self.predictor.moments(k)[1][:, 0, 0]
        pairs = margins[:, :, 0].reshape(-1, 2, margins.shape[1])
        odd, even = (pairs[:, 0] - pairs[:, 1]) / 2.0, pairs.mean(axis=1)
        seen = np.square(odd).mean(axis=0) + even.var(axis=0, ddof=1)
        ratio = seen.sum() / linearised.sum()
        error = (seen - ratio * linearised).std() * len(seen) ** 0.5 / linearised.sum()
        return float(ratio), float(error), SimulatedPoint.of(self.predictor, k, margins)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--network", default="kws-dscnn")
    parser.add_argument("--preset", default="homodyne-1550nm")
    parser.add_argument("--k", nargs="+", type=float, default=[10.0, 30.0, 100.0, 1e3, 1e5, 1e7])
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--draws", type=int, default=16, help="an even number, four at least")
    parser.add_argument("--sites", action="store_true")
    arguments = parser.parse_args()
    if not arguments.fixtures.is_dir():
        print(f"Skipped: no fixtures in {arguments.fixtures}; give their folder with --fixtures.")
        return
    case = Case(arguments.fixtures / arguments.network, arguments.preset, arguments.examples, arguments.draws)
    table = Table(title=f"{arguments.network}, {arguments.preset}, {len(case.predictor.margins)} examples")
    for column in ("K", "variance / linearised", "mean margins", "drop linearised", "drop simulated"):
        table.add_column(column, no_wrap=True)
    for k in arguments.k:
        ratio, error, point = case.compare(np.full(len(case.names), k))
        gain = f"{100 * point.gain:+.1f} +- {100 * point.gain_variance**0.5:.1f} %"
        drops = f"{100 * point.linearised:.2f}", f"{100 * point.simulated:.2f}"
        table.add_row(f"{k:g}", f"{ratio:.3f} +- {error:.3f}", gain, *drops)
    Console(width=130).print(table)
    for index, name in enumerate(case.names if arguments.sites else []):
        alone = np.full(len(case.names), NOISELESS)
        alone[index] = arguments.k[-1]
        ratio, error, _ = case.compare(alone)
        print(f"{name} alone, K = {arguments.k[-1]:g}: {ratio:.3f} +- {error:.3f}")


if __name__ == "__main__":
    main()
