"""A ``kmap.json`` back to the allocation that it was written from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precalloc.accuracy import SimulatedAccuracy
from precalloc.allocation import Allocation, DigitalSite, SiteAllocation, UniformAllocation
from precalloc.calibration import Calibration
from precalloc.choices import Choices
from precalloc.errors import KMapError
from precalloc.intervals import NORMAL_QUANTILE
from precalloc.kmaps import KMap
from precalloc.prediction import Prediction
from precalloc.profiles import Provenance, Site


def load_allocation(path: Path) -> Allocation:
    """Read an allocation; entries that this release does not know are ignored.

    What the file does not hold is not there: the bias corrections of uniform K, and what a refinement saw.

    Raises
    ------
    KMapError
        If the file is missing or is no whole ``kmap.json`` of this version.
    """
    kmap = KMap.load(path)
    record = json.loads(path.read_text(encoding="utf-8"))
    try:
        return _allocation(record, kmap)
    except (KeyError, TypeError, ValueError) as error:
        raise KMapError(f"{path} is malformed: {type(error).__name__} {error}. Allocate again.") from error


def _allocation(record: Mapping[str, Any], kmap: KMap) -> Allocation:
    provenance = dict(record["provenance"])
    seed = provenance.pop("allocation_seed")
    clean_loss = _number(record.get("clean_loss"), math.nan)
    matching = record["matching_uniform"]
    return Allocation(
        granularity=kmap.granularity,
        hardware=kmap.hardware,
        sites=tuple(_site_allocation(site, kmap) for site in record["sites"]),
        request=record["request"],
        budget_joule=record["budget_joule"],
        max_drop=record["max_drop"],
        energy_joule=record["energy_joule"],
        objective=record["objective"],
        floor=record["floor"],
        lower_bound=record["lower_bound"],
        gap=record["gap"],
        multiplier=_number(record["multiplier"], math.inf),
        status=record["status"],
        predicted=_predicted(record["predicted"]),
        uniform=_uniform(record["uniform"], clean_loss),
        matching_uniform=None if matching is None else _uniform(matching, clean_loss),
        provenance=Provenance(**provenance),
        seed=seed,
        simulated=_simulated(record["simulated"]),
        clean_loss=clean_loss,
        loss_error=_loss_error(record),
        calibration=_calibration(record.get("calibration")),
        bias_corrections=kmap.bias_corrections,
        notes=tuple(record.get("notes", ())),
        choices=_choices(record.get("choices", {})),
        digital=tuple(DigitalSite(_site(each), each["energy_joule"]) for each in record.get("digital", ())),
    )


def _calibration(record: Mapping[str, Any] | None) -> Calibration | None:
    return None if record is None else Calibration.from_record(record, "of the calibration")


def _site_allocation(record: Mapping[str, Any], kmap: KMap) -> SiteAllocation:
    return SiteAllocation(
        site=_site(record),
        repetitions=kmap.repetitions[record["name"]],
        energy_joule=record["energy_joule"],
        damage=record["damage"],
        noise_bits=_number(record["noise_bits"], math.inf),
    )


def _site(record: Mapping[str, Any]) -> Site:
    found: dict[str, Any] = {name: record[name] for name in ("name", "kind", "channels")}
    found |= {name: float(record[name]) for name in ("macs", "outputs", "fan_in")}
    found |= {name: _number(record.get(name), math.nan) for name in ("input_range", "output_range", "operand_range")}
    return Site(**found)


def _choices(record: Mapping[str, Any]) -> Choices:
    found: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in record.items()}
    return Choices(**found)


def _uniform(record: Mapping[str, Any], clean_loss: float) -> UniformAllocation:
    return UniformAllocation(
        repetitions=float(record["repetitions"]),
        energy_joule=record["energy_joule"],
        damage=record["objective"],
        predicted=_predicted(record["predicted"]),
        simulated=_simulated(record["simulated"]),
        clean_loss=clean_loss,
        loss_error=_loss_error(record),
        held={name: float(k) for name, k in record.get("held", {}).items()},
    )


def _loss_error(record: Mapping[str, Any]) -> float:
    low, high = (_number(record.get(f"predicted_loss_{end}"), math.nan) for end in ("low", "high"))
    return (high - low) / (2.0 * NORMAL_QUANTILE)


def _predicted(record: Mapping[str, Any] | None) -> Prediction | None:
    return None if record is None else Prediction(**record)


def _simulated(record: Mapping[str, Any] | None) -> SimulatedAccuracy | None:
    return None if record is None else SimulatedAccuracy.from_record(record)


def _number(value: float | None, missing: float) -> float:
    return missing if value is None else float(value)
