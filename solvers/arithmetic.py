"""Sums whose rounding is bounded: what makes a budget test exact and a lower bound valid in floating point."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from solvers.terms import FloatArray

BLOCK = 16384
"""Variables a block: its temporaries stay in the processor's cache, which is worth a factor of two to three."""

_EPS = float(np.finfo(np.float64).eps)
_SPLIT = 134217729.0  # 2^27 + 1


def blocks(n: int) -> Iterator[slice]:
    """Slices that cover range(n)."""
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


def rounding(n: int) -> float:
    """Relative error of a sum of n nonnegative terms, each within 8 ulp, added by `total` or numpy's pairwise sum.

    numpy adds leaves of at most 128 terms with eight accumulators (16 + 3 additions) and the leaves pairwise
    (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 4.2).
    """
    return (40.0 + math.log2(max(n, 2))) * _EPS


def total(terms: FloatArray) -> float:
    """Pairwise sum over all elements."""
    return float(np.add.reduce(terms, axis=None))


def dot(a: FloatArray, b: FloatArray) -> float:
    """Sum of a_u b_u, block by block, within `rounding(n)` for nonnegative a and b."""
    return math.fsum(total(a[part] * b[part]) for part in blocks(a.size))


def _split(a: FloatArray) -> tuple[FloatArray, FloatArray]:
    scaled = _SPLIT * a
    high = scaled - (scaled - a)
    return high, a - high


def _two_product(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Product and its rounding error, exactly: a b = p + e (Dekker, Numerische Mathematik 18, 1971)."""
    product = a * b
    (ah, al), (bh, bl) = _split(a), _split(b)
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


def excess(cost: FloatArray, k: FloatArray, budget: float) -> float:
    """Sum of cost_u k_u minus the budget, correctly rounded: its sign is exact."""
    exact = (_two_product(cost[part], k[part]) for part in blocks(k.size))
    return math.fsum(chain([-budget], chain.from_iterable(x.tolist() for pair in exact for x in pair)))


def _extract(terms: FloatArray) -> tuple[float, FloatArray, float]:
    """Split a sum of nonnegative terms into an exact part, the terms' remainders, and a bound on each of those.

    High parts are multiples of so large a unit that any order of adding them is exact (Rump, Ogita and Oishi,
    SIAM J. Sci. Comput. 31(1), 2008, algorithm 3.2).
    """
    anchor = math.ldexp(1.0, math.frexp(float(terms.max()))[1] + terms.size.bit_length())
    high = terms + anchor
    high -= anchor
    return total(high), np.subtract(terms, high, out=terms), 0.5 * _EPS * anchor


def doubled_excess(cost: FloatArray, k: FloatArray, budget: float) -> tuple[float, float, float]:
    """Sum of cost_u k_u minus the budget in twice the working precision: high part, low part, bound on the error."""
    sums, lost, small = [-budget], [], _EPS * budget
    for part in blocks(k.size):
        products, errors = _two_product(cost[part], k[part])
        exact, rest, unit = _extract(products)
        sums.append(exact)
        lost += [total(rest), total(errors)]
        small += unit * rest.size + _EPS * exact
    high = math.fsum(sums + lost)
    low = math.fsum([*sums, *lost, -high])
    return high, low, rounding(k.size) * small


def fits(cost: FloatArray, k: FloatArray, budget: float) -> bool:
    """Whether the sum of cost_u k_u is at most the budget, decided exactly on the values of the floats."""
    estimate = dot(cost, k)
    error = rounding(k.size) * estimate
    if estimate + error <= budget:
        return True
    if not estimate - error <= budget:
        return False
    over, _, doubt = doubled_excess(cost, k, budget)
    return over < 0.0 if abs(over) > doubt else excess(cost, k, budget) <= 0.0


def fits_all(costs: FloatArray, k: FloatArray, budgets: FloatArray) -> bool:
    """Whether k keeps every budget, decided exactly."""
    return all(fits(row, k, float(limit)) for row, limit in zip(costs, budgets, strict=True))


def spent(costs: FloatArray, k: FloatArray) -> FloatArray:
    """Cost of k under every budget (m,)."""
    return np.array([dot(row, k) for row in costs])


def violated(costs: FloatArray, k: FloatArray, budgets: FloatArray) -> NDArray[np.intp]:
    """Positions of the budgets that k exceeds, decided exactly."""
    kept = [fits(row, k, float(limit)) for row, limit in zip(costs, budgets, strict=True)]
    return np.flatnonzero(~np.array(kept, dtype=np.bool_))
