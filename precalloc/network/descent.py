"""Adam on log K within an energy budget: from gradients of the noisy loss to better K.

Stationary K within a budget satisfy dE[L] / d log K_u + lambda c_u K_u / B = 0 with the budget's multiplier

    lambda = sum_u s_u / K_u,    s_u / K_u = -dE[L] / d log K_u,

the loss that one e-fold of energy is worth. Steps follow that gradient by Adam (Kingma and Ba 2015, arXiv:1412.6980)
and are scaled back to the budget each time. Adam's steps are of one length whatever the gradient's size, so units whose
gradient is mostly noise wander by a fraction of it, and those that have a signal go there together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from precalloc.profiles import FloatArray
from solvers import Problem

_MOMENTUM, _MEMORY = 0.9, 0.99
_TINY = 1e-30
# Bisections of the logarithm of a scale between e^-50 and e^50: to the last bit of it.
_BISECTIONS = 100


@dataclass(frozen=True)
class Schedule:
    """How many steps, and the length of the first in log K; lengths fall linearly to nothing."""

    steps: int
    length: float


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
        groups = self._group.max() + 1
        self._first, self._second = np.zeros(groups), np.zeros(groups)
        self.multiplier, self.done = 0.0, 0

    def step(self, sensitivity: FloatArray) -> None:
        """Move by one batch's local sensitivities s_u (units,)."""
        slope = sensitivity / self.k
        self.done += 1
        self.multiplier += (float(slope.sum()) - self.multiplier) / self.done
        gradient = np.bincount(self._group, max(self.multiplier, 0.0) * self._share * self.k - slope)
        self._first += (1.0 - _MOMENTUM) * (gradient - self._first)
        self._second += (1.0 - _MEMORY) * (gradient**2 - self._second)
        mean = self._first / (1.0 - _MOMENTUM**self.done)
        size = np.sqrt(self._second / (1.0 - _MEMORY**self.done))
        length = self._schedule.length * (1.0 - (self.done - 1) / self._schedule.steps)
        self.k = on_budget(self.k * np.exp(-length * (mean / (size + _TINY))[self._group]), self._share, self._bounds)

    def optimal_damage(self, least: float) -> FloatArray:
        """Damages at K = 1 for which the present K are optimal, lambda c_u K_u^2 / B with lambda at least ``least``."""
        found: FloatArray = max(self.multiplier, least) * self._share * self.k**2
        return found

    def state(self) -> dict[str, FloatArray]:
        """Everything that the next step depends on."""
        scalars = np.array([self.done, self.multiplier])
        return {"k": self.k, "first": self._first, "second": self._second, "scalars": scalars}

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Go on after the finished steps."""
        self.k, self._first, self._second = (arrays[name].copy() for name in ("k", "first", "second"))
        self.done, self.multiplier = int(arrays["scalars"][0]), float(arrays["scalars"][1])


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
