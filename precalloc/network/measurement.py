"""What one pass over the calibration data sums up, batch by batch, and the profile that follows from the sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from precalloc.errors import ModelError
from precalloc.hardware import Hardware, NoiseKind
from precalloc.network.batches import Batch
from precalloc.network.checkpoints import Arrays
from precalloc.network.curvature import Block, ChannelSlots, CurvatureTerms, GroupSums, channel_sum, curvature_terms
from precalloc.network.draws import ExampleDraws
from precalloc.network.forward import model_device
from precalloc.network.layouts import SiteLayouts
from precalloc.network.margins import margin_covariance, strongest_margins
from precalloc.network.observation import Call, Energies, Probing, record
from precalloc.network.operators import Product, widened
from precalloc.network.ranges import TailRange
from precalloc.network.sites import SiteCounts
from precalloc.network.state import seeded_generator
from precalloc.network.tasks import Task
from precalloc.profiles import FloatArray, MarginTable, Profile, Provenance, Site

# Random changes of every weight that estimate the margins' covariance under weight noise.
_WEIGHT_PROBES = 4
# The per-channel prediction table holds the first examples, in canonical order, that fit into this many values a kind.
_CHANNEL_TABLE_VALUES = 16_000_000

# Examples whose weight gradients are summed before they are squared, and that share random changes of the weights.
BLOCK = 32
# What random numbers are for.
_LABELS, _OPERANDS, _WEIGHTS = 0, 1, 2

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


def _late_site(site: str) -> str:
    """What to say of a site that the first batch does not show."""
    return (
        f"Site '{site}' runs on later examples, but not on the first batch, on which sites are found. "
        "Take larger batches (--batch-size), so that an example on which it runs is in the first."
    )


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
        How each site numbers the examples.
    examples
        Examples to come.
    """

    def __init__(
        self,
        options: Options,
        task: Task,
        surveyed: dict[str, SiteCounts],
        surveyed_examples: int,
        layouts: SiteLayouts,
        examples: int,
    ) -> None:
        self.options, self.task, self.surveyed, self._site_layouts = options, task, surveyed, layouts
        self.layouts = {site: each.output for site, each in layouts.items() if each.output is not None}
        self.surveyed_examples = surveyed_examples
        self.slots = ChannelSlots.of_sites({name: count.channels for name, count in surveyed.items()})
        self.prediction_examples = min(options.prediction_examples, examples)
        self.ranges = {
            (name, key): TailRange(options.range_percentile, -(-getattr(count, key) // surveyed_examples) * examples)
            for name, count in surveyed.items()
            for key in _RANGES
        }
        self.damage = {kind: GroupSums(self.slots.total) for kind in options.kinds}
        self.site_damage = {kind: GroupSums(len(surveyed)) for kind in options.kinds}
        self.loss = GroupSums(1)
        self.block = Block(self.slots)
        self.weight_range = np.ones(self.slots.total)
        self.mean_square = np.ones(self.slots.total)
        self.fields = {key: np.zeros(self.slots.total) for key in ("x_energy", "shot")}
        self.totals = {"examples": 0.0, "batches": 0.0, "weight": 0.0, "score": 0.0}
        self.margins: list[FloatArray] = []
        self.margin_classes: list[npt.NDArray[np.int64]] = []
        self.site_covariance: dict[NoiseKind, list[FloatArray]] = {kind: [] for kind in options.kinds}
        self.channel_covariance: dict[NoiseKind, list[FloatArray]] = {kind: [] for kind in options.kinds}

    @property
    def block_size(self) -> int:
        """Examples in a block; without weight noise, examples need none."""
        return BLOCK if NoiseKind.WEIGHT in self.options.kinds else self.options.batch_size

    def take(self, model: nn.Module, batch: Batch, ends_block: bool) -> None:
        """Measure one batch, the last of a block or not; whole or, if it is interrupted, not at all."""
        before = {key: tails.state() for key, tails in self.ranges.items()}
        try:
            self._measure(model, batch, ends_block)
        except BaseException:
            for key, tails in self.ranges.items():
                tails.restore(*before[key])
            raise

    def _measure(self, model: nn.Module, batch: Batch, ends_block: bool) -> None:
        options, device = self.options, model_device(model)
        follow = min(batch.size, self.prediction_examples - int(self.totals["examples"]))
        predicts = options.margins > 0 and follow > 0
        probing = self._probing(batch, device) if predicts and NoiseKind.WEIGHT in options.kinds else None
        output, calls = record(model, batch, self.task.forward, probing, self._observe, self._energies)
        reference = self.task.reference(output, batch)
        found = strongest_margins(output, reference, options.margins) if predicts else None
        covariance = (
            {} if found is None else margin_covariance(found[0], calls, self.layouts, self.slots, options.kinds)
        )
        draws = ExampleDraws((options.seed, _LABELS), batch.start, batch.size, device)
        loss = self.task.sampled_loss(output, reference, draws)
        terms = curvature_terms(loss, calls, self.layouts, batch.size, self.slots, options.kinds)
        if found is not None:
            self._add_margins(*found, covariance, follow)
        self._add_curvature(terms, widened(self.task.weight(output, reference)).double().cpu().numpy())
        if ends_block:
            self._close_block()
        self._add_fields(calls)
        self._add_totals(output.detach(), reference, self.task.weight(output, reference))

    @property
    def _energies(self) -> Energies:
        """Of the inputs: shot noise follows each, weight noise is told with their mean, thermal noise knows none."""
        if NoiseKind.SHOT in self.options.kinds:
            return Energies.EACH
        return Energies.MEAN if NoiseKind.WEIGHT in self.options.kinds else Energies.NONE

    def _probing(self, batch: Batch, device: torch.device) -> Probing:
        seed = self.options.seed
        weights = seeded_generator(device, seed, _WEIGHTS, batch.start // BLOCK)
        operands = ExampleDraws((seed, _OPERANDS), batch.start, batch.size, device)
        return Probing(_WEIGHT_PROBES, weights, operands, batch.size, self._site_layouts)

    def _add_curvature(self, terms: CurvatureTerms, weight: FloatArray) -> None:
        for kind, values in terms.outputs.items():
            self._add_damage(kind, values, weight)
        self.block.add(terms, float(weight.sum()))

    def _close_block(self) -> None:
        """Square what the examples since the last time sum up to."""
        if NoiseKind.WEIGHT in self.options.kinds:
            self._add_damage(NoiseKind.WEIGHT, self.block.sums()[None], np.array([self.block.weight]))
        self.block.clear()

    def _add_damage(self, kind: NoiseKind, values: FloatArray, weight: FloatArray) -> None:
        self.damage[kind].add(values, weight)
        self.site_damage[kind].add(self.slots.sum_sites(values * self._channel_factor(kind), axis=1), weight)

    def _add_totals(self, output: Tensor, reference: object, weight: Tensor) -> None:
        score = self.task.score(output, reference)
        self.totals["examples"] += len(output)
        self.totals["batches"] += 1
        self.totals["weight"] += float(weight.sum())
        self.totals["score"] += float("nan") if score is None else float((score * weight).sum())
        counted, each = (
            widened(v).double().cpu().numpy() for v in (weight, self.task.loss(output, reference) * weight)
        )
        self.loss.add(each[:, None], counted)

    def _observe(self, site: str, product: Product, y: Tensor) -> None:
        if site not in self.surveyed:
            raise ModelError(_late_site(site))
        self.ranges[site, "inputs"].update(product.x)
        self.ranges[site, "outputs"].update(y)
        if product.rows is None:
            self.ranges[site, "operands"].update(product.w)
        elif self.totals["batches"] == 0:
            rows = product.rows(product.w.detach()).double()
            self.weight_range[self.slots.of(site)] = (rows.amax(1) - rows.amin(1)).cpu().numpy()
            self.mean_square[self.slots.of(site)] = rows.square().mean(1).cpu().numpy()

    def _add_margins(
        self, margins: Tensor, classes: Tensor, covariance: Mapping[NoiseKind, Tensor], follow: int
    ) -> None:
        self.margins.append(widened(margins[:follow].detach()).cpu().numpy())
        self.margin_classes.append(classes[:follow].cpu().numpy())
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
            place = self.slots.of(call.site)
            energy = self._field(call.x_energy, call)
            self.fields["x_energy"][place] += energy
            self.fields["shot"][place] += energy if call.shot is call.x_energy else self._field(call.shot, call)

    def _field(self, values: Tensor, call: Call) -> FloatArray:
        """Sum over every channel's outputs; the field may broadcast over channels, positions or both."""
        total: FloatArray = channel_sum(values, call).numpy()
        return total * (call.shape.numel() / self.slots.channels[call.site]) * len(total) / values.numel()

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
            clean_loss=float(self.loss.mean()[0]),
            clean_loss_error=float(self.loss.error()[0]),
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
            classes=np.concatenate(self.margin_classes),
        )

    def _group_sums(self) -> list[tuple[str, GroupSums]]:
        """Every sum over groups with the name that it has in checkpoints."""
        per_kind = (("damage", self.damage), ("site_damage", self.site_damage))
        return [("loss", self.loss)] + [(f"{name}/{k}", sums) for name, each in per_kind for k, sums in each.items()]

    def state(self) -> Arrays:
        """Everything that a checkpoint must hold, by name."""
        arrays: dict[str, npt.NDArray[np.generic]] = {"totals": np.array(list(self.totals.values()))}
        arrays |= {"weight_range": self.weight_range, "mean_square": self.mean_square, **self.fields}
        arrays |= self.block.state()
        for name, sums in self._group_sums():
            arrays |= {f"{name}/{key}": value for key, value in sums.arrays.items()}
            arrays[f"{name}/counts"] = sums.counts
        for kind in self.options.kinds:
            if self.margins:
                arrays[f"site_covariance/{kind}"] = np.concatenate(self.site_covariance[kind])
                arrays[f"channel_covariance/{kind}"] = np.concatenate(self.channel_covariance[kind])
        if self.margins:
            arrays["margins"] = np.concatenate(self.margins)
            arrays["margin_classes"] = np.concatenate(self.margin_classes)
        for index, tails in enumerate(self.ranges.values()):
            high, low, count = tails.state()
            arrays |= {f"range/{index}/high": high, f"range/{index}/low": low, f"range/{index}/count": np.array(count)}
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Go on from a checkpoint."""
        self.totals = dict(zip(self.totals, arrays["totals"].tolist(), strict=True))
        self.weight_range, self.mean_square = arrays["weight_range"], arrays["mean_square"]
        self.fields = {key: arrays[key] for key in self.fields}
        self.block.restore(arrays)
        for name, sums in self._group_sums():
            sums.arrays = {key: arrays[f"{name}/{key}"] for key in sums.arrays}
            sums.counts = arrays[f"{name}/counts"]
        for kind in self.options.kinds:
            if "margins" in arrays:
                self.site_covariance[kind] = [arrays[f"site_covariance/{kind}"]]
                self.channel_covariance[kind] = [arrays[f"channel_covariance/{kind}"]]
        if "margins" in arrays:
            self.margins, self.margin_classes = [arrays["margins"]], [arrays["margin_classes"]]
        for index, tails in enumerate(self.ranges.values()):
            high, low, count = (arrays[f"range/{index}/{key}"] for key in ("high", "low", "count"))
            tails.restore(high, low, int(count))
