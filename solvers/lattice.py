"""Costs that are multiples of a common unit: the part of a budget that no integer allocation can spend.

Channels of one layer cost the same, and layers cost whole numbers of MACs; the dual bound counts on spending the budget
to the last, which such costs cannot.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from solvers.levels import Integer, Listed
from solvers.problem import Problem
from solvers.terms import FloatArray

_MOST_VARIABLES = 100_000
_MOST_DISTINCT = 256
_LARGEST_MULTIPLE = 1e9
_MISFIT = 1e-12


def spendable(problem: Problem) -> FloatArray:
    """Budgets (m,) less what can never be spent, rounded up; unchanged where the costs have no common unit."""
    if problem.n > _MOST_VARIABLES or not all(_is_whole(problem, i) for i in range(len(problem.levels))):
        return problem.budgets
    pairs = zip(problem.costs, problem.budgets, strict=True)
    return np.array([_spendable(row, float(limit)) for row, limit in pairs])


def _is_whole(problem: Problem, i: int) -> bool:
    levels = problem.levels[i]
    return isinstance(levels, Integer) or (isinstance(levels, Listed) and bool(np.all(levels.values % 1.0 == 0.0)))


def _spendable(row: FloatArray, limit: float) -> float:
    if row[0] != row[-1] and np.unique(row[: 4 * _MOST_DISTINCT]).size > _MOST_DISTINCT:
        return limit
    costs = np.unique(row[row > 0.0])
    if not 0 < costs.size <= _MOST_DISTINCT or not math.isfinite(limit):
        return limit
    unit = _common_unit(costs)
    multiples = np.round(costs / unit) if unit > 0.0 else np.zeros(1)
    if multiples.min() < 1.0 or multiples.max() > _LARGEST_MULTIPLE or limit / unit > 1e14:
        return limit
    misfit = float(np.abs(costs / (unit * multiples) - 1.0).max()) + 4.0 * float(np.finfo(np.float64).eps)
    if misfit > _MISFIT:
        return limit
    if all(Fraction(c) == Fraction(unit) * round(w) for c, w in zip(costs.tolist(), multiples.tolist(), strict=True)):
        return min(
            limit, math.nextafter(float(math.floor(Fraction(limit) / Fraction(unit)) * Fraction(unit)), math.inf)
        )
    # Any k costs at most (1 + misfit) times its units, and has at most limit / (1 - misfit) of them.
    units = math.floor(limit / unit * (1.0 + 2.0 * misfit))
    return min(limit, units * unit * (1.0 + 2.0 * misfit))


def _common_unit(costs: FloatArray) -> float:
    """Greatest common divisor of nearly commensurable numbers, by Euclid's algorithm with a tolerance."""
    unit = float(costs[0])
    for cost in costs[1:].tolist():
        a, b = cost, unit
        while b > 1e-7 * unit:
            a, b = b, abs(a - round(a / b) * b)
            if b < 1e-10 * cost:
                break
        unit = a
        if unit * _LARGEST_MULTIPLE < costs[-1]:
            return 0.0
    multiples = np.round(costs / unit)
    return float(np.median(costs / multiples)) if multiples.min() >= 1.0 else 0.0
