"""Degenerate problems, by name."""

import tracemalloc

import numpy as np
import pytest
from families import check, is_feasible

from solvers import Exponential, MethodError, Power, Problem, ProblemError, Status, solve, solve_min_cost, sweep

LEVELS = ["integer", "continuous", [1, 2, 4, 8]]


@pytest.mark.parametrize("levels", LEVELS)
def test_one_variable(levels):
    solution = solve(Problem([3.0], [2.0], 9.0, levels=levels))
    assert solution.status is Status.OPTIMAL
    expected = {"integer": 4.0, "continuous": 4.5}.get(str(levels), 4.0)
    np.testing.assert_allclose(solution.k, [expected], rtol=1e-12)


@pytest.mark.parametrize("levels", LEVELS)
def test_all_sensitivities_zero(levels):
    solution = solve(Problem(np.zeros(5), np.ones(5), 50.0, levels=levels, floor=2.5))
    np.testing.assert_array_equal(solution.k, np.ones(5))
    assert solution.objective == solution.lower_bound == 2.5
    assert solution.status is Status.OPTIMAL


@pytest.mark.parametrize("levels", LEVELS)
def test_budget_exactly_at_the_minimum(levels):
    solution = solve(Problem([1.0, 2.0], [0.5, 0.25], 0.75, levels=levels))
    assert solution.status is Status.OPTIMAL
    np.testing.assert_allclose(solution.k, [1.0, 1.0], rtol=1e-9)
    assert float(solution.cost) <= 0.75


@pytest.mark.parametrize("levels", LEVELS)
def test_budget_beyond_the_maximum(levels):
    solution = solve(Problem([1.0, 2.0], [1.0, 1.0], 1e6, k_max=8, levels=levels))
    np.testing.assert_array_equal(solution.k, [8.0, 8.0])
    assert solution.status is Status.OPTIMAL
    assert float(solution.multiplier) == 0.0


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("n", [1, 2, 50, 300])
def test_equal_ratios_everywhere(levels, n):
    solution = solve(Problem(np.ones(n), np.ones(n), 2.6 * n, levels=levels))
    assert solution.status is Status.OPTIMAL
    check(Problem(np.ones(n), np.ones(n), 2.6 * n, levels=levels), solution)


@pytest.mark.parametrize("whole", [7.35, 7.0])
@pytest.mark.parametrize("n", [3, 200, 1000])
def test_equal_costs_are_proven_though_the_budget_cannot_be_spent(n, whole):
    a = np.random.default_rng(n).lognormal(0, 1, n)
    problem = Problem(a, np.full(n, 1.28e-19), whole * n * 1.28e-19)
    solution = solve(problem)
    check(problem, solution)
    assert solution.status is Status.OPTIMAL


