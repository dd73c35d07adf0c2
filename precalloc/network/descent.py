"""Adam on log K within an energy budget, and on scales of bias corrections: what gradients of the noisy loss lead to.

Stationary K within a budget satisfy dE[L] / d log K_u + lambda c_u K_u / B = 0 with the budget's multiplier

    lambda = sum_u s_u / K_u,    s_u / K_u = -dE[L] / d log K_u,

the loss that one e-fold of energy is worth. Steps follow that gradient by Adam (Kingma and Ba 2015, arXiv:1412.6980)
and are scaled back to the budget each time. Adam's steps are of one length whatever the gradient's size, so units whose
gradient is mostly noise wander by a fraction of it, and those that have a signal go there together.

Corrections c_l of site l are taken a_l times, with a_l = 1 to begin with. That costs no energy and has no bounds, and

    dE[L] / d a_l = sum over channels of c_l dE[L] / dc_l.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from precalloc.profiles import FloatArray
from solvers import Problem

_MOMENTUM, _MEMORY = 0.9, 0.99
_TINY = 1e-30
# Bisections of the logarithm of a scale between e^-50 and e^50: to the last bit of it.
_BISECTIONS = 100


@dataclass(frozen=True)
class Schedule:
    """How many steps, and the length of the first; lengths fall linearly to nothing."""

    steps: int
    length: float

    def of(self, step: int) -> float:
        """Length of a step; the first is number 1."""
        return self.length * (1.0 - (step - 1) / self.steps)


class Adam:
    """Directions from noisy gradients: their running means over root mean squares, about one where they agree."""

    def __init__(self, size: int) -> None:
        self._first: FloatArray = np.zeros(size)
        self._second: FloatArray = np.zeros(size)
        self.done = 0

    def direction(self, gradient: FloatArray) -> FloatArray:
        """Take in one more gradient (n,): the way up, (n,)."""
        self.done += 1
        self._first += (1.0 - _MOMENTUM) * (gradient - self._first)
        self._second += (1.0 - _MEMORY) * (gradient**2 - self._second)
        mean = self._first / (1.0 - _MOMENTUM**self.done)
        found: FloatArray = mean / (np.sqrt(self._second / (1.0 - _MEMORY**self.done)) + _TINY)
        return found

    def state(self) -> dict[str, FloatArray]:
        """Everything that the next direction depends on."""
        return {"first": self._first, "second": self._second, "done": np.array(self.done)}

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Go on after the finished steps."""
        self._first, self._second, self.done = arrays["first"].copy(), arrays["second"].copy(), int(arrays["done"])


class Stateful(Protocol):
    """Something that can go on from what it was."""

    def state(self) -> dict[str, FloatArray]:
        """Everything that what comes next depends on."""
        ...

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Go on from a state."""
        ...


def joined_state(parts: Mapping[str, Stateful]) -> dict[str, FloatArray]:
    """States of several parts in one, by names with the part's before them."""
    return {f"{part}/{name}": value for part, each in parts.items() for name, value in each.state().items()}


def restore_parts(parts: Mapping[str, Stateful], arrays: Mapping[str, FloatArray]) -> None:
    """Undo `joined_state`."""
    for part, each in parts.items():
        before = f"{part}/"
        each.restore({name.removeprefix(before): value for name, value in arrays.items() if name.startswith(before)})


