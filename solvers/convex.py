"""The general door: cvxpy, for any further convex constraint that a caller states on k.

Continuous variables enter by their term, discrete ones by one binary a level. What the inner solver returns is checked
against bounds, levels and budgets, and moved inside them, before anyone sees it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np

from solvers.arithmetic import fits_all, spent
from solvers.cutting import maximise_dual, multiplier_box, pull_back
from solvers.errors import MethodError, MissingPackageError
from solvers.heuristics import uniform_allocation
from solvers.milp import list_levels
from solvers.problem import IntArray, Problem
from solvers.relaxation import Relaxation
from solvers.solution import Solution, Stats, Status, unusable, usable
from solvers.terms import Exponential, FloatArray, Power, Term

Constraints = Callable[[Any], Sequence[Any]]
"""From the cvxpy expression of k (n,) to the cvxpy constraints on it."""

_VIOLATION = 1e-6
_ACCURACY = 1e-5


def _cvxpy() -> Any:
    try:
        return importlib.import_module("cvxpy")
    except ImportError as error:
        raise MissingPackageError("method 'convex' needs cvxpy; install it, or use method='auto'") from error


@singledispatch
def phi(term: Term, k: Any) -> Any:  # noqa: ARG001 - an expression; the interface
    """Convex cvxpy expression of phi(k).

    Raises
    ------
    MethodError : if the term has none.
    """
    raise MethodError(f"method 'convex' knows no cvxpy expression of {term!r}; register one with solvers.convex.phi")


@phi.register
def _(term: Power, k: Any) -> Any:
    cp = _cvxpy()
    if term.exponent.ndim == 0:
        return cp.inv_pos(k) if float(term.exponent) == 1.0 else cp.power(k, -float(term.exponent), approx=False)
    return cp.hstack([cp.power(k[i], -float(p), approx=False) for i, p in enumerate(term.exponent)])


@phi.register
def _(term: Exponential, k: Any) -> Any:
    cp = _cvxpy()
    return cp.exp(-cp.multiply(term.rate, k))


@dataclass(frozen=True, eq=False)
class _Model:
    """The cvxpy model, its k (n,), the caller's constraints, and the binaries with the levels that they select."""

    problem: Any
    k: Any
    further: list[Any]
    binaries: Any
    variable: IntArray
    level: FloatArray


def solve_convex(
    problem: Problem,
    least: FloatArray,
    constraints: Constraints | None = None,
    solver: str | None = None,
    time_limit: float | None = None,
) -> Solution:
    """Solve an (untied) problem whose smallest levels cost `least` (m,), under further constraints on k.

    The lower bound is that of the problem without the further constraints, which can only raise the optimum.

    Raises
    ------
    MissingPackageError : if cvxpy or the named solver is not installed.
    MethodError : if the problem's term has no cvxpy expression.
    """
    cp = _cvxpy()
    if solver is not None and solver not in cp.installed_solvers():
        raise MissingPackageError(f"solver {solver!r} is not installed; cvxpy has {cp.installed_solvers()}")
    tight = problem.tightened()
    model = _model(tight, constraints)
    if solver is None:
        solver = "HIGHS" if problem.discrete.all() else "CLARABEL"
    stats = Stats("convex", f"cvxpy with {solver}")
    try:
        model.problem.solve(solver=solver, **_options(solver, time_limit))
    except (cp.error.SolverError, cp.error.DCPError, ArithmeticError, ValueError, RuntimeError) as error:
        return unusable(problem, Status.FAILED, f"{solver}: {error}", stats, least)
    status = _status(str(model.problem.status))
    if status is not None:
        return unusable(problem, status, f"{solver} reports {model.problem.status!r}.", stats, least)
    return _checked(tight, model, stats, least)


def _options(solver: str, time_limit: float | None) -> dict[str, float]:
    names = {"CLARABEL": "time_limit", "HIGHS": "time_limit", "SCS": "time_limit_secs"}
    return {} if time_limit is None or solver not in names else {names[solver]: time_limit}


