"""The problem: minimise floor + sum_u a_u phi(k_u) under linear budgets, bounds and allowed levels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.arithmetic import blocks, dot
from solvers.errors import ProblemError
from solvers.levels import Levels, parse_levels
from solvers.terms import FloatArray, Index, Power, Term

IntArray = NDArray[np.intp]
LevelSpec = str | Levels | ArrayLike

SMALLEST, LARGEST = 1e-100, 1e100
"""Magnitudes within which products, ratios and roots neither overflow nor lose exactness to subnormals."""


@dataclass(frozen=True, eq=False, init=False)
class Problem:
    """Minimise floor + sum_u damage_u phi(k_u) subject to cost @ k <= budget, k_min <= k <= k_max, k_u allowed.

    Parameters
    ----------
    damage : (n,) >= 0, each variable's damage at phi = 1.
    cost : (n,) or (m, n) >= 0, cost per unit of k, one row a budget.
    budget : a number, or (m,); infinite where nothing is limited.
    k_min, k_max : bounds, numbers or (n,); a variable with k_min = k_max is fixed.
    levels : "integer" (k = 1, 2, ...), "continuous", or the allowed values, the same for all variables. With
        `level_index`, a sequence of such specifications.
    floor : what no k reduces; only added to objective and bounds.
    level_index : (n,) which entry of `levels` holds for each variable.
    ties : (n,) group labels; variables of one nonnegative label share one k, negative labels stand alone.
    term : phi, convex and decreasing; 1/k by default.

    Raises
    ------
    ProblemError : if an input is malformed; magnitudes must be 0 or between 1e-100 and 1e100.
    """

    damage: FloatArray
    cost: FloatArray
    budget: FloatArray
    k_min: FloatArray
    k_max: FloatArray
    levels: tuple[Levels, ...]
    floor: float
    level_index: IntArray | None
    ties: IntArray | None
    term: Term

    def __init__(
        self,
        damage: ArrayLike,
        cost: ArrayLike,
        budget: ArrayLike,
        k_min: ArrayLike = 1.0,
        k_max: ArrayLike = np.inf,
        levels: LevelSpec | Sequence[LevelSpec] = "integer",
        floor: float = 0.0,
        *,
        level_index: ArrayLike | None = None,
        ties: ArrayLike | None = None,
        term: Term | None = None,
    ) -> None:
        assign = object.__setattr__
        assign(self, "damage", _real("damage", damage, LARGEST))
        n = self.damage.size
        if self.damage.ndim != 1 or n == 0:
            raise ProblemError(f"damage must have shape (n,) with n >= 1; got shape {self.damage.shape}")
        assign(self, "cost", _real("cost", cost, LARGEST))
        assign(self, "budget", _budget(budget, self.cost.shape, n))
        assign(self, "k_min", _bound("k_min", k_min, n))
        assign(self, "k_max", _bound("k_max", k_max, n))
        assign(self, "levels", _levels(levels, level_index is not None))
        assign(self, "level_index", _labels("level_index", level_index, n, len(self.levels)))
        assign(self, "floor", _floor(floor))
        assign(self, "ties", _labels("ties", ties, n, None))
        assign(self, "term", Power() if term is None else term)
        self._check_bounds()

    def _check_bounds(self) -> None:
        crossed = self.lower > self.upper
        if crossed.any():
            u = int(np.argmax(crossed))
            low, high = (float(np.broadcast_to(b, (self.n,))[u]) for b in (self.k_min, self.k_max))
            raise ProblemError(f"variable {u} has no allowed level between k_min = {low:g} and k_max = {high:g}")
        with np.errstate(all="ignore"):
            unusable = any(not np.all(np.isfinite(self.term.take(s).value(self.lower[s]))) for s in blocks(self.n))
        if unusable:
            raise ProblemError(f"the term {self.term!r} is not finite at k_min; raise k_min")

    @property
    def n(self) -> int:
        """Number of variables."""
        return self.damage.size

    @property
    def m(self) -> int:
        """Number of budgets."""
        return self.budget.size

    @property
    def costs(self) -> FloatArray:
        """Costs, one row a budget (m, n), also where a single budget was given."""
        return np.atleast_2d(self.cost)

    @property
    def budgets(self) -> FloatArray:
        """Budgets (m,), also where a single one was given."""
        return np.atleast_1d(self.budget)

    @cached_property
    def lower(self) -> FloatArray:
        """Smallest allowed level of each variable (n,)."""
        return self._to_levels(self.k_min, "at_least")

    @cached_property
    def upper(self) -> FloatArray:
        """Largest allowed level of each variable (n,), possibly infinite."""
        return self._to_levels(self.k_max, "at_most")

    def _to_levels(self, bound: FloatArray, side: str) -> FloatArray:
        if bound.ndim == 0 and self.level_index is None:
            single: FloatArray = getattr(self.levels[0], side)(bound.reshape(1))
            return np.broadcast_to(single, (self.n,))
        return self.round_levels(np.broadcast_to(bound, (self.n,)), side)

    def round_levels(self, k: FloatArray, side: str, variables: Index = slice(None)) -> FloatArray:
        """Apply `at_most`, `at_least`, `after` or `before` of each variable's levels to k, given for `variables`."""
        if self.level_index is None:
            single: FloatArray = getattr(self.levels[0], side)(k)
            return single
        out, index = np.empty(k.shape), self.level_index[variables]
        for position, levels in enumerate(self.levels):
            chosen = index == position
            out[chosen] = getattr(levels, side)(k[chosen])
        return out

    @cached_property
    def discrete(self) -> NDArray[np.bool_]:
        """Which variables are integer or listed (n,)."""
        flags = np.array([levels.is_discrete for levels in self.levels])
        return np.broadcast_to(flags[0], (self.n,)) if self.level_index is None else flags[self.level_index]

    def value(self, k: FloatArray) -> float:
        """Objective at k, floor included."""
        parts = (dot(self.damage[s], self.term.take(s).value(k[s])) for s in blocks(self.n))
        return self.floor + float(np.sum(np.fromiter(parts, np.float64)))

    def with_budget(self, budget: ArrayLike) -> Problem:
        """Replace the budget, without checking the rest again."""
        other = copy.copy(self)
        object.__setattr__(other, "budget", _budget(budget, self.cost.shape, self.n))
        return other

    def with_rows(self, rows: IntArray) -> Problem:
        """Keep some of the budgets only."""
        other = copy.copy(self)
        object.__setattr__(other, "cost", self.costs[rows])
        object.__setattr__(other, "budget", self.budgets[rows])
        return other

    def with_bounds(self, lower: FloatArray, upper: FloatArray) -> Problem:
        """Replace the bounds (n,), which must be allowed levels."""
        other = copy.copy(self)
        other.__dict__.update(lower=lower, upper=upper)
        return other

    def tightened(self) -> Problem:
        """Lower the upper bounds to what the budgets imply; the lower bounds must be feasible."""
        upper = self.upper
        for row, limit in zip(self.costs, self.budgets, strict=True):
            with np.errstate(divide="ignore", invalid="ignore"):
                reach = self.lower + (limit - dot(row, self.lower)) * (1.0 + 1e-12) / row
            upper = np.where(row > 0.0, np.minimum(upper, np.maximum(reach, self.lower)), upper)
        return self.with_bounds(self.lower, self.round_levels(np.where(self.damage > 0, upper, self.lower), "at_most"))

    def take(self, variables: IntArray, budget: ArrayLike) -> Problem:
        """Restrict to some (untied) variables, under another budget and with no floor."""
        return Problem(
            self.damage[variables],
            self.cost[..., variables],
            budget,
            self.lower[variables],
            self.upper[variables],
            self.levels,
            level_index=np.zeros(len(variables), np.intp) if self.level_index is None else self.level_index[variables],
            term=self.term.take(variables),
        )

    def merged(self) -> tuple[Problem, IntArray | None]:
        """Replace each tied group by one variable.

        Returns
        -------
        The merged problem, and the position of every variable in it (n,), or None where nothing is tied.


        Raises
        ------
        ProblemError : if variables of one group differ in their levels or in their term's parameters, or if no level
            keeps the bounds of all of them.
        """
        if self.ties is None:
            return self, None
        alone = self.ties < 0
        labels = np.where(alone, self.ties.max(initial=0) + 1 + np.arange(self.n), self.ties)
        _, first, group = np.unique(labels, return_index=True, return_inverse=True)
        if not self.term.same_within(group):
            raise ProblemError("tied variables must share the parameters of their term; separate those groups")
        if self.level_index is not None and np.any(self.level_index[first][group] != self.level_index):
            raise ProblemError("tied variables must share their levels; separate those groups")
        size = first.size
        low, high = np.zeros(size), np.full(size, np.inf)
        np.maximum.at(low, group, self.lower)
        np.minimum.at(high, group, self.upper)
        costs = np.stack([np.bincount(group, row, size) for row in self.costs])
        merged = Problem(
            np.bincount(group, self.damage, size),
            costs[0] if self.cost.ndim == 1 else costs,
            self.budget,
            low,
            high,
            self.levels,
            self.floor,
            level_index=np.zeros(size, np.intp) if self.level_index is None else self.level_index[first],
            term=self.term.take(first),
        )
        return merged, group.astype(np.intp)


