"""Random problem families, an exact oracle by enumeration, and the checks that every solution must pass."""

import itertools
from fractions import Fraction

import numpy as np

from solvers import Listed, Power, Problem, Status, solve

FAMILIES = {}


def family(build):
    FAMILIES[build.__name__] = build
    return build


def _draw(rng, n, spread=1.0):
    return rng.lognormal(0.0, spread, n), rng.lognormal(0.0, spread, n)


@family
def integer(rng, n):
    a, c = _draw(rng, n)
    return Problem(a, c, rng.uniform(1, 6) * c.sum(), k_max=6, floor=rng.normal())


@family
def listed(rng, n):
    a, c = _draw(rng, n)
    return Problem(a, c, rng.uniform(1, 9) * c.sum(), levels=[1, 2, 4, 8])


@family
def equal_ratios(rng, n):
    c = rng.integers(1, 6, n).astype(float)
    return Problem(3.0 * c, c, float(rng.integers(c.sum(), 5 * c.sum() + 1)), k_max=5)


@family
def equal_costs(rng, n):
    c = np.full(n, rng.lognormal())
    return Problem(rng.lognormal(0, 1, n), c, rng.uniform(1, 5) * c.sum(), k_max=5)


@family
def budget_is_attained_exactly(rng, n):
    a, c = _draw(rng, n)
    k = rng.integers(1, 6, n)
    return Problem(a, c, float(c @ k), k_max=5)


@family
def multiples_of_a_unit(rng, n):
    c = rng.integers(1, 9, n) * 1024 * 1.28e-19
    return Problem(rng.lognormal(0, 1, n), c, rng.uniform(1, 5) * c.sum(), k_max=5)


@family
def some_insensitive(rng, n):
    a, c = _draw(rng, n)
    a[rng.random(n) < 0.5] = 0.0
    c[rng.random(n) < 0.2] = 0.0
    return Problem(a, c, rng.uniform(1, 5) * c.sum(), k_max=5)


@family
def wide_range(rng, n):
    a, c = 10.0 ** rng.uniform(-20, 20, (2, n))
    return Problem(a, c, rng.uniform(1, 5) * c.sum(), k_max=5)


@family
def fixed_and_bounded(rng, n):
    a, c = _draw(rng, n)
    low = rng.integers(1, 4, n)
    high = low + rng.integers(0, 4, n)
    return Problem(a, c, rng.uniform(1, 2.5) * (c @ low), k_min=low, k_max=high)


@family
def tied(rng, n):
    a, c = _draw(rng, n)
    return Problem(a, c, rng.uniform(1, 5) * c.sum(), k_max=5, ties=rng.integers(-1, 2, n))


@family
def mixed_lists(rng, n):
    a, c = _draw(rng, n)
    index = rng.integers(0, 3, n)
    levels = ["integer", [1, 2, 4, 8], Listed([0.5, 1.5, 3.0])]
    return Problem(a, c, rng.uniform(1, 5) * c.sum(), k_min=0.5, k_max=5, levels=levels, level_index=index)


@family
def power_terms(rng, n):
    a, c = _draw(rng, n)
    return Problem(a, c, rng.uniform(1, 5) * c.sum(), k_max=5, term=Power(rng.uniform(0.3, 3.0, n)))


@family
def several_budgets(rng, n):
    m = int(rng.integers(2, 4))
    a, c = rng.lognormal(0, 1, n), rng.lognormal(0, 1, (m, n))
    return Problem(a, c, rng.uniform(1, 5, m) * c.sum(axis=1), k_max=5)


CONTINUOUS = {
    "continuous": lambda rng, n: _continuous(rng, n, spread=1.0),
    "continuous_wide": lambda rng, n: _continuous(rng, n, spread=12.0),
    "continuous_power": lambda rng, n: _continuous(rng, n, term=Power(rng.uniform(0.3, 3.0, n))),
}


