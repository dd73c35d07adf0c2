"""The separable problem that a profile and a hardware pose: damage and energy of every unit that carries its own K."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from precalloc.errors import ProfileError
from precalloc.hardware import Hardware, NoiseKind, NoiseTerm, Repetition
from precalloc.profiles import FloatArray, Profile

# Tolerance of comparisons between energies that are equal but were summed in another order.
ROUNDING = 1e-12


class Granularity(StrEnum):
    """What carries its own K: a whole site, or each of its output channels."""

    LAYER = "layer"
    CHANNEL = "channel"


def parse_granularity(text: str) -> Granularity:
    """Read "layer" or "channel".

    Raises
    ------
    ProfileError
        If it is neither.
    """
    try:
        return Granularity(text)
    except ValueError:
        raise ProfileError(f"Granularity {text!r} is unknown. Choose 'layer' or 'channel'.") from None


@dataclass(frozen=True, eq=False)
class Objective:
    """damage(K) = floor + sum_u damage_u / K_u and energy(K) = sum_u cost_u K_u.

    Parameters
    ----------
    granularity
        Whether units are sites or channels.
    site_of_unit : (units,)
        Index of the site that each unit belongs to.
    damage : (units,)
        Damage at K = 1 of the noise that repetitions average, in units of the loss.
    site_floor : (sites,)
        Damage of the noise that they do not.
    relative_error : (sites,)
        Standard error of each site's damage at K = 1 over that damage; NaN where it is not known.
    cost_joule : (units,)
        Energy per inference at K = 1; a channel pays an equal share of its site's.
    macs
        MACs per inference of the whole network.
    """

    granularity: Granularity
    site_of_unit: npt.NDArray[np.int64]
    damage: FloatArray
    site_floor: FloatArray
    relative_error: FloatArray
    cost_joule: FloatArray
    macs: float

    @classmethod
    def of(cls, profile: Profile, hardware: Hardware, granularity: Granularity) -> Objective:
        """Scale a profile's unit noise to a hardware.

        Raises
        ------
        ProfileError
            If the profile did not measure a noise of the hardware, or holds damages that are no numbers.
        """
        require_kinds(profile, hardware)
        averaged, static = split_terms(hardware)
        channel_damage = weighted_sum(profile.damage, averaged, len(profile.site_of_channel))
        channel_floor = weighted_sum(profile.damage, static, len(profile.site_of_channel))
        if not np.all(np.isfinite(channel_damage + channel_floor)):
            site = profile.sites[profile.site_of_channel[np.argmin(np.isfinite(channel_damage + channel_floor))]].name
            raise ProfileError(f"The profile's damage of site {site!r} is not finite. Profile the model again.")
        site_cost = site_cost_joule(profile, hardware)
        if granularity is Granularity.LAYER:
            site_of_unit = np.arange(len(profile.sites))
            damage, cost = profile.sum_channels(channel_damage), site_cost
        else:
            site_of_unit = profile.site_of_channel
            shares = np.array([site.channels for site in profile.sites], dtype=float)
            damage, cost = channel_damage, (site_cost / shares)[site_of_unit]
        error = weighted_sum(profile.site_damage_error, hardware.noise, len(profile.sites))
        whole = np.abs(profile.sum_channels(channel_damage + channel_floor))
        relative = np.divide(error, whole, out=np.zeros_like(error), where=whole > 0.0)
        return cls(granularity, site_of_unit, damage, profile.sum_channels(channel_floor), relative, cost, profile.macs)

    @property
    def floor(self) -> float:
        """Damage that no K reduces."""
        return float(self.site_floor.sum())

    @property
    def cost_at_k1(self) -> float:
        """Energy per inference of one repetition everywhere, in joules."""
        return float(self.cost_joule.sum())

    def site_damage(self, k: FloatArray) -> FloatArray:
        """Damage of each site at the K of each unit (units,), floor included, shape (sites,)."""
        return self.site_floor + self.sum_units(self.damage / k)

    def damage_at(self, k: FloatArray | float) -> float:
        """Damage of the whole network at the K of each unit (units,), or one K for all."""
        return self.floor + float(np.sum(self.damage / k))

    def damage_error(self, k: FloatArray) -> float:
        """Standard error of ``damage_at`` at the K of each unit (units,); NaN where it is not known.

        Sites are measured on the same examples, so that their errors are added; that of a site is the same share of
        its damage at every K.
        """
        return float((self.relative_error * np.abs(self.site_damage(k))).sum())

    def energy_joule(self, k: FloatArray | float) -> float:
        """Energy per inference at the K of each unit (units,), or one K for all."""
        return float(np.sum(self.cost_joule * k))

    def sum_units(self, values: FloatArray) -> FloatArray:
        """Sum per-unit values (units,) to per-site values (sites,)."""
        return np.bincount(self.site_of_unit, values, len(self.site_floor)).astype(np.float64)


def with_damage(profile: Profile, hardware: Hardware, damage: FloatArray, estimator: str) -> Profile:
    """Put other damages into a profile, (channels,): at K = 1, of all noise that the hardware's repetitions average.

    Kinds share a channel's damage as they did before; their standard errors are not known.
    """
    averaged = split_terms(hardware)[0]
    before = weighted_sum(profile.damage, averaged, len(damage))
    found, unknown = dict(profile.damage), np.full(len(damage), np.nan)
    for term in averaged:
        even = np.full(len(damage), 1.0 / len(averaged))
        share = np.divide(term.strength * profile.damage[term.kind], before, out=even, where=before > 0.0)
        found[term.kind] = share * damage / term.strength
    kinds = [term.kind for term in averaged]
    return replace(
        profile,
        damage=found,
        damage_error=dict(profile.damage_error) | dict.fromkeys(kinds, unknown),
        site_damage_error=dict(profile.site_damage_error) | dict.fromkeys(kinds, unknown[: len(profile.sites)]),
        provenance=replace(profile.provenance, estimator=estimator),
    )


def split_terms(hardware: Hardware) -> tuple[tuple[NoiseTerm, ...], tuple[NoiseTerm, ...]]:
    """Noise terms that the hardware's repetitions average, and those that are a floor."""
    averaged = tuple(term for term in hardware.noise if hardware.is_averaged(term))
    return averaged, tuple(term for term in hardware.noise if not hardware.is_averaged(term))


