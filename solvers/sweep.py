"""Many budgets over one problem: all multipliers are searched at once, each warm-started by its neighbours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from solvers.arithmetic import BLOCK, fits, rounding
from solvers.auto import solve
from solvers.breakpoints import breakpoint_multipliers
from solvers.lagrangian import first_multiplier
from solvers.levels import Listed
from solvers.presolve import least_cost
from solvers.problem import IntArray, Problem
from solvers.solution import Solution, Stats, Status, is_proven
from solvers.terms import FloatArray

_MOST_CELLS = 4_000_000
_SEARCHES = 60
_FILLS = 24
_WIDTH = 1e-6  # mixing the ends of such a bracket loses its square
_HALVINGS = 40
_BESIDE = 0.4 * _WIDTH
_ASIDE = {False: 1e-3, True: 2e-2}  # of a bracket, to either side of the interpolated root; with discrete k
_STEPS = 8.0  # steps of average cost that are left to the filling
_STEPPED = 10  # rounds after which they are left to it anyway


def sweep(problem: Problem, budgets: Sequence[float] | FloatArray) -> list[Solution]:
    """Solve one problem under many budgets, in the order given: certified, the gap of integer k not closed to proof.

    Parameters
    ----------
    budgets : (s,), or (s, m) where the problem has m budgets.

    One budget and up to four million variables times budgets are solved together; else one after another.
    """
    values = np.asarray(budgets, dtype=np.float64)
    merged, group = problem.merged()
    if problem.m > 1 or values.size * merged.n > _MOST_CELLS:
        return [solve(problem.with_budget(value), "auto" if problem.m > 1 else "lagrangian") for value in values]
    begin = time.perf_counter()
    solutions = _Grid(merged, values).solve(begin)
    if group is None:
        return solutions
    return [replace(solution, k=solution.k[group]) for solution in solutions]


class _Grid:
    """All budgets (s,) by all variables (n,) at once; `samples` are the log multipliers tried and their costs."""

    def __init__(self, problem: Problem, budgets: FloatArray) -> None:
        self.problem, self.budgets = problem, budgets
        self.row, self.evaluations = problem.costs[0], 0
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = self.row / problem.damage
        self.ratio = np.where(np.isnan(ratio), np.inf, ratio)
        self.margin = 1.0 + 2.0 * rounding(problem.n)

    def solve(self, begin: float) -> list[Solution]:
        """One solution a budget, each no worse than that of any smaller budget."""
        problem, least = self.problem, least_cost(self.problem)
        ceiling = np.where(problem.damage > 0.0, problem.upper, problem.lower)
        with np.errstate(invalid="ignore"):
            most = float(np.nan_to_num(self.row @ ceiling, nan=np.inf))
        inner = np.flatnonzero((self.budgets > least[0] * self.margin) & (self.budgets * self.margin < most))
        outer = np.setdiff1d(np.arange(self.budgets.size), inner).tolist()
        solutions = {i: solve(problem.with_budget(self.budgets[i]), "lagrangian") for i in outer}
        if inner.size:
            inner = inner[np.argsort(self.budgets[inner], kind="stable")]
            self._solve_inner(inner, least, solutions, begin)
        return [solutions[i] for i in range(self.budgets.size)]

    def minimiser(self, t: FloatArray) -> FloatArray:
        """Minimiser of the relaxation at each log multiplier (s, n)."""
        problem = self.problem
        self.evaluations += t.size
        with np.errstate(all="ignore"):
            x = np.exp(t)[:, None] * self.ratio
            if problem.level_index is None:
                k = problem.levels[0].minimiser(problem.term, x)
            else:
                k = np.empty(x.shape)
                for position, levels in enumerate(problem.levels):
                    mine = problem.level_index == position
                    k[:, mine] = levels.minimiser(problem.term.take(mine), x[:, mine])
        return np.minimum(np.maximum(k, problem.lower), problem.upper)

    def costs(self, t: FloatArray) -> FloatArray:
        """Cost of the minimiser at each log multiplier (s,), rounding included."""
        parts = [self.minimiser(t[rows]) @ self.row for rows in self.chunks(t.size)]
        return np.concatenate(parts) * self.margin

    def chunks(self, count: int) -> list[slice]:
        """Rows of (count, n) arrays, few enough at a time that temporaries stay in the processor's cache."""
        size = max(1, BLOCK // self.problem.n)
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def brackets(self, budgets: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Feasible and infeasible log multipliers of increasing budgets (s,): the samples of all serve each."""
        t = self._first(budgets)
        tried, costs = np.zeros(0), np.zeros(0)
        enough = _STEPS * self._step_cost() if self.problem.discrete.all() else 0.0
        for count in range(_SEARCHES):
            tried = np.concatenate([tried, t])
            costs = np.concatenate([costs, self.costs(t)])
            order = np.argsort(tried)
            tried, costs = tried[order], costs[order]
            position = np.searchsorted(-costs, -budgets, side="left")  # the first sample that fits
            feasible, infeasible = np.append(tried, np.inf)[position], np.append(-np.inf, tried)[position]
            between = np.append(np.inf, costs)[position] - np.append(costs, -np.inf)[position]
            wanted = np.flatnonzero(~((feasible - infeasible <= _WIDTH) | (between <= enough)))
            settled = count >= _STEPPED and self.problem.discrete.all() and bool(np.all(np.isfinite(between)))
            if wanted.size == 0 or settled:
                break
            t = self._next(position[wanted], tried, costs, budgets[wanted], count)
            needed = np.unique(np.clip(np.concatenate([position - 1, position]), 0, tried.size - 1))
            tried, costs = tried[needed], costs[needed]
        return feasible, infeasible

    def _first(self, budgets: FloatArray) -> FloatArray:
        """Log multipliers to begin with: to both sides of the roots where these are known, else one a budget."""
        roots = breakpoint_multipliers(self.problem, budgets)
        if roots is not None:
            return np.asarray(np.clip(np.concatenate([roots - _BESIDE, roots + _BESIDE]), -690.0, 690.0))
        ends = [first_multiplier(self.problem.with_budget(b)) for b in (budgets[0], budgets[-1])]
        spread = np.log(budgets) - np.log(budgets[0])
        return np.asarray(ends[0] + (ends[1] - ends[0]) * (spread / spread[-1] if spread[-1] > 0.0 else spread))

    def _step_cost(self) -> float:
        """Average cost of a step from one level to the next."""
        levels = self.problem.levels
        gaps = np.array(
            [np.ptp(x.values) / max(x.values.size - 1, 1) if isinstance(x, Listed) else 1.0 for x in levels]
        )
        index = self.problem.level_index
        return float(np.mean(self.row * (gaps[0] if index is None else gaps[index])))

    def _next(self, at: IntArray, tried: FloatArray, costs: FloatArray, budgets: FloatArray, count: int) -> FloatArray:
        """Interpolate in log-log scale and aim to either side of the root; step outwards without a bracket."""
        inside = (at > 0) & (at < tried.size)
        outside = np.where(at == 0, tried[0] - 2.0 ** (count + 1), tried[-1] + 2.0 ** (count + 1))[~inside]
        left, right, budgets = at[inside] - 1, at[inside], budgets[inside]
        width = tried[right] - tried[left]
        with np.errstate(all="ignore"):
            share = (np.log(costs[left]) - np.log(budgets)) / (np.log(costs[left]) - np.log(costs[right]))
        share = np.where(np.isfinite(share), share, 0.5)
        aside = np.array([-1.0, 1.0]) * _ASIDE[bool(self.problem.discrete.any())]
        if count % 3 == 2:  # where interpolation has not closed in by now, it is halved
            share, aside = np.full(share.shape, 0.5), np.zeros(1)
        t = tried[left] + np.clip(share + aside[:, None], 1e-4, 1.0 - 1e-4) * width
        return np.asarray(np.clip(np.concatenate([np.unique(outside), t.ravel()]), -690.0, 690.0))

    def _solve_inner(self, inner: IntArray, least: FloatArray, solutions: dict[int, Solution], begin: float) -> None:
        problem, budgets = self.problem, self.budgets[inner]
        feasible, infeasible = self.brackets(budgets)
        found = [self._allocate(feasible[s], infeasible[s], budgets[s]) for s in self.chunks(inner.size)]
        k, bound, price, damage = (np.concatenate(column) for column in zip(*found, strict=True))
        cost = k @ self.row
        source = np.arange(inner.size)
        for i in range(1, inner.size):  # what a smaller budget affords is never given up
            source[i] = i if damage[i] <= damage[source[i - 1]] else source[i - 1]
        stats = Stats(
            "sweep",
            "all budgets at once",
            self.evaluations // inner.size,
            seconds=(time.perf_counter() - begin) / inner.size,
        )
        objective = problem.floor + damage[source]
        for i, j in enumerate(inner.tolist()):
            proven = is_proven(float(objective[i]), float(bound[i]), problem.floor)
            status = Status.OPTIMAL if proven else Status.CERTIFIED
            solutions[j] = Solution(
                k[source[i]],
                float(objective[i]),
                cost[source[i]],
                float(objective[i] if proven else bound[i]),
                price[i],
                status,
                status.message,
                least[0],
                stats,
            )

    def _allocate(
        self, feasible: FloatArray, infeasible: FloatArray, budgets: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Allocations (s, n) between two log multipliers each, their bounds, multipliers and damages (s,)."""
        problem = self.problem
        k, other = self.minimiser(feasible), self.minimiser(infeasible)
        bounds = np.stack([self._bound(t, x, budgets) for t, x in ((feasible, k), (infeasible, other))])
        low, high = k @ self.row * self.margin, other @ self.row * self.margin
        share = np.where(high > low, (budgets - low) / np.where(high > low, high - low, 1.0), 0.0)
        k += np.where(problem.discrete, 0.0, np.clip(share, 0.0, 1.0)[:, None] * (1.0 - 1e-15) * (other - k))
        self._fill(k, budgets)
        self._guard(k, budgets)
        price = np.exp(np.where(np.argmax(bounds, axis=0) == 0, feasible, infeasible))
        return k, bounds.max(axis=0), price, problem.term.value(k) @ problem.damage

    def _guard(self, k: FloatArray, budgets: FloatArray) -> None:
        """Replace, in place, what the uniform allocation of the same budget beats."""
        problem = self.problem
        total = float(self.row.sum())
        low = np.full(budgets.size, float(problem.lower.min()))
        high = np.maximum(budgets / total if total > 0.0 else low, low)
        finite = problem.upper[np.isfinite(problem.upper)]
        if np.ptp(problem.lower) > 0.0 or (finite.size and finite.min() < high.max()):
            high = np.maximum(high, float(finite.max(initial=0.0)))
            for _ in range(_HALVINGS):
                middle = np.sqrt(low * high)
                fitting = self._uniform(middle) @ self.row * self.margin <= budgets
                low, high = np.where(fitting, middle, low), np.where(fitting, high, middle)
            high = low
        uniform = self._uniform(high / self.margin)
        better = (uniform @ self.row * self.margin <= budgets) & (
            problem.term.value(uniform) @ problem.damage < problem.term.value(k) @ problem.damage
        )
        k[better] = uniform[better]

    def _uniform(self, level: FloatArray) -> FloatArray:
        problem = self.problem
        k = np.clip(np.broadcast_to(level[:, None], (level.size, problem.n)), problem.lower, problem.upper)
        if problem.level_index is None:
            rounded: FloatArray = problem.levels[0].at_most(k)
            return rounded
        for position, levels in enumerate(problem.levels):
            mine = problem.level_index == position
            k[:, mine] = levels.at_most(k[:, mine])
        return k

    def _bound(self, t: FloatArray, k: FloatArray, budgets: FloatArray) -> FloatArray:
        problem, price = self.problem, np.exp(t)
        damage, priced = problem.term.value(k) @ problem.damage, price * (k @ self.row)
        error = rounding(problem.n) * problem.n * (damage + priced + price * budgets) / 8.0
        return np.asarray(problem.floor + damage + priced - price * budgets - error)

    def _fill(self, k: FloatArray, budgets: FloatArray) -> None:
        """Marginal filling of all budgets together, in place: a round takes one step a budget."""
        _problem, columns = self.problem, np.flatnonzero(self.problem.discrete)
        left = budgets * self.margin - k @ self.row
        here = k[:, columns]
        after, extra, saving = self._steps(here, columns)
        rows = np.arange(budgets.size)
        for _ in range(_FILLS if columns.size else 0):
            pick = np.argmax(np.where(extra[rows] <= left[rows, None], saving[rows], -1.0), axis=1)
            going = (extra[rows, pick] <= left[rows]) & (saving[rows, pick] > 0.0)
            rows, pick = rows[going], pick[going]
            if rows.size == 0:
                return
            chosen, before = columns[pick], k[rows, columns[pick]]
            k[rows, chosen] = after[rows, pick]
            left[rows] -= extra[rows, pick]
            for i in np.flatnonzero(
                left[rows] < budgets[rows] * (self.margin - 1.0) * 2.0
            ):  # too close: decide exactly
                if not fits(self.row, k[rows[i]], float(budgets[rows[i]])):
                    k[rows[i], chosen[i]] = before[i]
                    left[rows[i]] = -np.inf
            now = k[rows, chosen]
            after[rows, pick], extra[rows, pick], saving[rows, pick] = self._steps(now, chosen)

    def _steps(self, here: FloatArray, variables: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Give level, extra cost and saving per cost of the steps up from `here`, whose last axis is `variables`."""
        problem, term = self.problem, self.problem.term.take(variables)
        after = self._after(here, variables)
        after = np.where(after <= problem.upper[variables], after, np.inf)
        with np.errstate(all="ignore"):
            extra = self.row[variables] * (after - here)
            saving = problem.damage[variables] * (term.value(here) - term.value(after)) / extra
        return after, extra, np.where(np.isfinite(after) & (extra > 0.0), saving, -1.0)

    def _after(self, here: FloatArray, columns: IntArray) -> FloatArray:
        problem = self.problem
        if problem.level_index is None:
            single: FloatArray = problem.levels[0].after(here)
            return single
        out = np.empty(here.shape)
        for position, levels in enumerate(problem.levels):
            mine = problem.level_index[columns] == position
            out[..., mine] = levels.after(here[..., mine])
        return out
