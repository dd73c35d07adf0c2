"""Errors of the solvers: a caller's mistake raises one of these; the outcome of a solve is a status instead."""


class SolverError(Exception):
    """Base of every error that `solvers` raises on purpose."""


class ProblemError(SolverError, ValueError):
    """The problem is malformed; the message names the input, its value and the remedy."""


class MethodError(SolverError, ValueError):
    """The method is unknown, or does not handle this kind of problem; the message names one that does."""


class MissingPackageError(SolverError, ImportError):
    """A method needs a package that is not installed; the message names it."""