def require_kinds(profile: Profile, hardware: Hardware) -> None:
    """Refuse a profile that lacks a noise kind of the hardware.

    Raises
    ------
    ProfileError
        If one is missing.
    """
    missing = [kind.value for kind in hardware.kinds if kind not in profile.kinds]
    if missing:
        measured = ", ".join(kind.value for kind in profile.kinds)
        raise ProfileError(
            f"The profile holds {measured} noise but hardware {hardware.name!r} also has {', '.join(missing)} noise. "
            f"Profile the model again with this hardware."
        )


def weighted_sum(values: Mapping[NoiseKind, FloatArray], terms: tuple[NoiseTerm, ...], size: int) -> FloatArray:
    """Sum over noise terms of strength times the kind's values (size,)."""
    total: FloatArray = np.zeros(size)
    for term in terms:
        total = total + term.strength * np.asarray(values[term.kind], dtype=np.float64)
    return total


def site_cost_joule(profile: Profile, hardware: Hardware) -> FloatArray:
    """Energy per inference of each site at K = 1, macs * e_mac + outputs * e_conversion, shape (sites,)."""
    macs = np.array([site.macs for site in profile.sites], dtype=float)
    outputs = np.array([site.outputs for site in profile.sites], dtype=float)
    return macs * hardware.energy_per_mac_joule + outputs * hardware.energy_per_conversion_joule


def noise_bits(profile: Profile, hardware: Hardware, k_of_channel: FloatArray) -> FloatArray:
    """Effective bits of each site's output under noise, shape (sites,).

    log2(range / (sqrt(12) sigma) + 1): the bit width whose rounding error has the noise's standard deviation, with
    sigma^2 the mean over channels of sum_kinds strength * variance / K. Infinite where there is no noise.
    """
    averaged, static = split_terms(hardware)
    channels = len(k_of_channel)
    variance = weighted_sum(profile.noise_variance, averaged, channels) / k_of_channel
    variance = variance + weighted_sum(profile.noise_variance, static, channels)
    counts = np.array([site.channels for site in profile.sites], dtype=float)
    sigma = np.sqrt(profile.sum_channels(variance) / counts)
    full_scale = np.array([site.output_range for site in profile.sites], dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.log2(full_scale / (math.sqrt(12.0) * sigma) + 1.0)
    return np.where(sigma > 0.0, bits, np.inf)


def largest_uniform(repetition: Repetition, limit: float) -> float | None:
    """Largest K <= limit that the hardware can realise, or None."""
    slack = min(limit * (1.0 + ROUNDING), repetition.k_max)
    if isinstance(repetition.levels, tuple):
        return max((k for k in repetition.levels if repetition.k_min <= k <= slack), default=None)
    if repetition.levels == "integer":
        k = float(math.floor(slack)) if math.isfinite(slack) else slack
    else:
        k = min(limit, repetition.k_max)
    return k if k >= smallest_k(repetition) * (1.0 - ROUNDING) else None


def smallest_uniform(repetition: Repetition, limit: float) -> float | None:
    """Smallest K >= limit that the hardware can realise, or None."""
    limit = max(limit, repetition.k_min)
    if isinstance(repetition.levels, tuple):
        return min((k for k in repetition.levels if limit <= k <= repetition.k_max), default=None)
    k = float(max(math.ceil(limit), 1)) if repetition.levels == "integer" and math.isfinite(limit) else limit
    return k if k <= repetition.k_max else None


def smallest_k(repetition: Repetition) -> float:
    """Smallest K that the hardware can realise at all."""
    k = smallest_uniform(repetition, repetition.k_min)
    assert k is not None, "the hardware's range of K holds none that it can realise"
    return k
