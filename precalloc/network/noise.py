"""Noise injection: a K map's noise on every product, with the variances of its hardware.

Variance added to the output y_i = sum_j W_ij x_j at K repetitions (Garg et al. 2023, arXiv:2102.06365, section III):

- thermal: sigma_t^2 / K * D * dW_i^2 * dx^2
- weight: every W_ij gets N(0, sigma_w^2 / K * dW_i^2)
- shot: ||W_i||^2 ||x||^2 / (D * K * n_0)

with D the fan-in, dW_i the range of channel i's weights and dx the calibrated range of the site's inputs. In a product
of two activations the second operand takes the place of W, with its own calibrated range.

The noise is re-parametrised: standard normal numbers times a deviation that autograd follows into the activations that
it depends on, and into strengths given as tensors, so that one code serves simulation and gradients in K.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from precalloc.errors import KMapError
from precalloc.hardware import Hardware, NoiseKind
from precalloc.kmaps import KMap, SiteRanges
from precalloc.network.batches import Batch
from precalloc.network.layouts import Layout, SiteLayout, SiteLayouts
from precalloc.network.normals import Normals, add_normal
from precalloc.network.operators import Product, wide_dtype, widened
from precalloc.network.state import seeded_generator
from precalloc.profiles import FloatArray

_ACTIVATION_STREAM, _WEIGHT_STREAM = 0, 1
_OUTERMOST = SiteLayout()

Bias = FloatArray | Tensor
Repetitions = TypeVar("Repetitions", FloatArray, Tensor)


@dataclass(frozen=True)
class SiteNoise:
    """Noise of one site: strength / K of each kind per channel (or one for all), and its calibrated ranges.

    ``bias`` is a digital correction (channels,) that is added to every output channel after the noise.

    Strengths and bias may be tensors that require gradients.
    """

    strength: Mapping[NoiseKind, FloatArray | Tensor]
    ranges: SiteRanges
    bias: Bias | None = None

    @classmethod
    def digital(cls, sites: Iterable[str], corrections: Mapping[str, Bias]) -> dict[str, SiteNoise | None]:
        """What is added to sites that stay digital: no noise, and a bias correction where there is one."""
        return {name: cls({}, SiteRanges(0.0), corrections[name]) if name in corrections else None for name in sites}

    @classmethod
    def of(
        cls, hardware: Hardware, repetitions: Repetitions, ranges: SiteRanges, bias: Bias | None = None
    ) -> SiteNoise:
        """Noise at K ``repetitions``."""
        return cls(strengths(hardware, repetitions), ranges, bias)


def strengths(hardware: Hardware, repetitions: Repetitions) -> dict[NoiseKind, Repetitions]:
    """Strength / K of each kind; a term that the hardware's redundancy does not average keeps its strength."""
    return {
        term.kind: term.strength / (repetitions if hardware.is_averaged(term) else repetitions**0.0)
        for term in hardware.noise
    }


@dataclass(frozen=True)
class Injected:
    """One product with noise.

    Parameters
    ----------
    y
        What goes on, bias correction included.
    noisy, clean
        Without the bias correction; and without additive noise either, errors of the operand included.
    deviation
        Of the additive noise, as factors that broadcast to y; None without any.
    """

    y: Tensor
    noisy: Tensor
    clean: Tensor
    deviation: list[Tensor] | None


