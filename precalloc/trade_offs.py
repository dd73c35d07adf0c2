"""Points of the energy-accuracy curve around an allocation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from precalloc.allocation import UniformAllocation
from precalloc.allocator import Allocator
from precalloc.prediction import Prediction


@dataclass(frozen=True)
class TradeOff:
    """A point of the energy-accuracy curve: energy per inference, predicted accuracy, and uniform K within the same."""

    energy_joule: float
    predicted: Prediction
    uniform: UniformAllocation


def trade_offs(allocator: Allocator, energies: Sequence[float]) -> list[TradeOff]:
    """Predict what each of several energies per inference buys, without certificates: quicker than allocating.

    Energies beyond what K can take are moved to the nearest that it can, and each is given once; none without margins.
    """
    most = allocator.objective.energy_joule(allocator.upper)
    wanted = sorted({min(max(energy, allocator.least_joule), most) for energy in energies})
    found = []
    for energy in wanted:
        k = allocator.solve(energy, quick=True)[0]
        predicted = allocator.predict(k)
        if predicted is not None:
            uniform = allocator.uniform_within(energy)
            found.append(TradeOff(allocator.objective.energy_joule(k), predicted, uniform))
    return found
