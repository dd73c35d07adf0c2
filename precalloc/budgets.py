"""How much energy an allocation may use, in the unit that the user thinks in."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum

from precalloc.errors import BudgetError, UnitError
from precalloc.units import format_energy, format_energy_per_mac, parse_energy, parse_energy_per_mac

_NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
_REPETITIONS = re.compile(rf"{_NUMBER}\s*[xX×]")
_FRACTION = re.compile(rf"{_NUMBER}\s*%\s*of\s+(.+)")
_DIGITS = 4
_EXAMPLES = "Write '3 nJ' (per inference), '20 aJ/MAC', '15x' (mean repetitions) or '40% of 15x'."


class BudgetKind(StrEnum):
    """What a budget counts."""

    ENERGY = "energy per inference"
    ENERGY_PER_MAC = "energy per MAC"
    REPETITIONS = "mean repetitions"


@dataclass(frozen=True)
class Budget:
    """An energy budget: joules per inference, joules per MAC, or times the energy of one repetition everywhere.

    ``share`` is the fraction of a uniform allocation that may be used: "40% of 15x" has value 15 and share 0.4.
    """

    kind: BudgetKind
    value: float
    share: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read "3 nJ", "20 aJ/MAC", "15x" or "40% of 15x".

        Raises
        ------
        BudgetError
            If the text is none of these, or not positive and finite.
        """
        stripped = str(text).strip()
        if match := _FRACTION.fullmatch(stripped):
            whole = cls.parse(match.group(2))
            return _checked(cls(whole.kind, whole.value, whole.share * float(match.group(1)) / 100.0), text)
        if match := _REPETITIONS.fullmatch(stripped):
            return _checked(cls(BudgetKind.REPETITIONS, float(match.group(1))), text)
        return _checked(_parse_energy(stripped), text)

    def energy_joule(self, cost_at_k1: float, macs: float) -> float:
        """Joules per inference, for a network of ``macs`` MACs that takes ``cost_at_k1`` joules at K = 1."""
        return self.share * self.value * self._joule_per_unit(cost_at_k1, macs)

    def express(self, energy_joule: float, cost_at_k1: float, macs: float) -> str:
        """Write an energy per inference in this budget's unit, rounded up so that it suffices when typed back."""
        unit = self._joule_per_unit(cost_at_k1, macs)
        if self.share != 1.0:
            percent = _round_up(100.0 * energy_joule / (self.value * unit))
            return f"{percent:.4g}% of {self._whole()}"
        return Budget(self.kind, _round_up(energy_joule / unit))._whole()

    def _joule_per_unit(self, cost_at_k1: float, macs: float) -> float:
        return {BudgetKind.ENERGY: 1.0, BudgetKind.ENERGY_PER_MAC: macs, BudgetKind.REPETITIONS: cost_at_k1}[self.kind]

    def _whole(self) -> str:
        if self.kind is BudgetKind.REPETITIONS:
            return f"{self.value:.4g}x"
        formatted = format_energy_per_mac if self.kind is BudgetKind.ENERGY_PER_MAC else format_energy
        return formatted(self.value, digits=_DIGITS)

    def __str__(self) -> str:
        return self._whole() if self.share == 1.0 else f"{100.0 * self.share:.4g}% of {self._whole()}"


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """Read several budgets: "5x,10x,20x", or "2x:200x:15" for 15 of them spaced evenly in logarithm.

    Raises
    ------
    BudgetError
        If a budget is malformed, the two ends differ in kind, or the count is no whole number of at least 2.
    """
    parts = [part.strip() for part in str(text).split(":")]
    if len(parts) == 1:
        return tuple(Budget.parse(part) for part in parts[0].split(","))
    if len(parts) != 3 or not parts[2].isdigit() or int(parts[2]) < 2:
        raise BudgetError(f"Budgets {text!r} are no range. Write 'FIRST:LAST:COUNT', for example '2x:200x:15'.")
    first, last, count = Budget.parse(parts[0]), Budget.parse(parts[1]), int(parts[2])
    if first.kind is not last.kind:
        raise BudgetError(f"Budgets {text!r} mix {first.kind} and {last.kind}. Give both ends in one unit.")
    start, stop = first.share * first.value, last.share * last.value
    ratio = stop / start
    return tuple(Budget(first.kind, start * ratio ** (i / (count - 1))) for i in range(count))


def _parse_energy(text: str) -> Budget:
    try:
        if "/" in text:
            return Budget(BudgetKind.ENERGY_PER_MAC, parse_energy_per_mac(text))
        return Budget(BudgetKind.ENERGY, parse_energy(text))
    except UnitError as error:
        raise BudgetError(
            f"Budget {text!r} cannot be read: it is no energy, energy per MAC or multiple of one "
            f"repetition. {_EXAMPLES}"
        ) from error


def _checked(budget: Budget, text: str) -> Budget:
    if not (math.isfinite(budget.value) and budget.value > 0.0 and budget.share > 0.0):
        raise BudgetError(f"Budget {text!r} must be positive and finite. {_EXAMPLES}")
    return budget


def _round_up(value: float) -> float:
    scale = 10.0 ** (_DIGITS - 1 - math.floor(math.log10(value)))
    return math.ceil(value * scale * (1.0 - 1e-12)) / scale
