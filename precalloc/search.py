"""The least value for which something holds."""

from __future__ import annotations

import math
from collections.abc import Callable

_TOLERANCE = 1e-3
_FARTHEST = 2.0**40
_STEP, _STEPS = 0.01, 8


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


def descend(holds: Callable[[float], bool], x: float, low: float) -> float:
    """Go down from an x that holds as long as one of the next few smaller values, 1 % apart, holds too; not below low.

    For conditions that fail here and there above the least x for which they hold: where K has few levels, less damage
    need not be a smaller drop.

    >>> f"{descend(lambda x: x >= 10.0 or 9.5 < x < 9.7, 10.0, 1.0):.2f}"
    '9.51'
    """
    while True:
        smaller = (max(x * (1.0 - _STEP) ** i, low) for i in range(1, _STEPS + 1))
        found = next((value for value in smaller if value < x and holds(value)), None)
        if found is None:
            return x
        x = found
