"""One recorded forward pass: what every product saw, and where the gradient of its output will arrive."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from precalloc.hardware import NoiseKind
from precalloc.network.batches import Batch
from precalloc.network.draws import ExampleDraws
from precalloc.network.forward import Forward
from precalloc.network.interception import intercept
from precalloc.network.operators import Product, widened

# Values of a call's output that are worked on at a time: a megabyte.
_PART_VALUES = 2**18

Observer = Callable[[str, Product, Tensor], None]


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
        ||x||^2 of every output's receptive field, broadcastable to the output.
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
        In the batch. Activations are taken to have the examples outermost; where they do not, their changes are as
        random but depend on the batch.
    """

    count: int
    weights: torch.Generator
    operands: ExampleDraws
    examples: int

    def draw(self, product: Product) -> Tensor:
        """One change, shaped as the operand."""
        if product.is_static or product.w.numel() % self.examples:
            change = torch.empty_like(product.w, memory_format=torch.contiguous_format)
            return change.normal_(generator=self.weights)
        each = (product.w.numel() // self.examples,)
        return self.operands.normal(each, np.float32).to(product.w.dtype).reshape(product.w.shape)


class Recorder:
    """Handler of `intercept` that records every product and lets the gradient reach its output and its weight."""

    def __init__(self, probing: Probing | None = None, observe: Observer | None = None) -> None:
        self.calls: list[Call] = []
        self._observe = observe
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
            energy = product.x_energy(widened(product.x.detach()))
            shot = energy
            if product.w_mean_square is not None:
                shot = energy * product.w_mean_square(widened(product.w.detach()))
            probes = () if self._probing is None else self._probe(product, weight, y.detach(), self._probing)
        edge = get_gradient_edge(y)
        self.calls.append(Call(site, edge, y.shape, product.channel_axes, weight, product.rows, energy, shot, probes))
        return y

    def _probe(self, product: Product, weight: Tensor, y: Tensor, probing: Probing) -> tuple[Tensor, ...]:
        """Responses to changes of the operand; the calls of one weight share its changes, as they share the array."""
        if id(weight) not in self._changes:
            self._changes[id(weight)] = [probing.draw(product) for _ in range(probing.count)]
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
) -> tuple[Tensor, list[Call]]:
    """Run the model with gradients; return its output and its products in order of execution.

    ``probing`` draws random changes of every programmed operand; ``observe(site, product, y)`` sees every call.
    """
    recorder = Recorder(probing, observe)
    with torch.enable_grad(), intercept(model, recorder):
        output = forward(model, batch)
    return output, recorder.calls


def output_gradients(target: Tensor, calls: Sequence[Call], keep_graph: bool = False) -> list[Tensor | None]:
    """Gradients of ``target`` with respect to the output of every call; None where it has no influence."""
    return list(torch.autograd.grad(target, [call.edge for call in calls], retain_graph=keep_graph, allow_unused=True))


@dataclass(frozen=True)
class Layout:
    """Which axis of a product's output numbers the examples, and whether examples are the outer index on it."""

    axis: int
    outer: bool


def per_example(values: Tensor, call: Call, layout: Layout, examples: int) -> Tensor:
    """Sum values of a call's output to (examples, channels)."""
    axis, outer = layout.axis, layout.outer
    split = values.unflatten(axis, (examples, -1) if outer else (-1, examples))
    example_axis = axis if outer else axis + 1
    channel_axes = [position + (position > axis) for position in _positions(call)]
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


def find_layouts(model: nn.Module, batch: Batch, forward: Forward) -> dict[str, Layout | None]:
    """Find, per site, how its outputs number the examples: only their own part can move the first example's output.

    One layout serves all calls of a site, of which there may be more or fewer in another batch. None where no layout
    fits, because the model mixes examples.
    """
    examples = batch.size
    output, calls = record(model, batch, forward)
    first = output[0].flatten()
    # A fixed direction that no symmetry of logits (their sum, their mean) can annihilate.
    direction = torch.linspace(1.0, 2.0, len(first), device=output.device) ** 2
    gradients = output_gradients((first * direction).sum(), calls)
    fitting: dict[str, list[Layout]] = {}
    for call, gradient in zip(calls, gradients, strict=True):
        before = fitting.get(call.site, list(_candidates(call, examples)))
        fitting[call.site] = [layout for layout in before if _fits(call, gradient, layout, examples)]
    return {site: next(iter(layouts), None) for site, layouts in fitting.items()}


def _fits(call: Call, gradient: Tensor | None, layout: Layout, examples: int) -> bool:
    if layout not in _candidates(call, examples):
        return False
    return gradient is None or not bool(per_example(gradient.abs(), call, layout, examples)[1:].any())


def _candidates(call: Call, examples: int) -> Iterator[Layout]:
    for axis, size in enumerate(call.shape[:2]):
        if axis not in _positions(call) and size % examples == 0:
            yield Layout(axis, outer=True)
            yield Layout(axis, outer=False)
