"""Several budgets: the dual is maximised over their multipliers by a cutting ellipsoid.

The dual L(lambda) is concave, with cost(k(lambda)) - B among its supergradients. Each evaluation cuts away the part
of an ellipsoid in which L cannot be greater (deep cuts: Bland, Goldfarb and Todd, Operations Research 29(6), 1981);
how many it takes depends on the number of budgets, not of variables. Each multiplier lies below that of its budget
alone, since further prices only lower k.
"""

from __future__ import annotations

import math

import numpy as np

from solvers.arithmetic import fits_all, spent
from solvers.integer import Relaxed
from solvers.lagrangian import first_multiplier, shrink_to_fit
from solvers.problem import Problem
from solvers.relaxation import Evaluation, Relaxation
from solvers.search import bracket_root
from solvers.terms import FloatArray

_ACCURACY = 1e-9
_MAX_CUTS = 5_000
_POLISHING = 8


def multiplier_box(relaxation: Relaxation) -> FloatArray:
    """Upper bounds on the best multipliers (m,): those of each budget alone, 0 for one that no allocation exceeds."""
    problem, box = relaxation.problem, np.zeros(relaxation.problem.m)
    for j in range(problem.m):
        alone = Relaxation(problem.with_rows(np.array([j])))
        if fits_all(alone.problem.costs, problem.upper, alone.problem.budgets):
            continue
        found = bracket_root(
            lambda t, one=alone: float(one.evaluate(np.array([math.exp(t)]), with_damage=False).cost[0]),  # type: ignore[misc]
            float(problem.budgets[j]) * (1.0 - 1e-12),
            first_multiplier(alone.problem),
            lambda bracket: bracket.feasible - bracket.infeasible < 0.1,
        )
        box[j] = math.exp(found.feasible)
        relaxation.evaluations += alone.evaluations
    return box


def maximise_dual(relaxation: Relaxation, box: FloatArray) -> Evaluation:
    """Multipliers within 0..box whose bound is within 1e-9, relative, of the greatest."""
    active = np.flatnonzero(box > 0.0)
    problem, m = relaxation.problem, active.size
    centre, shape = np.full(m, 0.5), np.eye(m) * (0.25 * m)
    if m == 0:
        return relaxation.evaluate(np.zeros(box.size))
    best, best_bound, ceiling = None, -np.inf, np.inf
    for _ in range(_MAX_CUTS):
        outside = _outside(centre)
        if outside is None:
            multiplier = np.zeros(box.size)
            multiplier[active] = centre * box[active]
            at = relaxation.evaluate(multiplier)
            bound = relaxation.bound(at)
            if best is None or bound > best_bound:
                best, best_bound = at, bound
            slope, depth = (problem.budgets - at.cost)[active] * box[active], best_bound - bound
        else:
            slope, depth = outside
        reach = math.sqrt(max(float(slope @ shape @ slope), 0.0))
        if outside is None:
            ceiling = min(ceiling, bound + reach)
        if reach == 0.0 or (best is not None and ceiling - best_bound <= _ACCURACY * abs(best_bound - problem.floor)):
            break
        cut = min(max(depth / reach, 0.0), 1.0 - 1e-9)
        centre, shape = _cut(centre, shape, slope / reach, cut)
    assert best is not None
    return best


def _outside(centre: FloatArray) -> tuple[FloatArray, float] | None:
    """Name a face of the unit box that the centre violates: its outward normal, and by how much."""
    over, under = centre - 1.0, -centre
    i = int(np.argmax(np.maximum(over, under)))
    excess = max(over[i], under[i])
    if excess <= 0.0:
        return None
    normal = np.zeros(centre.size)
    normal[i] = 1.0 if over[i] > 0.0 else -1.0
    return normal, float(excess)


def _cut(centre: FloatArray, shape: FloatArray, slope: FloatArray, depth: float) -> tuple[FloatArray, FloatArray]:
    """Enclose the part of an ellipsoid with slope @ (x - centre) <= -depth; slope has unit length in it."""
    m, direction = centre.size, shape @ slope
    if m == 1:
        half = (1.0 - depth) / 2.0
        return centre - (1.0 + depth) / 2.0 * direction, shape * half * half
    centre = centre - (1.0 + m * depth) / (m + 1.0) * direction
    shrink = 2.0 * (1.0 + m * depth) / ((m + 1.0) * (1.0 + depth))
    shape = m * m * (1.0 - depth * depth) / (m * m - 1.0) * (shape - shrink * np.outer(direction, direction))
    return centre, 0.5 * (shape + shape.T)


