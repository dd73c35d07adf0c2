"""Multipliers of many budgets at once, in closed form: between its breakpoints the relaxation's cost is simple.

As the multiplier falls, each variable leaves its lower end, moves, and reaches its upper end (continuous k, damage
1/k), or jumps from level to level (listed k). Sorting these breakpoints once gives the cost as a function of the
multiplier, in which every budget is found by binary search: O(n log n) for any number of budgets. These are the ranking
algorithms of Patriksson, "A survey on the continuous nonlinear resource allocation problem", EJOR 185 (2008).
"""

from __future__ import annotations

import numpy as np

from solvers.levels import Continuous, Listed
from solvers.problem import Problem
from solvers.terms import FloatArray, Power


def breakpoint_multipliers(problem: Problem, budgets: FloatArray) -> FloatArray | None:
    """Log multipliers (s,) at which the relaxation spends each budget (s,), up to rounding; None without closed form.

    Sums over breakpoints cancel where costs span many orders of magnitude: the caller checks what it is given.
    """
    if problem.m > 1 or problem.level_index is not None:
        return None
    (levels,) = problem.levels
    with np.errstate(all="ignore"):
        if isinstance(levels, Continuous) and isinstance(problem.term, Power) and problem.term.is_reciprocal:
            found = _continuous(problem, budgets)
        elif isinstance(levels, Listed) and problem.term.is_shared:
            found = _listed(problem, levels, budgets)
        else:
            return None
    return found if bool(np.all(np.isfinite(found))) else None


def _continuous(problem: Problem, budgets: FloatArray) -> FloatArray:
    """With r = multiplier^-1/2, k = clip(r sqrt(damage / cost)) and the cost is linear in r between breakpoints."""
    cost, scale = problem.costs[0], np.sqrt(problem.costs[0] / problem.damage)
    speed, low, high = np.sqrt(problem.damage * cost), cost * problem.lower, cost * problem.upper
    moves = problem.damage > 0.0
    at = np.concatenate([problem.lower[moves] * scale[moves], problem.upper[moves] * scale[moves]])
    slope = np.concatenate([speed[moves], -speed[moves]])
    offset = np.concatenate([-low[moves], high[moves]])
    order = np.argsort(at[np.isfinite(at)], kind="stable")
    at, slope, offset = (values[np.isfinite(at)][order] for values in (at, slope, offset))
    slope, offset = np.cumsum(slope), low.sum() + np.cumsum(offset)
    piece = np.maximum(np.searchsorted(offset + slope * at, budgets, side="right") - 1, 0)
    root: FloatArray = -2.0 * np.log((budgets - offset[piece]) / slope[piece])
    return root


def _listed(problem: Problem, levels: Listed, budgets: FloatArray) -> FloatArray:
    """A variable takes the step between two levels where the multiplier falls below what that saves per cost."""
    values = levels.values
    saving = -np.diff(problem.term.value(values)) / np.diff(values)
    at = np.log(saving) + np.log(problem.damage / problem.costs[0])[:, None]
    clipped = np.clip(values, problem.lower[:, None], problem.upper[:, None])
    step = problem.costs[0][:, None] * np.diff(clipped, axis=1)
    taken = (step > 0.0) & np.isfinite(at)
    order = np.argsort(-at[taken], kind="stable")
    spent = problem.costs[0] @ clipped[:, 0] + np.cumsum(step[taken][order])
    breaking = np.minimum(np.searchsorted(spent, budgets, side="right"), spent.size - 1)
    root: FloatArray = at[taken][order][breaking]
    return root
