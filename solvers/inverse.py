"""The inverse: least cost with damage at most D. Same relaxation, read the other way round.

For mu >= 0 the least of cost @ k + mu (damage(k) - D) bounds the cost from below, and its minimiser is that of the
direct problem at lambda = 1 / mu.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from solvers.arithmetic import dot, rounding
from solvers.branch import ROUNDS, Core, search_core
from solvers.core import departures
from solvers.errors import MethodError, ProblemError
from solvers.integer import steps_between
from solvers.lagrangian import CONTINUOUS_WIDTH, first_multiplier
from solvers.problem import Problem
from solvers.relaxation import Evaluation, Relaxation
from solvers.search import Bracket, bracket_root
from solvers.solution import PROOF_TOLERANCE, Solution, Stats, Status, is_proven, unusable
from solvers.terms import FloatArray

_CORE_STEPS = 500.0


def solve_min_cost(problem: Problem, damage_limit: float) -> Solution:
    """Allocate k of least cost with floor + sum_u damage_u phi(k_u) <= damage_limit; the problem's budget is ignored.

    Returns
    -------
    Solution whose `objective`, `lower_bound` and `gap` are costs, and whose `multiplier` is the cost of one unit of
    damage less; `least_budget` is NaN.

    Raises
    ------
    MethodError : if the problem has several budgets.
    ProblemError : if the limit is NaN.
    """
    begin = time.perf_counter()
    if problem.m > 1:
        raise MethodError("solve_min_cost minimises one cost; pass cost of shape (n,)")
    if math.isnan(damage_limit):
        raise ProblemError(f"damage_limit = {damage_limit}: must be a number")
    merged, group = problem.merged()
    solution = _solve(merged, float(damage_limit))
    k = solution.k if group is None else solution.k[group]
    return replace(solution, k=k, stats=replace(solution.stats, seconds=time.perf_counter() - begin))


def _solve(problem: Problem, limit: float) -> Solution:
    row, stats = problem.costs[0], Stats("inverse", "the bounds decide")
    if problem.value(problem.lower) <= limit:
        return _wrap(problem, np.array(problem.lower), dot(row, problem.lower), 0.0, stats)
    least = problem.value(problem.upper)
    if least > limit or (least == limit and bool(np.isinf(problem.upper[problem.damage > 0]).any())):
        detail = f"No allocation has damage below {least!r}, which exceeds {limit!r} by {least - limit:.3g}."
        solution = unusable(problem, Status.INFEASIBLE, "", stats, np.full(1, np.nan))
        return replace(solution, message=f"{detail} Raise damage_limit or k_max.")
    relaxation = Relaxation(problem)
    bracket = _bracket(relaxation, limit)
    k = relaxation.minimiser(np.array([math.exp(-bracket.feasible)]))
    other = relaxation.minimiser(np.array([math.exp(-bracket.infeasible)]))
    points = [relaxation.evaluate(np.array([math.exp(-t)])) for t in (bracket.feasible, bracket.infeasible)]
    if not problem.discrete.any():
        k = _mix(problem, k, other, limit)
    else:
        lean, critical = _add_steps(problem, k, other, limit)
        k = lean if dot(row, lean) <= dot(row, k) else k
        if critical is not None:
            points.append(relaxation.evaluate(np.array([critical])))
    bounds = [_bound(relaxation, point, limit) for point in points]
    best = int(np.argmax(bounds))
    bound, price = bounds[best], float(points[best].multiplier[0])
    if problem.discrete.all():
        k, bound = _close(relaxation, k, bound, price, limit)
    stats = Stats("inverse", "multiplier search on the damage", relaxation.evaluations)
    return _wrap(problem, k, bound, 1.0 / price, stats)


def _bracket(relaxation: Relaxation, limit: float) -> Bracket:
    problem, counted = relaxation.problem, {}

    def damage(t: float) -> float:
        multiplier = np.array([math.exp(-t)])
        k = relaxation.minimiser(multiplier)
        counted[t] = float(np.sum(problem.round_levels(k, "rank")))
        return problem.value(k) - problem.floor

    def done(bracket: Bracket) -> bool:
        if not problem.discrete.any():
            return bracket.feasible - bracket.infeasible <= CONTINUOUS_WIDTH
        return counted[bracket.feasible] - counted[bracket.infeasible] <= _CORE_STEPS

    return bracket_root(damage, limit - problem.floor, -first_multiplier(problem), done)


def _mix(problem: Problem, k: FloatArray, other: FloatArray, limit: float) -> FloatArray:
    """Cheapest point found between a feasible and an infeasible k: damage is convex on the way."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if problem.value(k + middle * (other - k)) <= limit:
            low = middle
        else:
            high = middle
    return np.clip(k + low * (other - k), problem.lower, problem.upper)


