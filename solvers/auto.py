"""The one entry: `solve` merges ties, tells the decided cases, picks a method, and guards its answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from solvers.arithmetic import fits_all, spent
from solvers.branch import close_gap
from solvers.cutting import solve_several
from solvers.errors import MethodError
from solvers.heuristics import greedy_allocation, uniform_allocation
from solvers.integer import Relaxed, solve_discrete
from solvers.lagrangian import solve_continuous
from solvers.presolve import least_cost, presolve
from solvers.problem import Problem
from solvers.relaxation import Relaxation
from solvers.solution import Solution, Stats, Status, unusable, usable
from solvers.terms import FloatArray

_MOST_SPLIT = 20_000  # variables times subproblems that `auto` relaxes by default
_MOST_SUBPROBLEMS = 40
# Squared variables times subproblems after which a small gap is enough: the more variables, the longer a
# subproblem takes, and the less of the gap it closes.
_MOST_FOR_PROOF = 1_000_000


@dataclass(frozen=True)
class Options:
    """What a caller may set beside the problem; see `solve`."""

    node_limit: int | None = None
    constraints: Callable[[Any], Any] | None = None
    solver: str | None = None
    time_limit: float | None = None


def solve(
    problem: Problem,
    method: str = "auto",
    *,
    node_limit: int | None = None,
    constraints: Callable[[Any], Any] | None = None,
    solver: str | None = None,
    time_limit: float | None = None,
) -> Solution:
    """Allocate k.

    Parameters
    ----------
    problem : what to solve.
    method : "auto" picks by size and constraints and says why in `stats.reason`; else "lagrangian" (dual bound and
        filling, no search), "branch" (the same, then the gap is closed), "convex" (cvxpy), "milp" (HiGHS), or the
        baselines "uniform" and "greedy".
    node_limit : subproblems that closing the gap may enumerate; by default fewer the larger the problem.
    constraints : further convex constraints: a function from the cvxpy expression of k (n,) to a list of cvxpy
        constraints; picks "convex".
    solver : inner solver of "convex", as cvxpy names it.
    time_limit : seconds, for "convex" and "milp".

    Raises
    ------
    MethodError : if the method is unknown or does not handle this problem.
    ProblemError : if ties contradict levels, bounds or terms.
    MissingPackageError : if the method needs a package that is not installed.
    """
    begin = time.perf_counter()
    if method not in ("auto", *_METHODS):
        raise MethodError(f"method {method!r} is unknown; choose 'auto' or one of {sorted(_METHODS)}")
    if constraints is not None and method not in ("auto", "convex"):
        raise MethodError(f"method {method!r} takes no further constraints; use 'auto' or 'convex'")
    options = Options(node_limit, constraints, solver, time_limit)
    merged, group = problem.merged()
    if constraints is not None and group is not None:
        options = replace(options, constraints=lambda k: constraints(k[group]))
    solution = _solve_untied(merged, method, options)
    k = solution.k if group is None else solution.k[group]
    return replace(solution, k=k, stats=replace(solution.stats, seconds=time.perf_counter() - begin))


def _solve_untied(problem: Problem, method: str, options: Options) -> Solution:
    least = least_cost(problem)
    decided = presolve(problem, least)
    if decided is not None and (options.constraints is None or not decided.status.is_usable):
        return decided
    if problem.m > 1 and options.constraints is None:
        decided = presolve(problem.tightened(), least)
        if decided is not None:
            return decided
    problem = _with_finite_budgets(problem)
    reason = "asked for"
    if method == "auto":
        method, reason = _pick(problem, options)
    solution = _METHODS[method](problem, least, options)
    if solution.status.is_usable and not fits_all(problem.costs, solution.k, problem.budgets):
        return unusable(problem, Status.FAILED, f"Method {method!r} exceeded a budget.", solution.stats, least)
    return replace(solution, stats=replace(solution.stats, method=method, reason=reason))


def _with_finite_budgets(problem: Problem) -> Problem:
    """Replace infinite budgets by what no allocation within the finite ones can reach."""
    unlimited = np.isinf(problem.budgets)
    if not unlimited.any():
        return problem
    beyond = 2.0 * spent(problem.costs, problem.tightened().upper) + 1.0
    return problem.with_budget(np.where(unlimited, beyond, problem.budgets))


def _pick(problem: Problem, options: Options) -> tuple[str, str]:
    if options.constraints is not None:
        return "convex", "further constraints need cvxpy"
    size = f"{problem.n} variables, {problem.m} budget{'s' if problem.m > 1 else ''}"
    if not problem.discrete.any():
        return "lagrangian", f"{size}: continuous k needs no search beyond the multipliers"
    if not problem.discrete.all():
        return "lagrangian", f"{size}: continuous k takes up what discrete k leaves"
    return "branch", f"{size}: the gap of discrete k is closed as far as the node limit goes"


def _relax(problem: Problem) -> Relaxed:
    if problem.m > 1:
        return solve_several(Relaxation(problem.tightened()))
    relaxation = Relaxation(problem)
    if problem.discrete.any():
        return solve_discrete(relaxation)
    k, bound, at = solve_continuous(relaxation)
    return Relaxed(relaxation, k, bound, at)


def _lagrangian(problem: Problem, least: FloatArray, options: Options) -> Solution:  # noqa: ARG001 - one signature
    return _certified(problem, _relax(problem), least, 0)


def _branch(problem: Problem, least: FloatArray, options: Options) -> Solution:
    if not problem.discrete.all():
        raise MethodError("method 'branch' takes integer and listed levels; use 'auto' with continuous ones")
    limit = options.node_limit
    if limit is None:
        limit = max(1, min(_MOST_SUBPROBLEMS, _MOST_SPLIT // problem.n))
    proof_limit = max(1, _MOST_FOR_PROOF // problem.n**2) if options.node_limit is None else limit
    relaxed = _relax(problem)
    closed = close_gap(relaxed, limit, proof_limit)
    return _certified(problem, replace(relaxed, k=closed.k, bound=closed.bound), least, closed.nodes)


def _certified(problem: Problem, relaxed: Relaxed, least: FloatArray, nodes: int) -> Solution:
    k, at, stats = relaxed.k, relaxed.at, Stats("", "", relaxed.relaxation.evaluations, nodes)
    solution = usable(problem, k, spent(problem.costs, k), relaxed.bound, at.multiplier, stats, least)
    if solution.status is Status.OPTIMAL:
        return solution
    uniform = uniform_allocation(problem)
    if problem.value(uniform) >= solution.objective:
        return solution
    return usable(problem, uniform, spent(problem.costs, uniform), relaxed.bound, at.multiplier, stats, least)


def _baseline(allocate: Callable[[Problem], FloatArray]) -> Callable[[Problem, FloatArray, Options], Solution]:
    def method(problem: Problem, least: FloatArray, options: Options) -> Solution:  # noqa: ARG001 - one signature
        k, unknown = allocate(problem), np.full(problem.m, np.nan)
        return usable(problem, k, spent(problem.costs, k), -np.inf, unknown, Stats(""), least)

    return method


def _milp(problem: Problem, least: FloatArray, options: Options) -> Solution:
    from solvers.milp import solve_milp

    return solve_milp(problem, least, options.time_limit)


def _convex(problem: Problem, least: FloatArray, options: Options) -> Solution:
    from solvers.convex import solve_convex

    return solve_convex(problem, least, options.constraints, options.solver, options.time_limit)


_METHODS: dict[str, Callable[[Problem, FloatArray, Options], Solution]] = {
    "lagrangian": _lagrangian,
    "branch": _branch,
    "convex": _convex,
    "milp": _milp,
    "uniform": _baseline(uniform_allocation),
    "greedy": _baseline(greedy_allocation),
}
