"""One budget, integer and listed k: thresholds at the best multiplier, then the leftover budget is filled.

The allowed steps of a variable, by convexity, save less and less per unit of cost. Taking all steps in order of their
saving, across variables, until one no longer fits is optimal but for the leftover budget (Fox, Management Science
13(3), 1966; Ibaraki and Katoh, Resource Allocation Problems, 1988). The multiplier makes that order needless for
all but the few steps whose saving is near it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from solvers.arithmetic import blocks, dot, fits, rounding
from solvers.lagrangian import best_bound, bracket_multiplier, solve_continuous
from solvers.problem import IntArray, Problem
from solvers.relaxation import Evaluation, Relaxation
from solvers.terms import FloatArray

_CORE_STEPS = 500.0
_MAX_ROUNDS = 1000
_LEFTOVER = 65_536  # variables among which steps for the leftover budget are sought


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps from one allowed level to the next: variable, level before and after, extra cost, saving per cost."""

    variable: IntArray
    before: FloatArray
    after: FloatArray
    cost: FloatArray
    saving: FloatArray

    def take(self, index: IntArray) -> Steps:
        """Restrict to some of the steps."""
        return Steps(self.variable[index], self.before[index], self.after[index], self.cost[index], self.saving[index])


def next_steps(problem: Problem, k: FloatArray, variables: IntArray) -> Steps:
    """Give the step up of each of `variables` that has one, from levels k given for them."""
    after = problem.round_levels(k, "after", variables)
    possible = np.flatnonzero(after <= problem.upper[variables])
    variables, before, after = variables[possible], k[possible], after[possible]
    term, cost = problem.term.take(variables), problem.costs[0][variables] * (after - before)
    with np.errstate(divide="ignore", invalid="ignore"):
        saving = problem.damage[variables] * (term.value(before) - term.value(after)) / cost
    return Steps(variables, before, after, cost, saving)


def steps_between(problem: Problem, k: FloatArray, variables: IntArray, limit: FloatArray) -> Steps:
    """All steps of `variables` from k to `limit`, in the order of their saving per cost."""
    found = []
    for _ in range(_MAX_ROUNDS):
        steps = next_steps(problem, k, variables)
        within = np.flatnonzero(steps.after <= limit[np.searchsorted(variables, steps.variable)])
        if within.size == 0:
            break
        steps = steps.take(within)
        found.append(steps)
        limit = limit[np.searchsorted(variables, steps.variable)]
        variables, k = steps.variable, steps.after
    if not found:
        return next_steps(problem, k[:0], variables[:0])
    fields = ("variable", "before", "after", "cost", "saving")
    joined = Steps(*(np.concatenate([getattr(steps, name) for steps in found]) for name in fields))
    return joined.take(np.argsort(-joined.saving, kind="stable"))


@dataclass(frozen=True, eq=False)
class Relaxed:
    """A feasible allocation k (n,), a lower bound (floor included), and the relaxation `at` its multiplier."""

    relaxation: Relaxation
    k: FloatArray
    bound: float
    at: Evaluation


def solve_discrete(relaxation: Relaxation, start: float | None = None) -> Relaxed:
    """Allocate integer, listed or mixed k under one budget by multiplier and greedy filling."""
    problem = relaxation.problem
    bracket = bracket_multiplier(relaxation, _CORE_STEPS, start)
    k = relaxation.minimiser(np.array([math.exp(bracket.feasible)]))
    moved, limit = _moved(relaxation, k, math.exp(bracket.infeasible))
    steps = steps_between(problem, k[moved], moved, limit)
    count = fill(problem, k, steps)
    candidates = [bracket.feasible, bracket.infeasible]
    if count < steps.variable.size and steps.saving[count] > 0.0:
        candidates = [min(max(math.log(steps.saving[count]), bracket.infeasible), bracket.feasible)]
    bound, at = best_bound(relaxation, candidates)
    tried = np.arange(problem.n) < _LEFTOVER
    tried[steps.variable] = True
    fill_leftover(problem, k, np.flatnonzero(tried))
    if not problem.discrete.all():
        refit_continuous(problem, k)
    return Relaxed(relaxation, k, bound, at)


def _moved(relaxation: Relaxation, k: FloatArray, multiplier: float) -> tuple[IntArray, FloatArray]:
    """Discrete variables whose minimiser at `multiplier` differs from k, and their levels there."""
    problem, variables, levels = relaxation.problem, [], []
    for part in blocks(k.size):
        other = relaxation.minimiser_in(np.array([multiplier]), part)
        changed = np.flatnonzero((other != k[part]) & problem.discrete[part])
        variables.append(changed + part.start)
        levels.append(other[changed])
    relaxation.evaluations += 1
    return np.concatenate(variables), np.concatenate(levels)


def fill(problem: Problem, k: FloatArray, steps: Steps) -> int:
    """Take steps in order, in place, until one does not fit; how many were taken."""
    row, budget = problem.costs[0], float(problem.budgets[0])
    optimistic = budget - dot(row, k) * (1.0 - 2.0 * rounding(problem.n)) if steps.cost.size else 0.0
    count = int(np.searchsorted(np.cumsum(steps.cost), optimistic, side="right"))
    np.maximum.at(k, steps.variable[:count], steps.after[:count])
    while count and not fits(row, k, budget):
        count -= 1
        k[steps.variable[count]] = steps.before[count]
    return count


def fill_leftover(problem: Problem, k: FloatArray, variables: IntArray) -> None:
    """Spend what is left on one more step of each of `variables` that fits, best saving per cost first, in place."""
    row, budget = problem.costs[0], float(problem.budgets[0])
    spent = dot(row, k)
    left = budget - spent * (1.0 + 2.0 * rounding(problem.n))
    variables = variables[problem.discrete[variables]]
    steps = next_steps(problem, k[variables], variables)
    steps = steps.take(np.argsort(-steps.saving, kind="stable"))
    while True:
        steps = steps.take(np.flatnonzero((steps.cost <= left) & (steps.saving > 0.0)))
        if steps.variable.size == 0:
            return
        used = np.cumsum(steps.cost)
        count = max(int(np.searchsorted(used, left, side="right")), 1)
        k[steps.variable[:count]] = steps.after[:count]
        left -= float(used[count - 1]) * (1.0 + rounding(problem.n))
        steps = steps.take(np.arange(count, steps.variable.size))


def refit_continuous(problem: Problem, k: FloatArray) -> None:
    """Give the continuous variables, in place, what the discrete ones leave of the budget."""
    free, held = np.flatnonzero(~problem.discrete), np.flatnonzero(problem.discrete)
    row, budget = problem.costs[0], float(problem.budgets[0])
    left = budget - dot(row[held], k[held]) * (1.0 + rounding(problem.n))
    part = problem.take(free, max(left, 0.0))
    if not fits(row[free], part.lower, left) or fits(
        row[free], np.where(part.damage > 0, part.upper, part.lower), left
    ):
        return
    before = k[free].copy()
    k[free] = solve_continuous(Relaxation(part))[0]
    if not fits(row, k, budget) or part.value(k[free]) > part.value(before):
        k[free] = before
