"""What can be told before any method runs: infeasible, unbounded, or no trade-off at all."""

from __future__ import annotations

import numpy as np

from solvers.arithmetic import fits, fits_all, spent, violated
from solvers.problem import Problem
from solvers.solution import Solution, Stats, Status, unusable, usable
from solvers.terms import FloatArray


def least_cost(problem: Problem) -> FloatArray:
    """Cost the smallest allowed levels under every budget (m,), rounded so that they fit it exactly."""
    least = spent(problem.costs, problem.lower)
    for j, row in enumerate(problem.costs):
        while not fits(row, problem.lower, float(least[j])):
            least[j] = np.nextafter(least[j], np.inf)
    return least


def presolve(problem: Problem, least: FloatArray) -> Solution | None:
    """Solve an (untied) problem that needs no method: infeasible, unbounded, or everything at its upper bound."""
    stats = Stats("presolve", "the answer follows from the bounds")
    exceeded = violated(problem.costs, problem.lower, problem.budgets)
    if exceeded.size:
        return unusable(problem, Status.INFEASIBLE, _infeasible_detail(problem, least, exceeded[0]), stats, least)
    best = np.where(problem.damage > 0.0, problem.upper, problem.lower)
    unlimited = np.isinf(best)
    limiting = problem.costs[np.isfinite(problem.budgets)]
    free = unlimited & ~np.any(limiting > 0.0, axis=0) if unlimited.any() else unlimited
    if free.any():
        u = int(np.argmax(free))
        detail = f"variable {u} costs nothing that is limited, has damage {problem.damage[u]:g} and no upper bound."
        return unusable(problem, Status.UNBOUNDED, detail, stats, least)
    if unlimited.any() or not fits_all(problem.costs, best, problem.budgets):
        return None
    none = np.zeros(problem.m)
    return usable(problem, best, spent(problem.costs, best), problem.value(best), none, stats, least, proven=True)


def _infeasible_detail(problem: Problem, least: FloatArray, j: int) -> str:
    name = "the budget" if problem.budget.ndim == 0 else f"budget {j}"
    needed, limit = float(least[j]), float(problem.budgets[j])
    return (
        f"The smallest levels cost {needed!r}, which exceeds {name} of {limit!r} by {needed - limit:.3g}; "
        f"the least feasible one is {needed!r}."
    )
