"""One-pass sensitivities from the generalised Gauss-Newton curvature.

For independent zero-mean noise of variance v_i on the outputs y_i of a product, the expected increase of the loss is,
to second order,

    damage = 1/2 sum_i E_x[ v_i(x) h_i(x) ],    h_i = E_{t ~ p(.|x)}[ (d loss(t) / d y_i)^2 ],

with labels t of the model's own predictive distribution (Martens 2020, "New insights and perspectives on the natural
gradient method", section 9), drawn where they tell most (`precalloc.network.criteria.draw_classes`);
`precalloc.network.criteria` has the like for other losses. One forward and one backward pass give h for every product
at once. Noise on a weight w needs (d loss / d w)^2 per example; with every
example's loss multiplied by a random sign, the square of the summed gradient is unbiased for the sum of the examples'
squares. The sum runs over blocks of examples that the batch size does not change: the gradients of a block's batches
are added up before they are squared.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precalloc.hardware import NoiseKind
from precalloc.network.gradients import visit_gradients
from precalloc.network.layouts import Layout
from precalloc.network.observation import Call, output_terms, parts, per_example
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


@dataclass(frozen=True)
class CurvatureTerms:
    """(Unit variance x squared gradient) of one batch, without the channels' own constants.

    Parameters
    ----------
    outputs : kind -> (examples, channels)
        Thermal: sum of g^2 over a channel's outputs. Shot: sum of g^2 ||x||^2 (times ||w||^2 / D where w is an
        activation).
    operands : (channels,)
        Weight noise on activations: sum of (d loss / d w)^2, every example having operands of its own.
    weights : (site, index of the weight among the site's) -> (channels, row length)
        Signed sum over the examples of d loss / d w, to be squared when the block is complete.
    """

    outputs: dict[NoiseKind, FloatArray]
    operands: FloatArray
    weights: dict[tuple[str, int], Tensor]


def curvature_terms(
    loss: Tensor,
    calls: Sequence[Call],
    layouts: Mapping[str, Layout],
    examples: int,
    slots: ChannelSlots,
    kinds: Sequence[NoiseKind],
) -> CurvatureTerms:
    """Gradients of a sampled loss of one batch, squared as far as its examples can be told apart."""
    weights = list({id(call.weight): call for call in calls}.values()) if NoiseKind.WEIGHT in kinds else []
    of_outputs = [kind for kind in kinds if kind is not NoiseKind.WEIGHT]
    of_calls: dict[int, dict[NoiseKind, FloatArray]] = {}

    def visit(index: int, gradient: Tensor) -> None:
        of_calls[index] = _output_sums(gradient, calls[index], layouts[calls[index].site], examples, of_outputs)

    visited = calls if of_outputs else []
    gradients = visit_gradients(loss, visited, [call.weight for call in weights], visit)
    outputs: dict[NoiseKind, FloatArray] = {kind: np.zeros((examples, slots.total)) for kind in of_outputs}
    for index, sums in sorted(of_calls.items()):  # calls of one site are added up in order of execution
        for kind, values in sums.items():
            outputs[kind][:, slots.of(calls[index].site)] += values
    return CurvatureTerms(outputs, *_operand_terms(weights, gradients, slots))


def _output_sums(
    gradient: Tensor, call: Call, layout: Layout, examples: int, kinds: Sequence[NoiseKind]
) -> dict[NoiseKind, FloatArray]:
    """Squared gradients of one call's output times the unit variances, summed to (examples, channels)."""
    sums: dict[NoiseKind, list[FloatArray]] = {kind: [] for kind in kinds}
    for part in parts(call, layout, examples):
        for kind, values in output_terms(widened(part.of(gradient)).square(), part.of(call.shot), kinds):
            sums[kind].append(per_example(values, call, layout, part.count).cpu().numpy())
    return {kind: np.concatenate(values) for kind, values in sums.items()}


def _operand_terms(
    calls: Sequence[Call], gradients: Sequence[Tensor | None], slots: ChannelSlots
) -> tuple[FloatArray, dict[tuple[str, int], Tensor]]:
    operands, weights = np.zeros(slots.total), {}
    counts: Counter[str] = Counter()
    for call, gradient in zip(calls, gradients, strict=True):
        index = counts[call.site]
        counts[call.site] += 1
        if gradient is None:
            continue
        if call.rows is None:
            operands[slots.of(call.site)] += float(widened(gradient).square().sum(dtype=torch.float64))
        else:
            weights[call.site, index] = widened(call.rows(gradient))
    return operands, weights


class Block:
    """Curvature under weight noise of the examples of one block, batch by batch."""

    def __init__(self, slots: ChannelSlots) -> None:
        self._slots = slots
        self.clear()

    def clear(self) -> None:
        """Begin a new block."""
        self.operands = np.zeros(self._slots.total)
        self.weights: dict[tuple[str, int], Tensor] = {}
        self.weight = 0.0

    def add(self, terms: CurvatureTerms, weight: float) -> None:
        """Take in one batch."""
        self.operands += terms.operands
        self.weight += weight
        for key, gradient in terms.weights.items():
            self.weights[key] = self.weights[key] + gradient if key in self.weights else gradient

    def state(self) -> dict[str, FloatArray]:
        """Everything that a checkpoint must hold."""
        arrays: dict[str, FloatArray] = {"block/operands": self.operands, "block/weight": np.array(self.weight)}
        return arrays | {f"block/{i}/{site}": g.cpu().numpy() for (site, i), g in self.weights.items()}

    def restore(self, arrays: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.operands, self.weight = arrays["block/operands"].copy(), float(arrays["block/weight"])
        for name, values in arrays.items():
            if name.startswith("block/") and name.count("/") > 1:
                _, index, site = name.split("/", 2)  # a site's own name may hold slashes
                self.weights[site, int(index)] = torch.from_numpy(values)

    def sums(self) -> FloatArray:
        """Sum over the block's examples of (d loss / d w)^2 per channel, (channels,)."""
        sums = self.operands.copy()
        for (site, _), gradient in self.weights.items():
            sums[self._slots.of(site)] += gradient.square().sum(-1).double().cpu().numpy()
        return sums


def channel_sum(values: Tensor, call: Call) -> Tensor:
    """Sum values of a call's output, or broadcastable to it, over everything but its channels: (channels,) or (1,)."""
    if call.channel_axes is None:
        return values.sum(dtype=torch.float64).reshape(1).cpu()
    kept = [axis + values.dim() for axis in call.channel_axes]
    summed = [axis for axis in range(values.dim()) if axis not in kept]
    return (values.sum(summed) if summed else values).flatten().double().cpu()


class GroupSums:
    """Sums over groups that give a mean per example and its standard error; additive, so passes resume and merge.

    Groups (examples or blocks of them) of weight b_k (their examples, or tokens) with sums v_k: mean
    m = sum v_k / sum b_k, and the ratio estimator's Var(m) = G / (G - 1) sum_k (v_k - b_k m)^2 / (sum b_k)^2 over G
    groups.
    """

    def __init__(self, size: int) -> None:
        self.arrays = {name: np.zeros(size) for name in ("value", "square", "weighted")}
        self.counts = np.zeros(3)  # groups, weights, weights^2

    def add(self, values: FloatArray, weight: FloatArray) -> None:
        """Take in the sums (groups, size) of some groups of these weights (groups,)."""
        self.arrays["value"] += values.sum(0)
        self.arrays["square"] += np.square(values).sum(0)
        self.arrays["weighted"] += weight @ values
        self.counts += (len(weight), weight.sum(), np.square(weight).sum())

    def mean(self) -> FloatArray:
        """Mean per unit of weight."""
        mean: FloatArray = self.arrays["value"] / self.counts[1]
        return mean

    def error(self) -> FloatArray:
        """Standard error of the mean; NaN where a single group cannot tell."""
        groups, weight, squares = self.counts
        if groups < 2:
            return np.full_like(self.arrays["value"], np.nan)
        mean = self.mean()
        spread = self.arrays["square"] - 2 * mean * self.arrays["weighted"] + mean**2 * squares
        error: FloatArray = np.sqrt(np.maximum(spread, 0.0) * groups / (groups - 1)) / weight
        return error