def _add_steps(problem: Problem, k: FloatArray, other: FloatArray, limit: float) -> tuple[FloatArray, float | None]:
    """From the infeasible end take steps, best saving per cost first, until damage fits; and the last one's saving."""
    moved = np.flatnonzero((k != other) & problem.discrete)
    steps = steps_between(problem, other[moved], moved, k[moved])
    lean = np.where(problem.discrete, other, k)
    low, high = 0, steps.variable.size
    while low < high:
        middle = (low + high) // 2
        trial = lean.copy()
        np.maximum.at(trial, steps.variable[:middle], steps.after[:middle])
        low, high = (low, middle) if problem.value(trial) <= limit else (middle + 1, high)
    np.maximum.at(lean, steps.variable[:low], steps.after[:low])
    if problem.value(lean) > limit:
        return k, None
    return lean, float(steps.saving[low - 1]) if low and steps.saving[low - 1] > 0.0 else None


def _bound(relaxation: Relaxation, at: Evaluation, limit: float) -> float:
    """Lower bound on the cost, less all that rounding may have added."""
    problem, mu = relaxation.problem, 1.0 / float(at.multiplier[0])
    room = limit - problem.floor
    error = rounding(problem.n) * (float(at.cost[0]) + mu * (at.damage + abs(limit) + abs(problem.floor)))
    return float(at.cost[0]) + mu * (at.damage - room) - error


def _close(relaxation: Relaxation, k: FloatArray, bound: float, price: float, limit: float) -> tuple[FloatArray, float]:
    """Enumerate the core with the roles of cost and damage exchanged."""
    problem, row, dual = relaxation.problem, relaxation.problem.costs[0], bound
    base, best = relaxation.minimiser(np.array([price])), dot(row, k)
    left = np.array([limit - problem.value(base)], np.longdouble)
    for most, width in (*ROUNDS, (400, 10_000)):
        tolerance = 0.25 * PROOF_TOLERANCE * best
        gap = best - dual + tolerance
        if best - bound <= 2.0 * tolerance:
            break
        found = departures(problem, base, np.array([price]), gap * price, most)
        found = replace(found, complete_below=found.complete_below / price)
        worth = row[found.variable] * (found.level - base[found.variable])
        error = np.array([rounding(problem.n) * (abs(limit) + abs(problem.floor))], np.longdouble)
        extra = found.damage[None, :].astype(np.longdouble)
        core = Core(found, worth, extra, found.penalty / price, np.array([1.0 / price]), left, error, np.zeros(1))
        chosen, proven_below = search_core(core, base, gap, width, lambda x: problem.value(x) <= limit)
        if chosen is not None:
            improved = base.copy()
            found.depart(improved, chosen)
            k, best = (improved, dot(row, improved)) if dot(row, improved) < best else (k, best)
        bound = max(bound, min(best, dual + proven_below - tolerance))
    return k, bound


def _wrap(problem: Problem, k: FloatArray, bound: float, multiplier: float, stats: Stats) -> Solution:
    cost, shape = dot(problem.costs[0], k), problem.budget.shape
    proven = is_proven(cost, bound, 0.0)
    status = Status.OPTIMAL if proven else Status.CERTIFIED
    bound = cost if proven else bound
    price, nothing = np.full(shape, multiplier), np.full(shape, np.nan)
    return Solution(k, cost, np.full(shape, cost), bound, price, status, status.message, nothing, stats)
