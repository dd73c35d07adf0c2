"""Least energy for an accuracy drop of at most 1 and 2 points: uniform K, the paper's learning, and precalloc.

Every method chooses K on the calibration data alone. Its accuracy is simulated on the evaluation data, less the
examples that are in the calibration data too, on a ladder of budgets that is climbed until drops on both sides of both
wanted ones are seen. Drops are interpolated over log energy, the running minimum from the left, and the least energy is
given relative to that of uniform K. Its 95 % interval is a bootstrap over examples and noise draws, paired: all methods
see the same resampled examples and draws; a star marks cells where more than 2.5 % of the resamples lie beyond a
ladder's end, which then stands in for them. "Worse" counts the budgets at which a method has a surely higher drop than
uniform K of the same energy, of those with drops up to 15 points. Seconds are of one thread's CPU: for precalloc
profile, allocation and refinement of one budget; for the paper's method its learning.

The paper's method (`precalloc.network.estimators.learned`, penalty variant) learns for one budget, near where it
reaches the wanted drops; at the others the ratios of its K are kept. Compensated methods have bias corrections on top;
precalloc's refinement moves K with them at work. Both choose on the same calibration examples. Where all noise is of
weights, refinement wins little or loses (`bench_refinement`) and precalloc is curvature's K map as it is.

K is integer on the crossbars and continuous with homodyne detection, as the presets say. Sentences are run in batches
of like length, without the padding that the fixture's arrays have. Needs the fixtures, by default in
``../shared/fixtures`` beside the repository. Whatever was measured is kept in the file of ``--results``, and a run with
the same file goes on from there:

    python benchmarks/bench_least_energy.py --results FILE [--cases kws-dscnn:shot] [--methods uniform precalloc-layer]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import precalloc
from precalloc.accuracy import paired_difference
from precalloc.allocation import Allocation
from precalloc.errors import BudgetError
from precalloc.network.batches import join
from precalloc.network.compensation import compensate
from precalloc.network.data import ArrayData, Data, as_data
from precalloc.network.data_files import load_data
from precalloc.network.data_parts import first as first_of
from precalloc.network.estimators import Learned
from precalloc.network.forward import model_device
from precalloc.network.models import load_model
from precalloc.network.noise import NoiseInjector
from precalloc.network.operating_point import References, clean_values, noisy_values
from precalloc.network.overlap import unseen
from precalloc.network.refinement import STEP_EXAMPLES
from precalloc.network.state import untouched
from precalloc.network.tasks import Task
from precalloc.refinements import is_promising
from precalloc.workflow import require_fresh

DEFAULT_FIXTURES = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
PRESETS = {"thermal": "crossbar-thermal", "weight": "crossbar-weight", "shot": "homodyne-1550nm"}
# Mean repetitions where the ladders start, and for which the paper's method learns: near a drop of 2 points.
CASES = {
    ("kws-dscnn", "shot"): {"uniform": 60.0, "layer": 40.0, "channel": 15.0},
    ("kws-dscnn", "thermal"): {"uniform": 60.0, "layer": 30.0, "channel": 15.0},
    ("kws-dscnn", "weight"): {"uniform": 60.0, "layer": 35.0, "channel": 20.0},
    ("cifar10-resnet20", "shot"): {"uniform": 30.0, "layer": 12.0, "channel": 9.0},
    ("cifar10-resnet20", "thermal"): {"uniform": 3.0, "layer": 2.0, "channel": 2.0},
    ("cifar10-resnet20", "weight"): {"uniform": 18.0, "layer": 8.0, "channel": 6.0},
    ("sst2-minilm", "shot"): {"uniform": 40.0, "layer": 25.0, "channel": 18.0},
    ("sst2-minilm", "thermal"): {"uniform": 150.0, "layer": 90.0, "channel": 70.0},
    ("sst2-minilm", "weight"): {"uniform": 20.0, "layer": 10.0, "channel": 7.0},
}
METHODS = tuple(
    f"{method}{compensated}"
    for compensated in ("", "+compensated")
    for method in ("uniform", "paper-layer", "paper-channel", "precalloc-layer", "precalloc-channel")
)
RUNG = 1.5
RUNGS = 12
DROPS = (0.01, 0.02)
TOLERABLE = 0.15
# Sentences cut to one length: whole steps of the paper's method, and of refinement, which holds a third out.
LIKE = 96
# Examples at a time in simulation.
EVALUATED = 100
SEED = 1000


_STDERR = Console(stderr=True)


def report(line: str) -> None:
    """Tell how far the run is."""
    _STDERR.print(line, highlight=False)


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    calibration: int
    examples: int
    seeds: int
    learning_steps: int
    refining: tuple[int, int] | None = None
    """Steps of refinement and examples of each; None for the defaults."""


class Results:
    """Records of what was measured, one a line of JSON; a run goes on from the file of an earlier one."""

    def __init__(self, path: Path) -> None:
        self._path, self.folder = path, path.with_suffix(".profiles")
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._known = {json.dumps(entry["key"]): entry["value"] for entry in map(json.loads, lines)}

    def get(self, key: list[object], measure) -> dict:
        """Look a measurement up, or make and keep it."""
        name = json.dumps(key)
        if name not in self._known:
            self._known[name] = json.loads(json.dumps(measure()))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "value": self._known[name]}) + "\n")
        return self._known[name]


def first(data: ArrayData, count: int) -> ArrayData:
    """The first examples as the file has them; `data_parts.first` takes them in canonical order."""
    return ArrayData({name: value[:count] for name, value in data.inputs.items()}, data.labels[:count])


def without_padding(data: Data) -> Data:
    """Sentences in batches of like length, each as long as its longest; other data as it is."""
    whole = join(list(data.batches(100)))
    if "attention_mask" not in whole.inputs:
        return data
    lengths = whole.inputs["attention_mask"].sum(1)
    parts = []
    for some in torch.argsort(lengths, stable=True).split(LIKE):
        part, longest = whole.rows(some), int(lengths[some].max())
        parts.append(({name: value[:, :longest] for name, value in part.inputs.items()}, part.labels))
    return as_data(parts)


class Case:
    """One network under one noise."""

    def __init__(self, fixtures: Path, fixture: str, noise: str, effort: Effort, results: Results) -> None:
        folder = fixtures / fixture
        self.fixture, self.noise, self.effort, self.results = fixture, noise, effort, results
        self.model = load_model(f"{folder / 'model.py'}:build")
        calibration = first(load_data(str(folder / "calib.npz")), effort.calibration)
        evaluation = unseen(first(load_data(str(folder / "eval.npz")), effort.examples), calibration)
        self.calibration, self.evaluation = without_padding(calibration), without_padding(evaluation)
        self.references = References(self.model, Task())
        self.hardware = precalloc.Hardware.load(PRESETS[noise])
        self.centres = CASES[fixture, noise]
        self._profiles: dict[str, tuple[precalloc.Profile, float]] = {}

    def centre(self, method: str) -> float:
        """Mean repetitions where a method's ladder starts and, if it learns, for which it does."""
        return self.centres[method.partition("+")[0].rpartition("-")[2]]

    def key(self, *rest: object) -> list[object]:
        """Name of a measurement in the results."""
        effort = self.effort
        of_refining = effort.refining is not None and str(rest[0]).startswith("precalloc")
        refining = [list(effort.refining)] if of_refining else []
        return [self.fixture, self.noise, effort.calibration, effort.examples, effort.seeds, *rest, *refining]

    def profile(self, method: str) -> tuple[precalloc.Profile, float]:
        """Profile that a method allocates by, and the seconds that it took; kept beside the results."""
        learned = method.startswith("paper")
        name = f"{self.fixture}-{self.noise}-{self.effort.calibration}-{method if learned else 'curvature'}"
        if learned:
            name = f"{name}-{self.effort.learning_steps}-{self.centre(method):g}x"
        if name not in self._profiles:
            path = self.results.folder / f"{name}.npz"
            took = self.results.get(["profile", name], lambda: self._measure(method, learned, path))
            self._profiles[name] = precalloc.Profile.load(path), took["seconds"]
        return self._profiles[name]

    def _measure(self, method: str, learned: bool, path: Path) -> dict[str, float]:
        granularity = method.rpartition("-")[2]
        estimator = (
            Learned(f"{self.centre(method)}x", granularity, steps=self.effort.learning_steps)
            if learned
            else "curvature"
        )
        precalloc.profile(self.model, first_of(self.calibration, 32), self.hardware, margins=0)  # torch's own start
        start = time.process_time()
        found = precalloc.profile(self.model, self.calibration, self.hardware, margins=0, estimator=estimator)
        found.save(path)
        return {"seconds": time.process_time() - start}

    def plan(self, method: str, multiple: float) -> tuple[Allocation, float]:
        """K map of a method at a budget, and the seconds from the profile on."""
        name, _, compensated = method.partition("+")
        profile, _ = self.profile("precalloc" if name == "uniform" else name)
        granularity = "channel" if name.endswith("channel") else "layer"
        refines = name.startswith("precalloc") and is_promising(self.hardware)
        start = time.process_time()
        allocation = precalloc.allocate(profile, f"{multiple}x", hardware=self.hardware, granularity=granularity)
        if compensated:
            wanted = allocation.uniform_kmap() if name == "uniform" else allocation.kmap()
            found = compensate(self.model, self.calibration, wanted, check=not refines).bias_corrections
            allocation = allocation.with_bias_corrections(found, found)
        if refines:
            steps, examples = self.effort.refining or (None, STEP_EXAMPLES)
            allocation = precalloc.refine(
                self.model, self.calibration, profile, allocation, steps=steps, step_examples=examples
            )
        return allocation, time.process_time() - start

    def point(self, method: str, multiple: float) -> dict:
        """Simulate one method at one budget; energy relative to one repetition everywhere."""
        return self.results.get(
            self.key(method, multiple, self.effort.learning_steps), lambda: self._point(method, multiple)
        )

    def _point(self, method: str, multiple: float) -> dict:
        allocation, seconds = self.plan(method, multiple)
        require_fresh(self.model, self.evaluation, allocation)
        kmap = allocation.uniform_kmap() if method.startswith("uniform") else allocation.kmap()
        used = allocation.uniform.energy_joule if method.startswith("uniform") else allocation.energy_joule
        unit = allocation.uniform.energy_joule / allocation.uniform.repetitions
        seen = allocation.refinement
        return {
            "energy": used / unit,
            **self.results.get(self.key(kmap.digest), lambda: self._outcomes(kmap)),
            "seconds": seconds,
            "refined": None if seen is None else seen.kept,
        }

    def _outcomes(self, kmap: precalloc.KMap) -> dict:
        """Which examples a K map loses and wins; one that several methods chose is simulated once."""
        right, clean = self.simulate(kmap), self.clean
        return {
            "lost": np.packbits(clean & ~right).tobytes().hex(),
            "won": np.packbits(~clean & right).tobytes().hex(),
            "drop": float(clean.mean() - right.mean()),
        }

    @cached_property
    def clean(self) -> np.ndarray:
        """Whether each example is right without noise, (n,)."""
        batches = map(self.references.of, self.evaluation.batches(EVALUATED))
        with untouched(self.model):
            return np.concatenate([clean_values(self.model, Task(), judged)[1] > 0 for judged in batches])

    def simulate(self, kmap: precalloc.KMap) -> np.ndarray:
        """Whether each example is right under each noise draw, (seeds, n)."""
        seeds, device = range(SEED, SEED + self.effort.seeds), model_device(self.model)
        with untouched(self.model):
            injectors = [NoiseInjector.of(kmap, seed, device) for seed in seeds]
            right = [
                np.stack([noisy_values(self.model, Task(), judged, each)[1] > 0 for each in injectors])
                for judged in map(self.references.of, self.evaluation.batches(EVALUATED))
            ]
        return np.concatenate(right, axis=1)

    def drops(self, point: dict) -> np.ndarray:
        """Clean minus noisy outcome of every draw and example, (seeds, n)."""
        shape = self.effort.seeds, self.evaluation.examples
        lost, won = (
            np.unpackbits(np.frombuffer(bytes.fromhex(point[name]), np.uint8))[: shape[0] * shape[1]].reshape(shape)
            for name in ("lost", "won")
        )
        return lost.astype(float) - won

    def ladder(self, method: str) -> list[dict]:
        """Simulate budgets up and down from the centre until the wanted drops are bracketed.

        That of uniform K goes down to where its drop is no longer tolerable: others are compared with it all the way.
        """
        points, most = {}, TOLERABLE if method == "uniform" else 1.5 * max(DROPS)
        for direction in (1, -1):
            for rung in range(0 if direction > 0 else -1, direction * RUNGS, direction):
                try:
                    point = self.point(method, round(self.centre(method) * RUNG**rung, 4))
                except BudgetError:
                    break
                points[rung] = point
                report(f"{self.fixture} {self.noise} {method} {point['energy']:.3g}x: drop {100 * point['drop']:.2f}")
                if point["drop"] < 0.5 * min(DROPS) if direction > 0 else point["drop"] > most:
                    break
        return [points[rung] for rung in sorted(points)]


