"""Bracketing the root of a decreasing, possibly stepped, function with as few evaluations as possible."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from solvers.errors import SolverError

_EXPONENT_LIMIT = 690.0
_NARROWEST = 4e-14
_MAX_EVALUATIONS = 400


@dataclass(frozen=True)
class Bracket:
    """f(feasible) <= target < f(infeasible), with infeasible < feasible."""

    feasible: float
    infeasible: float
    f_feasible: float
    f_infeasible: float


def _misfit(f: float, target: float) -> float:
    """log(f / target), which is near linear in t where f is a power of exp(t); finite at 0."""
    if f <= 0.0:
        return -_EXPONENT_LIMIT
    return math.log(f) - math.log(target) if target > 0.0 else _EXPONENT_LIMIT


def bracket_root(
    function: Callable[[float], float], target: float, start: float, done: Callable[[Bracket], bool], step: float = 2.0
) -> Bracket:
    """Find t where the decreasing f(t) crosses target, between two points that `done` accepts or that nearly touch.

    Secant steps on log f, aimed a little past the root so that both ends close in (superlinear where f is smooth);
    bisection whenever two of them did not halve the bracket.

    Parameters
    ----------
    function : f, of t = log of a multiplier or minus that.
    start, step : first t, and the guess of -1 / (d log f / dt).

    Raises
    ------
    SolverError : if no t within the range of floating point reaches the target.
    """
    low = high = None  # (t, f): f(low) > target >= f(high)
    t, width_before, previous = start, math.inf, None
    for count in range(_MAX_EVALUATIONS):
        point = (t, function(t))
        if point[1] <= target:
            high = point
        else:
            low = point
        if low is not None and high is not None:
            found = Bracket(high[0], low[0], high[1], low[1])
            width = found.feasible - found.infeasible
            if width <= _NARROWEST * max(1.0, abs(t)) or done(found):
                return found
            stalled = count % 3 == 2 and width > 0.5 * width_before
            width_before = width if count % 3 == 2 else width_before
            t = _secant(point, previous, low, high, target, stalled)
        else:
            t = _expand(point, previous, target, step)
        previous = point
    raise SolverError(f"no multiplier reaches the target {target:g}; rescale damage, cost or budget")


def _expand(point: tuple[float, float], previous: tuple[float, float] | None, target: float, step: float) -> float:
    t, y = point[0], _misfit(point[1], target)
    if abs(t) >= _EXPONENT_LIMIT:
        raise SolverError(f"no multiplier within floating point reaches the target {target:g}; rescale damage or cost")
    move = step * abs(y) * 1.05
    if previous is not None:
        moved, gained = abs(t - previous[0]), abs(_misfit(previous[1], target)) - abs(y)
        # Where the last step came most of the way, the slope tells the rest; on a plateau steps grow.
        move = 1.5 * moved * abs(y) / gained if gained > abs(y) else max(move, 2.0 * moved)
    move = min(max(move, 1e-9), 100.0)
    return min(max(t + math.copysign(move, 1.0 if point[1] > target else -1.0), -_EXPONENT_LIMIT), _EXPONENT_LIMIT)


def _secant(
    point: tuple[float, float],
    previous: tuple[float, float] | None,
    low: tuple[float, float],
    high: tuple[float, float],
    target: float,
    stalled: bool,
) -> float:
    middle = low[0] + 0.5 * (high[0] - low[0])
    if stalled or previous is None:
        return middle
    y, y_previous = _misfit(point[1], target), _misfit(previous[1], target)
    if y == y_previous:
        return middle
    move = -y * (point[0] - previous[0]) / (y - y_previous)
    t = point[0] + move * (1.0 + min(0.02, 10.0 * abs(y)))
    return t if low[0] < t < high[0] else middle