class RunningMean:
    """Mean of what was measured now and then; of more than ``memory`` measurements the older fade."""

    def __init__(self, size: int, memory: int) -> None:
        self.mean: FloatArray = np.zeros(size)
        self._memory, self._taken = memory, 0

    def take(self, values: FloatArray) -> None:
        """Take in one more measurement (n,)."""
        self._taken += 1
        self.mean = self.mean + (values - self.mean) / min(self._taken, self._memory)

    def state(self) -> dict[str, FloatArray]:
        """Everything that the next mean depends on."""
        return {"mean": self.mean, "taken": np.array(self._taken)}

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Go on after the measurements that are done."""
        self.mean, self._taken = arrays["mean"].copy(), int(arrays["taken"])


class LogDescent:
    """Position and memory of the descent over units of K, of which tied ones move together.

    Parameters
    ----------
    problem
        Energies, bounds and ties of the units; its damages and levels do not matter.
    budget
        In the unit of the problem's costs.
    k : (units,)
        Where to start; scaled to the budget.
    """

    def __init__(self, problem: Problem, budget: float, k: FloatArray, schedule: Schedule) -> None:
        self._share = np.asarray(problem.cost, dtype=float).reshape(-1) / budget
        self._bounds, self._schedule = (np.asarray(problem.k_min), np.asarray(problem.k_max)), schedule
        self._group = _groups(problem)
        self.k = on_budget(k, self._share, self._bounds)
        self._adam, self.multiplier = Adam(int(self._group.max()) + 1), 0.0

    @property
    def done(self) -> int:
        """Steps that were taken."""
        return self._adam.done

    def step(self, sensitivity: FloatArray) -> None:
        """Move by one batch's local sensitivities s_u (units,)."""
        slope = sensitivity / self.k
        self.multiplier += (float(slope.sum()) - self.multiplier) / (self.done + 1)
        pull = max(self.multiplier, 0.0) * self._share * self.k - slope
        gradient = np.bincount(self._group, pull).astype(np.float64)
        move = -self._adam.direction(gradient)[self._group]
        self.k = on_budget(self.k * np.exp(self._schedule.of(self.done) * move), self._share, self._bounds)

    def optimal_damage(self, least: float) -> FloatArray:
        """Damages at K = 1 for which the present K are optimal, lambda c_u K_u^2 / B with lambda at least ``least``."""
        found: FloatArray = max(self.multiplier, least) * self._share * self.k**2
        return found

    def state(self) -> dict[str, FloatArray]:
        """Everything that the next step depends on."""
        return {"k": self.k, "multiplier": np.array(self.multiplier), **self._adam.state()}

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Go on after the finished steps."""
        self.k, self.multiplier = arrays["k"].copy(), float(arrays["multiplier"])
        self._adam.restore(arrays)


class ScaleDescent:
    """Scales of bias corrections, one a site, and the memory of the descent over them.

    Parameters
    ----------
    corrections : site name -> (channels,)
        As they were estimated, at scale one.
    """

    def __init__(self, corrections: Mapping[str, FloatArray], schedule: Schedule) -> None:
        self._corrections, self._schedule = corrections, schedule
        self.scales: FloatArray = np.ones(len(corrections))
        self._adam = Adam(len(corrections))

    @property
    def corrections(self) -> dict[str, FloatArray]:
        """The corrections, scaled."""
        pairs = zip(self.scales, self._corrections.items(), strict=True)
        return {site: scale * correction for scale, (site, correction) in pairs}

    def step(self, slopes: Mapping[str, FloatArray]) -> None:
        """Move by one batch's slopes of the loss in every channel's correction, site name -> (channels,)."""
        slope = np.array([float(slopes[site] @ correction) for site, correction in self._corrections.items()])
        move = -self._adam.direction(slope)
        self.scales = self.scales + self._schedule.of(self._adam.done) * move

    def state(self) -> dict[str, FloatArray]:
        """Everything that the next step depends on."""
        return {"scales": self.scales, **self._adam.state()}

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Go on after the finished steps."""
        self.scales = arrays["scales"].copy()
        self._adam.restore(arrays)


def _groups(problem: Problem) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Number every unit's group: tied units have one together."""
    if problem.ties is None:
        return np.arange(problem.n)
    alone = problem.ties < 0
    labels = np.where(alone, problem.ties.max(initial=0) + 1 + np.arange(problem.n), problem.ties)
    found: np.ndarray[tuple[int], np.dtype[np.int64]] = np.unique(labels, return_inverse=True)[1].reshape(-1)
    return found


def on_budget(k: FloatArray, share: FloatArray, bounds: tuple[FloatArray | float, FloatArray | float]) -> FloatArray:
    """Scale K (units,) within bounds so that their shares of the budget add up to one, or to what bounds allow.

    Parameters
    ----------
    k
        Ratios of K.
    share
        Of the budget, of every unit at K = 1.
    bounds
        Least and greatest K.
    """
    low, high = -50.0, 50.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        scaled = np.clip(k * np.exp(middle), *bounds)
        low, high = (middle, high) if float(share @ scaled) <= 1.0 else (low, middle)
    found: FloatArray = np.clip(k * np.exp(low), *bounds)
    return found
