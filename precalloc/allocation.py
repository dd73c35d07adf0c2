"""The K map within an energy budget, or the least energy for an accuracy: values, and the function that finds them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from precalloc.accuracy import SimulatedAccuracy
from precalloc.calibration import Calibration
from precalloc.choices import Choices
from precalloc.hardware import Hardware
from precalloc.intervals import NORMAL_QUANTILE
from precalloc.kmaps import KMap, SiteRanges
from precalloc.objective import Granularity, Objective, noise_bits
from precalloc.prediction import Prediction
from precalloc.profiles import FloatArray, Profile, Provenance, Site
from precalloc.refinements import Refinement


@dataclass(frozen=True)
class UniformAllocation:
    """One K for the whole network, with the same figures (and bias corrections, by site) as an allocation.

    ``clean_loss`` is the loss without noise, ``loss_error`` the standard error of the predicted one; ``held`` names the
    sites whose bounds keep them from the common K, with their own.
    """

    repetitions: float
    energy_joule: float
    damage: float
    predicted: Prediction | None
    simulated: SimulatedAccuracy | None = None
    clean_loss: float = math.nan
    bias_corrections: Mapping[str, FloatArray] = field(default_factory=dict)
    held: Mapping[str, float] = field(default_factory=dict)
    loss_error: float = math.nan

    @property
    def predicted_loss(self) -> float:
        """Loss on the calibration data plus the damage; per token for language models."""
        return self.clean_loss + self.damage

    @property
    def predicted_loss_interval(self) -> tuple[float, float]:
        """95 % interval of the predicted loss, as `Allocation.predicted_loss_interval`."""
        return _interval(self.predicted_loss, self.loss_error)


@dataclass(frozen=True)
class DigitalSite:
    """Site that stays digital, without noise: energy per inference, None where it is not known."""

    site: Site
    energy_joule: float | None


@dataclass(frozen=True)
class SiteAllocation:
    """What one site is given: K (one, or one a channel), energy per inference, damage (floor included), noise bits."""

    site: Site
    repetitions: FloatArray
    energy_joule: float
    damage: float
    noise_bits: float

    @property
    def mean_repetitions(self) -> float:
        """Mean K of the site's channels, which share its MACs equally."""
        return float(self.repetitions.mean())