def _real(name: str, value: ArrayLike, limit: float) -> FloatArray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ProblemError(f"{name} must be real numbers; got {value!r}") from error
    if array.size == 0:
        raise ProblemError(f"{name} is empty")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= limit):
        bad = ~((array >= 0.0) & (array <= limit))
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ProblemError(
            f"{name}{list(where) if where else ''} = {array[where]:g}: must be finite, >= 0 and <= {limit:g}"
        )
    positive = low if low > 0.0 else float(array.min(initial=np.inf, where=array > 0.0))
    if positive < SMALLEST:
        raise ProblemError(f"{name} holds {positive:g}, too small to compute with; use 0 or choose a larger unit")
    return array


def _budget(value: ArrayLike, cost_shape: tuple[int, ...], n: int) -> FloatArray:
    budget = _real("budget", value, np.inf)
    if len(cost_shape) not in (1, 2) or cost_shape[-1] != n or budget.shape != cost_shape[:-1]:
        raise ProblemError(
            f"cost must have shape ({n},) with one budget, or (m, {n}) with (m,) budgets; "
            f"got cost {cost_shape} and budget {budget.shape}"
        )
    return budget


def _bound(name: str, value: ArrayLike, n: int) -> FloatArray:
    bound = _real(name, value, np.inf)
    if bound.shape not in ((), (n,)):
        raise ProblemError(f"{name} must be a number or have shape ({n},); got shape {bound.shape}")
    if np.any((bound > LARGEST) & (bound < np.inf)) or (name == "k_min" and bound.max() > LARGEST):
        raise ProblemError(f"{name} must be at most {LARGEST:g}; got {bound.max():g}")
    return bound


def _levels(value: LevelSpec | Sequence[LevelSpec], several: bool) -> tuple[Levels, ...]:
    if not several:
        return (parse_levels(cast("LevelSpec", value)),)
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) == 0:
        raise ProblemError(f"with level_index, levels must be a sequence of specifications; got {value!r}")
    return tuple(parse_levels(cast("LevelSpec", spec)) for spec in value)


def _labels(name: str, value: ArrayLike | None, n: int, limit: int | None) -> IntArray | None:
    if value is None:
        return None
    labels = np.asarray(value)
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise ProblemError(f"{name} must be integers of shape ({n},); got {labels.dtype} of shape {labels.shape}")
    if limit is not None and (labels.min() < 0 or labels.max() >= limit):
        raise ProblemError(
            f"{name} must lie in 0..{limit - 1}, the positions in levels; got {labels.min()}..{labels.max()}"
        )
    return labels.astype(np.intp)


def _floor(value: float) -> float:
    floor = float(value)
    if not np.isfinite(floor):
        raise ProblemError(f"floor must be finite; got {value!r}")
    return floor
