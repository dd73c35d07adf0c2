"""The least value for which something holds."""

from __future__ import annotations

import math
from collections.abc import Callable

_TOLERANCE = 1e-3
_GROWTH = 4.0
_FARTHEST = 2.0**40
_STEP, _STEPS = 0.01, 8


def least(excess: Callable[[float], float], low: float, high: float = math.inf) -> float | None:
    """Find the least x in [low, high] with ``excess(x) <= 0``, for an excess that falls as x > 0 grows.

    Growing by fours, then the ITP method on log x (Oliveira and Takahashi, ACM TOMS 47, 2020: false position held
    close to the middle, so never more than one trial beyond bisection's) to a relative 1e-3; the result itself was
    tried and holds. None where it does not hold up to ``high`` (or up to 2^40 times ``low``).

    >>> f"{least(lambda x: 9.0 - x, 1.0):.2f}"
    '9.00'
    """
    assert 0.0 < low <= high
    bottom = top = low
    above = at_top = excess(low)
    while at_top > 0.0:
        bottom, above, top = top, at_top, min(_GROWTH * top, high)
        if bottom == top or top > _FARTHEST * low:
            return None
        at_top = excess(top)
    return top if top == low else _between(excess, (bottom, above), (top, at_top))


def _between(excess: Callable[[float], float], low: tuple[float, float], high: tuple[float, float]) -> float:
    """Least x between two that were tried, each given with its excess: positive at ``low``, not so at ``high``."""
    (bottom, above), (top, below) = low, high
    width = left = math.log(top / bottom)
    slack = math.log1p(_TOLERANCE) * 2.0 ** math.ceil(math.log2(max(width / math.log1p(_TOLERANCE), 1.0)))
    while left > math.log1p(_TOLERANCE):
        # False position, truncated towards the middle since the excess need not be smooth, and projected close to it.
        false = left * above / (above - below)
        nearer = math.copysign(min(0.2 * left**2 / width, abs(left / 2.0 - false)), left / 2.0 - false)
        reach = slack - left / 2.0
        x = bottom * math.exp(min(max(false + nearer, left / 2.0 - reach), left / 2.0 + reach))
        value = excess(x)
        if value > 0.0:
            bottom, above = x, value
        else:
            top, below = x, value
        left, slack = math.log(top / bottom), slack / 2.0
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
