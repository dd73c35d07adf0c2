"""Hardware descriptions inside other files: JSON-able records, as profiles and K maps carry them.

Programs write these, so a plain reader serves; the checks with which people's TOML files are read take a tenth of a
second to import.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from precalloc.errors import HardwareError
from precalloc.hardware import Hardware, NoiseKind, NoiseTerm, Redundancy, Repetition

SCHEMA = "precalloc/hardware"
VERSION = 1


def to_record(hardware: Hardware) -> dict[str, Any]:
    """Describe a hardware in JSON-able values: SI numbers with the unit in their name, no upper bound as None."""
    return to_tables(hardware) | {
        "energy": {
            "per_mac_joule": hardware.energy_per_mac_joule,
            "per_conversion_joule": hardware.energy_per_conversion_joule,
            "source": hardware.energy_source,
        }
    }


def to_tables(hardware: Hardware) -> dict[str, Any]:
    """Everything but the energies, which files write with units and records without."""
    repetition = hardware.repetition
    listed = not isinstance(repetition.levels, str)
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "name": hardware.name,
        "description": hardware.description,
        "repetition": {
            "redundancy": str(repetition.redundancy),
            "levels": list(repetition.levels) if listed else repetition.levels,
            "min": None if listed else repetition.k_min,
            "max": None if listed or math.isinf(repetition.k_max) else repetition.k_max,
        },
        "digital": {"biases": hardware.digital_biases},
        "noise": [
            {
                "kind": str(term.kind),
                _level_name(term.kind): term.level,
                "averaged_by": sorted(str(redundancy) for redundancy in term.averaged_by),
                "source": term.source,
            }
            for term in hardware.noise
        ],
    }


def from_record(record: Mapping[str, Any], where: str) -> Hardware:
    """Read what ``to_record`` gave; ``where`` names its origin in messages.

    Raises
    ------
    HardwareError
        If an entry is missing or malformed.
    """
    try:
        found = record["schema"], record["version"]
        if found != (SCHEMA, VERSION):
            raise ValueError(f"it is {found[0]} version {found[1]}; this release reads {SCHEMA} version {VERSION}")
        if not record["noise"]:
            raise ValueError("noise is empty")
        return Hardware(
            name=str(record["name"]),
            noise=tuple(_noise(term) for term in record["noise"]),
            repetition=_repetition(record["repetition"]),
            energy_per_mac_joule=_number(record["energy"], "per_mac_joule", zero=True),
            energy_per_conversion_joule=_number(record["energy"], "per_conversion_joule", zero=True),
            description=str(record["description"]),
            energy_source=str(record["energy"]["source"]),
            digital_biases=bool(record["digital"]["biases"]),
        )
    except KeyError as error:
        raise HardwareError(f"Hardware {where}: {error.args[0]} is missing; add it.") from error
    except (TypeError, ValueError) as error:
        raise HardwareError(f"Hardware {where}: {error}.") from error


def _noise(entry: Mapping[str, Any]) -> NoiseTerm:
    kind = NoiseKind(entry["kind"])
    averaged_by = frozenset(Redundancy(name) for name in entry["averaged_by"])
    return NoiseTerm(kind, _number(entry, _level_name(kind)), averaged_by, str(entry["source"]))


def _repetition(entry: Mapping[str, Any]) -> Repetition:
    redundancy, levels = Redundancy(entry["redundancy"]), entry["levels"]
    if isinstance(levels, list):
        listed = tuple(_number({"levels": level}, "levels") for level in levels)
        if not listed or any(low >= high for low, high in pairwise(listed)):
            raise ValueError(f"repetition.levels = {levels!r} must be ascending positive numbers")
        return Repetition(redundancy, listed, listed[0], listed[-1])
    if levels not in ("integer", "continuous"):
        raise ValueError(f'repetition.levels = {levels!r} must be "integer", "continuous" or a list')
    k_max = math.inf if entry["max"] is None else _number(entry, "max")
    return Repetition(redundancy, levels, _number(entry, "min"), k_max)


def _level_name(kind: NoiseKind) -> str:
    return "photons_per_mac" if kind is NoiseKind.SHOT else "sigma"


def _number(entry: Mapping[str, Any], name: str, zero: bool = False) -> float:
    """Read a finite number that is positive, or at least not negative."""
    value = float(entry[name])
    if not math.isfinite(value) or value < 0.0 or (value == 0.0 and not zero):
        raise ValueError(f"{name} = {value!r} must be a {'non-negative' if zero else 'positive'} number")
    return value
