"""Independent exact method: one binary a level, solved by HiGHS through `scipy.optimize.milp`.

minimise sum_ul a_u phi(K_l) z_ul   s.t.   sum_l z_ul = 1,  sum_ul c_ju K_l z_ul <= B_j,  z binary
"""

from __future__ import annotations

from typing import Any

import numpy as np

from solvers.arithmetic import fits_all, spent
from solvers.cutting import repair
from solvers.errors import MethodError
from solvers.problem import IntArray, Problem
from solvers.solution import Solution, Stats, Status, unusable, usable
from solvers.terms import FloatArray

_MOST_LEVELS = 1_000_000
_TOLERANCE = 1e-9
# HiGHS stops within 1e-6 of its bound and lets a row be exceeded by 1e-6, which scipy cannot change. So the objective
# is stated in small units of its greatest coefficient, and each budget as a large number.
_ABSOLUTE_GAP = 2e-6
_DAMAGE_UNIT = 1e-4
_BUDGET_UNITS = 1e4


def list_levels(problem: Problem) -> tuple[IntArray, FloatArray]:
    """All allowed levels between the bounds, variable by variable: (L,) variables, (L,) levels.

    Raises
    ------
    MethodError : if a variable is continuous, or there are more than a million levels.
    """
    if not problem.discrete.all():
        raise MethodError("method 'milp' takes integer and listed levels; use 'auto' or 'convex' for continuous ones")
    variables, levels = [np.arange(problem.n)], [np.array(problem.lower)]
    while variables[-1].size:
        level = problem.round_levels(levels[-1], "after", variables[-1])
        more = np.flatnonzero(level <= problem.upper[variables[-1]])
        variables.append(variables[-1][more])
        levels.append(level[more])
        if sum(map(len, levels)) > _MOST_LEVELS:
            raise MethodError(f"method 'milp' lists at most {_MOST_LEVELS} levels; use 'auto', or set k_max")
    variable, level = np.concatenate(variables), np.concatenate(levels)
    order = np.lexsort((level, variable))
    return variable[order], level[order]


def solve_milp(problem: Problem, least: FloatArray, time_limit: float | None = None) -> Solution:
    """Solve an (untied, feasible) discrete problem; `least` (m,) is the cost of its smallest levels."""
    from scipy import optimize, sparse

    tight = problem.tightened()
    variable, level = list_levels(tight)
    damage = problem.damage[variable] * problem.term.take(variable).value(level)
    scale = float(damage.max()) * _DAMAGE_UNIT or 1.0
    one_each: Any = sparse.csr_array((np.ones(level.size), (variable, np.arange(level.size))), (problem.n, level.size))
    limits = np.where(problem.budgets > 0.0, problem.budgets, 1.0)
    rows = problem.costs[:, variable] * level * (_BUDGET_UNITS / limits[:, None])
    options: Any = {"mip_rel_gap": 0.0} | ({} if time_limit is None else {"time_limit": time_limit})
    found = optimize.milp(
        damage / scale,
        integrality=np.ones(level.size, dtype=np.int64),
        bounds=optimize.Bounds(0.0, 1.0),
        constraints=[
            optimize.LinearConstraint(one_each, 1.0, 1.0),
            optimize.LinearConstraint(rows, -np.inf, _BUDGET_UNITS * problem.budgets / limits),
        ],
        options=options,
    )
    stats = Stats("milp", "HiGHS", nodes=int(getattr(found, "mip_node_count", 0) or 0))
    if found.x is None or found.status not in (0, 1):
        status = {2: Status.INACCURATE, 3: Status.INACCURATE}.get(found.status, Status.FAILED)
        return unusable(problem, status, f"HiGHS: {found.message}", stats, least)
    chosen = one_each @ (found.x > 0.5)
    if not np.all(chosen == 1.0):
        return unusable(problem, Status.INACCURATE, "HiGHS returned fractional levels.", stats, least)
    k = np.empty(problem.n)
    k[variable[found.x > 0.5]] = level[found.x > 0.5]
    if not fits_all(problem.costs, k, problem.budgets):
        repair(tight, k, np.zeros(problem.m))
    bound = float(found.mip_dual_bound if found.mip_dual_bound is not None else -np.inf) * scale
    bound = problem.floor + bound - _TOLERANCE * abs(bound) - _ABSOLUTE_GAP * scale
    if problem.value(k) < bound or not fits_all(problem.costs, k, problem.budgets):
        return unusable(problem, Status.INACCURATE, "HiGHS returned a bound above its own answer.", stats, least)
    return usable(problem, k, spent(problem.costs, k), bound, np.full(problem.m, np.nan), stats, least)
