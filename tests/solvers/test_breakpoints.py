"""Multipliers in closed form spend their budgets: the relaxation's cost crosses each of them there."""

import numpy as np
import pytest

from solvers import Exponential, Problem
from solvers.breakpoints import breakpoint_multipliers


def problem(levels, seed, **more):
    rng = np.random.default_rng(seed)
    damage = rng.lognormal(0.0, 2.0, 40) * (rng.random(40) > 0.1)
    low = rng.choice([1.0, 2.0], 40)
    return Problem(
        damage, rng.lognormal(0.0, 1.0, 40), 1.0, low, low * rng.choice([1.0, 8.0, 32.0], 40), levels, **more
    )


def spent(problem, log_multiplier):
    x = np.exp(log_multiplier) * problem.costs[0] / np.maximum(problem.damage, 1e-200)
    k = problem.levels[0].minimiser(problem.term, x)
    return problem.costs[0] @ np.clip(k, problem.lower, problem.upper)


@pytest.mark.parametrize("levels", ["continuous", [1, 2, 4, 8, 16, 32, 64]])
@pytest.mark.parametrize("seed", range(5))
def test_cost_crosses_every_budget_at_its_multiplier(levels, seed):
    case = problem(levels, seed)
    least, most = spent(case, 60.0), spent(case, -60.0)
    budgets = least + (most - least) * np.linspace(0.02, 0.98, 25)
    found = breakpoint_multipliers(case, budgets)
    for budget, root in zip(budgets, found, strict=True):
        assert spent(case, root + 1e-9) <= budget <= spent(case, root - 1e-9)


def test_no_closed_form_is_said():
    assert breakpoint_multipliers(problem("integer", 0), np.array([100.0])) is None
    assert breakpoint_multipliers(problem("continuous", 0, term=Exponential(0.5)), np.array([100.0])) is None
