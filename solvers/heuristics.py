"""Baselines: one level for all variables, and greedy steps from the cheapest allocation up."""

from __future__ import annotations

import numpy as np

from solvers.arithmetic import dot, fits_all
from solvers.problem import Problem
from solvers.terms import FloatArray


def uniform_allocation(problem: Problem) -> FloatArray:
    """Largest k, the same for all but for bounds and levels (rounded down), that keeps every budget (n,).

    The cheapest allocation must be feasible.
    """

    def at(k: float) -> FloatArray:
        clipped = np.clip(np.full(problem.n, k), problem.lower, problem.upper)
        return problem.round_levels(clipped, "at_most")

    low, high = float(problem.lower.min()), _largest_uniform(problem)
    best = at(low)
    if fits_all(problem.costs, at(high), problem.budgets):
        return at(high)
    while high - low > 1e-12 * high and not (problem.discrete.all() and np.array_equal(at(low), at(high))):
        middle = np.sqrt(low * high) if high > 4.0 * low else 0.5 * (low + high)
        allocation = at(middle)
        if fits_all(problem.costs, allocation, problem.budgets):
            low, best = middle, allocation
        else:
            high = middle
    return best


def _largest_uniform(problem: Problem) -> float:
    """A k that no uniform allocation can usefully exceed."""
    sums = np.array([dot(row, np.ones(problem.n)) for row in problem.costs])
    with np.errstate(divide="ignore"):
        affordable = float(np.min(problem.budgets / np.where(sums > 0, sums, np.nan), initial=np.inf, where=sums > 0))
    finite = problem.upper[np.isfinite(problem.upper)]
    largest = float(finite.max(initial=0.0))
    return max(min(max(affordable, largest), 1e90), float(problem.lower.max()))