class NoiseInjector:
    """Handler of `intercept` that computes every product as the analog hardware would, with one draw of its noise.

    Noise on a static weight is drawn once, since all inferences share the programmed array, and anew after
    `reprogram`; every other noise is drawn anew at each use.

    Parameters
    ----------
    sites
        Noise by site name; None where the site stays digital and as it is.
    seed, device
        Of the draws. Two K maps with the same seed see the same standard normal numbers.
    sign
        Of all noise: of two injectors with one seed and the signs 1 and -1 (antithetic), whatever is linear in the
        noise cancels.
    layouts
        How sites number the examples, for `at`; those that it does not name have them outermost.
    twin
        Injector of the same K, seed and device, whose errors of static weights are taken over, with this one's sign,
        and whose normal numbers, where it keeps them; neither is ever reprogrammed.
    keeps
        Whether the normal numbers of its first pass are kept for twins, a value for every one that the pass computes.
    """

    def __init__(
        self,
        sites: Mapping[str, SiteNoise | None],
        seed: int,
        device: torch.device,
        sign: float = 1.0,
        layouts: SiteLayouts = MappingProxyType({}),
        twin: NoiseInjector | None = None,
        keeps: bool = False,
    ) -> None:
        self._sites, self._sign, self._seed, self._layouts = sites, sign, seed, layouts
        self._twin = twin
        self._normals = self._same_as(twin) or Normals(seeded_generator(device, seed, _ACTIVATION_STREAM), keeps=keeps)
        self._weights = seeded_generator(device, seed, _WEIGHT_STREAM)
        self._programmed: dict[tuple[str, Hashable], Tensor] = {}

    @classmethod
    def of(
        cls,
        kmap: KMap,
        seed: int,
        device: torch.device,
        sign: float = 1.0,
        layouts: SiteLayouts = MappingProxyType({}),
        twin: NoiseInjector | None = None,
        keeps: bool = False,
    ) -> NoiseInjector:
        """Injector of a K map's noise and bias corrections."""
        sites = SiteNoise.digital(kmap.digital, kmap.bias_corrections)
        for name, repetitions in kmap.repetitions.items():
            bias = kmap.bias_corrections.get(name)
            sites[name] = SiteNoise.of(kmap.hardware, repetitions, kmap.ranges[name], bias)
        return cls(sites, seed, device, sign, layouts, twin, keeps)

    def at(self, batch: Batch, like: NoiseInjector | None = None) -> NoiseInjector:
        """Draw for the examples of a batch, which comes next, from streams of their own: in any batch the same noise.

        Without this call, and at sites where the model mixes examples, the noise goes with the batch. ``like`` is an
        injector of the same seed whose numbers for this batch are taken over, where it keeps them.
        """
        self._normals = self._same_as(like) or self._normals.at(self._seed, batch)
        return self

    @staticmethod
    def _same_as(other: NoiseInjector | None) -> Normals | None:
        return other._normals.again() if other is not None and other._normals.keeps else None

    def reprogram(self) -> None:
        """Go on with another device, whose weights have other errors."""
        self._programmed.clear()

    def __call__(self, site: str, product: Product) -> Tensor:
        """Compute one product with noise."""
        return self.inject(site, product).y

    def inject(self, site: str, product: Product) -> Injected:
        """Compute one product with noise; tell what noise it was."""
        if site not in self._sites:
            raise KMapError(
                f"Site '{site}' runs on this data, but the K map has no K for it: it did not run on the first batch "
                "of the calibration data. Profile anew in larger batches (--batch-size), so that it runs on the first."
            )
        noise, layout = self._sites[site], self._layouts.get(site, _OUTERMOST)
        if noise is None:
            y = product.apply(product.x, product.w)
            return Injected(y, y, y, None)
        clean = noisy = product.apply(product.x, self._noisy_operand(site, product, noise, layout.operand))
        deviation = additive_deviation(product, noise, clean)
        if deviation is not None:
            noisy = add_normal(clean, deviation, self._normals, layout.output, self._sign)
        if noise.bias is None:
            return Injected(noisy, noisy, clean, deviation)
        bias = noise.bias if isinstance(noise.bias, Tensor) else torch.tensor(noise.bias)
        return Injected(noisy + product.per_channel(bias.to(noisy), noisy), noisy, clean, deviation)

    def _noisy_operand(self, site: str, product: Product, noise: SiteNoise, layout: Layout | None) -> Tensor:
        if NoiseKind.WEIGHT not in noise.strength:
            return product.w
        strength = noise.strength[NoiseKind.WEIGHT]
        if product.rows is None:
            deviation = _like(strength, product.w).sqrt() * noise.ranges.operand
            return add_normal(product.w, [deviation], self._normals, layout, self._sign)
        return self._array((site, product.identity), product, strength)

    def _array(self, key: tuple[str, Hashable], product: Product, strength: FloatArray | Tensor) -> Tensor:
        """A static weight as it is programmed."""
        if key not in self._programmed:
            if self._twin is None:
                self._programmed[key] = self._program(product, strength)
            else:
                theirs = self._twin._array(key, product, strength)
                self._programmed[key] = theirs if self._sign == self._twin._sign else 2.0 * product.w - theirs
        return self._programmed[key]

    def _program(self, product: Product, strength: FloatArray | Tensor) -> Tensor:
        """Weights with their errors; the deviation of each is that of its channel."""
        assert product.rows is not None
        deviation = self._sign * _like(strength, product.w).sqrt() * weight_range(product.rows(product.w.detach()))
        error = torch.empty_like(product.w, memory_format=torch.contiguous_format).normal_(generator=self._weights)
        rows = product.rows(error)
        if rows.untyped_storage().data_ptr() == error.untyped_storage().data_ptr():
            rows *= deviation[:, None]
        else:  # a copy: channels are numbered by sending their indices through
            index = torch.arange(product.w.numel(), device=product.w.device).view(product.w.shape)
            error.view(-1)[product.rows(index)] *= deviation[:, None]
        return product.w + error


def _like(strength: FloatArray | Tensor, t: Tensor) -> Tensor:
    """A strength in the type for a tensor's squares and on its device; gradients pass."""
    return torch.as_tensor(strength, dtype=wide_dtype(t), device=t.device)


def _root(variance: Tensor) -> Tensor:
    """Square root, in place where no gradient is followed; where it is, without the infinite slope at zero."""
    return variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt() if variance.requires_grad else variance.sqrt_()


def weight_range(rows: Tensor) -> Tensor:
    """Range dW_i (max - min) of every channel's weights, from (channels, row length) to (channels,)."""
    return rows.amax(1) - rows.amin(1)


def additive_deviation(product: Product, noise: SiteNoise, y: Tensor) -> list[Tensor] | None:
    """Standard deviation of thermal and shot noise together, as factors that broadcast to y; None without either."""
    thermal, shot = noise.strength.get(NoiseKind.THERMAL), noise.strength.get(NoiseKind.SHOT)
    if thermal is None and shot is None:
        return None
    constant = None if thermal is None else _thermal_variance(product, noise, thermal, y)
    if shot is None:
        assert constant is not None
        return [_root(constant)]
    field, gain = _shot_variance(product, shot, y)
    if constant is None:
        return [_root(field), _root(gain)]
    return [_root((field * gain).add_(constant))]


def _thermal_variance(product: Product, noise: SiteNoise, strength: FloatArray | Tensor, y: Tensor) -> Tensor:
    scale = _like(strength, y) * (product.macs_per_output(y) * noise.ranges.input**2)
    if product.rows is None:
        return scale.reshape(()) * noise.ranges.operand**2  # a product of two vectors has no axis to broadcast along
    return product.per_channel(scale * widened(weight_range(product.rows(product.w.detach()))).square(), y)


def _shot_variance(product: Product, strength: FloatArray | Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Shot variance as the product of a field over positions and a gain over channels."""
    scale = _like(strength, y)
    field = product.x_energy(widened(product.x))
    if product.rows is None:
        assert product.w_mean_square is not None
        return field * product.w_mean_square(widened(product.w)), scale.reshape(())
    return field, product.per_channel(scale * widened(product.rows(product.w.detach())).square().mean(1), y)