def polish(relaxation: Relaxation, at: Evaluation) -> Evaluation:
    """Newton steps on the positive multipliers until their budgets are spent, for continuous k."""
    active = np.flatnonzero(at.multiplier > 1e-6 * at.multiplier.max())
    budgets = relaxation.problem.budgets[active]

    def misfit(point: Evaluation) -> FloatArray:
        return np.asarray(point.cost[active] / budgets - 1.0)

    for _ in range(_POLISHING):
        slopes = np.empty((active.size, active.size))
        for column, j in enumerate(active):
            moved = at.multiplier.copy()
            moved[j] *= 1.0 + 1e-6
            slopes[:, column] = (misfit(relaxation.evaluate(moved)) - misfit(at)) / 1e-6
        step = np.linalg.lstsq(slopes, -misfit(at), rcond=None)[0]
        multiplier = at.multiplier.copy()
        multiplier[active] *= np.clip(1.0 + step, 0.5, 2.0)
        trial = relaxation.evaluate(multiplier)
        if not np.abs(misfit(trial)).max() < np.abs(misfit(at)).max():
            break
        at = trial
    return at


def solve_several(relaxation: Relaxation) -> Relaxed:
    """Allocate k under several budgets: dual bound, then the relaxation's minimiser made feasible."""
    problem = relaxation.problem
    at = maximise_dual(relaxation, multiplier_box(relaxation))
    if problem.discrete.all():
        k = relaxation.minimiser(at.multiplier)
        repair(problem, k, at.multiplier)
        return Relaxed(relaxation, k, relaxation.bound(at), at)
    exact = polish(relaxation, at)
    k = relaxation.minimiser(exact.multiplier)
    pull_back(problem, k)
    best = max((at, exact), key=relaxation.bound)
    return Relaxed(relaxation, k, relaxation.bound(best), best)


def pull_back(problem: Problem, k: FloatArray) -> None:
    """Move k, in place, towards its lower bounds (and to the levels below) until it keeps every budget."""
    least, now = spent(problem.costs, problem.lower), spent(problem.costs, k)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(now > problem.budgets, (problem.budgets - least) / (now - least), 1.0)
    k[:] = problem.lower + float(np.clip(shares.min(), 0.0, 1.0)) * (k - problem.lower)
    k[:] = np.clip(problem.round_levels(k, "at_most"), problem.lower, problem.upper)
    if not problem.discrete.any():
        shrink_to_fit(problem, k)
    elif not fits_all(problem.costs, k, problem.budgets):
        k[:] = problem.lower


def repair(problem: Problem, k: FloatArray, price: FloatArray) -> None:
    """Make discrete k feasible, in place, by the steps of least penalty, and fill what is left."""
    for side in ("before", "after"):
        while True:
            if side == "before" and fits_all(problem.costs, k, problem.budgets):
                break
            step = _cheapest_step(problem, k, price, side, spent(problem.costs, k) - problem.budgets)
            if step is None:
                break
            u, before = step[0], k[step[0]]
            k[u] = step[1]
            if side == "after" and not fits_all(problem.costs, k, problem.budgets):
                k[u] = before
                break


def _cheapest_step(
    problem: Problem, k: FloatArray, price: FloatArray, side: str, over: FloatArray
) -> tuple[int, float] | None:
    """Step down of least penalty per excess removed, or the step up that fits and saves most beyond its price."""
    level = problem.round_levels(k, side)
    open_ = (level >= problem.lower) & (level <= problem.upper) & np.isfinite(level)
    with np.errstate(all="ignore"):
        change = np.where(open_, level - k, 0.0)
        damage = problem.damage * (problem.term.value(level) - problem.term.value(k))
        extra = problem.costs * change
    if side == "after":
        open_ &= np.all(extra <= -over[:, None], axis=0) & (damage < 0.0)
        with np.errstate(over="ignore"):
            score = damage / np.maximum(np.abs(price @ extra), 1e-300)
    else:
        relief = np.minimum(-extra, np.maximum(over, 0.0)[:, None]) / np.maximum(problem.budgets, 1e-300)[:, None]
        removed = relief.sum(axis=0)
        open_ &= removed > 0.0
        score = (damage + price @ extra) / np.where(removed > 0.0, removed, 1.0)
    if not open_.any():
        return None
    u = int(np.argmin(np.where(open_, score, np.inf)))
    return u, float(level[u])