def _continuous(rng, n, spread=1.0, **more):
    a, c = _draw(rng, n, spread)
    budget, k_max = rng.uniform(0.2, 8) * c.sum(), rng.choice([5.0, np.inf])
    return Problem(a, c, budget, k_min=0.1, k_max=k_max, levels="continuous", **more)


def allowed_levels(problem, u):
    """Levels of one variable, by trying candidates against the stated specification."""
    position = 0 if problem.level_index is None else problem.level_index[u]
    spec = problem.levels[position]
    values = spec.values if isinstance(spec, Listed) else np.arange(1.0, 65.0)
    low, high = (np.broadcast_to(b, (problem.n,))[u] for b in (problem.k_min, problem.k_max))
    return values[(values >= low) & (values <= high)]


def exact_cost(row, k):
    return sum((Fraction(float(c)) * Fraction(float(x)) for c, x in zip(row, k, strict=True)), Fraction(0))


def is_feasible(problem, k):
    rows = zip(problem.costs, problem.budgets, strict=True)
    return all(exact_cost(row, k) <= Fraction(float(limit)) for row, limit in rows)


def every_allocation(problem):
    """All allocations within bounds, levels and ties, whatever they cost."""
    grid = np.array(list(itertools.product(*(allowed_levels(problem, u) for u in range(problem.n)))))
    if problem.ties is not None:
        for label in set(problem.ties[problem.ties >= 0].tolist()):
            mine = grid[:, problem.ties == label]
            grid = grid[np.all(mine == mine[:, :1], axis=1)]
    return grid


def reordered(problem, order):
    """The same problem with its variables in another order."""
    per_variable = {name: getattr(problem, name) for name in ("level_index", "ties")}
    bounds = (np.broadcast_to(bound, (problem.n,))[order] for bound in (problem.k_min, problem.k_max))
    return Problem(
        problem.damage[order],
        problem.cost[..., order],
        problem.budget,
        *bounds,
        problem.levels[0] if problem.level_index is None else problem.levels,
        problem.floor,
        term=problem.term.take(order),
        **{name: None if value is None else value[order] for name, value in per_variable.items()},
    )


def exact_optimum(problem):
    """Least objective over all allocations, feasibility decided in rational arithmetic."""
    grid = every_allocation(problem)
    near = np.all(grid @ problem.costs.T <= problem.budgets * (1 + 1e-9), axis=1)
    grid = grid[near]
    values = problem.term.value(grid) @ problem.damage
    for i in np.argsort(values, kind="stable"):
        if is_feasible(problem, grid[i]):
            return problem.floor + values[i]
    return np.inf


def check(problem, solution):
    """Feasibility by exact arithmetic, bounds, levels, ties, and a bound below the objective."""
    k = solution.k
    assert solution.status.is_usable
    assert is_feasible(problem, k)
    assert np.all((k >= problem.lower) & (k <= problem.upper))
    for u in np.flatnonzero(problem.discrete):
        spec = problem.levels[0 if problem.level_index is None else problem.level_index[u]]
        assert k[u] in spec.values if isinstance(spec, Listed) else k[u] == np.round(k[u]) >= 1.0
    if problem.ties is not None:
        for label in set(problem.ties[problem.ties >= 0].tolist()):
            assert np.ptp(k[problem.ties == label]) == 0.0
    assert solution.lower_bound <= solution.objective
    value = problem.floor + problem.term.value(k) @ problem.damage
    np.testing.assert_allclose(solution.objective, value, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(np.atleast_1d(solution.cost), problem.costs @ k, rtol=1e-12)


def check_against(problem, solution, optimum):
    """The certificate holds against the optimum: bound below, objective not below, and equal where proven."""
    slack = 2e-12 * (abs(optimum) + abs(optimum - problem.floor) + abs(problem.floor))
    assert solution.lower_bound <= optimum + slack
    assert solution.objective >= optimum - slack
    if solution.status is Status.OPTIMAL:
        assert solution.objective <= optimum + slack
        assert solution.gap == 0.0
    uniform = solve(problem, "uniform")
    if solution.stats.method != "greedy":
        assert solution.objective <= uniform.objective + slack