def least_energy(log_energy: np.ndarray, drop: np.ndarray, wanted: float) -> float:
    """Logarithm of the least energy for a drop, by interpolation; infinite where it is beyond the ladder's ends."""
    falling = np.minimum.accumulate(drop)
    reached = np.flatnonzero(falling <= wanted)
    if len(reached) == 0:
        return np.inf
    at = reached[0]
    if at == 0:
        return -np.inf
    part = (falling[at - 1] - wanted) / (falling[at - 1] - falling[at])
    return float(log_energy[at - 1] + part * (log_energy[at] - log_energy[at - 1]))


def cell(case: Case, ladders: dict[str, list[dict]], method: str, wanted: float, draws: int = 400) -> str:
    """Least energy relative to uniform K, with its interval."""
    curves = {
        name: (np.log([p["energy"] for p in ladders[name]]), np.stack([case.drops(p) for p in ladders[name]]))
        for name in {"uniform", method}
    }

    def ratio(seeds: np.ndarray, examples: np.ndarray) -> float:
        ends = [
            least_energy(energy, drops[:, seeds][:, :, examples].mean((1, 2)), wanted)
            for energy, drops in (curves[method], curves["uniform"])
        ]
        beyond.append(not np.isfinite(ends).all())
        inside = [np.clip(end, *curves[name][0][[0, -1]]) for end, name in zip(ends, (method, "uniform"), strict=True)]
        return float(np.exp(inside[0] - inside[1]))

    beyond: list[bool] = []
    shape = curves["uniform"][1].shape[1:]
    value = ratio(np.arange(shape[0]), np.arange(shape[1]))
    rng = np.random.default_rng(0)
    sample = [ratio(rng.integers(shape[0], size=shape[0]), rng.integers(shape[1], size=shape[1])) for _ in range(draws)]
    low, high = np.percentile(sample, [2.5, 97.5])
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" + ("*" if np.mean(beyond) > 0.025 else "")


