"""Failures of an inner solver are injected: the caller sees a status with advice, never a wrong answer."""

import sys
from types import SimpleNamespace

import cvxpy as cp
import numpy as np
import pytest
import scipy.optimize

from solvers import MissingPackageError, Problem, SolverError, Status, solve

INTEGER = Problem([4.0, 1.0, 2.0], [1.0, 2.0, 1.0], 12.0, k_max=6)
CONTINUOUS = Problem([4.0, 1.0, 2.0], [1.0, 2.0, 1.0], 12.0, levels="continuous")


def assert_withheld(solution, status):
    assert solution.status is status
    assert np.isnan(solution.k).all()
    assert solution.objective == np.inf
    assert solution.gap == np.inf
    assert status.message in solution.message


@pytest.mark.parametrize(
    ("reported", "status"),
    [
        ("infeasible", Status.INFEASIBLE),
        ("unbounded", Status.UNBOUNDED),
        ("optimal_inaccurate", Status.INACCURATE),
        ("infeasible_inaccurate", Status.INACCURATE),
        ("unbounded_inaccurate", Status.INACCURATE),
        ("user_limit", Status.INACCURATE),
        ("solver_error", Status.FAILED),
        ("something new", Status.FAILED),
    ],
)
def test_every_cvxpy_status_is_told_apart(monkeypatch, reported, status):
    monkeypatch.setattr(cp.Problem, "solve", lambda *_args, **_options: None)
    monkeypatch.setattr(cp.Problem, "status", property(lambda _self: reported))
    assert_withheld(solve(CONTINUOUS, "convex"), status)


@pytest.mark.parametrize("error", [cp.error.SolverError("boom"), ZeroDivisionError("boom"), ValueError("boom")])
def test_an_exception_inside_cvxpy_is_a_failure(monkeypatch, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(cp.Problem, "solve", fail)
    solution = solve(CONTINUOUS, "convex")
    assert_withheld(solution, Status.FAILED)
    assert "boom" in solution.message


def _claim(value):
    def solved(self, *_args, **_options):
        for variable in self.variables():
            variable.value = np.full(variable.shape, value)

    return solved


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_a_wrong_answer_called_optimal_is_withheld(monkeypatch, value):
    monkeypatch.setattr(cp.Problem, "solve", _claim(value))
    monkeypatch.setattr(cp.Problem, "status", property(lambda _self: "optimal"))
    solution = solve(CONTINUOUS, "convex")
    assert solution.status in (Status.FAILED, Status.INACCURATE)
    assert np.isnan(solution.k).all()


def test_no_values_at_all_is_a_failure(monkeypatch):
    monkeypatch.setattr(cp.Problem, "solve", lambda *_args, **_options: None)
    monkeypatch.setattr(cp.Problem, "status", property(lambda _self: "optimal"))
    assert_withheld(solve(CONTINUOUS, "convex"), Status.FAILED)


def test_further_constraints_that_contradict_are_infeasible():
    solution = solve(CONTINUOUS, constraints=lambda k: [k[0] >= 5, k[0] <= 2])
    assert_withheld(solution, Status.INFEASIBLE)


def test_further_constraints_hold_and_are_certified():
    solution = solve(CONTINUOUS, constraints=lambda k: [k[0] == k[1], k[2] <= 1.5])
    assert solution.stats.method == "convex"
    assert solution.status.is_usable
    np.testing.assert_allclose(solution.k[0], solution.k[1], rtol=1e-5)
    assert solution.k[2] <= 1.5 + 1e-5
    assert solve(CONTINUOUS).objective <= solution.objective


def test_further_constraints_on_integers_go_to_a_mixed_integer_solver():
    solution = solve(INTEGER, constraints=lambda k: [k[0] + k[1] <= 5])
    assert solution.status.is_usable
    assert solution.k[0] + solution.k[1] <= 5
    np.testing.assert_array_equal(solution.k, np.round(solution.k))


def test_missing_packages_are_named(monkeypatch):
    with pytest.raises(MissingPackageError, match="NOSUCH"):
        solve(CONTINUOUS, "convex", solver="NOSUCH")
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(MissingPackageError, match="cvxpy") as caught:
        solve(CONTINUOUS, "convex")
    assert isinstance(caught.value, SolverError)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"status": 1, "x": None, "message": "time limit"}, Status.FAILED),
        ({"status": 2, "x": None, "message": "infeasible"}, Status.INACCURATE),
        ({"status": 3, "x": None, "message": "unbounded"}, Status.INACCURATE),
        ({"status": 4, "x": None, "message": "numerical"}, Status.FAILED),
        ({"status": 0, "x": np.full(18, 0.4), "message": ""}, Status.INACCURATE),
        ({"status": 0, "x": np.eye(6)[[5, 5, 5]].ravel(), "message": "", "mip_dual_bound": 1e9}, Status.INACCURATE),
    ],
)
def test_every_highs_failure_is_told_apart(monkeypatch, answer, status):
    found = SimpleNamespace(**{"mip_dual_bound": None, "mip_node_count": 0} | answer)
    monkeypatch.setattr(scipy.optimize, "milp", lambda *_args, **_options: found)
    problem = Problem([4.0, 1.0, 2.0], [1.0, 2.0, 1.0], 23.5, k_max=6)
    assert_withheld(solve(problem, "milp"), status)


def test_a_highs_answer_over_the_budget_is_repaired_not_returned(monkeypatch):
    found = SimpleNamespace(status=0, x=np.eye(6)[[5, 5, 5]].ravel(), message="", mip_dual_bound=0.0, mip_node_count=0)
    monkeypatch.setattr(scipy.optimize, "milp", lambda *_args, **_options: found)
    problem = Problem([4.0, 1.0, 2.0], [1.0, 2.0, 1.0], 23.5, k_max=6)
    solution = solve(problem, "milp")
    assert float(solution.cost) <= 23.5
    assert solution.status is Status.CERTIFIED
