"""An allocation as a report that a person reads."""

from __future__ import annotations

from collections.abc import Sequence

from precalloc import figures
from precalloc.accuracy import SimulatedAccuracy
from precalloc.allocation import Allocation
from precalloc.objective import split_terms
from precalloc.rendering import render
from precalloc.units import format_energy

# A predicted accuracy that is this much below uniform K's is no longer rounding or interval width.
_NOTABLE = 0.001


def report_markdown(allocation: Allocation, command: str = "") -> str:
    """Render ``report.md``.

    Parameters
    ----------
    allocation
        What to report, validated or not.
    command
        The command line that repeats it; left out where empty.
    """
    return render("report.md.j2", a=allocation, warnings=warnings(allocation), command=command)


def warnings(allocation: Allocation) -> Sequence[str]:
    """List what a reader should know before using an allocation."""
    return [
        *allocation.notes,
        *_choice_notes(allocation),
        *_floor_warning(allocation),
        *_prediction_warnings(allocation),
        *_simulation_warnings(allocation),
    ]


def _choice_notes(a: Allocation) -> list[str]:
    notes = []
    if a.digital:
        macs, energy = sum(entry.site.macs for entry in a.digital), a.digital_energy_joule
        takes = "an energy that was not given" if energy is None else format_energy(energy)
        notes.append(
            f"{len(a.digital)} sites with {figures.count(macs)} MACs stay digital by choice; they take {takes} an "
            "inference, which is outside of the budget and of every energy here."
        )
    if a.uniform.held:
        notes.append(f"Uniform K obeys the same choices: {len(a.uniform.held)} sites are held at a K of their own.")
    return notes


def _floor_warning(a: Allocation) -> list[str]:
    static = [term.kind.value for term in split_terms(a.hardware)[1]]
    if not static:
        return []
    share = f" ({100.0 * a.floor / a.objective:.0f} % of the damage)" if a.objective > 0.0 else ""
    return [
        f"{' and '.join(static).capitalize()} noise is a floor: {a.hardware.name} repeats in "
        f"{a.hardware.repetition.redundancy}, which does not average it. It does {a.floor:.3g} damage at any K{share}."
    ]


def _prediction_warnings(a: Allocation) -> list[str]:
    if a.provenance.task != "classification":
        return []
    if a.predicted is None or a.uniform.predicted is None:
        return [f"The profile holds no margins per {a.granularity}, so no accuracy is predicted."]
    found = []
    if a.predicted.accuracy < a.uniform.predicted.accuracy - _NOTABLE:
        found.append("Uniform K has the higher predicted accuracy at this energy, although it does more damage.")
    if a.calibration is None:
        found.append(
            "The predicted accuracies rest on linearised noise alone, and their intervals leave out its error. "
            "With MODEL and --data they are calibrated by simulated points."
        )
    elif a.calibration.compensated != a.is_compensated:
        found.append("The predicted accuracies are for K maps with bias corrections, which this one lacks.")
    if a.matching_uniform is None:
        found.append("No uniform K is predicted to reach the same accuracy, so no saving can be stated.")
    return found


def _simulation_warnings(a: Allocation) -> list[str]:
    if a.simulated is None:
        return ["Not simulated yet: what is shown is predicted. Check with 'precalloc validate' on other data."]
    found = []
    if a.uniform.simulated is not None and _is_worse(a.simulated, a.uniform.simulated):
        found.append("Simulated, uniform K is better at this energy. Do not use this allocation.")
    if a.predicted is not None and not (
        a.predicted.drop_low <= a.simulated.drop_high and a.simulated.drop_low <= a.predicted.drop_high
    ):
        won = a.refinement is not None and a.simulated.drop_high < a.predicted.drop_low
        found.append(
            "Predicted and simulated drop disagree: their 95 % intervals do not meet. Trust the simulated one"
            + ("; predictions do not know what refinement wins." if won else ".")
        )
    loss = a.simulated.loss
    if a.predicted is None and loss and not loss.increase_low <= a.objective <= loss.increase_high:
        found.append(
            f"The predicted increase of the loss, {a.objective:.3g}, lies outside the 95 % interval of the simulated "
            "one. Trust the simulated one."
        )
    return found


def _is_worse(one: SimulatedAccuracy, other: SimulatedAccuracy) -> bool:
    """Whether the 95 % intervals tell that one is worse: in score or, where there is none, in loss."""
    if one.score or one.loss is None or other.loss is None:
        return one.accuracy_high < other.accuracy_low
    return one.loss.loss_low > other.loss.loss_high
