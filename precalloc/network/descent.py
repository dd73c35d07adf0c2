"""Adam on log K within an energy budget, and on scales of bias corrections: what gradients of the noisy loss lead to.

Stationary K within a budget satisfy dE[L] / d log K_u + lambda c_u K_u / B = 0 with the budget's multiplier

    lambda = sum_u s_u / K_u,    s_u / K_u = -dE[L] / d log K_u,

the loss that one e-fold of energy is worth. Steps follow that gradient by Adam (Kingma and Ba 2015, arXiv:1412.6980)
and are scaled back to the budget each time. Adam's steps are of one length whatever the gradient's size, so units whose
gradient is mostly noise wander by a fraction of it, and those that have a signal go there together. Units are many, and
wandering may cost more than those that have a signal gain: `Chance` shortens the steps of a site's channels, or of all
layers, together.

Corrections c_l of site l are taken a_l times, with a_l = 1 to begin with. That costs no energy and has no bounds, and

    dE[L] / d a_l = sum over channels of c_l dE[L] / dc_l.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from precalloc.profiles import FloatArray
from solvers import Problem

# Of gradients and of their squares; longer ones would hold what a dozen or two of steps have left behind.
_MOMENTUM, _MEMORY = 0.8, 0.95
_TINY = 1e-30
# Logarithm of the scales that K may be brought to a budget by, either way, and how precisely.
_FARTHEST, _PRECISION = 50.0, 1e-15


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
        found: FloatArray = mean / (np.sqrt(self.mean_square) + _TINY)
        return found

    @property
    def mean_square(self) -> FloatArray:
        """Running mean of the squared gradients (n,)."""
        found: FloatArray = self._second / (1.0 - _MEMORY**self.done)
        return found

    def state(self) -> dict[str, FloatArray]:
        """Everything that the next direction depends on."""
        return {"first": self._first, "second": self._second, "done": np.array(self.done)}

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Go on after the finished steps."""
        self._first, self._second, self.done = arrays["first"].copy(), arrays["second"].copy(), int(arrays["done"])


class Chance:
    """How much of running means of gradients is no chance, block by block.

    Half the squared difference of one gradient from the next is the variance N_u of chance in it, whatever the mean
    does (von Neumann 1941, Ann. Math. Stat. 12, 367), averaged here with the squared weights that gradients have in
    the running mean m_u, which add up to kappa. Over the units of a block

        share = max(0, 1 - sum_u (kappa N_u / v_u) / sum_u (m_u^2 / v_u))

    of Adam's squared directions m_u / sqrt(v_u) is no chance. By that share the positive-part rule of James and Stein
    shrinks means (Efron and Morris 1973, J. Am. Stat. Assoc. 68, 117); by its root directions are as long as those of
    the signal alone, which is what steps of a set length want.

    Parameters
    ----------
    blocks : (n,)
        Number of every unit's block. Units alone in theirs, which tell nothing by themselves, make up one together.
    """

    def __init__(self, blocks: npt.NDArray[np.int64]) -> None:
        self._blocks = np.where(np.bincount(blocks)[blocks] == 1, blocks.max() + 1, blocks)
        self._latest: FloatArray = np.zeros(len(blocks))
        self._variance: FloatArray = np.zeros(len(blocks))
        self._taken = 0

    def damping(self, gradient: FloatArray, direction: FloatArray, mean_square: FloatArray) -> FloatArray:
        """Take in one more gradient (n,): what to multiply Adam's direction by, (n,); zero at the first."""
        done, memory = self._taken, _MOMENTUM**2
        self._taken += 1
        difference, self._latest = gradient - self._latest, gradient
        if done == 0:
            return np.zeros(len(gradient))
        self._variance = memory * self._variance + (1.0 - memory) * 0.5 * difference**2
        weight = (1.0 - _MOMENTUM) * (1.0 + _MOMENTUM**self._taken)
        kappa = weight / ((1.0 + _MOMENTUM) * (1.0 - _MOMENTUM**self._taken))
        chance = kappa * self._variance / (1.0 - memory**done) / (mean_square + _TINY)
        of_chance, of_all = np.bincount(self._blocks, chance), np.bincount(self._blocks, direction**2)
        share = np.clip(1.0 - of_chance / (of_all + _TINY), 0.0, 1.0)
        found: FloatArray = np.sqrt(share)[self._blocks]
        return found

    def state(self) -> dict[str, FloatArray]:
        """Everything that what comes next depends on."""
        return {"latest": self._latest, "variance": self._variance, "taken": np.array(self._taken)}

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Go on after the finished steps."""
        self._latest, self._variance = arrays["latest"].copy(), arrays["variance"].copy()
        self._taken = int(arrays["taken"])


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
    blocks : (units,)
        Number of every unit's block, whose steps `Chance` shortens together.
    """

    def __init__(
        self, problem: Problem, budget: float, k: FloatArray, schedule: Schedule, blocks: npt.NDArray[np.int64]
    ) -> None:
        self._share = np.asarray(problem.cost, dtype=float).reshape(-1) / budget
        self._bounds, self._schedule = (np.asarray(problem.k_min), np.asarray(problem.k_max)), schedule
        self._group = _groups(problem)
        self.k = on_budget(k, self._share, self._bounds)
        self._adam, self.multiplier = Adam(int(self._group.max()) + 1), 0.0
        self._chance = Chance(blocks[np.unique(self._group, return_index=True)[1]])

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
        direction = self._adam.direction(gradient)
        move = -direction * self._chance.damping(gradient, direction, self._adam.mean_square)
        step = self._schedule.of(self.done) * move[self._group]
        self.k = on_budget(self.k * np.exp(step), self._share, self._bounds)

    def optimal_damage(self, least: float) -> FloatArray:
        """Damages at K = 1 for which the present K are optimal, lambda c_u K_u^2 / B with lambda at least ``least``."""
        found: FloatArray = max(self.multiplier, least) * self._share * self.k**2
        return found

    def state(self) -> dict[str, FloatArray]:
        """Everything that the next step depends on."""
        return {"k": self.k, "multiplier": np.array(self.multiplier), **joined_state(self._parts)}

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Go on after the finished steps."""
        self.k, self.multiplier = arrays["k"].copy(), float(arrays["multiplier"])
        restore_parts(self._parts, arrays)

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {"adam": self._adam, "chance": self._chance}


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


def _groups(problem: Problem) -> npt.NDArray[np.int64]:
    """Number every unit's group: tied units have one together."""
    if problem.ties is None:
        return np.arange(problem.n)
    alone = problem.ties < 0
    labels = np.where(alone, problem.ties.max(initial=0) + 1 + np.arange(problem.n), problem.ties)
    found: npt.NDArray[np.int64] = np.unique(labels, return_inverse=True)[1].reshape(-1)
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
    from scipy.optimize import brentq  # slow to start

    def scaled(log: float) -> FloatArray:
        found: FloatArray = np.clip(k * np.exp(log), *bounds)
        return found

    def excess(log: float) -> float:
        return float(share @ scaled(log)) - 1.0

    if excess(_FARTHEST) <= 0.0:
        return scaled(_FARTHEST)
    if excess(-_FARTHEST) >= 0.0:
        return scaled(-_FARTHEST)
    return scaled(brentq(excess, -_FARTHEST, _FARTHEST, xtol=_PRECISION))
