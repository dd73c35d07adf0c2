"""What an analog accelerator does to a product: noise, repetitions, energy."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


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

    Files are read by ``precalloc.hardware_files``, imported on use since pydantic and pint are slow; records inside
    other files by ``precalloc.hardware_records``.

    Energy of a site at K repetitions is K * (macs * energy_per_mac_joule + outputs * energy_per_conversion_joule).
    ``digital_biases`` says whether biases are added digitally, after conversion, where a correction costs no energy.
    """

    name: str
    noise: tuple[NoiseTerm, ...]
    repetition: Repetition
    energy_per_mac_joule: float
    energy_per_conversion_joule: float = 0.0
    description: str = ""
    energy_source: str = ""
    digital_biases: bool = False

    def energy_at_k1_joule(self, macs: float, outputs: float) -> float:
        """Energy of some MACs and conversions at one repetition, in joules."""
        return macs * self.energy_per_mac_joule + outputs * self.energy_per_conversion_joule

    @property
    def kinds(self) -> tuple[NoiseKind, ...]:
        """Noise kinds of this hardware, in the order of its file."""
        return tuple(term.kind for term in self.noise)

    def is_averaged(self, term: NoiseTerm) -> bool:
        """Whether this hardware's repetition reduces the term; otherwise the term is a floor."""
        return self.repetition.redundancy in term.averaged_by

    @staticmethod
    def presets() -> tuple[str, ...]:
        """Names of the presets that ``load`` knows."""
        from precalloc import hardware_files

        return hardware_files.preset_names()

    @staticmethod
    def load(source: str | os.PathLike[str]) -> Hardware:
        """Read a preset by name or a TOML file by path.

        Raises
        ------
        HardwareError
            If there is no such preset or file, or what it says is malformed; names file, entry, value and remedy.
        """
        from precalloc import hardware_files

        return hardware_files.load(source)

    @staticmethod
    def from_dict(record: Mapping[str, Any], where: str = "record") -> Hardware:
        """Read what ``to_dict`` gave; ``where`` names its origin in messages.

        Raises
        ------
        HardwareError
            If an entry is missing or malformed.
        """
        from precalloc import hardware_records

        return hardware_records.from_record(record, where)

    def to_dict(self) -> dict[str, Any]:
        """Describe the hardware in JSON-able values: SI numbers with the unit in their name, no upper bound as None."""
        from precalloc import hardware_records

        return hardware_records.to_record(self)

    def to_toml(self) -> str:
        """Describe the hardware as a TOML file that ``load`` reads back to an equal value."""
        from precalloc import hardware_files

        return hardware_files.to_toml(self)
