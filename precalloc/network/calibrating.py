"""`calibrate`: a handful of simulated K maps tell how far predictions hold."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from precalloc.allocator import Allocator
from precalloc.budgets import Budget, BudgetKind
from precalloc.calibration import FAMILIES, Calibration, NoiseResponse, SimulatedPoint
from precalloc.choices import Choices
from precalloc.errors import DataError, ProfileError
from precalloc.hardware import Hardware
from precalloc.kmaps import KMap
from precalloc.network import compensation
from precalloc.network.checkpoints import Arrays, Checkpoint
from precalloc.network.criteria import LossFn, MetricFn
from precalloc.network.data import Data, as_data, data_hash
from precalloc.network.data_parts import first
from precalloc.network.forward import ForwardFn
from precalloc.network.models import model_hash
from precalloc.network.noisy_margins import NoisyMargins
from precalloc.network.preparation import TaskChoices, prepared
from precalloc.network.state import derived_seed
from precalloc.network.tasks import Task
from precalloc.objective import parse_granularity
from precalloc.prediction import Predictor
from precalloc.profiles import Profile
from precalloc.progress import Progress, silent
from precalloc.search import least

# Predicted drops at which K maps are simulated, in this order: each is found with what the earlier ones taught.
_DROPS = (0.02, 0.05, 0.008, 0.03, 0.08, 0.015)
_STREAM = 301
# Noisy passes of an example at each point.
_PASSES = 1024


def calibrate(
    model: nn.Module,
    data: object,
    profile: Profile,
    *,
    hardware: Hardware | None = None,
    granularity: str = "layer",
    compensate: bool | None = None,
    choices: Choices | None = None,
    task: Task | str | None = None,
    forward_fn: ForwardFn | None = None,
    loss_fn: LossFn | None = None,
    metric_fn: MetricFn | None = None,
    output: str | int | None = None,
    points: int = 3,
    draws: int | None = None,
    examples: int = 512,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> Profile:
    """Simulate a few K maps on the calibration data, and give the profile with predictions that fit them.

    Uniform and allocated K maps are simulated at ``points`` budgets each, between drops of half a point and several.

    Parameters
    ----------
    model, data
        Those of the profile.
    profile
        With margins.
    hardware, granularity, choices
        What predictions will be for.
    compensate
        Whether the K maps carry bias corrections; by default where the hardware has digital biases.
    task, forward_fn, loss_fn, metric_fn, output
        As for `precalloc.profile`.
    points, draws, examples
        Budgets, noise draws at each, and how many of the examples are simulated. Draws come
        in pairs of opposite noise; by default as many as make about a thousand noisy passes of an example, a pair at
        least: many examples with few draws tell more than the opposite.
    seed, batch_size
        Of the noise, and of the passes.
    progress
        Called as ``progress(done, total, what)`` in K maps.
    checkpoint
        File from which an interrupted run goes on.

    Raises
    ------
    ProfileError
        If the profile holds no margins for the granularity.
    DataError
        If model or data are not those of the profile.
    """
    source = as_data(data)
    if data_hash(source) != profile.provenance.data_hash or model_hash(model) != profile.provenance.model_hash:
        raise DataError("Model or data are not those of the profile. Calibrate on what was profiled.")
    chip = hardware or profile.hardware
    allocator = Allocator.of(replace(profile, calibration=None), chip, parse_granularity(granularity), choices=choices)
    if allocator.predictor is None:
        raise ProfileError(f"The profile holds no margins per {granularity}, so there is nothing to calibrate.")
    compensated = chip.digital_biases if compensate is None else compensate
    used = first(source, min(examples, allocator.predictor.examples))
    draws = 2 * max(1, round(_PASSES / (2 * used.examples))) if draws is None else draws
    of_task = TaskChoices(task, forward_fn, loss_fn, metric_fn, output)
    effort = _Effort(points, draws, seed, batch_size, compensated)
    identity = f"calibration {profile.provenance} {chip.to_dict()} {granularity} {choices} {used.examples} {effort}"
    keeper = Checkpoint(checkpoint, identity)
    least_kmap = allocator.within(Budget(BudgetKind.ENERGY, allocator.least_joule)).kmap()
    with prepared(model, used, least_kmap, of_task, batch_size) as ready:
        simulation = NoisyMargins(ready, used, batch_size, allocator.predictor.margins.shape[1])
        run = _Run(model, used, allocator, allocator.predictor, simulation, of_task, effort)
        with keeper.running(run.state, run.restore):
            run.go(progress, keeper)
    responses = {family: NoiseResponse.fit(found) for family, found in run.points.items()}
    found = Calibration(chip, parse_granularity(granularity), compensated, responses, used.examples, draws)
    return replace(profile, calibration=found)


@dataclass(frozen=True)
class _Effort:
    points: int
    draws: int
    seed: int
    batch_size: int
    compensated: bool


class _Run:
    """The simulated points of each family, one after the other."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        allocator: Allocator,
        predictor: Predictor,
        simulation: NoisyMargins,
        choices: TaskChoices,
        effort: _Effort,
    ) -> None:
        self._model, self._data, self._allocator, self._predictor = model, data, allocator, predictor
        self._simulation, self._choices, self.effort = simulation, choices, effort
        self.points: dict[str, list[SimulatedPoint]] = {family: [] for family in FAMILIES}

    def go(self, progress: Progress, keeper: Checkpoint) -> None:
        """Simulate the points that are not there yet."""
        total = self.effort.points * len(FAMILIES)
        for index in range(self.effort.points):
            for family, found in self.points.items():
                if len(found) > index:
                    continue
                found.append(self._point(family, _DROPS[index % len(_DROPS)], index))
                progress(sum(map(len, self.points.values())), total, "calibrating")
                keeper.offer(self.state)

    def _point(self, family: str, drop: float, index: int) -> SimulatedPoint:
        allocation = self._allocator.within(Budget(BudgetKind.ENERGY, self._energy(family, drop)))
        kmap, k = allocation.kmap(), allocation.repetitions
        if family == "uniform":
            kmap, k = allocation.uniform_kmap(), self._allocator.uniform_k(allocation.budget_joule)
        kmap = self._compensated(kmap, index) if self.effort.compensated else kmap
        seed = derived_seed(self.effort.seed, _STREAM, index) % 2**31
        margins = self._simulation.under(kmap, self.effort.draws, seed)
        return SimulatedPoint.of(self._predictor, k, margins)

    def _energy(self, family: str, drop: float) -> float:
        """Least energy at which the drop is predicted by what is known so far; the largest K where it never is."""
        response = NoiseResponse.fit(self.points[family]) if self.points[family] else None
        allocator, repetition = self._allocator, self._allocator.hardware.repetition
        cost = allocator.objective.cost_at_k1

        def excess(multiple: float) -> float:
            energy = multiple * cost
            k = allocator.uniform_k(energy) if family == "uniform" else allocator.solve(energy, quick=True)[0]
            return self._predictor.predict(k, response).drop - drop

        lowest = allocator.least_joule / cost * (1.0 + 1e-9)
        found = least(excess, lowest, max(repetition.k_max, lowest))
        return cost * (min(repetition.k_max, 1e6 * lowest) if found is None else found)

    def _compensated(self, kmap: KMap, index: int) -> KMap:
        seed = derived_seed(self.effort.seed, _STREAM, index, 1)
        effort = compensation.Effort(compensation.DRAWS, seed, compensation.EXAMPLES, self.effort.batch_size)
        found = compensation.estimate(self._model, self._data, kmap, self._choices, effort, check=False)
        return kmap.compensated(found.corrections)

    def state(self) -> Arrays:
        """The points so far."""
        records = {family: json.dumps([asdict(point) for point in found]) for family, found in self.points.items()}
        return {family: np.frombuffer(record.encode(), np.uint8) for family, record in records.items()}

    def restore(self, arrays: Arrays) -> None:
        """Go on after the points that are there."""
        records = {family: json.loads(arrays[family].tobytes()) for family in FAMILIES}
        self.points = {family: list(map(SimulatedPoint.from_record, found)) for family, found in records.items()}
