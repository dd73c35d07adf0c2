"""What an analog accelerator does to a product: noise, repetitions, energy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from precalloc.errors import HardwareError


class NoiseKind(StrEnum):
    """Physical origin of the noise; fixes how its variance depends on weights and inputs."""

    THERMAL = "thermal"
    WEIGHT = "weight"
    SHOT = "shot"


class Redundancy(StrEnum):
    """How a product is repeated: again in time, on copies of the array, or with more optical power."""

    TIME = "time"
    SPACE = "space"
    POWER = "power"


AVERAGED_BY: dict[NoiseKind, frozenset[Redundancy]] = {
    # Receiver noise is drawn anew at every read-out, but more light does not make the receiver any quieter.
    NoiseKind.THERMAL: frozenset({Redundancy.TIME, Redundancy.SPACE}),
    # A programming error is static: reading the same cell again repeats it.
    NoiseKind.WEIGHT: frozenset({Redundancy.SPACE}),
    NoiseKind.SHOT: frozenset({Redundancy.TIME, Redundancy.SPACE, Redundancy.POWER}),
}


@dataclass(frozen=True)
class NoiseTerm:
    """One noise of a hardware.

    Parameters
    ----------
    kind
        Thermal, weight or shot.
    level
        sigma_t or sigma_w (relative to full scale, dimensionless), or n_0 (photons per MAC at K = 1).
    averaged_by
        The redundancies that re-draw this noise; under any other it is a floor that no K reduces.
    source
        Where the number comes from.
    """

    kind: NoiseKind
    level: float
    averaged_by: frozenset[Redundancy]
    source: str = ""

    @property
    def strength(self) -> float:
        """Factor on the unit variance of the kind: sigma^2 for thermal and weight noise, 1 / n_0 for shot noise."""
        return 1.0 / self.level if self.kind is NoiseKind.SHOT else self.level**2


@dataclass(frozen=True)
class Repetition:
    """Which K the hardware can realise, and by what.

    ``levels`` is ``"continuous"``, ``"integer"`` or an ascending tuple of the realisable K.
    """

    redundancy: Redundancy
    levels: str | tuple[float, ...] = "integer"
    k_min: float = 1.0
    k_max: float = math.inf


@dataclass(frozen=True)
class Hardware:
    """An analog accelerator: noise terms, realisable repetitions and energy at K = 1.

    Energy of a site at K repetitions is K * (macs * energy_per_mac_joule + outputs * energy_per_conversion_joule).
    """

    name: str
    noise: tuple[NoiseTerm, ...]
    repetition: Repetition
    energy_per_mac_joule: float
    energy_per_conversion_joule: float = 0.0
    description: str = ""
    energy_source: str = ""

    @property
    def kinds(self) -> tuple[NoiseKind, ...]:
        """Noise kinds of this hardware, in the order of its file."""
        return tuple(term.kind for term in self.noise)

    def is_averaged(self, term: NoiseTerm) -> bool:
        """Whether this hardware's repetition reduces the term; otherwise the term is a floor."""
        return self.repetition.redundancy in term.averaged_by

    @classmethod
    def load(cls, source: str) -> Self:
        """Read a preset by name or a TOML file by path."""
        raise HardwareError(source)
