"""Where energy-accuracy curves bend, and the least energy for a loss that one can live with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from precalloc.allocation import Allocation, UniformAllocation
from precalloc.allocator import Allocator
from precalloc.choices import Choices
from precalloc.errors import BudgetError
from precalloc.hardware import Hardware
from precalloc.objective import parse_granularity
from precalloc.profiles import FloatArray, Profile
from precalloc.sweeping import several

if TYPE_CHECKING:
    import pandas as pd

KNEE = "knee"
_CURVES = ("uniform", "layer", "channel")


def landmarks(
    profile: Profile,
    frame: pd.DataFrame,
    *,
    hardware: Hardware | Iterable[Hardware] | None = None,
    max_drops: Iterable[float] = (0.01, 0.02),
    seed: int = 0,
    choices: Choices | None = None,
) -> pd.DataFrame:
    """Find the knee of every curve of a sweep, and the least energy for each of several accuracy drops.

    The knee is the point farthest above the chord of the curve, with accuracy and the logarithm of energy both scaled
    to [0, 1] (Satopaa et al., "Finding a 'kneedle' in a haystack", ICDCSW 2011, section III, without smoothing). The
    least energies are those of ``allocate(max_drop=...)``, whatever the budgets of the sweep; where no K keeps the
    upper 95 % limit of the predicted drop within one, there is no row.

    Parameters
    ----------
    profile, hardware, seed, choices
        Of the sweep.
    frame
        What ``sweep`` gave.
    max_drops
        As shares: 0.01 is one point.

    Returns
    -------
    pandas.DataFrame
        One row a landmark: ``hardware``, ``curve`` ("uniform", "layer" or "channel"), ``mark`` ("knee", "1 point",
        "2 points"), ``energy_joule`` (per inference), ``energy_per_mac_joule``, ``mean_repetitions``, ``accuracy``,
        ``drop`` (shares).
    """
    allocators = [
        Allocator.of(profile, each, parse_granularity(granularity), seed=seed, choices=choices)
        for each in several(hardware or profile.hardware)
        for granularity in frame[frame["hardware"] == each.name]["granularity"].unique()
    ]
    return curve_landmarks(allocators, frame, max_drops)


def curve_landmarks(
    allocators: Iterable[Allocator], frame: pd.DataFrame, max_drops: Iterable[float] = (0.01, 0.02)
) -> pd.DataFrame:
    """Find the landmarks of curves whose allocators are at hand; as ``landmarks``.

    Uniform K is that beside the first allocator of each hardware.
    """
    import pandas as pd  # slow to start

    columns = ["hardware", "curve", "mark", "energy_joule", "energy_per_mac_joule", "mean_repetitions"]
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    max_drops = tuple(max_drops)
    for each in allocators:
        name, granularity = each.hardware.name, str(each.objective.granularity)
        of_hardware, with_uniform = frame[frame["hardware"] == name], name not in names
        names += [name] if with_uniform else []
        rows += _knees(of_hardware[of_hardware["granularity"] == granularity], granularity, with_uniform)
        drops = max_drops if of_hardware["accuracy"].notna().all() else ()
        rows += [row for drop in drops for row in _least_energies(each, drop, with_uniform)]
    marks = [KNEE, *map(mark_of, max_drops)]
    rows.sort(key=lambda row: (names.index(row["hardware"]), marks.index(row["mark"]), _CURVES.index(row["curve"])))
    return pd.DataFrame(rows, columns=[*columns, "accuracy", "drop"])


def knee(energy: FloatArray, accuracy: FloatArray) -> int | None:
    """Index of the knee of an ascending curve (n,); None where fewer than three points or no rise leave none."""
    if len(energy) < 3 or not accuracy[-1] > accuracy[0]:
        return None
    x = np.log(energy / energy[0]) / np.log(energy[-1] / energy[0])
    y = (accuracy - accuracy[0]) / (accuracy[-1] - accuracy[0])
    return int(np.argmax(y - x))


def mark_of(max_drop: float) -> str:
    """Name a drop in points: "1 point", "2 points", "0.5 points"."""
    points = 100.0 * max_drop
    return f"{points:g} point" if points == 1.0 else f"{points:g} points"


def _knees(part: pd.DataFrame, granularity: str, with_uniform: bool) -> Iterator[dict[str, Any]]:
    curves = [(granularity, "")] + [("uniform", "uniform_")] * with_uniform
    for curve, prefix in curves:
        ordered = part.dropna(subset=f"{prefix}accuracy").sort_values(f"{prefix}energy_joule")
        ordered = ordered.drop_duplicates(f"{prefix}energy_joule")
        found = knee(ordered[f"{prefix}energy_joule"].to_numpy(), ordered[f"{prefix}accuracy"].to_numpy())
        if found is None:
            continue
        row = ordered.iloc[found]
        yield {
            "hardware": row["hardware"],
            "curve": curve,
            "mark": KNEE,
            "energy_joule": row[f"{prefix}energy_joule"],
            "energy_per_mac_joule": row[f"{prefix}energy_per_mac_joule"],
            "mean_repetitions": row["uniform_repetitions" if prefix else "mean_repetitions"],
            "accuracy": row[f"{prefix}accuracy"],
            "drop": row[f"{prefix}drop"],
        }


def _least_energies(allocator: Allocator, max_drop: float, with_uniform: bool) -> Iterator[dict[str, Any]]:
    try:
        allocation = allocator.reaching(max_drop)
    except BudgetError:  # no K of this hardware promises it
        return
    yield _least_row(allocation, allocation, str(allocation.granularity), allocation.mean_repetitions)
    uniform = allocation.matching_uniform
    if with_uniform and uniform is not None:
        yield _least_row(allocation, uniform, "uniform", uniform.repetitions)


def _least_row(
    allocation: Allocation, entry: Allocation | UniformAllocation, curve: str, repetitions: float
) -> dict[str, Any]:
    assert allocation.max_drop is not None
    assert entry.predicted is not None
    return {
        "hardware": allocation.hardware.name,
        "curve": curve,
        "mark": mark_of(allocation.max_drop),
        "energy_joule": entry.energy_joule,
        "energy_per_mac_joule": entry.energy_joule / allocation.macs,
        "mean_repetitions": repetitions,
        "accuracy": entry.predicted.accuracy,
        "drop": entry.predicted.drop,
    }