@dataclass(frozen=True, eq=False)
class Allocation:
    """A K map with its certificate, its prediction, and uniform K beside it.

    Parameters
    ----------
    granularity
        Whether sites or channels carry their own K.
    hardware
        What it is for.
    sites
        One entry a site, in order of execution.
    request
        The budget or the accuracy that was asked for, as text.
    budget_joule
        Energy per inference that may be used; for a wanted accuracy, the least that was found to reach it.
    max_drop
        The accuracy drop that may not be exceeded, or None where a budget was given.
    energy_joule
        Energy per inference that is used.
    objective
        Predicted damage (increase of the loss), the floor included.
    floor
        Damage by noise that no repetition reduces.
    lower_bound, gap, multiplier, status
        No allocation within the budget has less damage than ``lower_bound``; ``gap`` is the objective minus it;
        ``multiplier`` is the damage that one more joule takes away; ``status`` is "optimal" or "certified".
    predicted, simulated
        Accuracy from margin covariances (None without margins), and by noise simulation (None until validated).
    uniform
        Largest uniform K within the same budget.
    matching_uniform
        Least uniform K that reaches the same predicted accuracy (or, for a wanted accuracy, reaches it too); None
        where none does.
    provenance
        Of the profile.
    seed
        Of the prediction's integration.
    clean_loss, loss_error
        Loss of the noiseless network on the calibration data; standard error of the predicted loss, NaN where unknown.
    refinement
        What `precalloc.refine` saw; None where it was not called.
    calibration
        The simulated points that predictions were calibrated by; None where they rest on linearisation alone.
    bias_corrections : site name -> (channels,)
        Against the mean shift that noise causes, where the allocation is compensated.
    notes
        What the way to this allocation has to say to its reader.
    choices
        What the user decided.
    digital
        Sites that stay digital by these decisions; budgets and energies above are those of the analog sites alone.
    """

    granularity: Granularity
    hardware: Hardware
    sites: tuple[SiteAllocation, ...]
    request: str
    budget_joule: float
    max_drop: float | None
    energy_joule: float
    objective: float
    floor: float
    lower_bound: float
    gap: float
    multiplier: float
    status: str
    predicted: Prediction | None
    uniform: UniformAllocation
    matching_uniform: UniformAllocation | None
    provenance: Provenance
    seed: int
    simulated: SimulatedAccuracy | None = None
    clean_loss: float = math.nan
    refinement: Refinement | None = None
    calibration: Calibration | None = None
    bias_corrections: Mapping[str, FloatArray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    choices: Choices = field(default_factory=Choices)
    digital: tuple[DigitalSite, ...] = ()
    loss_error: float = math.nan

    def __post_init__(self) -> None:
        for entry in self:
            entry.repetitions.setflags(write=False)
        assert self.objective <= self.uniform.damage, "worse than uniform at the same energy"

    @staticmethod
    def load(path: str | Path) -> Allocation:
        """Read the allocation of a ``kmap.json``.

        Raises
        ------
        KMapError
            If the file is missing or is no whole ``kmap.json`` of this version.
        """
        from precalloc.kmap_reading import load_allocation

        return load_allocation(Path(path))

    def __iter__(self) -> Iterator[SiteAllocation]:
        return iter(self.sites)

    @property
    def repetitions(self) -> FloatArray:
        """K of every unit, in the order of the sites, shape (units,)."""
        return np.concatenate([entry.repetitions for entry in self.sites])

    @property
    def by_site(self) -> dict[str, FloatArray]:
        """K by site name: shape (1,), or (channels,) at channel granularity."""
        return {entry.site.name: entry.repetitions for entry in self.sites}

    @property
    def macs(self) -> float:
        """Multiply-accumulates per inference of the analog sites, at one repetition everywhere."""
        return sum(entry.site.macs for entry in self.sites)

    @property
    def predicted_loss(self) -> float:
        """Loss on the calibration data plus the damage; per token for language models."""
        return self.clean_loss + self.objective

    @property
    def predicted_loss_interval(self) -> tuple[float, float]:
        """95 % interval of the predicted loss over samples of examples; NaN where the error is not known.

        It covers the clean loss and the measured damage, not what the second-order model leaves out.
        """
        return _interval(self.predicted_loss, self.loss_error)

    @property
    def energy_per_mac_joule(self) -> float:
        """Energy per inference over MACs per inference."""
        return self.energy_joule / self.macs

    @property
    def mean_repetitions(self) -> float:
        """Energy over that of one repetition everywhere."""
        return self.energy_joule / self.cost_at_k1_joule

    @property
    def cost_at_k1_joule(self) -> float:
        """Energy per inference of one repetition everywhere."""
        return sum(self.hardware.energy_at_k1_joule(entry.site.macs, entry.site.outputs) for entry in self)

    @property
    def digital_energy_joule(self) -> float | None:
        """Energy per inference of the sites that stay digital; None where it is not known."""
        energies = [entry.energy_joule for entry in self.digital]
        known = [energy for energy in energies if energy is not None]
        return sum(known) if len(known) == len(energies) else None

    @property
    def saving(self) -> float | None:
        """Share of the energy of uniform K that is saved at equal predicted accuracy; None where unknown."""
        if self.matching_uniform is None:
            return None
        return 1.0 - self.energy_joule / self.matching_uniform.energy_joule

    def kmap(self) -> KMap:
        """Give the K map alone."""
        return KMap(
            self.granularity,
            self.hardware,
            self.by_site,
            self._ranges(),
            self.bias_corrections,
            self._digital_names(),
            self.provenance.model_hash,
            self.provenance.data_hash,
        )

    def uniform_kmap(self) -> KMap:
        """Give the K map of the uniform allocation beside this one, per layer."""
        own = self.uniform.held
        each = {entry.site.name: np.array([own.get(entry.site.name, self.uniform.repetitions)]) for entry in self}
        corrections = self.uniform.bias_corrections
        return KMap(Granularity.LAYER, self.hardware, each, self._ranges(), corrections, self._digital_names())

    def _digital_names(self) -> frozenset[str]:
        return frozenset(entry.site.name for entry in self.digital)

    def _ranges(self) -> dict[str, SiteRanges]:
        return {entry.site.name: SiteRanges(entry.site.input_range, entry.site.operand_range) for entry in self.sites}

    def with_simulation(self, simulated: SimulatedAccuracy, uniform: SimulatedAccuracy | None = None) -> Allocation:
        """Add simulated accuracies of this allocation and of the uniform one beside it."""
        return replace(self, simulated=simulated, uniform=replace(self.uniform, simulated=uniform))

    def _repr_html_(self) -> str:
        from precalloc.notebook import allocation_html

        return allocation_html(self)

    @property
    def is_confirmed(self) -> bool | None:
        """Whether simulation shows the wanted accuracy to be kept; None where nothing was wanted or simulated.

        Confirmed is what the upper end of the simulated drop's two-sided 95 % interval keeps: with 97.5 % confidence.
        """
        if self.max_drop is None or self.simulated is None:
            return None
        return self.simulated.drop_high <= self.max_drop

    @property
    def confirmation(self) -> str:
        """Say whether the wanted accuracy is confirmed, and with what confidence; empty where none was wanted."""
        if self.max_drop is None:
            return ""
        limit = f"{100.0 * self.max_drop:g} points"
        if self.simulated is None:
            return f"Unconfirmed: a drop of at most {limit} is predicted with 97.5 % confidence, and was not simulated."
        seen = (
            f"{100.0 * self.simulated.drop_high:.2f} points in simulation on {self.simulated.examples} other examples"
        )
        if self.is_confirmed:
            return (
                f"Confirmed: with 97.5 % confidence the drop is at most {seen}, within the {limit} that were allowed."
            )
        return f"Not confirmed: with 97.5 % confidence the drop is at most {seen}, more than the {limit} allowed."

    @property
    def is_compensated(self) -> bool:
        """Whether bias corrections take away the mean shift that noise causes."""
        return bool(self.bias_corrections)

    def with_bias_corrections(
        self, corrections: Mapping[str, FloatArray], uniform: Mapping[str, FloatArray]
    ) -> Allocation:
        """Add bias corrections of this allocation and of the uniform one beside it; old simulations no longer hold."""
        beside = replace(self.uniform, bias_corrections=uniform, simulated=None)
        return replace(self, bias_corrections=corrections, simulated=None, uniform=beside)

    def with_notes(self, *notes: str) -> Allocation:
        """Add what a reader should know before using the allocation."""
        return replace(self, notes=self.notes + notes)


def _interval(value: float, error: float) -> tuple[float, float]:
    return value - NORMAL_QUANTILE * error, value + NORMAL_QUANTILE * error


def split_digital(profile: Profile, choices: Choices) -> tuple[Profile, tuple[DigitalSite, ...]]:
    """Split the profile into that of the analog sites and what stays digital."""
    analog = choices.analog(profile.sites)
    per_mac = choices.digital_energy_per_mac_joule
    digital = tuple(
        DigitalSite(site, None if per_mac is None else site.macs * per_mac)
        for site, kept in zip(profile.sites, analog, strict=True)
        if not kept
    )
    return profile.select(analog), digital


def site_allocations(
    profile: Profile, hardware: Hardware, objective: Objective, k: FloatArray
) -> tuple[SiteAllocation, ...]:
    """Figures of every analog site at the K of each unit (units,)."""
    of_channel = k[profile.site_of_channel] if objective.granularity is Granularity.LAYER else k
    bits = noise_bits(profile, hardware, of_channel)
    damage = objective.site_damage(k)
    energy = objective.sum_units(objective.cost_joule * k)
    return tuple(
        SiteAllocation(site, k[objective.site_of_unit == i], float(energy[i]), float(damage[i]), float(bits[i]))
        for i, site in enumerate(profile.sites)
    )
