"""Energy against accuracy over many budgets, from one profile."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING, Any

from precalloc.allocation import Allocation
from precalloc.allocator import Allocator
from precalloc.budgets import Budget, parse_budgets
from precalloc.choices import Choices
from precalloc.errors import HardwareError
from precalloc.hardware import Hardware
from precalloc.objective import parse_granularity
from precalloc.prediction import Prediction
from precalloc.profiles import Profile

if TYPE_CHECKING:
    import pandas as pd

    from precalloc.accuracy import SimulatedAccuracy

_FIGURES = ("accuracy", "accuracy_low", "accuracy_high", "drop", "drop_low", "drop_high")


def sweep(
    profile: Profile,
    budgets: str | Iterable[str | Budget],
    *,
    hardware: Hardware | Iterable[Hardware] | None = None,
    granularities: Iterable[str] = ("layer",),
    choices: Choices | None = None,
    method: str = "auto",
    seed: int = 0,
) -> pd.DataFrame:
    """Allocate within each of several budgets and predict the accuracy of every allocation and of uniform K.

    Parameters
    ----------
    profile
        What was measured of the model.
    budgets
        Several of what ``allocate`` takes; or as one text "5x,10x,20x", or "2x:200x:15" for 15 spaced evenly in
        logarithm.
    hardware
        Noise, energy and realisable K, of one or several; by default of that for which the profile was measured.
    granularities
        "layer", "channel" or both.
    choices
        Which sites are analog, and what their K may be; as for ``allocate``.
    method
        Of ``solvers.solve``.
    seed
        Of the predictions' integration over noise.

    Returns
    -------
    pandas.DataFrame
        One row a hardware, granularity and budget. ``hardware`` (name), ``granularity``, ``budget`` (text),
        ``budget_joule``, ``energy_joule``, ``energy_per_mac_joule``, ``mean_repetitions``, ``damage``,
        ``lower_bound``, ``status``, ``clean_accuracy``, ``accuracy``, ``accuracy_low``, ``accuracy_high``, ``drop``,
        ``drop_low``, ``drop_high``; of uniform K within the same budget ``uniform_repetitions``,
        ``uniform_energy_joule``, ``uniform_energy_per_mac_joule``, ``uniform_damage``, ``uniform_accuracy``, ...
        ``uniform_drop_high``; ``saving``, the share of uniform K's energy saved at equal predicted accuracy; and
        ``simulated_accuracy``, ... ``uniform_simulated_drop_high``, missing until simulated.
        Energies are per inference; accuracies are shares, missing where the profile has no margins.

    Raises
    ------
    BudgetError, ProfileError
        As ``allocate`` does.
    HardwareError
        If two hardware share a name.
    """
    return sweep_frame(sweep_allocations(profile, budgets, hardware, granularities, method, seed, choices))


def sweep_allocations(
    profile: Profile,
    budgets: str | Iterable[str | Budget],
    hardware: Hardware | Iterable[Hardware] | None = None,
    granularities: Iterable[str] = ("layer",),
    method: str = "auto",
    seed: int = 0,
    choices: Choices | None = None,
) -> list[Allocation]:
    """Give the allocations that ``sweep`` tabulates, in the order of its rows."""
    parsed = parse_each(budgets)
    return allocations_within(sweep_allocators(profile, hardware, granularities, method, seed, choices), parsed)


def parse_each(budgets: str | Iterable[str | Budget]) -> tuple[Budget, ...]:
    """Read the budgets that ``sweep`` takes.

    Raises
    ------
    BudgetError
        If one is malformed.
    """
    texts = parse_budgets(budgets) if isinstance(budgets, str) else budgets
    return tuple(budget if isinstance(budget, Budget) else Budget.parse(budget) for budget in texts)


def sweep_allocators(
    profile: Profile,
    hardware: Hardware | Iterable[Hardware] | None = None,
    granularities: Iterable[str] = ("layer",),
    method: str = "auto",
    seed: int = 0,
    choices: Choices | None = None,
) -> list[Allocator]:
    """Prepare the curves of a sweep: an allocator for each hardware and granularity."""
    return [
        Allocator.of(profile, each, parse_granularity(granularity), method, seed, choices=choices)
        for each, granularity in product(several(hardware or profile.hardware), tuple(granularities))
    ]


def allocations_within(allocators: Iterable[Allocator], budgets: Iterable[Budget]) -> list[Allocation]:
    """Allocate within each of the budgets, curve by curve.

    Raises
    ------
    BudgetError
        If one is below the least feasible one.
    """
    return [allocator.within(budget) for allocator, budget in product(allocators, budgets)]


def sweep_frame(allocations: Iterable[Allocation]) -> pd.DataFrame:
    """Tabulate allocations as ``sweep`` does."""
    import pandas as pd  # slow to start

    return pd.DataFrame([_row(allocation) for allocation in allocations])


def several(hardware: Hardware | Iterable[Hardware]) -> tuple[Hardware, ...]:
    """Give one hardware or several as a tuple.

    Raises
    ------
    HardwareError
        If two share a name: their curves could not be told apart.
    """
    found = (hardware,) if isinstance(hardware, Hardware) else tuple(hardware)
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise HardwareError(f"Two of the hardware are named {name!r}. Give each file a name of its own.")
    return found


def _row(allocation: Allocation) -> dict[str, Any]:
    uniform, predicted = allocation.uniform, allocation.predicted
    return {
        "hardware": allocation.hardware.name,
        "granularity": str(allocation.granularity),
        "budget": allocation.request,
        "budget_joule": allocation.budget_joule,
        "energy_joule": allocation.energy_joule,
        "energy_per_mac_joule": allocation.energy_per_mac_joule,
        "mean_repetitions": allocation.mean_repetitions,
        "damage": allocation.objective,
        "lower_bound": allocation.lower_bound,
        "status": allocation.status,
        "clean_accuracy": math.nan if predicted is None else predicted.clean_accuracy,
        **_columns("", predicted),
        **_columns("simulated_", allocation.simulated),
        "uniform_repetitions": uniform.repetitions,
        "uniform_energy_joule": uniform.energy_joule,
        "uniform_energy_per_mac_joule": uniform.energy_joule / allocation.macs,
        "uniform_damage": uniform.damage,
        **_columns("uniform_", uniform.predicted),
        **_columns("uniform_simulated_", uniform.simulated),
        "saving": allocation.saving,
    }


def _columns(prefix: str, accuracy: Prediction | SimulatedAccuracy | None) -> dict[str, float]:
    return {prefix + name: math.nan if accuracy is None else getattr(accuracy, name) for name in _FIGURES}
