"""An allocation as ``kmap.json`` for programs and ``kmap.csv`` for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from precalloc import __version__
from precalloc.accuracy import SimulatedAccuracy, perplexity
from precalloc.allocation import Allocation, DigitalSite, SiteAllocation, UniformAllocation
from precalloc.kmaps import SCHEMA, VERSION, plain_number
from precalloc.objective import Granularity
from precalloc.prediction import Prediction
from precalloc.profiles import FloatArray, Site

_CSV_COLUMNS = (
    "site", "kind", "macs", "fan_in", "channel", "repetitions", "energy_joule", "damage", "noise_bits",
)  # fmt: skip


def kmap_json(allocation: Allocation) -> str:
    """Write an allocation as the text of ``kmap.json``; its form is ``schemas/kmap.schema.json``."""
    return json.dumps(kmap_record(allocation), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def kmap_record(allocation: Allocation) -> dict[str, Any]:
    """Describe an allocation in JSON-able values; accuracies are shares, damage is in units of the loss."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "precalloc_version": __version__,
        "granularity": str(allocation.granularity),
        "hardware": allocation.hardware.to_dict(),
        "request": allocation.request,
        "max_drop": allocation.max_drop,
        "confidence": None if allocation.max_drop is None else 0.975,
        "confirmed": allocation.is_confirmed,
        "calibration": None if allocation.calibration is None else allocation.calibration.to_record(),
        "budget_joule": allocation.budget_joule,
        "energy_joule": allocation.energy_joule,
        "energy_per_mac_joule": allocation.energy_per_mac_joule,
        "mean_repetitions": allocation.mean_repetitions,
        "objective": allocation.objective,
        "floor": allocation.floor,
        "lower_bound": allocation.lower_bound,
        "gap": allocation.gap,
        "multiplier": plain_number(allocation.multiplier),
        "status": allocation.status,
        **_loss_record(allocation),
        "predicted": accuracy_record(allocation.predicted),
        "simulated": accuracy_record(allocation.simulated),
        "uniform": _uniform_record(allocation.uniform),
        "matching_uniform": _uniform_record(allocation.matching_uniform),
        "saving": allocation.saving,
        "sites": [
            _site_record(entry, allocation.granularity, allocation.bias_corrections.get(entry.site.name))
            for entry in allocation
        ],
        "digital": [
            _digital_record(entry, allocation.bias_corrections.get(entry.site.name)) for entry in allocation.digital
        ],
        "digital_energy_joule": allocation.digital_energy_joule,
        "choices": asdict(allocation.choices),
        "notes": list(allocation.notes),
        "provenance": asdict(allocation.provenance) | {"allocation_seed": allocation.seed},
    }


def kmap_csv(allocation: Allocation) -> str:
    """Write an allocation as a table: one row a site, or one a channel (energy and damage are then the site's share).

    A channel's row holds an equal share of the site's MACs; its damage and bits are those of its site.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for entry in allocation:
        writer.writerows(_csv_rows(entry, allocation.granularity))
    return buffer.getvalue()


def _csv_rows(entry: SiteAllocation, granularity: Granularity) -> list[tuple[object, ...]]:
    site, k = entry.site, entry.repetitions
    last = (entry.damage, entry.noise_bits)
    if granularity is Granularity.LAYER:
        return [(site.name, site.kind, site.macs, site.fan_in, "", k[0], entry.energy_joule, *last)]
    energies = entry.energy_joule * k / k.sum()
    return [
        (site.name, site.kind, site.macs / len(k), site.fan_in, channel, k[channel], energies[channel], *last)
        for channel in range(len(k))
    ]


def _site_record(entry: SiteAllocation, granularity: Granularity, correction: FloatArray | None) -> dict[str, Any]:
    k = [plain_number(value) for value in entry.repetitions.tolist()]
    return _counts(entry.site) | {
        "input_range": entry.site.input_range,
        "output_range": entry.site.output_range,
        "operand_range": entry.site.operand_range,
        "repetitions": k[0] if granularity is Granularity.LAYER else k,
        "energy_joule": entry.energy_joule,
        "damage": entry.damage,
        "noise_bits": plain_number(entry.noise_bits),
        "bias_correction": _listed(correction),
    }


def accuracy_record(accuracy: Prediction | SimulatedAccuracy | None) -> dict[str, Any] | None:
    """Describe an accuracy in JSON-able values; None where there is none."""
    if isinstance(accuracy, SimulatedAccuracy):
        return accuracy.to_record()
    return None if accuracy is None else asdict(accuracy)


def _loss_record(allocation: Allocation) -> dict[str, Any]:
    """Predicted loss and, for language models, perplexity."""
    low, high = allocation.predicted_loss_interval
    losses = {
        "clean_loss": allocation.clean_loss,
        "predicted_loss": allocation.predicted_loss,
        "predicted_loss_low": low,
        "predicted_loss_high": high,
    }
    if allocation.provenance.task == "language-model":
        losses["clean_perplexity"] = perplexity(allocation.clean_loss)
        losses["predicted_perplexity"] = perplexity(allocation.predicted_loss)
        losses["predicted_perplexity_low"] = perplexity(low)
        losses["predicted_perplexity_high"] = perplexity(high)
    return {name: plain_number(value) for name, value in losses.items()}


def _uniform_record(uniform: UniformAllocation | None) -> dict[str, Any] | None:
    if uniform is None:
        return None
    return {
        "repetitions": plain_number(uniform.repetitions),
        "energy_joule": uniform.energy_joule,
        "objective": uniform.damage,
        "predicted_loss": plain_number(uniform.predicted_loss),
        "predicted_loss_low": plain_number(uniform.predicted_loss_interval[0]),
        "predicted_loss_high": plain_number(uniform.predicted_loss_interval[1]),
        "predicted": accuracy_record(uniform.predicted),
        "simulated": accuracy_record(uniform.simulated),
        "held": {name: plain_number(k) for name, k in uniform.held.items()},
    }


def _digital_record(entry: DigitalSite, correction: FloatArray | None) -> dict[str, Any]:
    return _counts(entry.site) | {"energy_joule": entry.energy_joule, "bias_correction": _listed(correction)}


def _listed(correction: FloatArray | None) -> list[float] | None:
    return None if correction is None else correction.tolist()


def _counts(site: Site) -> dict[str, Any]:
    return {
        "name": site.name,
        "kind": site.kind,
        "macs": plain_number(site.macs),
        "fan_in": plain_number(site.fan_in),
        "outputs": plain_number(site.outputs),
        "channels": site.channels,
    }
