"""Numbers as people read them; the same in the terminal and in reports."""

from __future__ import annotations

from precalloc.accuracy import SimulatedAccuracy
from precalloc.allocation import SiteAllocation, UniformAllocation
from precalloc.prediction import Prediction

Accuracy = Prediction | SimulatedAccuracy


def percent(share: float | None) -> str:
    """Write a share as "94.2 %", or a dash where there is none."""
    return "-" if share is None else f"{100.0 * share:.1f} %"


def accuracy(value: Accuracy | None) -> str:
    """Write an accuracy with its 95 % interval, or a dash where there is none."""
    if value is None:
        return "-"
    return f"{100.0 * value.accuracy:.1f} % [{100.0 * value.accuracy_low:.1f}, {100.0 * value.accuracy_high:.1f}]"


def drop(value: Accuracy | None) -> str:
    """Write a drop in points with its 95 % interval, or a dash where there is none."""
    if value is None:
        return "-"
    return f"{100.0 * value.drop:.1f} [{100.0 * value.drop_low:.1f}, {100.0 * value.drop_high:.1f}]"


def count(value: float) -> str:
    """Write a count shortly: 950, 12.3k, 4.1M."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.4g}"


def repetitions(entry: SiteAllocation | UniformAllocation) -> str:
    """Write K: "12", or mean and range "12.5 (4..31)" for channels that differ."""
    if isinstance(entry, UniformAllocation):
        return f"{entry.repetitions:.4g}"
    low, high = float(entry.repetitions.min()), float(entry.repetitions.max())
    return f"{low:.4g}" if low == high else f"{entry.mean_repetitions:.3g} ({low:.3g}..{high:.3g})"
