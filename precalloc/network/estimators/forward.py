"""Sensitivities by brute force: noise at one place, and how much the loss grows; the reference for all others.

Unit u alone (a site, or a channel of one) is given noise of one kind, a times unit noise, and

    damage_u = E[ (L(z) + L(-z)) / 2 - L(0) ] / a

over pairs of opposite noise z and -z. All units see the same random numbers, so that they compare better than each is
known. Standard errors are over batches, each with noise of its own: examples and noise draws at once.

The level a is chosen a unit at a time: such that curvature predicts a damage of ``level``, small enough for the second
order to hold and large enough to stand above rounding; or, with ``operating_k``, the hardware's own noise at that K,
where the damage takes in what strong noise does, mean shifts above all, but no interaction between units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from precalloc.errors import ProfileError
from precalloc.hardware import NoiseKind
from precalloc.kmaps import SiteRanges
from precalloc.network.checkpoints import Arrays, Checkpoint
from precalloc.network.curvature import ChannelSlots, GroupSums
from precalloc.network.data import Data
from precalloc.network.forward import model_device
from precalloc.network.interception import ProductHandler, intercept
from precalloc.network.noise import NoiseInjector, SiteNoise
from precalloc.network.operating_point import Judged
from precalloc.network.operators import Product
from precalloc.network.state import derived_seed
from precalloc.network.tasks import Task
from precalloc.objective import Granularity, parse_granularity
from precalloc.profiles import FloatArray, Profile
from precalloc.progress import Progress

_FORWARD = 401


@dataclass(frozen=True)
class Forward:
    """How to measure.

    Parameters
    ----------
    granularity
        "layer": noise at a whole site, whose channels share the damage as their curvature says. "channel": noise at
        every channel alone, which takes as many times longer as a site has channels.
    pairs
        Pairs of opposite noise an example.
    level
        Damage that curvature predicts for the noise of each unit, in units of the loss.
    operating_k
        Instead of ``level``: the hardware's noise at this K.
    batch_size
        Examples at a time; each batch has noise of its own.
    """

    granularity: str = "layer"
    pairs: int = 2
    level: float = 0.01
    operating_k: float | None = None
    batch_size: int = 32

    name = "forward"

    def work(self, profile: Profile) -> str:
        """Say beforehand how much there is to do."""
        return f"{self.passes(profile)} forward passes over {profile.provenance.examples} examples"

    def passes(self, profile: Profile) -> int:
        """Forward passes over the data."""
        is_layer = parse_granularity(self.granularity) is Granularity.LAYER
        units = len(profile.sites) if is_layer else len(profile.site_of_channel)
        return 1 + 2 * self.pairs * units * len(profile.kinds)

    def estimate(
        self,
        model: nn.Module,
        task: Task,
        data: Data,
        profile: Profile,
        seed: int,
        progress: Progress,
        kept: Checkpoint,
    ) -> Profile:
        """Measure every unit and kind; the curvature's profile gives ranges, levels, and how channels share damage.

        Raises
        ------
        ProfileError
            If an option is out of range.
        """
        if self.pairs < 1 or not self.level > 0.0 or not (self.operating_k is None or self.operating_k > 0.0):
            raise ProfileError("Forward needs at least one pair, and a positive level or operating_k.")
        sweep = _Sweep(model, task, data, profile, self, seed)
        with kept.running(sweep.state, sweep.restore):
            sweep.go(progress, kept)
        return sweep.profile()


class _Sweep:
    """Sums of every unit's damage over batches."""

    def __init__(self, model: nn.Module, task: Task, data: Data, profile: Profile, options: Forward, seed: int) -> None:
        self._model, self._task, self._data, self._profile = model, task, data, profile
        self._options, self._seed = options, seed
        self._is_layer = parse_granularity(options.granularity) is Granularity.LAYER
        self._slots = ChannelSlots.of_sites({site.name: site.channels for site in profile.sites})
        self._levels = {kind: self._level(kind) for kind in profile.kinds}
        self._sums = {kind: GroupSums(len(level)) for kind, level in self._levels.items()}
        self._batches = 0

    def _level(self, kind: NoiseKind) -> FloatArray:
        """Noise of each unit in times of unit noise, (units,)."""
        damage = self._profile.damage[kind]
        units = self._slots.sum_sites(damage) if self._is_layer else damage
        if self._options.operating_k is not None:
            strength = next(term.strength for term in self._profile.hardware.noise if term.kind is kind)
            return np.full(len(units), strength / self._options.operating_k)
        # Where curvature sees nothing, the strongest noise that another unit gets.
        known = units > 0.0
        level = np.divide(self._options.level, units, out=np.ones_like(units), where=known)
        return np.where(known, level, level[known].max(initial=1.0))

    def go(self, progress: Progress, keeper: Checkpoint) -> None:
        """Measure the batches that are not done yet."""
        done = self._batches * self._options.batch_size
        for index, batch in enumerate(self._data.batches(self._options.batch_size)):
            if index < self._batches:
                continue
            judged = Judged.of(self._model, self._task, batch)
            clean = self._loss(judged, lambda _, product: product.apply(product.x, product.w))
            for kind, level in self._levels.items():
                growth = [self._growth(judged, kind, unit, level, clean) for unit in range(len(level))]
                self._sums[kind].add(np.array(growth)[None] / level, np.array([float(judged.weight.sum())]))
            self._batches, done = index + 1, done + batch.size
            keeper.offer(self.state)
            progress(done, self._data.examples, f"{self._options.passes(self._profile)} forward passes")

    def _growth(self, judged: Judged, kind: NoiseKind, unit: int, level: FloatArray, clean: float) -> float:
        """Growth of a batch's summed loss by the noise of one unit."""
        site = unit if self._is_layer else int(self._profile.site_of_channel[unit])
        entry = self._profile.sites[site]
        strength = np.full(1, level[unit])
        if not self._is_layer:
            strength = level[unit] * (np.arange(entry.channels) == unit - self._slots.start[entry.name])
        noise = {entry.name: SiteNoise({kind: strength}, SiteRanges(entry.input_range, entry.operand_range))}
        losses = [
            self._loss(judged, _alone(entry.name, NoiseInjector(noise, seed, model_device(self._model), sign)))
            for seed in (derived_seed(self._seed, _FORWARD, self._batches, p) for p in range(self._options.pairs))
            for sign in (1.0, -1.0)
        ]
        return sum(losses) / len(losses) - clean

    def _loss(self, judged: Judged, handler: ProductHandler) -> float:
        with torch.no_grad(), intercept(self._model, handler):
            output = self._task.output(self._model, judged.batch)
        return float((self._task.loss(output, judged.reference) * judged.weight).double().sum())

    def profile(self) -> Profile:
        """The profile with the measured damages."""
        damage = dict(self._profile.damage)
        errors: dict[NoiseKind, FloatArray] = {}
        site_errors: dict[NoiseKind, FloatArray] = {}
        for kind, sums in self._sums.items():
            value, error = sums.mean(), sums.error()
            if self._is_layer:
                share = self._slots.shares(self._profile.damage[kind])
                damage[kind] = self._slots.repeat_sites(value) * share
                errors[kind], site_errors[kind] = self._slots.repeat_sites(error) * share, error
            else:
                damage[kind], errors[kind] = value, error
                site_errors[kind] = np.sqrt(self._slots.sum_sites(error**2))
        provenance = replace(self._profile.provenance, estimator=f"forward ({self._options.granularity})")
        return replace(
            self._profile, damage=damage, damage_error=errors, site_damage_error=site_errors, provenance=provenance
        )

    def state(self) -> Arrays:
        """Sums of the finished batches."""
        values = {f"{kind}/{name}": value for kind, sums in self._sums.items() for name, value in sums.arrays.items()}
        counts = {f"{kind}/counts": sums.counts for kind, sums in self._sums.items()}
        return {"batches": np.array(self._batches), **values, **counts}

    def restore(self, arrays: Arrays) -> None:
        """Go on after the finished batches."""
        self._batches = int(arrays["batches"])
        for kind, sums in self._sums.items():
            sums.arrays = {name: arrays[f"{kind}/{name}"] for name in sums.arrays}
            sums.counts = arrays[f"{kind}/counts"]


def _alone(site: str, injector: NoiseInjector) -> ProductHandler:
    """Noise at one site and nowhere else."""

    def handle(name: str, product: Product) -> Tensor:
        return injector(name, product) if name == site else product.apply(product.x, product.w)

    return handle
