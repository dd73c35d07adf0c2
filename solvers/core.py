"""The core of a problem: the few departures from the relaxation's minimiser that an optimum can still contain.

At multiplier lambda with bound L, moving variable u from its minimiser k0 to level k has the penalty
p = a (phi(k) - phi(k0)) + (lambda @ c_u) (k - k0) >= 0. Any allocation is worth L plus the penalties of its
departures plus lambda @ (unspent budget). With a feasible allocation of value U known, departures of penalty above
U - L are out of the question (variable fixing; Pisinger, European J. Oper. Res. 83(2), 1995).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from solvers.arithmetic import blocks
from solvers.problem import IntArray, Problem
from solvers.terms import FloatArray

_SCANNED = 32_768
"""Variables looked at: a core chosen among these is small enough a gap where there are more."""

_MOST_STEPS = 64
"""Levels of a variable that are looked at together: few have many within the gap."""

_MOST_LEVELS = 4
"""Departures listed, over variables: one of many levels is branched on rather than listed."""


@dataclass(frozen=True, eq=False)
class Departures:
    """Departures from a base allocation, one entry each.

    `damage` is the change of the objective, `penalty` that plus the priced change of cost; `complete_below`: every
    departure of smaller penalty is among them.
    """

    variable: IntArray
    level: FloatArray
    damage: FloatArray
    penalty: FloatArray
    complete_below: float

    def take(self, index: IntArray, complete_below: float) -> Departures:
        """Restrict to some of the departures."""
        return Departures(
            self.variable[index], self.level[index], self.damage[index], self.penalty[index], complete_below
        )

    def depart(self, k: FloatArray, chosen: IntArray) -> FloatArray:
        """Apply the chosen departures to k, in place; the levels that they replaced."""
        before: FloatArray = k[self.variable[chosen]]
        k[self.variable[chosen]] = self.level[chosen]
        return before

    def below(self, penalty: float) -> Departures:
        """Restrict to penalties of at most `penalty`."""
        return self.take(np.flatnonzero(self.penalty <= penalty), self.complete_below)


def departures(problem: Problem, base: FloatArray, price: FloatArray, gap: float, most: int) -> Departures:
    """Find all departures of discrete variables with penalty at most `gap`, or the `most` variables that come first.

    Parameters
    ----------
    base : (n,) minimiser of the relaxation.
    price : (m,) multiplier.
    most : how many variables at most; those with the least penalties are kept.
    """
    nearest = [_steps(problem, base, price, np.arange(p.start, p.stop), base[p], gap, side, 1)[0]
               for p in blocks(min(problem.n, _SCANNED)) for side in ("after", "before")]  # fmt: skip
    found = _join(nearest)
    complete_below = np.inf if problem.n <= _SCANNED else 0.0
    if found.penalty.size > most:
        threshold = float(np.partition(found.penalty, most)[most])
        found = found.take(np.argpartition(found.penalty, most)[:most], np.inf)
        gap, complete_below = min(gap, threshold), min(complete_below, threshold)
    collected, size = [found], found.variable.size
    for side in ("after", "before"):
        reached, count = found.take(_on_side(found, base, side), np.inf), 1
        while reached.variable.size and size <= _MOST_LEVELS * most:
            some, reached = _steps(problem, base, price, reached.variable, reached.level, gap, side, count)
            collected.append(some)
            size, count = size + some.variable.size, min(2 * count, _MOST_STEPS)
        complete_below = min(complete_below, float(reached.penalty.min(initial=np.inf)))  # what a full list left out
    joined = _join(collected)
    order = np.argsort(joined.penalty, kind="stable")
    if order.size > _MOST_LEVELS * most:
        complete_below = min(complete_below, float(joined.penalty[order[_MOST_LEVELS * most]]))
        order = order[: _MOST_LEVELS * most]
    return joined.take(order, complete_below)


def _on_side(found: Departures, base: FloatArray, side: str) -> IntArray:
    up = found.level > base[found.variable]
    return np.flatnonzero(up if side == "after" else ~up)


def _steps(
    problem: Problem,
    base: FloatArray,
    price: FloatArray,
    variable: IntArray,
    k: FloatArray,
    gap: float,
    side: str,
    count: int,
) -> tuple[Departures, Departures]:
    """Departures to the next `count` levels on from k, and those of them to the last."""
    levels = list(accumulate(range(count), lambda k, _: problem.round_levels(k, side, variable), initial=k))[1:]
    first_of_last, level, variable = (count - 1) * variable.size, np.concatenate(levels), np.tile(variable, count)
    term = problem.term.take(variable)
    with np.errstate(all="ignore"):
        damage = problem.damage[variable] * (term.value(level) - term.value(base[variable]))
        penalty = damage + (price @ problem.costs[:, variable]) * (level - base[variable])
    inside = (level >= problem.lower[variable]) & (level <= problem.upper[variable]) & np.isfinite(level)
    keep = np.flatnonzero(inside & problem.discrete[variable] & (penalty <= gap))
    found = Departures(variable[keep], level[keep], damage[keep], penalty[keep], np.inf)
    return found, found.take(np.flatnonzero(keep >= first_of_last), np.inf)


def _join(parts: list[Departures]) -> Departures:
    return Departures(
        np.concatenate([part.variable for part in parts]),
        np.concatenate([part.level for part in parts]),
        np.concatenate([part.damage for part in parts]),
        np.concatenate([part.penalty for part in parts]),
        np.inf,
    )
