"""Numbers as people read them; the same in the terminal and in reports."""

from __future__ import annotations

import math

from precalloc.accuracy import SimulatedAccuracy, perplexity
from precalloc.allocation import Allocation, SiteAllocation, UniformAllocation
from precalloc.prediction import Prediction

Accuracy = Prediction | SimulatedAccuracy


def percent(share: float | None) -> str:
    """Write a share as "94.2 %", or a dash where there is none."""
    return "-" if share is None or math.isnan(share) else f"{100.0 * share:.1f} %"


def accuracy(value: Accuracy | None) -> str:
    """Write an accuracy with its 95 % interval, or a dash where there is none."""
    if value is None or math.isnan(value.accuracy):
        return "-"
    return f"{100.0 * value.accuracy:.1f} % [{100.0 * value.accuracy_low:.1f}, {100.0 * value.accuracy_high:.1f}]"


def interval(value: Accuracy | None) -> str:
    """Write the 95 % interval of an accuracy, or a dash where there is none."""
    if value is None or math.isnan(value.accuracy):
        return "-"
    return f"95 % interval {100.0 * value.accuracy_low:.1f} to {100.0 * value.accuracy_high:.1f}"


def drop(value: Accuracy | None) -> str:
    """Write a drop in points with its 95 % interval, or a dash where there is none."""
    if value is None or math.isnan(value.drop):
        return "-"
    return f"{100.0 * value.drop:.1f} [{100.0 * value.drop_low:.1f}, {100.0 * value.drop_high:.1f}]"


def loss(value: float, task: str) -> str:
    """Write a loss "2.3451", for language models with its perplexity: "2.3451 (perplexity 10.43)"."""
    number = "-" if math.isnan(value) else f"{value:.4f}"
    return f"{number} (perplexity {perplexity(value):.2f})" if task == "language-model" else number


def predicted_loss(value: Allocation | UniformAllocation, task: str) -> str:
    """Write a predicted loss with its 95 % interval (for language models a perplexity), where that is known."""
    low, high = value.predicted_loss_interval
    if math.isnan(low):
        return loss(value.predicted_loss, task)
    if task == "language-model":
        return "perplexity {:.2f} [{:.2f}, {:.2f}]".format(*map(perplexity, (value.predicted_loss, low, high)))
    return f"{value.predicted_loss:.4f} [{low:.4f}, {high:.4f}]"


def simulated_loss(value: SimulatedAccuracy | None) -> str:
    """Write a simulated loss with its 95 % interval (for language models a perplexity), or a dash."""
    if value is None or value.loss is None:
        return "-"
    ends = value.loss.loss, value.loss.loss_low, value.loss.loss_high
    if value.task == "language-model":
        return "perplexity {:.2f} [{:.2f}, {:.2f}]".format(*map(perplexity, ends))
    return "{:.4f} [{:.4f}, {:.4f}]".format(*ends)


def loss_increase(value: SimulatedAccuracy | None) -> str:
    """Write by how much noise raised the loss, with its 95 % interval, or a dash."""
    if value is None or value.loss is None:
        return "-"
    found = value.loss
    return f"{found.increase:.4f} [{found.increase_low:.4f}, {found.increase_high:.4f}]"


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
