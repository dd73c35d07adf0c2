"""What every method returns: the allocation, its certificate, and a status that says what to try next."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from solvers.problem import Problem
from solvers.terms import FloatArray

PROOF_TOLERANCE = 1e-12
"""An allocation is called optimal once no feasible one can be better by more than this, relative to the objective."""


class Status(StrEnum):
    """How a solve ended; `message` says what to try next."""

    OPTIMAL = "optimal"
    CERTIFIED = "certified"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    INACCURATE = "inaccurate"
    FAILED = "failed"

    @property
    def is_usable(self) -> bool:
        """Whether `k` is a feasible allocation."""
        return self in _USABLE

    @property
    def message(self) -> str:
        """What the status means, and what to try next."""
        return _MESSAGES[self]


_USABLE = frozenset({Status.OPTIMAL, Status.CERTIFIED, Status.FEASIBLE})
_MESSAGES = {
    Status.OPTIMAL: "Proven: no feasible allocation is better.",
    Status.CERTIFIED: "Feasible, and within `gap` of the optimum. For a smaller gap raise `node_limit`.",
    Status.FEASIBLE: "Feasible, without a lower bound. Use method='auto' for a certificate.",
    Status.INFEASIBLE: "Even the smallest levels exceed a budget. Raise the budget or lower k_min.",
    Status.UNBOUNDED: "A variable has neither an upper bound nor a cost that is limited. Give it a finite k_max or a "
    "cost.",
    Status.INACCURATE: "The inner solver stopped short of its accuracy; its answer is withheld. Use method='auto', "
    "another inner solver, or rescale the extra constraints.",
    Status.FAILED: "The inner solver failed. Use method='auto', another inner solver, or a longer time limit.",
}


@dataclass(frozen=True)
class Stats:
    """Work done.

    Parameters
    ----------
    method : the method that produced the allocation.
    reason : why it was chosen.
    evaluations : minimisations of the Lagrangian over all variables.
    nodes : partial allocations that the exact search kept.
    cuts : cutting planes.
    seconds : wall-clock time.
    """

    method: str
    reason: str = ""
    evaluations: int = 0
    nodes: int = 0
    cuts: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Solution:
    """An allocation and its certificate.

    Parameters
    ----------
    k : (n,) the allocation; NaN where the status is not usable.
    objective : floor + sum_u damage_u phi(k_u); infinite where the status is not usable.
    cost : what k costs, in the shape of the problem's budget.
    lower_bound : no feasible allocation has a smaller objective (rounding included).
    multiplier : price of each budget at the best dual bound, >= 0, in the shape of the problem's budget.
    status : how the solve ended.
    message : what the status means here, and what to try next.
    least_budget : the least budget that has a feasible allocation, in the shape of the problem's budget.
    stats : work done.
    """

    k: FloatArray
    objective: float
    cost: FloatArray
    lower_bound: float
    multiplier: FloatArray
    status: Status
    message: str
    least_budget: FloatArray
    stats: Stats

    @property
    def gap(self) -> float:
        """Objective minus lower bound; 0 means proven optimal."""
        return max(self.objective - self.lower_bound, 0.0) if np.isfinite(self.objective) else np.inf

    @property
    def relative_gap(self) -> float:
        """Gap over the magnitude of the objective."""
        return self.gap / abs(self.objective) if 0.0 < self.gap < np.inf and self.objective != 0.0 else self.gap

    def __repr__(self) -> str:
        """One line that a person reads at a prompt."""
        return (
            f"Solution({self.status.value}, objective={self.objective:.6g}, relative_gap={self.relative_gap:.1e}, "
            f"n={self.k.size}, method={self.stats.method!r})"
        )


def is_proven(objective: float, lower_bound: float, floor: float) -> bool:
    """Whether the bound meets the objective within `PROOF_TOLERANCE` of what can be reduced."""
    return objective - lower_bound <= PROOF_TOLERANCE * abs(objective - floor) or objective <= lower_bound


def usable(
    problem: Problem,
    k: FloatArray,
    cost: FloatArray,
    lower_bound: float,
    multiplier: FloatArray,
    stats: Stats,
    least: FloatArray,
    proven: bool = False,
) -> Solution:
    """Wrap a feasible allocation: its status follows from how far the lower bound is from its objective."""
    objective, shape = problem.value(k), problem.budget.shape
    if proven or is_proven(objective, lower_bound, problem.floor):
        status, lower_bound = Status.OPTIMAL, objective
    else:
        status = Status.CERTIFIED if np.isfinite(lower_bound) else Status.FEASIBLE
    return Solution(
        k,
        objective,
        np.reshape(cost, shape),
        lower_bound,
        np.reshape(multiplier, shape),
        status,
        status.message,
        np.reshape(least, shape),
        stats,
    )


def unusable(problem: Problem, status: Status, detail: str, stats: Stats, least: FloatArray) -> Solution:
    """Report a solve that gave no allocation, with the detail before the general advice."""
    shape, nothing = problem.budget.shape, np.full(problem.m, np.nan)
    return Solution(
        np.full(problem.n, np.nan),
        np.inf,
        nothing.reshape(shape),
        np.inf if status is Status.INFEASIBLE else -np.inf,
        nothing.reshape(shape),
        status,
        f"{detail} {status.message}".strip(),
        np.reshape(least, shape),
        stats,
    )
