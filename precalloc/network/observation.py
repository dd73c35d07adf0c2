"""One recorded forward pass: what every product saw, and where the gradient of its output will arrive."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from precalloc.errors import DataError
from precalloc.hardware import NoiseKind
from precalloc.network.batches import Batch
from precalloc.network.data import Data
from precalloc.network.draws import ExampleDraws
from precalloc.network.forward import Forward
from precalloc.network.interception import intercept
from precalloc.network.layouts import Layout, SiteLayout, SiteLayouts
from precalloc.network.operators import Product, widened

# Values of a call's output that are worked on at a time: a megabyte.
_PART_VALUES = 2**18

# Examples on which layouts are looked for; whole batches would add to the time.
_TRIED = 3

Observer = Callable[[str, Product, Tensor], None]


class Energies(Enum):
    """What is wanted of the inputs' energies: nothing, their mean over a batch where that is less work, or each."""

    NONE, MEAN, EACH = "none", "mean", "each"


@dataclass(frozen=True)
class Call:
    """One product of a recorded pass.

    Parameters
    ----------
    site
        Name of its site.
    edge
        Where the gradient with respect to its output arrives. An edge, not the output itself, since the model may
        change the output in place afterwards.
    shape, channel_axes
        Shape of the output, and its axes that number the channels (counted from the end; None: one channel).
    weight
        Its programmed operand as a separate variable, one for all calls of a site with the same weight.
    x_energy
        ||x||^2 of every output's receptive field, or its mean, broadcastable to the output; zero where it was not
        asked for.
    shot
        Variance of every output under unit shot noise, without the per-channel factor of a static weight.
    rows
        Brings a static weight, or its gradient, to (channels, row length); None for an activation.
    probes
        Responses of the output to random standard normal changes of the programmed operand.
    """

    site: str
    edge: GradientEdge
    shape: torch.Size
    channel_axes: tuple[int, ...] | None
    weight: Tensor
    rows: Callable[[Tensor], Tensor] | None
    x_energy: Tensor
    shot: Tensor
    probes: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Probing:
    """Draws standard normal changes of programmed operands.

    Parameters
    ----------
    count
        Changes of every operand.
    weights
        Source of the changes of weights, which all examples of a block share.
    operands
        Source of the changes of activations, which every example has for itself.
    examples
        In the batch.
    layouts
        How operands number the examples; where they do not, changes are common to all.
    """

    count: int
    weights: torch.Generator
    operands: ExampleDraws
    examples: int
    layouts: SiteLayouts

    def draw(self, site: str, product: Product) -> Tensor:
        """One change, shaped as the operand."""
        layout = None if product.is_static else self.layouts[site].operand
        if layout is None or not layout.fits(product.w.shape, self.examples):
            change = torch.empty_like(product.w, memory_format=torch.contiguous_format)
            return change.normal_(generator=self.weights)
        each = self.operands.normal((product.w.numel() // self.examples,), np.float32)
        return layout.laid_out(each, product.w.shape).to(product.w.dtype)


class Recorder:
    """Handler of `intercept` that records every product and lets the gradient reach its output and its weight."""

    def __init__(
        self, probing: Probing | None = None, observe: Observer | None = None, energies: Energies = Energies.EACH
    ) -> None:
        self.calls: list[Call] = []
        self._observe, self._kept_energies = observe, energies
        self._weights: dict[tuple[str, Hashable], Tensor] = {}
        self._probing = probing
        self._changes: dict[int, list[Tensor]] = {}

    def __call__(self, site: str, product: Product) -> Tensor:
        """Compute the product with its weight as a variable of its own, and note the call."""
        weight = self._variable(site, product)
        y = product.apply(product.x, weight)
        # A later in-place change of a view would be re-based past the node that is noted here.
        y = y.clone() if y._is_view() else y
        with torch.no_grad():
            if self._observe is not None:
                self._observe(site, product, y)
            energy, shot = self._energies(product, y)
            probes = () if self._probing is None else self._probe(site, product, weight, y.detach(), self._probing)
        edge = get_gradient_edge(y)
        self.calls.append(Call(site, edge, y.shape, product.channel_axes, weight, product.rows, energy, shot, probes))
        return y

    def _energies(self, product: Product, y: Tensor) -> tuple[Tensor, Tensor]:
        """||x||^2 and unit shot variance of every output."""
        if self._kept_energies is Energies.NONE:
            nothing = y.new_zeros([1] * y.dim())
            return nothing, nothing
        x = widened(product.x.detach())
        if self._kept_energies is Energies.MEAN and product.batched:
            x = x.square().mean(0, keepdim=True).sqrt_()  # its energies are the mean of theirs
        energy = product.x_energy(x)
        if product.w_mean_square is None:
            return energy, energy
        return energy, energy * product.w_mean_square(widened(product.w.detach()))

    def _probe(self, site: str, product: Product, weight: Tensor, y: Tensor, probing: Probing) -> tuple[Tensor, ...]:
        """Responses to changes of the operand; the calls of one weight share its changes, as they share the array."""
        if id(weight) not in self._changes:
            self._changes[id(weight)] = [probing.draw(site, product) for _ in range(probing.count)]
        # The difference takes off the bias without a pass of its own for it.
        return tuple(product.apply(product.x, product.w + change).sub_(y) for change in self._changes[id(weight)])

    def _variable(self, site: str, product: Product) -> Tensor:
        if not product.is_static:
            return product.w.view_as(product.w) if product.w.requires_grad else product.w.detach().requires_grad_()
        key = (site, product.identity)
        if key not in self._weights:
            self._weights[key] = product.w.detach().requires_grad_()
        return self._weights[key]


def record(
    model: nn.Module,
    batch: Batch,
    forward: Forward,
    probing: Probing | None = None,
    observe: Observer | None = None,
    energies: Energies = Energies.EACH,
) -> tuple[Tensor, list[Call]]:
    """Run the model with gradients; return its output and its products in order of execution.

    ``probing`` draws random changes of every programmed operand; ``observe(site, product, y)`` sees every call.
    ``energies`` says what of the inputs' energies is wanted.
    """
    recorder = Recorder(probing, observe, energies)
    with torch.enable_grad(), intercept(model, recorder):
        output = forward(model, batch)
    return output, recorder.calls


def output_gradients(target: Tensor, calls: Sequence[Call], keep_graph: bool = False) -> list[Tensor | None]:
    """Gradients of ``target`` with respect to the output of every call; None where it has no influence."""
    return list(torch.autograd.grad(target, [call.edge for call in calls], retain_graph=keep_graph, allow_unused=True))


def per_example(values: Tensor, call: Call, layout: Layout, examples: int) -> Tensor:
    """Sum values of a call's output to (examples, channels)."""
    split, example_axis = layout.split(values, examples)
    channel_axes = [position + (position > layout.axis) for position in _positions(call)]
    kept = sorted([example_axis, *channel_axes])
    summed_axes = [i for i in range(split.dim()) if i not in kept]
    summed = split.sum(summed_axes) if summed_axes else split
    ordered: Tensor = summed.permute([kept.index(i) for i in (example_axis, *channel_axes)])
    return ordered.reshape(examples, -1)


@dataclass(frozen=True)
class Part:
    """Some of a batch's examples, few enough that a copy of their values stays in the cache."""

    first: int
    count: int
    axis: int
    examples: int

    def of(self, values: Tensor) -> Tensor:
        """Their part of a call's values; of one value for all examples, that."""
        size = values.shape[self.axis]
        if size == 1 or self.count == self.examples:
            return values
        width = size // self.examples
        return values.narrow(self.axis, self.first * width, self.count * width)

    @property
    def rows(self) -> slice:
        """Their rows in tables by example."""
        return slice(self.first, self.first + self.count)


def parts(call: Call, layout: Layout, examples: int) -> Iterator[Part]:
    """Cut a batch into parts for one call; whole where examples are not the outer index."""
    size = max(1, _PART_VALUES * examples // call.shape.numel()) if layout.outer else examples
    for first in range(0, examples, size):
        yield Part(first, min(size, examples - first), layout.axis, examples)


def output_terms(values: Tensor, shot: Tensor, kinds: Collection[NoiseKind]) -> Iterator[tuple[NoiseKind, Tensor]]:
    """Multiply values of a call's output by each noise's unit variance, short of the channels' own constants.

    ``values`` are used up: every item is to be taken in before the next one.
    """
    if NoiseKind.THERMAL in kinds:
        yield NoiseKind.THERMAL, values
    if NoiseKind.SHOT in kinds:
        yield NoiseKind.SHOT, values.mul_(shot)


def _positions(call: Call) -> list[int]:
    return [axis + len(call.shape) for axis in call.channel_axes or ()]


def layouts_of(
    model: nn.Module, data: Data, first: Batch, forward: Forward, sites: Collection[str]
) -> dict[str, SiteLayout]:
    """Find how sites number the examples, on few of the first batch or, where what runs depends on them, on all.

    A single example does not tell: where batches have one, two are run together if the model takes them.
    """
    found = find_layouts(model, first.take(_TRIED), forward)
    if not found.keys() >= set(sites):
        found = find_layouts(model, first, forward) | found
    if first.size > 1:
        return found
    with suppress(DataError):
        pair = find_layouts(model, next(data.batches(2)), forward)
        found |= {site: layout for site, layout in pair.items() if layout.output is not None}
    return found


def find_layouts(model: nn.Module, batch: Batch, forward: Forward) -> dict[str, SiteLayout]:
    """Find, per site, how outputs and operands number the examples: only its own part moves the first one's output.

    One layout serves all calls of a site, of which there may be more or fewer in another batch. Nothing is found where
    the output carries no gradient.
    """
    output, calls = record(model, batch, forward, energies=Energies.NONE)
    if not output.requires_grad:
        return {}
    with torch.enable_grad():
        first = output[0].flatten()
        # A fixed direction that no symmetry of logits (their sum, their mean) can annihilate.
        target = (first * torch.linspace(1.0, 2.0, len(first), device=output.device) ** 2).sum()
    operands = [call for call in calls if call.rows is None]
    targets: list[Any] = [call.edge for call in calls] + [call.weight for call in operands]
    gradients = torch.autograd.grad(target, targets, allow_unused=True)
    outputs = _common(calls, [call.shape for call in calls], gradients[: len(calls)], batch.size)
    programmed = _common(operands, [call.weight.shape for call in operands], gradients[len(calls) :], batch.size)
    return {site: SiteLayout(layout, programmed.get(site)) for site, layout in outputs.items()}


def _common(
    calls: Sequence[Call], shapes: Sequence[torch.Size], gradients: Sequence[Tensor | None], examples: int
) -> dict[str, Layout | None]:
    """The first layout of every site that fits all its calls."""
    fitting: dict[str, list[Layout]] = {}
    for call, shape, gradient in zip(calls, shapes, gradients, strict=True):
        channels = _positions(call) if call.rows is not None else []
        axes = [axis for axis, size in enumerate(shape) if axis not in channels and size % examples == 0]
        candidates = [Layout(axis, outer) for axis in axes for outer in (True, False)]
        found = [layout for layout in candidates if _is_of_first(gradient, layout, examples)]
        fitting[call.site] = [layout for layout in fitting.get(call.site, found) if layout in found]
    return {site: next(iter(layouts), None) for site, layouts in fitting.items()}


def _is_of_first(gradient: Tensor | None, layout: Layout, examples: int) -> bool:
    """Whether a gradient is that of values of the first example alone."""
    if gradient is None:
        return True
    split, axis = layout.split(gradient, examples)
    return not bool(split.narrow(axis, 1, examples - 1).any())
