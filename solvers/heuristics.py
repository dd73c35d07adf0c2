"""Baselines without a bound: one level for all variables, and greedy steps from the cheapest allocation up."""

from __future__ import annotations

import heapq
import math

import numpy as np

from solvers.arithmetic import blocks, dot, fits_all, total
from solvers.errors import MethodError
from solvers.problem import Problem
from solvers.search import Bracket, bracket_root
from solvers.terms import FloatArray

_SAME = 1e-12


def uniform_allocation(problem: Problem) -> FloatArray:
    """Largest k, the same for all but for bounds and levels (rounded down), that keeps every budget (n,).

    The cheapest allocation must be feasible. The uniform k is found within 1e-12, relative.
    """
    level = _common_level(problem)
    if level is not None:
        return np.full(problem.n, level)

    def at(k: float) -> FloatArray:
        return problem.round_levels(np.clip(np.full(problem.n, k), problem.lower, problem.upper), "at_most")

    def load(t: float) -> float:
        allocation = at(math.exp(-t))
        used = np.array([dot(row, allocation) for row in problem.costs])
        over = not fits_all(problem.costs, allocation, problem.budgets)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = float(np.nan_to_num(used / problem.budgets, posinf=2.0).max())
        return max(share, 1.0 + _SAME) if over else min(share, 1.0)

    def done(bracket: Bracket) -> bool:
        return bracket.f_infeasible - bracket.f_feasible <= _SAME or bracket.feasible - bracket.infeasible <= _SAME

    highest = _largest_uniform(problem)
    if fits_all(problem.costs, at(highest), problem.budgets):
        return at(highest)
    lowest = at(float(problem.lower.min()))
    if load(-math.log(float(problem.lower.min()))) >= 1.0:
        return lowest
    return at(math.exp(-bracket_root(load, 1.0, -math.log(highest), done, step=1.0).feasible))


def _common_level(problem: Problem) -> float | None:
    """Solve in closed form where bounds and levels are the same for all variables; None where they are not."""
    if any(bound.strides != (0,) for bound in (problem.lower, problem.upper)):
        return None
    sums = np.array([math.fsum(total(row[part]) for part in blocks(problem.n)) for row in problem.costs])
    with np.errstate(divide="ignore"):
        reach = float(np.min(problem.budgets[sums > 0] / sums[sums > 0], initial=np.inf)) * (1.0 + _SAME)
    k = np.maximum(np.minimum(np.array([reach]), problem.upper[:1]), problem.lower[:1])
    k = problem.levels[0].at_most(k)
    while k[0] > problem.lower[0]:
        if fits_all(problem.costs, np.broadcast_to(k, (problem.n,)), problem.budgets):
            break
        k = problem.levels[0].before(k) if problem.levels[0].is_discrete else k * (1.0 - _SAME)
    return max(float(k[0]), float(problem.lower[0]))


def _largest_uniform(problem: Problem) -> float:
    """Bound from above the uniform k that is worth trying."""
    sums = np.array([dot(row, np.ones(problem.n)) for row in problem.costs])
    used = sums > 0.0
    affordable = float(np.min(problem.budgets[used] / sums[used], initial=np.inf))
    largest = float(problem.upper[np.isfinite(problem.upper)].max(initial=0.0))
    return max(min(max(affordable, largest), 1e90), float(problem.lower.max()))


def greedy_allocation(problem: Problem) -> FloatArray:
    """From the smallest levels up, take again and again the step that saves most per share of the budgets (n,).

    Raises
    ------
    MethodError : if a variable is continuous.
    """
    if not problem.discrete.all():
        raise MethodError("method 'greedy' takes steps, which continuous variables have not; use 'auto' or 'uniform'")
    k = np.array(problem.lower)
    heap: list[tuple[float, int, float]] = []
    with np.errstate(divide="ignore"):
        price = np.where(problem.budgets > 0.0, 1.0 / problem.budgets, 1.0)
    left = np.array([limit - dot(row, k) for row, limit in zip(problem.costs, problem.budgets, strict=True)])
    for u in range(problem.n):
        _offer(problem, k, u, price, heap)
    while heap:
        _, u, level = heapq.heappop(heap)
        extra = problem.costs[:, u] * (level - k[u])
        before = k[u]
        if np.all(extra <= left):
            k[u] = level
            left -= extra
            _offer(problem, k, u, price, heap)
            if not np.all(left > 1e-9 * problem.budgets) and not fits_all(problem.costs, k, problem.budgets):
                k[u] = before
                break
    return k


def _offer(problem: Problem, k: FloatArray, u: int, price: FloatArray, heap: list[tuple[float, int, float]]) -> None:
    one = np.array([u])
    level = problem.round_levels(k[one], "after", one)
    if level[0] > problem.upper[u] or problem.damage[u] == 0.0:
        return
    term = problem.term.take(one)
    saving = problem.damage[u] * float((term.value(k[one]) - term.value(level))[0])
    share = float(price @ problem.costs[:, u]) * (float(level[0]) - float(k[u]))
    heapq.heappush(heap, (-saving / share if share > 0.0 else -np.inf, u, float(level[0])))
