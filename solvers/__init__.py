"""Separable convex resource allocation with certificates; knows nothing of torch or precalloc."""

from solvers.auto import solve
from solvers.errors import MethodError, MissingPackageError, ProblemError, SolverError
from solvers.inverse import solve_min_cost
from solvers.levels import Continuous, Integer, Levels, Listed
from solvers.problem import Problem
from solvers.solution import PROOF_TOLERANCE, Solution, Stats, Status
from solvers.sweep import sweep
from solvers.terms import Exponential, Power, Term

__all__ = [
    "PROOF_TOLERANCE",
    "Continuous",
    "Exponential",
    "Integer",
    "Levels",
    "Listed",
    "MethodError",
    "MissingPackageError",
    "Power",
    "Problem",
    "ProblemError",
    "Solution",
    "SolverError",
    "Stats",
    "Status",
    "Term",
    "solve",
    "solve_min_cost",
    "sweep",
]
