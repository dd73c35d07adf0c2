"""One-pass sensitivities from the generalised Gauss-Newton curvature.

For independent zero-mean noise of variance v_i on the outputs y_i of a product, the expected increase of the loss is,
to second order,

    damage = 1/2 sum_i E_x[ v_i(x) h_i(x) ],    h_i = E_{t ~ p(.|x)}[ (d loss(t) / d y_i)^2 ],

with labels t drawn from the model's own predictive distribution (Martens 2020, "New insights and perspectives on the
natural gradient method", section 9); `precalloc.network.criteria` has the like for other losses. One forward and one
backward pass give h for every product at once. Noise on a weight w needs (d loss / d w)^2 per example; with every
example's loss multiplied by a random sign, the square of the batch gradient is unbiased for the sum of the examples'
squares.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precalloc.hardware import NoiseKind
from precalloc.network.observation import Call
from precalloc.network.operators import widened
from precalloc.profiles import FloatArray


@dataclass(frozen=True)
class ChannelSlots:
    """Where each site's channels stand in arrays over all channels."""

    start: dict[str, int]
    channels: dict[str, int]
    total: int

    @classmethod
    def of_sites(cls, channels: dict[str, int]) -> ChannelSlots:
        """Slots for sites with these numbers of channels, one after the other."""
        ends = list(itertools.accumulate(channels.values()))
        return cls(dict(zip(channels, [0, *ends], strict=False)), channels, ends[-1])

    def sum_sites(self, values: FloatArray, axis: int = 0) -> FloatArray:
        """Sum per-channel values to per-site values along an axis."""
        return np.add.reduceat(values, list(self.start.values()), axis=axis)

    def repeat_sites(self, values: FloatArray) -> FloatArray:
        """Give every channel its site's value."""
        return np.repeat(values, list(self.channels.values()))

    def shares(self, values: FloatArray) -> FloatArray:
        """Share of every channel in its site's sum, (channels,); even where a site's sum is zero."""
        total = self.repeat_sites(self.sum_sites(values))
        even: FloatArray = 1.0 / self.repeat_sites(np.array(list(self.channels.values()), dtype=float))
        return np.divide(values, total, out=even, where=total > 0.0)

    def of(self, site: str) -> slice:
        """The site's channels."""
        return slice(self.start[site], self.start[site] + self.channels[site])


def curvature_terms(
    loss: Tensor, calls: Sequence[Call], slots: ChannelSlots, kinds: Sequence[NoiseKind]
) -> dict[NoiseKind, Tensor]:
    """Sum over a batch of (unit variance x squared gradient) per channel, without the channels' own constants.

    Returns
    -------
    kind -> (channels,)
        Thermal: sum of g^2. Shot: sum of g^2 ||x||^2 (times ||w||^2 / D where w is an activation). Weight: sum of
        (d loss / d w)^2 over each channel's weights.
    """
    weights = list({id(call.weight): call for call in calls}.values()) if NoiseKind.WEIGHT in kinds else []
    targets: list[Any] = [call.edge for call in calls] + [call.weight for call in weights]
    gradients = torch.autograd.grad(loss, targets, allow_unused=True)
    terms = {kind: torch.zeros(slots.total, dtype=torch.float64) for kind in kinds}
    for call, gradient in zip(calls, gradients[: len(calls)], strict=True):
        if gradient is None:
            continue
        squared = widened(gradient).square()
        if NoiseKind.THERMAL in kinds:
            terms[NoiseKind.THERMAL][slots.of(call.site)] += channel_sum(squared, call)
        if NoiseKind.SHOT in kinds:
            terms[NoiseKind.SHOT][slots.of(call.site)] += channel_sum(squared * call.shot, call)
    for call, gradient in zip(weights, gradients[len(calls) :], strict=True):
        if gradient is not None:
            rows = widened(gradient if call.rows is None else call.rows(gradient))
            summed = rows.square().sum(-1) if call.rows is not None else rows.square().sum().reshape(1)
            terms[NoiseKind.WEIGHT][slots.of(call.site)] += summed.double().cpu()
    return terms


def channel_sum(values: Tensor, call: Call) -> Tensor:
    """Sum values of a call's output, or broadcastable to it, over everything but its channels: (channels,) or (1,)."""
    if call.channel_axes is None:
        return values.sum(dtype=torch.float64).reshape(1).cpu()
    kept = [axis + values.dim() for axis in call.channel_axes]
    summed = [axis for axis in range(values.dim()) if axis not in kept]
    return (values.sum(summed) if summed else values).flatten().double().cpu()


class BatchSums:
    """Sums over batches that give a mean per example and its standard error; additive, so passes resume and merge.

    Batches of weight b_k (their examples, or tokens) with sums v_k: mean m = sum v_k / sum b_k, and the ratio
    estimator's Var(m) = G / (G - 1) sum_k (v_k - b_k m)^2 / (sum b_k)^2 over G batches.
    """

    def __init__(self, size: int) -> None:
        self.arrays = {name: np.zeros(size) for name in ("value", "square", "weighted")}
        self.counts = np.zeros(3)  # batches, weights, weights^2

    def add(self, values: FloatArray, weight: float) -> None:
        """Take in the sum of one batch."""
        self.arrays["value"] += values
        self.arrays["square"] += values**2
        self.arrays["weighted"] += values * weight
        self.counts += (1, weight, weight**2)

    def mean(self) -> FloatArray:
        """Mean per unit of weight."""
        mean: FloatArray = self.arrays["value"] / self.counts[1]
        return mean

    def error(self) -> FloatArray:
        """Standard error of the mean; NaN where a single batch cannot tell."""
        groups, weight, squares = self.counts
        if groups < 2:
            return np.full_like(self.arrays["value"], np.nan)
        mean = self.mean()
        spread = self.arrays["square"] - 2 * mean * self.arrays["weighted"] + mean**2 * squares
        error: FloatArray = np.sqrt(np.maximum(spread, 0.0) * groups / (groups - 1)) / weight
        return error
