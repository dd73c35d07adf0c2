"""Exact percentile range of a stream of values, from its two tails alone."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from precalloc.errors import DataError

_Values = NDArray[np.float32]

# Values of which only the extremes are looked at, where these are too small.
_GROUP, _FIRST_GROUP = 128, 16


def flat_view(t: Tensor) -> Tensor:
    """All elements in memory order, without a copy where the tensor is dense, channels-last included."""
    order = sorted(range(t.dim()), key=t.stride, reverse=True)
    return t.permute(order).reshape(-1)


class TailRange:
    """Distance between the (100 - p)th and the pth percentile, as ``numpy.percentile`` interpolates, in bounded memory.

    Only the largest and smallest values can be near the percentiles, so only these are kept; the result is exact.

    Parameters
    ----------
    percentile
        p in (50, 100].
    expected
        Number of values to come; the tails are sized for it, with room for some more.
    """

    def __init__(self, percentile: float, expected: int) -> None:
        self._percentile = percentile
        self._size = math.ceil((1.0 - percentile / 100.0) * expected * 1.25) + 2
        self._high, self._low = _Tail(self._size, 1), _Tail(self._size, -1)
        self._count = 0

    def update(self, values: Tensor) -> None:
        """Take in further values of any shape.

        Raises
        ------
        DataError
            If they are so many more than expected that the tails do not hold the percentiles.
        """
        flat = flat_view(values.detach())
        self._count += flat.numel()
        if math.floor(self._rank()) >= self._size:
            raise DataError("Examples are larger than those of the first batch, by which ranges are sized. Pad them.")
        grouped = flat.numel() - flat.numel() % _GROUP
        groups, rest = flat[:grouped].view(-1, _GROUP), flat[grouped:]
        for tail in (self._high, self._low):
            tail.update(groups, rest)

    def value(self) -> float:
        """The range of all values so far; 0 before the first."""
        if self._count == 0:
            return 0.0
        return self._quantile(self._high.values) + self._quantile(self._low.values)

    def _quantile(self, tail: _Values) -> float:
        rank = self._rank()
        inner = math.floor(rank)
        ordered = np.sort(tail)[::-1]
        upper, lower = float(ordered[inner]), float(ordered[min(inner + 1, len(tail) - 1)])
        return upper + (rank - inner) * (lower - upper)

    def _rank(self) -> float:
        """Where the percentile is, from the extreme inwards."""
        return (self._count - 1) * (1.0 - self._percentile / 100.0)

    def state(self) -> tuple[_Values, _Values, int]:
        """Everything that a checkpoint must hold."""
        return self._high.values, self._low.values, self._count

    def restore(self, high: _Values, low: _Values, count: int) -> None:
        """Go on from a checkpoint."""
        self._high.restore(high)
        self._low.restore(low)
        self._count = count


class _Tail:
    """The ``size`` largest of ``sign`` times all values, and for a while some more: cutting costs the most."""

    def __init__(self, size: int, sign: int) -> None:
        self._size, self._sign = size, sign
        self.restore(np.zeros(0, np.float32))

    def restore(self, values: _Values) -> None:
        """Begin with these."""
        self.values, self._bound = values, -math.inf
        if len(values) >= self._size:
            self._cut()

    def _cut(self) -> None:
        """Keep the largest; from now on only values above the smallest of them are of any use."""
        self.values = np.partition(self.values, -self._size)[-self._size :]
        self._bound = float(self.values[0])

    def update(self, groups: Tensor, rest: Tensor) -> None:
        """Take in values in groups, and the rest of them."""
        found = [self._candidates(groups)] if groups.shape[0] else []
        if rest.shape[0]:
            values = _as_array(rest) * self._sign
            found.append(values[_above(values, self._bound)])
        if any(map(len, found)):
            self.values = np.concatenate([self.values, *found])
        if len(self.values) >= (1 if math.isinf(self._bound) else 2) * self._size:
            self._cut()

    def _candidates(self, groups: Tensor) -> _Values:
        """Every value in groups that can be among the largest and above the bound.

        The groups with the largest extremes hold them all: each has a value at least as large as any of the others.
        """
        sign, bound = self._sign, self._bound
        if math.isinf(bound) and groups.shape[0] < 4 * self._size:  # extremes of so few leave too many to choose from
            groups = groups.view(-1, _FIRST_GROUP)
        extremes = _as_array(groups.amax(1)) if sign > 0 else -_as_array(groups.amin(1))
        index, least = np.flatnonzero(_above(extremes, bound)), -math.inf
        if len(index) == 0:
            return extremes[index]
        if len(index) > self._size:
            index = index[np.argpartition(extremes[index], -self._size)[-self._size :]]
            least = float(extremes[index].min())  # as many values are no smaller: those that are have no place
        found = _rows(groups, index)
        if sign < 0:
            np.negative(found, out=found)
        return found[_above(found, bound) if least <= bound else ~(found < least)]


def _as_array(t: Tensor) -> _Values:
    """Values in single precision on the host."""
    array: _Values = t.float().cpu().numpy()
    return array


def _rows(groups: Tensor, index: NDArray[np.intp]) -> _Values:
    """Some rows in single precision on the host; NumPy takes them several times faster."""
    if groups.is_cpu and groups.dtype == torch.float32:
        rows: _Values = groups.numpy().take(index, axis=0)
        return rows
    return _as_array(groups.index_select(0, torch.from_numpy(index).to(groups.device)))


def _above(values: _Values, bound: float) -> NDArray[np.bool_]:
    """Which values are above; NaN is, as it is the largest for ``numpy.partition``."""
    above: NDArray[np.bool_] = ~(values <= bound)
    return above
