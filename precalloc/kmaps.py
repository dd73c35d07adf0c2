"""The K map: how often each site's (or channel's) operations are repeated, for simulation and for compilers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from precalloc.errors import HardwareError, KMapError
from precalloc.hardware import Hardware
from precalloc.objective import Granularity
from precalloc.profiles import FloatArray

SCHEMA = "precalloc/kmap"
VERSION = 1


@dataclass(frozen=True)
class SiteRanges:
    """Calibrated ranges that thermal and weight noise refer to: of the inputs, and of a programmed activation.

    ``operand`` is 0 where a weight is programmed; weights have a range per channel, read off the weights themselves.
    """

    input: float
    operand: float = 0.0


@dataclass(frozen=True, eq=False)
class KMap:
    """Repetitions of every site on a hardware.

    Parameters
    ----------
    granularity
        Whether sites or channels carry their own K.
    hardware
        What it is for.
    repetitions : site name -> (1,) or (channels,)
        One K a site, or one a channel.
    ranges
        Calibrated ranges by site name.
    bias_corrections : site name -> (channels,)
        What to add to the digital bias of every output channel, against the mean shift that noise causes behind
        nonlinearities; sites without an entry are not corrected.
    digital
        Names of sites that stay digital and have no noise; their biases may be corrected too.
    model_hash, data_hash
        Of the model and the calibration data that it was chosen for; empty where unknown.
    """

    granularity: Granularity
    hardware: Hardware
    repetitions: Mapping[str, FloatArray]
    ranges: Mapping[str, SiteRanges]
    bias_corrections: Mapping[str, FloatArray] = field(default_factory=dict)
    digital: frozenset[str] = frozenset()
    model_hash: str = ""
    data_hash: str = ""

    def compensated(self, bias_corrections: Mapping[str, FloatArray]) -> KMap:
        """Give the same K with other bias corrections."""
        return replace(self, bias_corrections=bias_corrections)

    @property
    def digest(self) -> str:
        """Identify everything that a simulation depends on."""
        repetitions = {name: values.tolist() for name, values in self.repetitions.items()}
        # Not the hardware's repr: sets come in another order in every process.
        corrections = {name: values.tolist() for name, values in sorted(self.bias_corrections.items())}
        ranges = {name: asdict(each) for name, each in self.ranges.items()}
        text = json.dumps([self.hardware.to_dict(), repetitions, ranges, corrections, sorted(self.digital)])
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> KMap:
        """Read the K map of a ``kmap.json``; entries that this release does not know are ignored.

        Raises
        ------
        KMapError
            If the file is missing, is no K map, has another version, or holds repetitions that are no positive numbers.
        """
        path = Path(path)
        if not path.is_file():
            raise KMapError(f"K map {path} does not exist. Make one with 'precalloc allocate'.")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise KMapError(
                f"{path} is not JSON ({error}). Give the kmap.json that 'precalloc allocate' wrote."
            ) from error
        return cls.from_record(record, str(path))

    @classmethod
    def from_record(cls, record: object, where: str) -> KMap:
        """Read the K map of a decoded ``kmap.json``; ``where`` names its origin in messages.

        Raises
        ------
        KMapError
            As ``load`` does.
        """
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise KMapError(f"{where} is no K map: its 'schema' is not {SCHEMA!r}. Give a kmap.json of precalloc.")
        if record.get("version") != VERSION:
            raise KMapError(
                f"{where} has version {record.get('version')!r}; this release reads {VERSION}. Allocate again."
            )
        try:
            granularity = Granularity(record["granularity"])
            hardware = Hardware.from_dict(record["hardware"], where)
            repetitions = {str(site["name"]): _repetitions(site, granularity, where) for site in record["sites"]}
            ranges = {
                str(site["name"]): SiteRanges(float(site["input_range"]), float(site["operand_range"]))
                for site in record["sites"]
            }
            corrections = {
                str(site["name"]): _bias_correction(site, where)
                for site in (*record["sites"], *record.get("digital", ()))
                if site.get("bias_correction") is not None
            }
            digital = frozenset(str(site["name"]) for site in record.get("digital", ()))
            origin = record.get("provenance") or {}
            hashes = str(origin.get("model_hash", "")), str(origin.get("data_hash", ""))
        except HardwareError as error:
            raise KMapError(str(error)) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise KMapError(f"{where} is malformed: {type(error).__name__} {error}. Allocate again.") from error
        if len(repetitions) != len(record["sites"]) or not repetitions or digital & set(repetitions):
            raise KMapError(f"{where} names a site twice or none at all. Allocate again.")
        return cls(granularity, hardware, repetitions, ranges, corrections, digital, *hashes)


def _repetitions(site: Mapping[str, Any], granularity: Granularity, where: str) -> FloatArray:
    values = np.atleast_1d(np.array(site["repetitions"], dtype=float))
    if values.ndim != 1 or values.size == 0 or not np.all(np.isfinite(values) & (values > 0.0)):
        raise KMapError(f"{where}: repetitions of site {site['name']!r} must be positive numbers. Allocate again.")
    if granularity is Granularity.LAYER and values.size > 1:
        raise KMapError(f"{where}: site {site['name']!r} has {values.size} repetitions at granularity 'layer'.")
    values.setflags(write=False)
    return values


def _bias_correction(site: Mapping[str, Any], where: str) -> FloatArray:
    values = np.array(site["bias_correction"], dtype=float)
    if values.ndim != 1 or values.size == 0 or not np.all(np.isfinite(values)):
        raise KMapError(
            f"{where}: bias_correction of site {site['name']!r} must be a list of numbers. Compensate again."
        )
    values.setflags(write=False)
    return values


def plain_number(value: float) -> float | int | None:
    """Give a number as JSON holds it: integers without a point, and null for what JSON cannot hold."""
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)
