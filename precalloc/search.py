"""The least value from which on something holds."""

from __future__ import annotations

import math
from collections.abc import Callable

_TOLERANCE = 1e-3
_FARTHEST = 2.0**40


def least(holds: Callable[[float], bool], low: float, high: float = math.inf) -> float | None:
    """Find the least x in [low, high] with ``holds(x)``, for a condition that keeps holding as x > 0 grows.

    Doubling, then bisection of log x to a relative 1e-3; the result itself was tried and holds. None where it does
    not hold up to ``high`` (or up to 2^40 times ``low``).
    """
    assert 0.0 < low <= high
    if holds(low):
        return low
    bottom = top = low
    while not (top > low and holds(top)):
        bottom, top = top, min(2.0 * top, high)
        if bottom == top or top > _FARTHEST * low:
            return None
    while top > bottom * (1.0 + _TOLERANCE):
        middle = math.sqrt(bottom * top)
        if holds(middle):
            top = middle
        else:
            bottom = middle
    return top
