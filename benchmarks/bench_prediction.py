"""Predicted against simulated accuracy drop over many K maps, on evaluation data that took no part in any prediction.

Every fixture network is profiled for all noise kinds at once, and calibrated per hardware and granularity, on its
calibration data alone. K maps (uniform, per layer, per channel) are then allocated at budgets whose predicted drops
run from half a point to 4.5, predicted, and simulated on the evaluation data. Maps of convolutional networks carry bias
corrections; the transformer's do not, since estimating them for every map would take longer than everything else.

Every batch of evaluation examples meets a device of its own, so that weight noise is averaged over devices as
predictions are; noise draws come in pairs of opposite sign, which spread less than independent ones; intervals of
simulated drops are Student's over batches. A pair counts as covered where the difference lies within both 95 %
intervals taken together (root of the sum of squares), since both numbers come from samples of examples; beside it
stands how often the predicted interval alone holds the simulated number. Pairs whose simulated drop is above 5 points
are left out of the summary and counted.

Every K map is predicted twice. Once from the margins of the calibration examples, as `precalloc.allocate` does: one
sample of examples stands for another, which makes most of the error. And once for these very evaluation examples, from
their noiseless margins and labels, as `precalloc.predict` does: no sample stands for another. K, and how margins
respond to noise beyond first order, are of the calibration examples in both.

Prints the table and the summaries, and draws the scatter plot with --picture. With --rows, pairs are kept in that file
as they are found, and calibrated profiles beside it; an interrupted run goes on. Needs the fixtures:

    python benchmarks/bench_prediction.py [--fixtures DIR] [--only kws-dscnn ...] [--rows FILE] [--picture FILE]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit

import precalloc
from precalloc.allocator import Allocator
from precalloc.budgets import Budget, BudgetKind
from precalloc.intervals import paired
from precalloc.network import compensation
from precalloc.network.data import Data
from precalloc.network.data_files import load_data
from precalloc.network.data_parts import first
from precalloc.network.forward import model_device
from precalloc.network.models import load_model
from precalloc.network.noise import NoiseInjector
from precalloc.network.operating_point import Judged, clean_values, noisy_values
from precalloc.network.overlap import unseen
from precalloc.network.preparation import TaskChoices
from precalloc.network.state import derived_seed, untouched
from precalloc.network.tasks import Task
from precalloc.objective import parse_granularity
from precalloc.prediction import Prediction
from precalloc.search import least

DEFAULT_FIXTURES = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
PARTS = ("calib.npz", "eval.npz")
PRESETS = ("homodyne-1550nm", "crossbar-thermal", "crossbar-weight")
LARGEST = 0.05
STREAM = 901
DRAWS, CORRECTED_ON = 2, 256  # of bias corrections: noise draws, calibration examples


@dataclass(frozen=True)
class Effort:
    """Predicted drops at which K maps are simulated; examples, noise draws and batches of simulations.

    ``calibration`` is the number of examples that predictions are calibrated on, ``compensated`` whether K maps carry
    bias corrections.
    """

    drops: tuple[float, ...]
    examples: int
    draws: int
    batch: int
    calibration: int
    compensated: bool = True


EFFORTS = {
    "kws-dscnn": Effort((0.005, 0.01, 0.018, 0.027, 0.036, 0.045), 700, 8, 35, 512),
    "cifar10-resnet20": Effort((0.005, 0.015, 0.028, 0.042), 5000, 1, 50, 512),
    "sst2-minilm": Effort((0.01, 0.03), 872, 4, 32, 256, compensated=False),
}


class Network:
    """One fixture's model with calibration and evaluation data, and what it says of the latter without noise.

    ``seed`` is of the simulated noise.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        effort: Effort,
        data: tuple[Data, Data] | None = None,
        keep: Path | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.name, self.effort, self._keep, self._seed = name, effort, keep, seed
        self.model = load_model(f"{folder / name / 'model.py'}:build").to(device)
        self.calibration, evaluation = data or tuple(load_data(str(folder / name / part)) for part in PARTS)
        self.evaluation = unseen(first(evaluation, effort.examples), self.calibration)

    @cached_property
    def profile(self) -> precalloc.Profile:
        """Profile of the calibration data."""
        return self._kept("profile", lambda: self._profiled(self.calibration))

    @cached_property
    def own_margins(self) -> precalloc.Profile:
        """Profile of the evaluation data, for its margins alone."""
        return self._kept("own", lambda: self._profiled(self.evaluation))

    def _profiled(self, data: Data) -> precalloc.Profile:
        """Profile for the noise kinds of all presets, with the margins of all examples: few are near a boundary."""
        chips = [precalloc.Hardware.load(preset) for preset in PRESETS]
        every = replace(chips[0], noise=tuple(term for chip in chips for term in chip.noise))
        return precalloc.profile(self.model, data, every, prediction_examples=data.examples)

    def calibrated(self, preset: str, granularity: str) -> precalloc.Profile:
        """Profile with predictions calibrated for a hardware and granularity."""
        return self._kept(
            f"{preset}-{granularity}",
            lambda: precalloc.calibrate(
                self.model,
                self.calibration,
                self.profile,
                hardware=precalloc.Hardware.load(preset),
                granularity=granularity,
                compensate=self.effort.compensated,
                examples=self.effort.calibration,
            ),
        )

    def _kept(self, what: str, make: Any) -> precalloc.Profile:
        path = None if self._keep is None else self._keep / f"{self.name}-{what}.npz"
        if path is not None and path.is_file():
            return precalloc.Profile.load(path)
        found: precalloc.Profile = make()
        if path is not None:
            found.save(path)
        return found

    @cached_property
    def clean(self) -> list[tuple[Judged, np.ndarray]]:
        """Every evaluation batch, with the noiseless scores of its examples."""
        found = []
        with untouched(self.model):
            for batch in self.evaluation.batches(self.effort.batch):
                judged = Judged.of(self.model, Task(), batch)
                found.append((judged, clean_values(self.model, Task(), judged)[1]))
        return found

    def simulate(self, kmap: precalloc.KMap) -> list[float]:
        """Drop on the evaluation data and its 95 % interval."""
        drops, sizes = [], []
        device = model_device(self.model)
        with untouched(self.model):
            for index, (judged, clean) in enumerate(self.clean):
                injectors = [
                    NoiseInjector.of(
                        kmap, derived_seed(STREAM + self._seed, index, draw // 2), device, 1.0 - 2.0 * (draw % 2)
                    )
                    for draw in range(self.effort.draws)
                ]
                scores = [noisy_values(self.model, Task(), judged, each)[1] for each in injectors]
                drops.append(float((clean - np.mean(scores, axis=0)).sum()))
                sizes.append(len(clean))
        total, batches = sum(sizes), len(sizes)
        mean = sum(drops) / total
        rest = np.array(drops) - mean * np.array(sizes)
        variance = float(np.square(rest).sum()) * batches / (batches - 1) / total**2
        return [mean, *paired(mean, variance, total, float(stdtrit(batches - 1, 0.975)))]


def pairs(network: Network, preset: str, known: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Predict and simulate the K maps of one network on one hardware that are not known yet."""
    hardware = precalloc.Hardware.load(preset)
    for granularity in ("layer", "channel"):
        cases = [
            (family, drop)
            for family in (("allocated", "uniform") if granularity == "layer" else ("allocated",))
            for drop in network.effort.drops
            if (network.name, preset, granularity if family == "allocated" else family, drop) not in known
        ]
        if not cases:
            continue
        level = parse_granularity(granularity)
        allocator = Allocator.of(network.calibrated(preset, granularity), hardware, level)
        for family, drop in cases:
            yield {
                "network": network.name,
                "hardware": preset,
                "map": granularity if family == "allocated" else family,
                "target": drop,
                **pair(network, allocator, family, drop),
            }


def pair(network: Network, allocator: Allocator, family: str, drop: float) -> dict[str, Any]:
    """Predict, from either examples' margins, and simulate one uniform or allocated K map."""
    found = allocator.within(Budget(BudgetKind.ENERGY, energy_for(allocator, family, drop)))
    source = found.uniform if family == "uniform" else found
    kmap = found.uniform_kmap() if family == "uniform" else found.kmap()
    if network.effort.compensated:
        examples = first(network.calibration, CORRECTED_ON)
        effort = compensation.Effort(DRAWS, derived_seed(STREAM), examples.examples, network.effort.batch)
        estimated = compensation.estimate(network.model, examples, kmap, TaskChoices(), effort, check=False)
        kmap = kmap.compensated(estimated.corrections)
    return {
        "budget": source.energy_joule / allocator.objective.cost_at_k1,
        "predicted": limits(source.predicted),
        "own": limits(precalloc.predict(found, network.own_margins, uniform=family == "uniform")),
        "simulated": network.simulate(kmap),
    }


def limits(predicted: Prediction | None) -> list[float]:
    """Drop and its 95 % interval."""
    assert predicted is not None
    return [predicted.drop, predicted.drop_low, predicted.drop_high]


def energy_for(allocator: Allocator, family: str, drop: float) -> float:
    """Least energy with at most this predicted drop."""

    def excess(energy: float) -> float:
        k = allocator.uniform_k(energy) if family == "uniform" else allocator.solve(energy, quick=True)[0]
        predicted = allocator.predict(k, family)
        assert predicted is not None
        return predicted.drop - drop

    lowest = allocator.least_joule * (1.0 + 1e-9)
    return (
        least(excess, lowest, max(lowest, allocator.objective.cost_at_k1 * allocator.hardware.repetition.k_max))
        or lowest
    )


def single(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Rows with drops up to 5 points and how many are above; K maps that were found twice count once."""
    each = {(row.get("split"), *(row[key] for key in ("network", "hardware", "map", "budget"))): row for row in rows}
    kept = [row for row in each.values() if row["simulated"][0] <= LARGEST]
    return kept, len(each) - len(kept)


def summary(rows: list[dict[str, Any]]) -> str:
    """Mean absolute error and coverage of the pairs with drops up to 5 points."""
    kept, above = single(rows)
    predicted, simulated = (np.array([row[key] for row in kept]) for key in ("predicted", "simulated"))
    error = predicted[:, 0] - simulated[:, 0]
    halves = [(values[:, 2] - values[:, 1]) / 2.0 for values in (predicted, simulated)]
    covered = np.abs(error) <= np.hypot(*halves)
    alone = (predicted[:, 1] <= simulated[:, 0]) & (simulated[:, 0] <= predicted[:, 2])
    of_sampling = math.sqrt(2.0 / math.pi) * halves[1].mean() / 2.0
    return (
        f"{len(error)} K maps with simulated drops up to 5 points ({above} above are left out): {errors(error)} "
        f"(sampling of evaluation examples alone would give {100 * of_sampling:.2f}); "
        f"{covered.sum()} of {len(error)} ({100 * covered.mean():.0f} %) within both intervals, "
        f"{100 * alone.mean():.0f} % within the predicted one alone"
    )


def own_summary(rows: list[dict[str, Any]]) -> str:
    """Error of predictions from the margins of the very examples that were simulated."""
    own, simulated = (np.array([row[key][0] for row in single(rows)[0]]) for key in ("own", "simulated"))
    return f"predicted from the evaluation examples' own margins: {errors(own - simulated)}"


def errors(error: np.ndarray) -> str:
    """Mean absolute error with its spread over K maps, and mean error."""
    spread = np.abs(error).std(ddof=1) / math.sqrt(len(error))
    absolute = f"{100 * np.abs(error).mean():.2f} +- {100 * spread:.2f}"
    return f"mean absolute error {absolute} points, mean error {100 * error.mean():+.2f}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Scatter plots of the pairs with their intervals: predicted from the calibration examples, and from their own."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.0, 4.4), sharey=True, layout="constrained")
    titles = {"predicted": "from the calibration examples", "own": "from the examples' own margins"}
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        for network in dict.fromkeys(row["network"] for row in rows):
            values = [
                100.0 * np.array([row[each] for row in rows if row["network"] == network])
                for each in (key, "simulated")
            ]
            bars = [np.maximum(np.abs(v[:, 1:].T - v[:, 0]), 0.0) for v in values]
            ax.errorbar(values[0][:, 0], values[1][:, 0], bars[1], bars[0], fmt="o", ms=3, lw=0.6, label=network)
        ax.plot([0, 7], [0, 7], color="black", lw=0.8)
        ax.set(xlabel="predicted drop, points", xlim=(-1.0, 7.0), ylim=(-1.0, 7.0), title=title)
    axes[0].set_ylabel("simulated drop on evaluation data, points")
    axes[0].legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--only", nargs="+", default=list(EFFORTS), choices=list(EFFORTS))
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--rows", type=Path, help="JSON lines to keep pairs in; profiles are kept beside it")
    parser.add_argument("--kept", action="store_true", help="print what is kept in --rows, and run nothing")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--device", default="cpu", help="where the networks run; noise differs between kinds of device")
    arguments = parser.parse_args()
    if not arguments.fixtures.is_dir():
        print(f"Skipped: no fixtures in {arguments.fixtures}; give their folder with --fixtures.")
        return
    kept = arguments.rows is not None and arguments.rows.is_file()
    rows = read(arguments.rows) if kept else []
    known = {(row["network"], row["hardware"], row["map"], row["target"]) for row in rows}
    for name in [] if arguments.kept else arguments.only:
        keep = arguments.rows.parent if arguments.rows else None
        network = Network(arguments.fixtures, name, EFFORTS[name], keep=keep, device=arguments.device)
        for preset in arguments.presets:
            for row in pairs(network, preset, known):
                rows.append(row)
                if arguments.rows:
                    with arguments.rows.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    show(rows)
    if arguments.picture:
        draw(rows, arguments.picture)


def read(path: Path) -> list[dict[str, Any]]:
    """Pairs that were kept in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table and the summaries."""
    table = Table(title="drop in points, 95 % intervals")
    for column in ("network", "hardware", "K", "mean K", "predicted", "from own margins", "simulated"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        values = (100.0 * np.array(row[key]) for key in ("predicted", "own", "simulated"))
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*value) for value in values]
        table.add_row(row["network"], row["hardware"], row["map"], f"{row['budget']:.3g}", *cells)
    Console(width=130).print(table)
    for network in dict.fromkeys(row["network"] for row in rows):
        some = [row for row in rows if row["network"] == network]
        print(f"{network}: {summary(some)}; {own_summary(some)}")
    print(f"all: {summary(rows)}; {own_summary(rows)}")
    print("K maps of one network share its examples, so their errors go together; the spread is over K maps alone.")


if __name__ == "__main__":
    main()
