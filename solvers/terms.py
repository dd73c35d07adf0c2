"""Convex decreasing terms phi(k): variable u contributes damage_u * phi(k_u) to the objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.errors import ProblemError

FloatArray = NDArray[np.float64]
Index = slice | NDArray[np.intp] | NDArray[np.bool_]


class Term(ABC):
    """A convex, strictly decreasing phi(k) for k > 0, evaluated elementwise on arrays of k.

    To add a term, give `value`, `marginal` and `inverse_marginal`; a term with per-variable parameters also overrides
    `take`. Everything else (rounding to integers, listed levels, certificates) follows from convexity.
    """

    @abstractmethod
    def value(self, k: FloatArray) -> FloatArray:
        """phi(k)."""

    @abstractmethod
    def marginal(self, k: FloatArray) -> FloatArray:
        """-phi'(k): what one more unit of k saves; positive and decreasing."""

    @abstractmethod
    def inverse_marginal(self, x: FloatArray) -> FloatArray:
        """Give the k with -phi'(k) = x: infinite at x = 0, at most 0 where no k > 0 has so large a marginal."""

    @property
    def is_shared(self) -> bool:
        """Whether all variables have the same phi."""
        return True

    def take(self, index: Index) -> Term:  # noqa: ARG002 - part of the interface
        """Restrict the term to some variables; itself, unless its parameters differ between variables."""
        return self

    def same_within(self, labels: NDArray[np.intp]) -> bool:  # noqa: ARG002 - part of the interface
        """Whether variables of equal label have equal parameters, so that they can be tied."""
        return True

    def integer_minimiser(self, x: FloatArray) -> FloatArray:
        """Smallest integer k with phi(k) - phi(k + 1) <= x, which minimises phi(k) + x k over the integers.

        By the mean value theorem it is one of the two integers around `inverse_marginal(x)`.
        """
        above = np.ceil(np.maximum(self.inverse_marginal(x), 1.0))
        below = np.maximum(above - 1.0, 1.0)
        return np.where(self.value(below) - self.value(below + 1.0) <= x, below, above)


def _parameter(name: str, value: ArrayLike) -> FloatArray:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim > 1 or not np.all((array > 0) & np.isfinite(array)):
        raise ProblemError(f"{name} must be positive and finite, a number or one per variable; got {value!r}")
    return array


@dataclass(frozen=True, eq=False)
class Power(Term):
    """phi(k) = k^-p, by default 1/k: averaging k independent draws divides a variance by k.

    Parameters
    ----------
    exponent : p > 0, a number or one per variable (n,).

    Raises
    ------
    ProblemError : if an exponent is not positive and finite.
    """

    exponent: FloatArray

    def __init__(self, exponent: ArrayLike = 1.0) -> None:
        object.__setattr__(self, "exponent", _parameter("exponent", exponent))

    @property
    def is_reciprocal(self) -> bool:
        """Whether phi is 1/k for all variables."""
        return self.exponent.ndim == 0 and float(self.exponent) == 1.0

    def value(self, k: FloatArray) -> FloatArray:
        """k^-p."""
        return 1.0 / k if self.is_reciprocal else k**-self.exponent

    def marginal(self, k: FloatArray) -> FloatArray:
        """P k^-(p + 1)."""
        return self.exponent * k ** -(self.exponent + 1.0)

    def inverse_marginal(self, x: FloatArray) -> FloatArray:
        """(p / x)^(1 / (p + 1))."""
        y = self.exponent / x
        root: FloatArray = np.sqrt(y, out=y) if self.is_reciprocal and y.ndim else y ** (1.0 / (self.exponent + 1.0))
        return root

    def integer_minimiser(self, x: FloatArray) -> FloatArray:
        """For p = 1 in closed form: k (k + 1) >= 1 / x, so k = ceil(sqrt(1 / x + 1 / 4) - 1 / 2)."""
        if not self.is_reciprocal:
            return super().integer_minimiser(x)
        k = np.asarray(1.0 / x)
        k += 0.25
        np.sqrt(k, out=k)
        k -= 0.5
        return np.ceil(k, out=k)

    @property
    def is_shared(self) -> bool:
        """Whether the exponent is a number."""
        return self.exponent.ndim == 0

    def take(self, index: Index) -> Power:
        """Restrict per-variable exponents to `index`."""
        return self if self.exponent.ndim == 0 else Power(self.exponent[index])

    def same_within(self, labels: NDArray[np.intp]) -> bool:
        """Whether tied variables share their exponent."""
        return _same_within(self.exponent, labels)


@dataclass(frozen=True, eq=False)
class Exponential(Term):
    """phi(k) = exp(-rate k), for example the chance that a majority of k votes errs.

    Parameters
    ----------
    rate : > 0, a number or one per variable (n,).

    Raises
    ------
    ProblemError : if a rate is not positive and finite.
    """

    rate: FloatArray

    def __init__(self, rate: ArrayLike = 1.0) -> None:
        object.__setattr__(self, "rate", _parameter("rate", rate))

    def value(self, k: FloatArray) -> FloatArray:
        """exp(-rate k)."""
        return np.asarray(np.exp(-self.rate * k))

    def marginal(self, k: FloatArray) -> FloatArray:
        """Rate exp(-rate k)."""
        return np.asarray(self.rate * np.exp(-self.rate * k))

    def inverse_marginal(self, x: FloatArray) -> FloatArray:
        """log(rate / x) / rate."""
        return np.asarray(np.log(self.rate / x) / self.rate)

    @property
    def is_shared(self) -> bool:
        """Whether the rate is a number."""
        return self.rate.ndim == 0

    def take(self, index: Index) -> Exponential:
        """Restrict per-variable rates to `index`."""
        return self if self.rate.ndim == 0 else Exponential(self.rate[index])

    def same_within(self, labels: NDArray[np.intp]) -> bool:
        """Whether tied variables share their rate."""
        return _same_within(self.rate, labels)


def _same_within(parameter: FloatArray, labels: NDArray[np.intp]) -> bool:
    if parameter.ndim == 0:
        return True
    representative = np.empty(int(labels.max()) + 1)
    representative[labels] = parameter
    return bool(np.all(representative[labels] == parameter))