def test_bounds_that_meet_fix_the_variable():
    problem = Problem([5.0, 1.0, 1.0], [1.0, 1.0, 1.0], 9.0, k_min=[2, 1, 1], k_max=[2, 9, 9])
    solution = solve(problem)
    assert solution.k[0] == 2.0
    assert sorted(solution.k[1:]) == [3.0, 4.0]
    every = solve(Problem([5.0, 1.0], [1.0, 1.0], 9.0, k_min=3, k_max=3))
    np.testing.assert_array_equal(every.k, [3.0, 3.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["damage", "cost"])
def test_infinite_or_nan_input(name, bad):
    arguments = {"damage": [1.0, 1.0], "cost": [1.0, 1.0], "budget": 4.0}
    arguments[name][1] = bad
    with pytest.raises(ProblemError, match=rf"{name}\[1\]"):
        Problem(**arguments)


@pytest.mark.parametrize("levels", LEVELS)
def test_an_infinite_budget_limits_nothing(levels):
    bounded = Problem([1.0, 2.0], [1.0, 1.0], np.inf, k_max=8, levels=levels)
    np.testing.assert_array_equal(solve(bounded).k, [8.0, 8.0])
    several = Problem([1.0, 2.0], [[1.0, 1.0], [1.0, 2.0]], [np.inf, 5.0], levels=levels)
    alone = solve(Problem([1.0, 2.0], [1.0, 2.0], 5.0, levels=levels))
    for method in ("auto", "convex") if levels == "continuous" else ("auto", "milp", "greedy"):
        solution = solve(several, method)
        np.testing.assert_allclose(solution.objective, alone.objective, rtol=1e-6)
        check(several.with_budget([1e9, 5.0]), solution)
    if isinstance(levels, str):
        unlimited = solve(several.with_budget([np.inf, np.inf]))
        assert unlimited.status is Status.UNBOUNDED
        assert "variable 0 costs nothing that is limited" in unlimited.message


def test_a_million_variables_take_no_more_memory_than_five_arrays():
    rng = np.random.default_rng(0)
    damage, cost = rng.lognormal(0, 1, 1_000_000), rng.lognormal(0, 1, 1_000_000)
    tracemalloc.start()
    try:
        solution = solve(Problem(damage, cost, 10.0 * cost.sum()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 5 * damage.nbytes
    assert solution.relative_gap <= 1e-8
    assert float(solution.cost) <= 10.0 * cost.sum()


def test_negative_cost():
    with pytest.raises(ProblemError, match=r"cost\[0\] = -1"):
        Problem([1.0], [-1.0], 4.0)


@pytest.mark.parametrize("method", ["auto", "lagrangian", "branch", "milp", "convex", "uniform", "greedy"])
def test_infeasible_says_by_how_much_and_the_least_feasible_budget(method):
    problem = Problem([1.0, 1.0], [2.0, 3.0], 4.0)
    solution = solve(problem, method)
    assert solution.status is Status.INFEASIBLE
    assert not solution.status.is_usable
    assert "exceeds the budget of 4.0 by 1" in solution.message
    assert "least feasible one is 5.0." in solution.message
    assert float(solution.least_budget) == 5.0
    assert np.isnan(solution.k).all()
    assert solve(problem.with_budget(solution.least_budget)).status is Status.OPTIMAL


def test_infeasible_names_which_of_several_budgets():
    solution = solve(Problem([1.0, 1.0], [[1.0, 1.0], [2.0, 3.0]], [4.0, 4.0]))
    assert "budget 1 of 4.0 by 1" in solution.message


@pytest.mark.parametrize("seed", range(50))
def test_the_least_feasible_budget_is_feasible_though_its_sum_is_rounded(seed):
    c = np.random.default_rng(seed).lognormal(0, 5, 20)
    problem = Problem(np.ones(20), c, 0.5 * c.sum())
    least = solve(problem).least_budget
    assert solve(problem.with_budget(least)).status.is_usable
    below = solve(problem.with_budget(np.nextafter(np.nextafter(least, 0), 0)))
    assert below.status is Status.INFEASIBLE or is_feasible(problem.with_budget(below.cost), below.k)


def test_a_free_variable_without_upper_bound_is_unbounded():
    solution = solve(Problem([1.0, 1.0], [0.0, 1.0], 4.0))
    assert solution.status is Status.UNBOUNDED
    assert "variable 0" in solution.message
    assert "finite k_max" in solution.message
    assert solve(Problem([1.0, 1.0], [0.0, 1.0], 4.0, k_max=7)).k[0] == 7.0


@pytest.mark.parametrize("levels", LEVELS)
def test_ranges_from_1e_minus_20_to_1e20(levels):
    a, c = 10.0 ** np.linspace(-20, 20, 41), 10.0 ** np.linspace(20, -20, 41)
    problem = Problem(a, c, 3.0 * c.sum(), k_max=1e6, levels=levels)
    solution = solve(problem)
    assert is_feasible(problem, solution.k)
    assert solution.relative_gap <= 1e-9


def test_huge_k_beyond_exact_integers():
    problem = Problem([1.0, 2.0], [1e-20, 1.0], 1e3)
    solution = solve(problem)
    assert is_feasible(problem, solution.k)
    assert solution.relative_gap <= 1e-9


@pytest.mark.parametrize("levels", LEVELS)
def test_exponential_terms(levels):
    a, c = np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 1.5])
    problem = Problem(a, c, 12.0, levels=levels, term=Exponential([0.5, 1.0, 0.2]))
    solution = solve(problem)
    check(problem, solution)
    assert solution.status is Status.OPTIMAL


def test_ties_that_contradict_each_other_are_named():
    with pytest.raises(ProblemError, match="levels"):
        solve(Problem([1.0, 1.0], [1.0, 1.0], 4.0, levels=["integer", [1, 2]], level_index=[0, 1], ties=[0, 0]))
    with pytest.raises(ProblemError, match="term"):
        solve(Problem([1.0, 1.0], [1.0, 1.0], 4.0, term=Power([1.0, 2.0]), ties=[0, 0]))
    with pytest.raises(ProblemError, match="no allowed level"):
        solve(Problem([1.0, 1.0], [1.0, 1.0], 9.0, k_min=[1, 5], k_max=[4, 9], ties=[0, 0]))


def test_methods_that_do_not_fit_say_which_does():
    continuous = Problem([1.0, 2.0], [1.0, 1.0], 5.0, levels="continuous")
    for method in ("branch", "milp", "greedy"):
        with pytest.raises(MethodError, match="auto"):
            solve(continuous, method)
    with pytest.raises(MethodError, match="'simplex' is unknown"):
        solve(continuous, "simplex")
    with pytest.raises(MethodError, match="constraints"):
        solve(continuous, "lagrangian", constraints=lambda k: [k[0] == k[1]])


def test_inverse_degenerate_limits():
    problem = Problem([1.0, 1.0], [1.0, 2.0], 0.0, k_max=10, floor=0.5)
    assert solve_min_cost(problem, 100.0).objective == 3.0
    infeasible = solve_min_cost(problem, 0.6)
    assert infeasible.status is Status.INFEASIBLE
    assert "below 0.7, which exceeds 0.6 by 0.1" in infeasible.message
    np.testing.assert_array_equal(solve_min_cost(problem, 0.7).k, [10.0, 10.0])
    with pytest.raises(MethodError, match="one cost"):
        solve_min_cost(Problem([1.0], [[1.0], [1.0]], [2.0, 2.0]), 1.0)
    with pytest.raises(ProblemError, match="damage_limit"):
        solve_min_cost(problem, np.nan)


def test_sweep_handles_infeasible_sufficient_and_empty():
    problem = Problem([1.0, 1.0], [1.0, 1.0], 1.0, k_max=3)
    short, *enough = sweep(problem, [1.0, 2.0, 4.0, 100.0])
    assert short.status is Status.INFEASIBLE
    assert [solution.objective for solution in enough] == [2.0, 1.0, 2.0 / 3.0]
    assert sweep(problem, []) == []


def test_work_is_bounded_where_no_proof_is_within_reach():
    """A transformer's blocks beside its small head, which takes what is left of the budget at next to no gain."""
    rng = np.random.default_rng(2)
    cost = np.r_[1.0, np.repeat([1152.0, 9216.0, 36864.0], [12, 24, 12])]
    problem = Problem(rng.lognormal(0, 1.4, 49), cost, 15.3 * cost.sum())
    found = solve(problem)
    check(problem, found)
    assert found.stats.nodes <= 40
    assert 0.0 < found.gap <= 1e-3 * found.objective


def test_node_limit_leaves_an_honest_gap():
    rng = np.random.default_rng(3)
    a, c = rng.lognormal(0, 2, 60), rng.lognormal(0, 2, (3, 60))
    problem = Problem(a, c, 4 * c.sum(axis=1), levels=[1, 2, 4, 8, 16])
    limited, proven = solve(problem, node_limit=1), solve(problem)
    check(problem, limited)
    assert limited.lower_bound <= proven.objective * (1 + 1e-12)
    assert limited.objective >= proven.lower_bound
