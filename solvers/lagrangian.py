"""One budget, by its multiplier: the whole method for continuous k, and the first stage for integer and listed k.

At multiplier lambda the best k_u is where one more unit of it saves less than it costs; for phi = 1/k and continuous
k that is clip(sqrt(a_u / (lambda c_u))). The multiplier at which the budget is spent is found by a safeguarded
secant search in log-log scale, where the cost is near linear (Patriksson, European J. Oper. Res. 185(1), 2008).
"""

from __future__ import annotations

import math

import numpy as np

from solvers.arithmetic import blocks, dot, fits, rounding
from solvers.problem import Problem
from solvers.relaxation import Evaluation, Relaxation
from solvers.search import Bracket, bracket_root
from solvers.terms import FloatArray

CONTINUOUS_WIDTH = 3e-7  # mixing the two ends of such a bracket loses its square: below rounding
_SAMPLE = 1024


def first_multiplier(problem: Problem) -> float:
    """Guess log lambda: the median saving per cost, over a sample, of the uniform allocation that spends the budget."""
    stride = slice(None, None, max(1, problem.n // _SAMPLE))
    damage, cost = problem.damage[stride], problem.costs[0][stride]
    used = (damage > 0.0) & (cost > 0.0)
    if not used.any():
        return 0.0
    budget = problem.budgets[0] if np.isfinite(problem.budgets[0]) else 1.0
    with np.errstate(all="ignore"):
        uniform = np.clip(budget / (problem.n * cost[used].mean()), problem.lower[stride][used], 1e90)
        saving = problem.term.take(stride).take(used).marginal(np.minimum(uniform, problem.upper[stride][used]))
        logs = np.log(damage[used]) + np.log(saving) - np.log(cost[used])
    return float(np.median(logs[np.isfinite(logs)])) if np.isfinite(logs).any() else 0.0


def bracket_multiplier(relaxation: Relaxation, steps: float = 0.0, start: float | None = None) -> Bracket:
    """Log multipliers on either side of the budget, with at most `steps` discrete steps between their minimisers.

    Between the ends of a bracket as narrow as floating point allows there may be more: steps of equal saving per cost.
    The budget must lie between the costs of all lower and all upper bounds.
    """
    problem = relaxation.problem
    budget, only_continuous = float(problem.budgets[0]), not problem.discrete.any()
    counted: dict[float, float] = {}

    def cost(t: float) -> float:
        point = relaxation.evaluate(np.array([math.exp(t)]), with_damage=False)
        counted[t] = point.steps
        spent = float(point.cost[0])
        if abs(spent - budget) <= rounding(problem.n) * spent:  # too close for rounded sums: decide exactly
            kept = fits(problem.costs[0], relaxation.minimiser(point.multiplier), budget)
            return min(spent, budget) if kept else max(spent, math.nextafter(budget, math.inf))
        return spent

    def done(bracket: Bracket) -> bool:
        narrow = bracket.feasible - bracket.infeasible <= CONTINUOUS_WIDTH
        return narrow if only_continuous else counted[bracket.infeasible] - counted[bracket.feasible] <= steps

    guess = first_multiplier(problem) if start is None else start
    return bracket_root(cost, budget, guess, done)


def best_bound(relaxation: Relaxation, log_multipliers: list[float]) -> tuple[float, Evaluation]:
    """Greatest lower bound over some multipliers, with the evaluation that gave it."""
    points = [relaxation.evaluate(np.array([math.exp(t)])) for t in log_multipliers]
    bounds = [relaxation.bound(point) for point in points]
    best = int(np.argmax(bounds))
    return bounds[best], points[best]


def solve_continuous(relaxation: Relaxation, start: float | None = None) -> tuple[FloatArray, float, Evaluation]:
    """Allocate continuous k under one budget.

    Returns
    -------
    k (n,), lower bound (floor included), the relaxation at its multiplier.
    """
    bracket = bracket_multiplier(relaxation, start=start)
    k = relaxation.minimiser(np.array([math.exp(bracket.feasible)]))
    mix_to_budget(relaxation, k, bracket)
    bound, at = best_bound(relaxation, [bracket.feasible, bracket.infeasible])
    return k, bound, at


def mix_to_budget(relaxation: Relaxation, k: FloatArray, bracket: Bracket) -> None:
    """Move k, in place, from the feasible end of the bracket towards the other until the budget is spent."""
    problem = relaxation.problem
    row, budget = problem.costs[0], float(problem.budgets[0])
    other = relaxation.minimiser(np.array([math.exp(bracket.infeasible)]))
    low_cost, high_cost = dot(row, k), dot(row, other)
    share = (budget - low_cost) / (high_cost - low_cost) if high_cost > low_cost else 0.0
    for part in blocks(k.size):
        k[part] += min(max(share, 0.0), 1.0) * (other[part] - k[part])
        np.minimum(k[part], problem.upper[part], out=k[part])
    shrink_to_fit(problem, k)


def shrink_to_fit(problem: Problem, k: FloatArray) -> None:
    """Take rounding's last excess over any budget from continuous k, in place; the lower bounds must be feasible."""
    back = 2.0**-52
    for row, limit in zip(problem.costs, problem.budgets, strict=True):
        while not fits(row, k, float(limit)):
            for part in blocks(k.size):
                k[part] = np.maximum(
                    k[part] - back * (k[part] - problem.lower[part]) - back * 0.25 * k[part], problem.lower[part]
                )
            back *= 2.0
