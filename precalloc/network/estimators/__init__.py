"""Sensitivity estimators beside the one-pass curvature; one file each, all with the same profile as their result."""

from __future__ import annotations

from precalloc.errors import ProfileError
from precalloc.network.estimators.forward import Forward
from precalloc.network.estimators.learned import Learned

Estimator = str | Forward | Learned

__all__ = ["Estimator", "Forward", "Learned", "choose_estimator", "resolve_estimator"]


def choose_estimator(name: str, budget: str | None = None, granularity: str = "layer") -> Estimator:
    """Estimator by name; learning is for a budget and a granularity."""
    return Learned(budget, granularity) if name == "learned" and budget is not None else name


def resolve_estimator(estimator: Estimator) -> Forward | Learned | None:
    """Find what follows the one pass of curvature; None where nothing does.

    Raises
    ------
    ProfileError
        If it is unknown, or lacks the budget that learning is for.
    """
    if isinstance(estimator, Forward | Learned):
        return estimator
    if estimator == "curvature":
        return None
    if estimator == "forward":
        return Forward()
    if estimator == "learned":
        raise ProfileError("Learning is for one budget: give estimator=Learned(budget='15x'), or --budget.")
    raise ProfileError(f"Estimator {estimator!r} is unknown. Choose curvature, forward or learned.")