def worse_than_uniform(case: Case, ladders: dict[str, list[dict]], method: str) -> str:
    """How many budgets have a drop surely higher than uniform K, of those where both drops are tolerable.

    Uniform K's drop is interpolated over log energy, example by example; the 95 % interval of the difference is over
    examples and draws.
    """
    energy = np.log([point["energy"] for point in ladders["uniform"]])
    uniform = np.stack([case.drops(point) for point in ladders["uniform"]])
    lows = []
    for point in ladders[method]:
        place = float(np.interp(np.log(point["energy"]), energy, np.arange(len(energy)), np.nan, np.nan))
        if np.isnan(place) or point["drop"] > TOLERABLE:
            continue
        below, above = int(np.floor(place)), int(np.ceil(place))
        between = uniform[below] + (place - below) * (uniform[above] - uniform[below])
        lows.append(paired_difference(case.drops(point), between)[1])
    return f"{sum(low > 0.0 for low in lows)} of {len(lows)}"


def rows(case: Case, methods: list[str]) -> list[tuple[str, ...]]:
    """One row a method: least energies and seconds."""
    ladders = {method: case.ladder(method) for method in dict.fromkeys(["uniform", *methods])}
    found = []
    for method in methods:
        name = method.partition("+")[0]
        own = float(np.mean([point["seconds"] for point in ladders[method]]))
        seconds = own + (0.0 if name == "uniform" else case.profile(name)[1])
        cells = [cell(case, ladders, method, wanted) for wanted in DROPS]
        base = [np.exp(least_energy(*_curve(ladders["uniform"]), wanted)) for wanted in DROPS]
        told = f" (K = {base[0]:.1f}, {base[1]:.1f})" if method == "uniform" else ""
        worse = worse_than_uniform(case, ladders, method)
        found.append((case.fixture, case.noise, method + told, *cells, worse, f"{seconds:.1f}"))
    return found


