"""The one entry: `solve` checks, merges ties, picks a method and guards its answer."""

from __future__ import annotations

import time
from dataclasses import replace

from solvers.arithmetic import fits_all, spent
from solvers.branch import close_gap
from solvers.cutting import solve_several
from solvers.errors import MethodError
from solvers.heuristics import uniform_allocation
from solvers.integer import solve_discrete
from solvers.lagrangian import solve_continuous
from solvers.presolve import least_cost, presolve
from solvers.problem import Problem
from solvers.relaxation import Relaxation
from solvers.solution import Solution, Stats, usable
from solvers.terms import FloatArray


def solve(problem: Problem, method: str = "auto") -> Solution:
    """Allocate k.

    Parameters
    ----------
    problem : what to solve.
    method : "auto" picks by size and constraints, and says why in `stats.reason`.

    Raises
    ------
    MethodError : if the method is unknown or does not handle this problem.
    """
    begin = time.perf_counter()
    merged, group = problem.merged()
    solution = _solve_untied(merged, method)
    k = solution.k if problem.ties is None else solution.k[group]
    return replace(solution, k=k, stats=replace(solution.stats, seconds=time.perf_counter() - begin))


def _solve_untied(problem: Problem, method: str) -> Solution:
    least = least_cost(problem)
    decided = presolve(problem, least)
    if decided is not None:
        return decided
    if method not in ("auto", "lagrangian"):
        raise MethodError(f"method {method!r} is unknown")
    if problem.m > 1:
        problem = problem.tightened()
        decided = presolve(problem, least)
        if decided is not None:
            return decided
    relaxation, nodes = Relaxation(problem), 0
    if problem.discrete.any() or problem.m > 1:
        relaxed = solve_discrete(relaxation) if problem.m == 1 else solve_several(relaxation)
        k, bound, multiplier = relaxed.k, relaxed.bound, relaxed.at.multiplier
        if method == "auto" and problem.discrete.all():
            closed = close_gap(relaxed, int(min(max(5e5 / problem.n, 1), 300)))
            k, bound, nodes = closed.k, closed.bound, closed.nodes
    else:
        k, bound, multiplier = solve_continuous(relaxation)
    k = _no_worse_than_uniform(problem, k)
    stats = Stats("lagrangian", "one budget", relaxation.evaluations, nodes)
    return usable(problem, k, spent(problem.costs, k), bound, multiplier, stats, least)


def _no_worse_than_uniform(problem: Problem, k: FloatArray) -> FloatArray:
    uniform = uniform_allocation(problem)
    if fits_all(problem.costs, uniform, problem.budgets) and problem.value(uniform) < problem.value(k):
        return uniform
    return k
