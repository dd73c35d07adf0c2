"""The Lagrangian relaxation: with the budgets priced, every variable is minimised by itself.

    L(lambda) = sum_u min_k { a_u phi(k) + (lambda @ c_u) k }  -  lambda @ B

is a lower bound on the optimum for every lambda >= 0 (weak duality; Everett, Operations Research 11(3), 1963).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from solvers.arithmetic import blocks, rounding, total
from solvers.lattice import spendable
from solvers.levels import Levels
from solvers.problem import Problem
from solvers.terms import FloatArray, Term


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The relaxation at one multiplier: what its minimiser costs (m,), its steps and its damage (floor left aside).

    `steps` counts the levels below the minimiser, up to a constant.
    """

    multiplier: FloatArray
    cost: FloatArray
    steps: float
    damage: float


class Relaxation:
    """Minimises the Lagrangian of a problem, block by block so that temporaries stay in cache.

    Beside the problem it holds one array of n: the cost per unit of damage of a single budget.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.evaluations = 0
        self.spendable = spendable(problem)
        self._ratio: FloatArray | None = None
        if problem.m == 1:
            self._ratio = _price_per_damage(problem.costs[0], problem.damage)

    def minimiser_in(self, multiplier: FloatArray, part: slice) -> FloatArray:
        """Minimise the Lagrangian over the variables of one block."""
        problem = self.problem
        with np.errstate(all="ignore"):
            if self._ratio is not None and multiplier[0] > 0.0:
                x = self._ratio[part] * multiplier[0]
            else:
                x = _price_per_damage(multiplier @ problem.costs[:, part], problem.damage[part])
            term = problem.term.take(part)
            if problem.level_index is None:
                k = problem.levels[0].minimiser(term, x)
            else:
                k = _mixed_minimiser(problem.levels, problem.level_index[part], term, x)
            np.maximum(k, problem.lower[part], out=k)
            return np.minimum(k, problem.upper[part], out=k)

    def minimiser(self, multiplier: FloatArray) -> FloatArray:
        """Minimise the Lagrangian over the allowed k within bounds (n,)."""
        self.evaluations += 1
        k = np.empty(self.problem.n)
        for part in blocks(k.size):
            k[part] = self.minimiser_in(multiplier, part)
        return k

    def evaluate(self, multiplier: FloatArray, with_damage: bool = True) -> Evaluation:
        """Cost, steps and damage of the minimiser, without storing it."""
        self.evaluations += 1
        problem, costs, steps, damages = self.problem, [], [], []
        for part in blocks(problem.n):
            k = self.minimiser_in(multiplier, part)
            costs.append([total(row[part] * k) for row in problem.costs])
            if with_damage:
                damages.append(total(problem.damage[part] * problem.term.take(part).value(k)))
            else:
                steps.append(total(problem.round_levels(k, "rank", part)))
        cost = np.array([math.fsum(column) for column in zip(*costs, strict=True)])
        return Evaluation(multiplier, cost, math.fsum(steps), math.fsum(damages) if with_damage else math.nan)

    def bound(self, at: Evaluation) -> float:
        """Lower bound on the objective, floor included, less all that rounding may have added."""
        priced, budget = float(at.multiplier @ at.cost), float(at.multiplier @ self.spendable)
        error = rounding(self.problem.n) * (at.damage + priced + budget)
        return self.problem.floor + (at.damage + priced - budget - error)


def _price_per_damage(price: FloatArray, damage: FloatArray) -> FloatArray:
    """Price over damage; infinite where there is no damage, so that the minimiser there is the lower bound."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x = price / damage
    x[np.isnan(x)] = np.inf
    return x


def _mixed_minimiser(levels: tuple[Levels, ...], index: np.ndarray, term: Term, x: FloatArray) -> FloatArray:
    k = np.empty(x.shape)
    for position, kind in enumerate(levels):
        chosen = index == position
        k[chosen] = kind.minimiser(term.take(chosen), x[chosen])
    return k
