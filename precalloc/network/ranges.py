"""Exact percentile range of a stream of values, from its two tails alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Values of which only the extremes are looked at, where these are too small.
_GROUP = 64


def flat_view(t: Tensor) -> Tensor:
    """All elements in memory order, without a copy where the tensor is dense, channels-last included."""
    order = sorted(range(t.dim()), key=t.stride, reverse=True)
    return t.permute(order).reshape(-1)


def _above(values: Tensor, bound: float) -> Tensor:
    """Which values are above; NaN is, as it is in ``topk``."""
    return ~(values <= bound)


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
        self._tails = [torch.empty(0), torch.empty(0)]  # of the values, and of their negatives
        self._count = 0

    def update(self, values: Tensor) -> None:
        """Take in further values of any shape."""
        flat = flat_view(values.detach())
        self._count += flat.numel()
        self._tails = [self._merge(tail, flat, sign) for tail, sign in zip(self._tails, (1, -1), strict=True)]

    def _merge(self, tail: Tensor, flat: Tensor, sign: int) -> Tensor:
        """The largest of the tail and of ``sign`` times the values, in descending order."""
        bound = float(tail[-1]) if len(tail) == self._size else -math.inf
        found = self._candidates(flat, sign, bound).float().cpu()
        if len(found) == 0:
            return tail
        merged = torch.cat([tail, found])
        return merged.topk(min(self._size, len(merged))).values

    def _candidates(self, flat: Tensor, sign: int, bound: float) -> Tensor:
        """Every one of ``sign`` times the values that can be among the largest and above ``bound``.

        The groups with the largest extremes hold them all: each has a value at least as large as any of the others.
        """
        grouped = flat.numel() - flat.numel() % _GROUP
        groups = flat[:grouped].view(-1, _GROUP)
        extremes = groups.amax(1) if sign > 0 else -groups.amin(1)
        index = _above(extremes, bound).nonzero().flatten()
        if len(index) > self._size:
            index = index[extremes[index].topk(self._size).indices]
        found = torch.cat([groups[index].flatten(), flat[grouped:]]) * sign
        return found[_above(found, bound)]

    def value(self) -> float:
        """The range of all values so far; 0 before the first."""
        if self._count == 0:
            return 0.0
        return self._quantile(self._tails[0]) + self._quantile(self._tails[1])

    def _quantile(self, tail: Tensor) -> float:
        rank = (self._count - 1) * (1.0 - self._percentile / 100.0)  # from the extreme inwards
        inner = math.floor(rank)
        assert inner < len(tail), "the stream was longer than it was said to be"
        upper, lower = float(tail[inner]), float(tail[min(inner + 1, len(tail) - 1)])
        return upper + (rank - inner) * (lower - upper)

    def state(self) -> tuple[Tensor, Tensor, int]:
        """Everything that a checkpoint must hold."""
        return self._tails[0], self._tails[1], self._count

    def restore(self, high: Tensor, low: Tensor, count: int) -> None:
        """Go on from a checkpoint."""
        self._tails, self._count = [high, low], count
