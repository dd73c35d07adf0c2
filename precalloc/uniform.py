"""Uniform K where some sites are fixed or bounded: every K is the common one, brought within its own bounds."""

from __future__ import annotations

import numpy as np

from precalloc.hardware import Repetition
from precalloc.objective import ROUNDING, largest_uniform
from precalloc.profiles import FloatArray


def within_bounds(k: float, lower: FloatArray, upper: FloatArray) -> FloatArray:
    """K of every unit (units,) under the common K."""
    each: FloatArray = np.clip(np.full(lower.shape, float(k)), lower, upper)
    return each


def affordable_uniform(
    energy: float, cost: FloatArray, lower: FloatArray, upper: FloatArray, repetition: Repetition
) -> float:
    """Largest common K that the hardware can realise at an energy; the smallest where rounding alone falls short.

    The energy is piecewise linear in the common K, with corners where a unit reaches its bounds: exact in one pass
    over them.

    Parameters
    ----------
    energy
        Per inference, in joules.
    cost : (units,)
        Energy at K = 1, in joules.
    lower, upper : (units,)
        Realisable bounds.
    """
    corners = np.unique(np.concatenate([lower, upper[np.isfinite(upper)]]))
    spent = [float(cost @ within_bounds(corner, lower, upper)) for corner in corners]
    reached = np.flatnonzero(np.array(spent) <= energy * (1.0 + ROUNDING))
    if reached.size == 0:
        return float(corners[0])
    corner = float(corners[reached[-1]])
    free = (lower <= corner) & (upper > corner)
    slope = float(cost[free].sum())
    if slope == 0.0:
        return corner
    held = float(cost[~free] @ within_bounds(corner, lower, upper)[~free])
    k = largest_uniform(repetition, (energy - held) / slope)
    return corner if k is None else max(k, corner)