def _model(problem: Problem, constraints: Constraints | None) -> _Model:
    """State the problem in units in which levels, costs and the objective are near 1."""
    cp = _cvxpy()
    free, held = np.flatnonzero(~problem.discrete), np.flatnonzero(problem.discrete)
    scale = problem.value(uniform_allocation(problem)) - problem.floor or 1.0
    k, worth, rules = np.zeros(problem.n), 0.0, []
    binaries, variable, level = None, held, np.zeros(0)
    if free.size:
        typical = np.sqrt(problem.lower[free]) * np.sqrt(problem.upper[free])
        y = cp.Variable(free.size, pos=True)
        k = k + _placement(problem.n, free) @ cp.multiply(typical, y)
        rules += [y >= problem.lower[free] / typical, y <= problem.upper[free] / typical]
        used = np.flatnonzero(problem.damage[free] > 0.0)
        if used.size:
            value = phi(problem.term.take(free[used]), cp.multiply(typical[used], y[used]))
            worth = worth + (problem.damage[free[used]] / scale) @ value
    if held.size:
        position, level = list_levels(problem.take(held, problem.budget))
        variable, binaries = held[position], cp.Variable(level.size, boolean=True)
        rules.append(_placement(held.size, position) @ binaries == 1)
        k = k + _placement(problem.n, variable) @ cp.multiply(level, binaries)
        worth = worth + (problem.damage[variable] * problem.term.take(variable).value(level) / scale) @ binaries
    for row, limit in zip(problem.costs, problem.budgets, strict=True):
        unit = float(limit) if limit > 0.0 else 1.0
        rules.append((row / unit) @ k <= float(limit) / unit)
    further = list(constraints(k)) if constraints is not None else []
    return _Model(cp.Problem(cp.Minimize(worth), rules + further), k, further, binaries, variable, level)


def _placement(n: int, positions: IntArray) -> Any:
    from scipy import sparse

    return sparse.csr_array((np.ones(positions.size), (positions, np.arange(positions.size))), (n, positions.size))


def _status(reported: str) -> Status | None:
    """None for a solved model, else the status that a caller sees."""
    known = {
        "optimal": None,
        "infeasible": Status.INFEASIBLE,
        "unbounded": Status.UNBOUNDED,
        "optimal_inaccurate": Status.INACCURATE,
        "infeasible_inaccurate": Status.INACCURATE,
        "unbounded_inaccurate": Status.INACCURATE,
        "user_limit": Status.INACCURATE,
    }
    return known.get(reported, Status.FAILED)


def _checked(problem: Problem, model: _Model, stats: Stats, least: FloatArray) -> Solution:
    """Move the inner solver's k inside bounds, levels and budgets; withhold it if that changes what it is worth."""
    values = [variable.value for variable in model.problem.variables()]
    if any(value is None or not np.all(np.isfinite(value)) for value in values):
        return unusable(problem, Status.FAILED, "The inner solver returned no finite k.", stats, least)
    k = np.clip(np.asarray(model.k.value, dtype=np.float64), problem.lower, problem.upper)
    if model.binaries is not None:
        chosen = model.binaries.value > 0.5
        k[model.variable[chosen]] = model.level[chosen]
    violation = max((float(np.max(rule.violation())) for rule in model.further), default=0.0)
    claimed = problem.value(k)
    pull_back(problem, k)
    moved = problem.value(k) - claimed > _ACCURACY * abs(claimed - problem.floor)
    if violation > _VIOLATION or moved or not fits_all(problem.costs, k, problem.budgets):
        detail = f"The inner solver's answer breaks a constraint (violation {violation:.1e})."
        return unusable(problem, Status.INACCURATE, detail, stats, least)
    relaxation = Relaxation(problem)
    at = maximise_dual(relaxation, multiplier_box(relaxation))
    return usable(problem, k, spent(problem.costs, k), relaxation.bound(at), at.multiplier, stats, least)