def _curve(ladder: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    return np.log([point["energy"] for point in ladder]), np.array([point["drop"] for point in ladder])


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--results", type=Path, default=Path("bench-least-energy.jsonl"))
    parser.add_argument("--cases", nargs="+", default=["kws-dscnn:shot"], help="network:noise, or 'all'")
    parser.add_argument("--methods", nargs="+", default=["uniform", "precalloc-layer", "precalloc-channel"])
    parser.add_argument("--calibration", type=int, default=2000, help="examples to choose K on")
    parser.add_argument("--examples", type=int, default=5000, help="examples to simulate on")
    parser.add_argument("--seeds", type=int, default=4, help="noise draws of each")
    parser.add_argument("--learning-steps", type=int, default=1500)
    parser.add_argument(
        "--refining", type=int, nargs=2, metavar=("STEPS", "EXAMPLES"), help="of precalloc's refinement"
    )
    arguments = parser.parse_args()
    if not arguments.fixtures.is_dir():
        print(f"Skipped: no fixtures in {arguments.fixtures}; give their folder with --fixtures.")
        return
    cases = list(CASES) if arguments.cases == ["all"] else [tuple(name.split(":")) for name in arguments.cases]
    methods = list(METHODS) if arguments.methods == ["all"] else arguments.methods
    effort = Effort(
        arguments.calibration,
        arguments.examples,
        arguments.seeds,
        arguments.learning_steps,
        arguments.refining and tuple(arguments.refining),
    )
    table = Table(title=f"least energy relative to uniform K; {effort}, 95 % intervals")
    for column in ("network", "noise", "method", "drop <= 1", "drop <= 2", "worse", "CPU s"):
        table.add_column(column, no_wrap=True)
    for fixture, noise in cases:
        for row in rows(Case(arguments.fixtures, fixture, noise, effort, Results(arguments.results)), methods):
            table.add_row(*row)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
