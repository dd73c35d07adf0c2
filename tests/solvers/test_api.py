"""The entry function, its value types and its errors."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from solvers import Problem, ProblemError, Solution, SolverError, Status, solve


def test_solution_carries_value_cost_bound_gap_multiplier_and_status():
    solution = solve(Problem([4.0, 1.0], [1.0, 1.0], 3.0, levels="continuous", floor=0.5))
    assert isinstance(solution, Solution)
    np.testing.assert_allclose(solution.k, [2.0, 1.0], rtol=1e-9)
    assert solution.objective == pytest.approx(0.5 + 4.0 / 2 + 1.0, rel=1e-12)
    assert float(solution.cost) <= 3.0
    assert solution.multiplier.shape == solution.cost.shape == solution.least_budget.shape == ()
    assert float(solution.multiplier) == pytest.approx(1.0, rel=1e-7)
    assert solution.status is Status.OPTIMAL
    assert solution.status == "optimal"
    assert solution.gap == 0.0
    assert solution.stats.reason


def test_problem_and_solution_are_frozen():
    problem = Problem([1.0], [1.0], 3.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.floor = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        solve(problem).objective = 0.0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"damage": [np.nan], "cost": [1.0], "budget": 1.0}, r"damage\[0\] = nan"),
        ({"damage": [1.0, np.inf], "cost": [1.0, 1.0], "budget": 2.0}, r"damage\[1\] = inf"),
        ({"damage": [-1.0], "cost": [1.0], "budget": 1.0}, r"damage\[0\] = -1"),
        ({"damage": [1.0], "cost": [-2.0], "budget": 1.0}, r"cost\[0\] = -2"),
        ({"damage": [1.0], "cost": [np.inf], "budget": 1.0}, r"cost\[0\] = inf"),
        ({"damage": [1.0], "cost": [1.0], "budget": np.nan}, "budget = nan"),
        ({"damage": [1.0], "cost": [1.0], "budget": -1.0}, "budget = -1"),
        ({"damage": [1.0], "cost": [1.0, 2.0], "budget": 1.0}, "shape"),
        ({"damage": [1.0], "cost": [[1.0], [2.0]], "budget": 1.0}, "shape"),
        ({"damage": [], "cost": [], "budget": 1.0}, "empty"),
        ({"damage": [1.0], "cost": [1.0], "budget": 1.0, "k_min": 3.0, "k_max": 2.0}, "variable 0"),
        ({"damage": [1.0], "cost": [1.0], "budget": 1.0, "k_min": 2.2, "k_max": 2.8}, "variable 0"),
        ({"damage": [1.0], "cost": [1.0], "budget": 1.0, "levels": "real"}, "'real'"),
        ({"damage": [1.0], "cost": [1.0], "budget": 1.0, "levels": [1.0, -2.0]}, "levels"),
        ({"damage": [1.0], "cost": [1.0], "budget": 1.0, "levels": []}, "levels"),
        ({"damage": [1.0], "cost": [1.0], "budget": 1.0, "k_min": 0.0, "levels": "continuous"}, "k_min"),
        ({"damage": [1e-120], "cost": [1.0], "budget": 1.0}, "too small"),
        ({"damage": [1.0], "cost": [1.0], "budget": 1.0, "floor": np.nan}, "floor"),
        ({"damage": [1.0], "cost": [1.0], "budget": 1.0, "levels": ["integer"], "level_index": [1]}, "level_index"),
        ({"damage": [1.0], "cost": [1.0], "budget": 1.0, "ties": [0.5]}, "ties"),
        ({"damage": ["x"], "cost": [1.0], "budget": 1.0}, "damage"),
    ],
)
def test_malformed_input_is_named(arguments, named):
    with pytest.raises(ProblemError, match=named) as caught:
        Problem(**arguments)
    assert isinstance(caught.value, SolverError)


def test_importing_solvers_loads_numpy_only():
    code = "import sys, solvers; print(sorted({'scipy', 'cvxpy', 'torch', 'precalloc', 'pandas'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
