"""What one pass over the calibration data sums up, batch by batch, and the profile that follows from the sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from precalloc.hardware import Hardware, NoiseKind
from precalloc.network.checkpoints import Arrays
from precalloc.network.curvature import BatchSums, ChannelSlots, channel_sum, curvature_terms
from precalloc.network.data import Batch
from precalloc.network.draws import ExampleDraws
from precalloc.network.forward import model_device
from precalloc.network.margins import margin_covariance, strongest_margins
from precalloc.network.observation import Call, Layout, record
from precalloc.network.operators import Product, widened
from precalloc.network.ranges import TailRange
from precalloc.network.sites import SiteCounts
from precalloc.network.state import seeded_generator
from precalloc.network.tasks import Task
from precalloc.profiles import FloatArray, MarginTable, Profile, Provenance, Site

# Random changes of every weight that estimate the margins' covariance under weight noise.
_WEIGHT_PROBES = 4
# The per-channel prediction table holds the first examples that fit into this many values a kind.
_CHANNEL_TABLE_VALUES = 16_000_000

_RANGES = ("inputs", "outputs", "operands")


@dataclass(frozen=True)
class Options:
    """What to measure; see `precalloc.network.profiling.profile`."""

    kinds: tuple[NoiseKind, ...]
    seed: int
    batch_size: int
    margins: int
    prediction_examples: int
    range_percentile: float


class Measurement:
    """Running sums of one pass; additive over batches, so that a pass can stop and go on.

    Parameters
    ----------
    options
        What to measure.
    task
        How the network is run and judged.
    surveyed
        Counts of every site in a batch of ``surveyed_examples``, in order of execution.
    layouts
        How each site's outputs number the examples.
    examples
        Examples to come.
    """

    def __init__(
        self,
        options: Options,
        task: Task,
        surveyed: dict[str, SiteCounts],
        surveyed_examples: int,
        layouts: Mapping[str, Layout],
        examples: int,
    ) -> None:
        self.options, self.task, self.surveyed, self.layouts = options, task, surveyed, layouts
        self.surveyed_examples = surveyed_examples
        self.slots = ChannelSlots.of_sites({name: count.channels for name, count in surveyed.items()})
        self.prediction_examples = min(options.prediction_examples, examples)
        self.ranges = {
            (name, key): TailRange(options.range_percentile, -(-getattr(count, key) // surveyed_examples) * examples)
            for name, count in surveyed.items()
            for key in _RANGES
        }
        self.damage = {kind: BatchSums(self.slots.total) for kind in options.kinds}
        self.site_damage = {kind: BatchSums(len(surveyed)) for kind in options.kinds}
        self.weight_range = np.ones(self.slots.total)
        self.mean_square = np.ones(self.slots.total)
        self.fields = {key: np.zeros(self.slots.total) for key in ("x_energy", "shot")}
        self.totals = {"examples": 0.0, "batches": 0.0, "weight": 0.0, "score": 0.0, "loss": 0.0}
        self.margins: list[FloatArray] = []
        self.site_covariance: dict[NoiseKind, list[FloatArray]] = {kind: [] for kind in options.kinds}
        self.channel_covariance: dict[NoiseKind, list[FloatArray]] = {kind: [] for kind in options.kinds}

    def take(self, model: nn.Module, batch: Batch) -> None:
        """Measure one batch."""
        device = model_device(model)
        generator = seeded_generator(device, self.options.seed, int(self.totals["batches"]))
        draws = ExampleDraws(self.options.seed, batch.start, batch.size, device)
        follow = min(batch.size, self.prediction_examples - int(self.totals["examples"]))
        predicts = self.options.margins > 0 and follow > 0
        probes = _WEIGHT_PROBES if predicts and NoiseKind.WEIGHT in self.options.kinds else 0
        output, calls = record(model, batch, self.task.forward, probes, generator, self._observe)
        reference = self.task.reference(output, batch)
        if predicts:
            self._follow_margins(output, reference, calls, follow)
        weight = self.task.weight(output, reference)
        loss = self.task.sampled_loss(output, reference, draws)
        for kind, term in curvature_terms(loss, calls, self.slots, self.options.kinds).items():
            values = term.numpy()
            self.damage[kind].add(values, float(weight.sum()))
            self.site_damage[kind].add(self.slots.sum_sites(values * self._channel_factor(kind)), float(weight.sum()))
        self._add_fields(calls)
        self._add_totals(output.detach(), reference, weight)

    def _add_totals(self, output: Tensor, reference: object, weight: Tensor) -> None:
        score = self.task.score(output, reference)
        self.totals["examples"] += len(output)
        self.totals["batches"] += 1
        self.totals["weight"] += float(weight.sum())
        self.totals["score"] += float("nan") if score is None else float((score * weight).sum())
        self.totals["loss"] += float((self.task.loss(output, reference) * weight).sum())

    def _observe(self, site: str, product: Product, y: Tensor) -> None:
        self.ranges[site, "inputs"].update(product.x)
        self.ranges[site, "outputs"].update(y)
        if product.rows is None:
            self.ranges[site, "operands"].update(product.w)
        elif self.totals["batches"] == 0:
            rows = product.rows(product.w.detach()).double()
            self.weight_range[self.slots.of(site)] = (rows.amax(1) - rows.amin(1)).cpu().numpy()
            self.mean_square[self.slots.of(site)] = rows.square().mean(1).cpu().numpy()

    def _follow_margins(self, logits: Tensor, reference: Tensor, calls: Sequence[Call], follow: int) -> None:
        margins = strongest_margins(logits, reference, self.options.margins)
        covariance = margin_covariance(margins, calls, self.layouts, self.slots, self.options.kinds)
        self.margins.append(widened(margins[:follow].detach()).cpu().numpy())
        pairs = self.options.margins * (self.options.margins + 1) // 2
        fitting = _CHANNEL_TABLE_VALUES // (self.slots.total * pairs)
        room = max(0, min(follow, fitting - int(self.totals["examples"])))
        for kind, table in covariance.items():
            values = table[:follow].numpy() * self._channel_factor(kind)[:, None].astype(np.float32)
            self.site_covariance[kind].append(self.slots.sum_sites(values, axis=1))
            self.channel_covariance[kind].append(values[:room].astype(np.float32))

    def _add_fields(self, calls: Sequence[Call]) -> None:
        """Add up ||x||^2 and the unit shot variance over every channel's outputs."""
        for call in calls:
            outputs_per_channel = call.shape.numel() / self.slots.channels[call.site]
            for key, values in (("x_energy", call.x_energy), ("shot", call.shot)):
                total = channel_sum(values, call).numpy()
                # The field may broadcast over channels, positions or both.
                self.fields[key][self.slots.of(call.site)] += total * outputs_per_channel * len(total) / values.numel()

    def _channel_factor(self, kind: NoiseKind) -> FloatArray:
        """The part of the unit variance that is constant in a channel; 1 for products of activations."""
        return self.mean_square if kind is NoiseKind.SHOT else self.weight_range**2

    def _site_factor(self, kind: NoiseKind, site: Site) -> float:
        """The part of the unit variance that is constant in a site and known only after calibration."""
        operand = 1.0 if self.surveyed[site.name].static else site.operand_range**2
        match kind:
            case NoiseKind.THERMAL:
                return operand * site.fan_in * site.input_range**2
            case NoiseKind.WEIGHT:
                return operand
            case NoiseKind.SHOT:
                return 1.0

    def sites(self) -> tuple[Site, ...]:
        """The sites with their calibrated ranges."""
        return tuple(
            replace(
                count.site(name, self.surveyed_examples),
                input_range=self.ranges[name, "inputs"].value(),
                output_range=self.ranges[name, "outputs"].value(),
                operand_range=0.0 if count.static else self.ranges[name, "operands"].value(),
            )
            for name, count in self.surveyed.items()
        )

    def profile(self, hardware: Hardware, provenance: Provenance) -> Profile:
        """The profile of all batches so far."""
        sites, weight = self.sites(), self.totals["weight"]
        factors = {kind: np.array([self._site_factor(kind, site) for site in sites]) for kind in self.options.kinds}
        spread = {kind: self.slots.repeat_sites(factor) for kind, factor in factors.items()}
        channel_scale = {kind: 0.5 * spread[kind] * self._channel_factor(kind) for kind in self.options.kinds}
        return Profile(
            sites=sites,
            damage={kind: channel_scale[kind] * sums.mean() for kind, sums in self.damage.items()},
            damage_error={kind: channel_scale[kind] * sums.error() for kind, sums in self.damage.items()},
            site_damage_error={kind: 0.5 * factors[kind] * sums.error() for kind, sums in self.site_damage.items()},
            noise_variance={kind: spread[kind] * self._mean_variance(kind, sites) for kind in self.options.kinds},
            clean_accuracy=self.totals["score"] / weight,
            clean_loss=self.totals["loss"] / weight,
            hardware=hardware,
            provenance=provenance,
            margins=self._margin_table(factors, spread) if self.margins else None,
        )

    def _mean_variance(self, kind: NoiseKind, sites: Sequence[Site]) -> FloatArray:
        """Mean unit variance of an output, without the site's factor."""
        if kind is NoiseKind.THERMAL:
            return self._channel_factor(kind)
        per_channel = [site.outputs * self.totals["examples"] / site.channels for site in sites]
        field = self.fields["shot" if kind is NoiseKind.SHOT else "x_energy"]
        return self._channel_factor(kind) * field / self.slots.repeat_sites(np.array(per_channel))

    def _margin_table(self, factors: dict[NoiseKind, FloatArray], spread: dict[NoiseKind, FloatArray]) -> MarginTable:
        def scaled(rows: list[FloatArray], factor: FloatArray) -> FloatArray:
            return (np.concatenate(rows) * factor[:, None]).astype(np.float32)

        return MarginTable(
            margins=np.concatenate(self.margins),
            site_covariance={kind: scaled(self.site_covariance[kind], factors[kind]) for kind in self.options.kinds},
            channel_covariance={
                kind: scaled(self.channel_covariance[kind], spread[kind]) for kind in self.options.kinds
            },
        )

    def state(self) -> Arrays:
        """Everything that a checkpoint must hold, by name."""
        arrays: dict[str, npt.NDArray[np.generic]] = {"totals": np.array(list(self.totals.values()))}
        arrays |= {"weight_range": self.weight_range, "mean_square": self.mean_square, **self.fields}
        for kind in self.options.kinds:
            for name, sums in (("damage", self.damage[kind]), ("site_damage", self.site_damage[kind])):
                arrays |= {f"{name}/{kind}/{key}": value for key, value in sums.arrays.items()}
                arrays[f"{name}/{kind}/counts"] = sums.counts
            if self.margins:
                arrays[f"site_covariance/{kind}"] = np.concatenate(self.site_covariance[kind])
                arrays[f"channel_covariance/{kind}"] = np.concatenate(self.channel_covariance[kind])
        if self.margins:
            arrays["margins"] = np.concatenate(self.margins)
        for index, tails in enumerate(self.ranges.values()):
            high, low, count = tails.state()
            arrays |= {f"range/{index}/high": high.numpy(), f"range/{index}/low": low.numpy()}
            arrays[f"range/{index}/count"] = np.array(count)
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Go on from a checkpoint."""
        self.totals = dict(zip(self.totals, arrays["totals"].tolist(), strict=True))
        self.weight_range, self.mean_square = arrays["weight_range"], arrays["mean_square"]
        self.fields = {key: arrays[key] for key in self.fields}
        for kind in self.options.kinds:
            for name, sums in (("damage", self.damage[kind]), ("site_damage", self.site_damage[kind])):
                sums.arrays = {key: arrays[f"{name}/{kind}/{key}"] for key in sums.arrays}
                sums.counts = arrays[f"{name}/{kind}/counts"]
            if "margins" in arrays:
                self.site_covariance[kind] = [arrays[f"site_covariance/{kind}"]]
                self.channel_covariance[kind] = [arrays[f"channel_covariance/{kind}"]]
        self.margins = [arrays["margins"]] if "margins" in arrays else []
        for index, tails in enumerate(self.ranges.values()):
            high, low = (torch.from_numpy(arrays[f"range/{index}/{key}"]) for key in ("high", "low"))
            tails.restore(high, low, int(arrays[f"range/{index}/count"]))
