"""Slopes in K with the noise that goes straight into a rectifier integrated out: fewer draws tell as much.

Let a rectifier take in a product's output with its noise, z = max(0, y + e) with e ~ N(0, v), and let G = dL / dz. One
draw's slope of the loss in log K is -1/2 e 1(y + e > 0) G, of which e is mostly chance. What is behind the rectifier
sees z, so that G is G_0 + H z with the curvature H = d^2 L / dz^2, and for such G

    E[ e 1(y + e > 0) G ] = E[ sqrt(v) phi(u) G ] + E[ (v 1(y + e > 0) - sqrt(v) phi(u) z) H ],    u = y / sqrt(v),

with phi the standard normal density: the shift of the mean at the kink, and curvature. Expectations of conditional
expectations have less variance (Rao-Blackwell; Ranganath et al. 2014, arXiv:1401.0118, section 3.1, for such
gradients). H is estimated by squared gradients of `Task.sampled_loss`, in a backward pass of its own, which need not be
done for every batch: as a sensitivity, times K, curvature hardly changes with K. What rectifiers further on add to it
by their own kinks is left out; `Blend` trusts the integrals as far as they account for the slope of the draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from precalloc.hardware import Hardware, NoiseKind
from precalloc.kmaps import KMap
from precalloc.network.curvature import ChannelSlots
from precalloc.network.descent import RunningMean, Stateful, joined_state, restore_parts
from precalloc.network.draws import ExampleDraws
from precalloc.network.forward import model_device
from precalloc.network.interception import intercept
from precalloc.network.layouts import SiteLayouts
from precalloc.network.naming import storage_of, tensors_in
from precalloc.network.noise import Injected, NoiseInjector
from precalloc.network.operating_point import Judged, OperatingPoint, Slopes
from precalloc.network.operators import Product, widened
from precalloc.network.tasks import Task
from precalloc.profiles import FloatArray

# -u^2 / 2 where the density has vanished; beyond, denormal numbers are slow.
_FAR = -80.0
# Steps from one estimate of curvature to the next; and how many estimates are averaged over.
_CURVATURE_EVERY, _CURVATURE_MEMORY = 8, 4
# Steps that tell how much of the draws' slope the integrals account for.
_TOTALS_MEMORY = 10
_RECTIFIERS = ("relu", "relu_")
_SAMPLED = 203


@dataclass(frozen=True)
class IntegratedSlopes:
    """Slopes of a batch's loss under noise, and what integrals put in the place of draws.

    Parameters
    ----------
    drawn
        Under one draw of all noise.
    excess, curved : (channels,)
        By how much the integral exceeds the draw in the sensitivities, in two parts: the shift of means at kinks less
        the draw, and the curvature behind rectifiers. Zero where no rectifier follows; the second is None where it was
        not asked for.
    """

    drawn: Slopes
    excess: FloatArray
    curved: FloatArray | None


class Blend:
    """Sensitivities between those drawn and those integrated, step by step of a descent.

    The slope of all K together, sum_u s_u / K_u, has little chance in it. Its means over the last steps, integrated
    over drawn, tell how much of it the integrals account for, one at most; the sensitivities are those drawn and that
    share of what the integrals exceed them by.
    """

    def __init__(self, channels: int) -> None:
        self._curved, self._totals = RunningMean(channels, _CURVATURE_MEMORY), RunningMean(2, _TOTALS_MEMORY)

    @staticmethod
    def bends(step: int) -> bool:
        """Whether the curvature is to be estimated anew in a step; from one to the next it is held."""
        return step % _CURVATURE_EVERY == 0

    def slopes(self, parts: Sequence[IntegratedSlopes], weight: float, k: FloatArray) -> Slopes:
        """Mean slopes of a step's parts, of this weight in all, at K (channels,)."""
        mean = Slopes.mean([part.drawn for part in parts], weight)
        drawn = mean.sensitivity
        curved = [part.curved for part in parts if part.curved is not None]
        if curved:
            self._curved.take(np.sum(curved, axis=0) / weight)
        excess: FloatArray = np.sum([part.excess for part in parts], axis=0) / weight + self._curved.mean
        self._totals.take(np.array([float((drawn / k).sum()), float(((drawn + excess) / k).sum())]))
        of_draws, of_integrals = self._totals.mean
        share = float(np.clip(of_integrals / of_draws, 0.0, 1.0)) if of_draws > 0.0 else 0.0
        return Slopes(drawn + share * excess, mean.corrections)

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {"curved": self._curved, "totals": self._totals}

    def state(self) -> dict[str, FloatArray]:
        """Everything that the next step depends on."""
        return joined_state(self._parts)

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Go on after the finished steps."""
        restore_parts(self._parts, arrays)


def integrated_slopes(
    model: nn.Module,
    task: Task,
    judged: Judged,
    kmap: KMap,
    slots: ChannelSlots,
    seed: int,
    layouts: SiteLayouts,
    curvature: bool = True,
) -> IntegratedSlopes:
    """Slopes of a batch's loss under one draw of noise at a K map.

    Parameters
    ----------
    kmap, slots, seed, layouts
        As of `precalloc.network.operating_point.batch_slopes`.
    curvature
        Whether the curvature behind rectifiers is wanted too.
    """
    device, batch = model_device(model), judged.batch
    point = OperatingPoint(kmap, slots, device)
    with torch.enable_grad():
        noise = RectifiedNoise(point.injector(seed, 1.0, layouts, batch), curvature)
        with intercept(model, noise.on_product, noise.on_other if _is_integrable(kmap.hardware) else None):
            output = task.output(model, batch)
        loss = (task.loss(output, judged.reference) * judged.weight).sum()
        calls = noise.calls
        edges: list[Any] = [call.edge for call in calls]
        bends = curvature and bool(edges)
        gradients = _gradients(loss, [*point.leaves, *edges], retain=bends)
        sampled: Sequence[Tensor | None] = ()
        if bends:
            draws = ExampleDraws((seed, _SAMPLED), batch.start, batch.size, device)
            sampled = _gradients(task.sampled_loss(output, judged.reference, draws), edges)
    leaves = len(point.leaves)
    drawn, excess, curved = point.slopes(gradients[:leaves]), np.zeros(slots.total), np.zeros(slots.total)
    for call, gradient in zip(calls, gradients[leaves:], strict=True):
        excess[slots.of(call.site)] += call.excess_slopes(gradient)
    for call, gradient in zip(calls, sampled, strict=False):
        curved[slots.of(call.site)] += call.curved_slopes(gradient)
    return IntegratedSlopes(drawn, point.k * excess, point.k * curved if curvature else None)


def _gradients(target: Tensor, inputs: Sequence[Any], retain: bool = False) -> Sequence[Tensor | None]:
    return torch.autograd.grad(target, inputs, retain_graph=retain, allow_unused=True)


def _is_integrable(hardware: Hardware) -> bool:
    """Whether all additive noise falls with K."""
    return all(hardware.is_averaged(term) for term in hardware.noise if term.kind is not NoiseKind.WEIGHT)


@dataclass(frozen=True)
class Rectified:
    """One call of a rectifier on a product with noise.

    Parameters
    ----------
    site, product
        Where the noise was added.
    taken
        What the rectifier took in; kept, so that its memory goes to nothing else.
    edge
        The rectifier's output z, for gradients.
    excess
        sqrt(v) phi(u) - e 1(y + e > 0), the integral short of the draw, which G is to be multiplied by.
    bent
        v 1(y + e > 0) - sqrt(v) phi(u) z, which H is to be multiplied by; None where that is not wanted.
    """

    site: str
    product: Product
    taken: Tensor
    edge: GradientEdge
    excess: Tensor
    bent: Tensor | None

    def excess_slopes(self, gradient: Tensor | None) -> FloatArray | float:
        """By how much the integral exceeds the draw in -dL / d log K, curvature left out, (channels,)."""
        return 0.0 if gradient is None else self._half_sum(widened(gradient) * self.excess)

    def curved_slopes(self, sampled: Tensor | None) -> FloatArray | float:
        """Part of the curvature in -dL / d log K, from the gradient of a sampled loss, (channels,)."""
        assert self.bent is not None
        return 0.0 if sampled is None else self._half_sum(widened(sampled).square() * self.bent)

    def _half_sum(self, values: Tensor) -> FloatArray:
        found: FloatArray = 0.5 * self.product.channel_sum(values).double().cpu().numpy()
        return found


class RectifiedNoise:
    """Handlers of `intercept`: a noise injector, which notes what of its noise goes straight into a rectifier.

    Only where nothing else sees the product's output is the slope that of the rectifier; other uses of it, or of a view
    of it, take the note back.

    ``bends`` says whether curvature is wanted.
    """

    def __init__(self, injector: NoiseInjector, bends: bool) -> None:
        self._injector, self._bends = injector, bends
        self._latest: tuple[str, Product, Injected, int] | None = None
        self._noted: dict[int | None, Rectified] = {}

    @property
    def calls(self) -> list[Rectified]:
        """What was noted, in order of execution."""
        return list(self._noted.values())

    def on_product(self, site: str, product: Product) -> Tensor:
        """Compute one product with noise."""
        self._see((product.x, product.w))
        found = self._injector.inject(site, product)
        is_noted = product.is_static and found.deviation is not None
        self._latest = (site, product, found, found.y._version) if is_noted else None
        return found.y

    def on_other(self, path: str, operator: str, call: partial[Any], reason: str | None) -> Any:  # noqa: ARG002
        """Run any other function."""
        latest = self._latest
        if operator in _RECTIFIERS and latest is not None and call.args and call.args[0] is latest[2].y:
            self._latest = None
            if latest[2].y._version == latest[3]:
                return self._rectify(*latest[:3], call)
        self._see(tensors_in((*call.args, *call.keywords.values())))
        return call()

    def _rectify(self, site: str, product: Product, found: Injected, call: partial[Any]) -> Tensor:
        integrals = _integrals(found, self._bends)  # before the call, which may be in place
        z: Tensor = call()
        # In place, what sees the memory from now on sees z.
        key = storage_of(found.y) if z is not found.y else -1 - len(self._noted)
        self._noted[key] = Rectified(site, product, found.y, get_gradient_edge(z), *integrals)
        return z

    def _see(self, used: Iterable[Tensor]) -> None:
        """Take back notes on outputs that are used otherwise."""
        for storage in map(storage_of, used):
            self._noted.pop(storage, None)
            if self._latest is not None and storage == storage_of(self._latest[2].y):
                self._latest = None


@torch.no_grad()
def _integrals(found: Injected, bends: bool) -> tuple[Tensor, Tensor | None]:
    """``excess`` and ``bent`` of `Rectified`."""
    assert found.deviation is not None
    noisy, noise = widened(found.y), widened(found.noisy) - widened(found.clean)
    mean = widened(found.clean) if found.y is found.noisy else noisy - noise
    deviation = math.prod(found.deviation[1:], start=found.deviation[0])
    deviation = deviation.clamp_min(torch.finfo(deviation.dtype).tiny ** 0.5)  # zero where there is nothing to see
    at_kink = mean.square().mul_(deviation.square().reciprocal_().mul_(-0.5)).clamp_min_(_FAR).exp_()
    at_kink.mul_(deviation / math.sqrt(2.0 * math.pi))
    bent = _where_on(deviation.square() - at_kink * noisy, noisy) if bends else None
    return at_kink.sub_(_where_on(noise, noisy)), bent


def _where_on(values: Tensor, noisy: Tensor) -> Tensor:
    """Values where the rectifier is on and zero elsewhere; many times as fast as by a mask."""
    found: Tensor = torch.ops.aten.threshold_backward.default(values, noisy, 0.0)
    return found
