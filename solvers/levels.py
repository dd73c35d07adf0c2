"""Allowed values of a variable: every real, every integer, or a listed set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.errors import ProblemError
from solvers.terms import FloatArray, Term


class Levels(ABC):
    """A closed set of allowed k > 0, the same for every variable that refers to it."""

    is_discrete: bool = True

    @abstractmethod
    def minimiser(self, term: Term, x: FloatArray) -> FloatArray:
        """Minimise phi(k) + x k over all levels, bounds left aside; by convexity it may be clipped to them after."""

    @abstractmethod
    def rank(self, k: FloatArray) -> FloatArray:
        """How many levels lie below k, up to a constant; 0 for continuous k."""

    @abstractmethod
    def at_most(self, k: FloatArray) -> FloatArray:
        """Largest level <= k; -inf where there is none."""

    @abstractmethod
    def at_least(self, k: FloatArray) -> FloatArray:
        """Smallest level >= k; +inf where there is none."""

    @abstractmethod
    def after(self, k: FloatArray) -> FloatArray:
        """Smallest level > k of a discrete set; +inf where there is none."""

    @abstractmethod
    def before(self, k: FloatArray) -> FloatArray:
        """Largest level < k of a discrete set; -inf where there is none."""


@dataclass(frozen=True)
class Continuous(Levels):
    """Every real k."""

    is_discrete = False

    def minimiser(self, term: Term, x: FloatArray) -> FloatArray:
        """Invert the marginal: closed form."""
        return term.inverse_marginal(x)

    def rank(self, k: FloatArray) -> FloatArray:
        """Zero: there are no steps to count."""
        return np.zeros(k.shape)

    def at_most(self, k: FloatArray) -> FloatArray:
        """K itself."""
        return k

    def at_least(self, k: FloatArray) -> FloatArray:
        """K itself."""
        return k

    def after(self, k: FloatArray) -> FloatArray:
        """No next level: no step leads on from k."""
        return np.full(k.shape, np.inf)

    def before(self, k: FloatArray) -> FloatArray:
        """No previous level."""
        return np.full(k.shape, -np.inf)


@dataclass(frozen=True)
class Integer(Levels):
    """Every integer k >= 1."""

    def minimiser(self, term: Term, x: FloatArray) -> FloatArray:
        """Threshold rule: stop at the first k whose next step saves no more than x."""
        return term.integer_minimiser(x)

    def rank(self, k: FloatArray) -> FloatArray:
        """K itself."""
        return k

    def at_most(self, k: FloatArray) -> FloatArray:
        """Floor; -inf below 1."""
        floor = np.floor(k)
        return floor if floor.size == 0 or floor.min() >= 1.0 else np.where(floor >= 1.0, floor, -np.inf)

    def at_least(self, k: FloatArray) -> FloatArray:
        """Ceiling, at least 1."""
        return np.maximum(np.ceil(k), 1.0)

    def after(self, k: FloatArray) -> FloatArray:
        """K + 1; beyond 2^53, where that rounds to k, the next float."""
        return np.maximum(k + 1.0, np.nextafter(k, np.inf))

    def before(self, k: FloatArray) -> FloatArray:
        """K - 1; -inf below 1."""
        previous = np.minimum(k - 1.0, np.nextafter(k, -np.inf))
        return np.where(previous >= 1.0, previous, -np.inf)


@dataclass(frozen=True, eq=False)
class Listed(Levels):
    """A finite set, for example powers of two.

    Parameters
    ----------
    values : (L,) positive finite numbers, in any order.

    Raises
    ------
    ProblemError : if the set is empty or holds a value that is not positive and finite.
    """

    values: FloatArray

    def __init__(self, values: ArrayLike) -> None:
        array = np.unique(np.asarray(values, dtype=np.float64))
        if array.size == 0 or not np.all(np.isfinite(array)) or array[0] <= 0:
            raise ProblemError(f"levels must be 'integer', 'continuous' or positive finite values; got {values!r}")
        object.__setattr__(self, "values", array)

    def minimiser(self, term: Term, x: FloatArray) -> FloatArray:
        """Binary search for the first level whose step to the next saves no more than x per unit of k."""
        if term.is_shared:
            savings = -np.diff(term.value(self.values)) / np.diff(self.values)
            listed: FloatArray = self.values[np.searchsorted(-savings, -x, side="left")]
            return listed
        low = np.zeros(x.shape, dtype=np.intp)
        high = np.full(x.shape, self.values.size - 1)
        for _ in range(int(self.values.size - 1).bit_length()):
            middle = (low + high) // 2
            here, after = self.values[middle], self.values[np.minimum(middle + 1, self.values.size - 1)]
            stop = term.value(here) - term.value(after) <= x * (after - here)
            high = np.where(stop, middle, high)
            low = np.where(stop, low, np.minimum(middle + 1, high))
        chosen: FloatArray = self.values[high]
        return chosen

    def rank(self, k: FloatArray) -> FloatArray:
        """Position in the list."""
        return np.searchsorted(self.values, k).astype(np.float64)

    def _pick(self, position: NDArray[np.intp], missing: float) -> FloatArray:
        inside = (position >= 0) & (position < self.values.size)
        return np.where(inside, self.values[np.clip(position, 0, self.values.size - 1)], missing)

    def at_most(self, k: FloatArray) -> FloatArray:
        """Largest listed value <= k."""
        return self._pick(np.searchsorted(self.values, k, side="right") - 1, -np.inf)

    def at_least(self, k: FloatArray) -> FloatArray:
        """Smallest listed value >= k."""
        return self._pick(np.searchsorted(self.values, k, side="left"), np.inf)

    def after(self, k: FloatArray) -> FloatArray:
        """Smallest listed value > k."""
        return self._pick(np.searchsorted(self.values, k, side="right"), np.inf)

    def before(self, k: FloatArray) -> FloatArray:
        """Largest listed value < k."""
        return self._pick(np.searchsorted(self.values, k, side="left") - 1, -np.inf)


def parse_levels(spec: str | Levels | ArrayLike) -> Levels:
    """Read one level specification: 'integer', 'continuous', listed values, or a `Levels`.

    Raises
    ------
    ProblemError : if it is none of these.
    """
    if isinstance(spec, Levels):
        return spec
    if isinstance(spec, str):
        named: dict[str, Levels] = {"integer": Integer(), "continuous": Continuous()}
        if spec not in named:
            raise ProblemError(f"levels must be 'integer', 'continuous' or listed values; got {spec!r}")
        return named[spec]
    return Listed(spec)
