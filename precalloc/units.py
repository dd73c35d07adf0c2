"""Quantities with units: what a user writes ("20 aJ/MAC") to SI numbers, and SI numbers to what a user reads."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from precalloc.errors import UnitError

if TYPE_CHECKING:
    import pint

# Long and short name and decimal power of the SI prefixes.
_PREFIXES = (
    ("yocto", "y", -24), ("zepto", "z", -21), ("atto", "a", -18), ("femto", "f", -15), ("pico", "p", -12),
    ("nano", "n", -9), ("micro", "µ", -6), ("milli", "m", -3), ("kilo", "k", 3), ("mega", "M", 6), ("giga", "G", 9),
)  # fmt: skip

# Papers of the field write 0.128 aJ for the photon, not 128 zJ.
_WRITTEN_PREFIXES = {0: ""} | {power: letter for _, letter, power in _PREFIXES if power >= -18}

# pint's stock registry takes a quarter of a second to build; this one takes milliseconds and holds no other units that
# a typing error could turn into.
_DEFINITIONS = (
    *(f"{name}- = 1e{power} = {letter}-" for name, letter, power in _PREFIXES if name != "micro"),
    "micro- = 1e-6 = µ- = μ- = u-",
    "second = [time] = s",
    "joule = [energy] = J",
    "electronvolt = 1.602176634e-19 joule = eV",
    "MAC = [mac] = MAC = mac = MACs",
    "conversion = [conversion] = conversion = conversions",
)

_EXAMPLES = {"joule": "3 nJ", "joule/MAC": "20 aJ/MAC", "joule/conversion": "0.5 pJ/conversion", "second": "5 ns"}

_QUANTITY = re.compile(r"\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>[A-Za-zµμ/*^ ()\d-]*?)\s*")


class Quantity(NamedTuple):
    """A parsed quantity: its value in the SI unit beside it, which is one of those the caller accepts."""

    value: float
    unit: str


def parse_quantity(text: str, accepted: tuple[str, ...]) -> Quantity:
    """Read a non-negative quantity in any of the accepted units.

    Parameters
    ----------
    text
        Number and unit, as in ``"20 aJ/MAC"``.
    accepted
        SI units that the quantity may be measured in: ``joule``, ``joule/MAC``, ``joule/conversion``, ``second``.

    Raises
    ------
    UnitError
        If the text has no number or no unit, an unknown unit, another dimension, or a negative or infinite value.

    Examples
    --------
    >>> parse_quantity("20 aJ/MAC", ("joule", "joule/MAC"))
    Quantity(value=2e-17, unit='joule/MAC')
    """
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise _error(text, "is not a number with a unit", accepted)
    if not match["unit"]:
        raise _error(text, "has no unit", accepted)
    unit, registry = _parse_unit(text, match["unit"], accepted), _registry()
    for target in accepted:
        if unit.is_compatible_with(registry.Unit(target)):
            value = float(registry.Quantity(Decimal(match["number"]), unit).to(target).magnitude)
            if not 0 <= value < math.inf:
                raise _error(text, "must be finite and not negative", accepted)
            return Quantity(value, target)
    raise _error(text, f'has the unit "{match["unit"]}", which does not fit here', accepted)


def parse_energy(text: str) -> float:
    """Read an energy, in joule.

    >>> parse_energy("3 nJ")
    3e-09
    """
    return parse_quantity(text, ("joule",)).value


def parse_energy_per_mac(text: str) -> float:
    """Read an energy per multiply-accumulate, in joule/MAC.

    >>> parse_energy_per_mac("20 aJ/MAC")
    2e-17
    """
    return parse_quantity(text, ("joule/MAC",)).value


def parse_time(text: str) -> float:
    """Read a time, in second.

    >>> parse_time("5 ns")
    5e-09
    """
    return parse_quantity(text, ("second",)).value


def format_energy(joule: float, digits: int = 3) -> str:
    """Write an energy with the SI prefix that leaves one to three digits before the point (atto at the smallest).

    17 digits give every float back exactly.

    >>> format_energy(2.3e-9)
    '2.3 nJ'
    """
    return _format(joule, "J", digits)


def format_energy_per_mac(joule_per_mac: float, digits: int = 3) -> str:
    """Write an energy per multiply-accumulate with an SI prefix.

    >>> format_energy_per_mac(2e-17)
    '20 aJ/MAC'
    """
    return _format(joule_per_mac, "J/MAC", digits)


def format_time(second: float, digits: int = 3) -> str:
    """Write a time with an SI prefix.

    >>> format_time(5e-9)
    '5 ns'
    """
    return _format(second, "s", digits)


def _format(value: float, unit: str, digits: int) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    # Rounding first: 999.96 pJ at three digits is 1 nJ, not 1e+03 pJ.
    rounded = Decimal(f"{value:.{digits - 1}e}") if digits < 17 else Decimal(repr(value))
    exponent = min(max(3 * (rounded.adjusted() // 3), min(_WRITTEN_PREFIXES)), max(_WRITTEN_PREFIXES))
    return f"{_plain(rounded.scaleb(-exponent))} {_WRITTEN_PREFIXES[exponent]}{unit}"


def _plain(number: Decimal) -> str:
    """Write without trailing zeros, and without an exponent while it stays short."""
    trimmed = number.normalize()
    return f"{trimmed:f}" if -6 <= trimmed.adjusted() < 6 else f"{trimmed:e}"


def _error(text: object, problem: str, accepted: tuple[str, ...]) -> UnitError:
    examples = " or ".join(f'"{_EXAMPLES[unit]}"' for unit in accepted)
    return UnitError(f'"{text}" {problem}. Write a number with its unit, for example {examples}.')


def _parse_unit(text: str, unit: str, accepted: tuple[str, ...]) -> pint.Unit:
    """Read the unit's part of a quantity; the whole text is for the message."""
    from tokenize import TokenError

    import pint
    from pint.errors import UndefinedUnitError

    try:
        parsed: pint.Unit = _registry().parse_units(unit)
    except UndefinedUnitError as error:
        problem = f'has a unit "{unit}" that precalloc does not know (upper and lower case differ)'
        raise _error(text, problem, accepted) from error
    except (pint.PintError, TokenError, AssertionError, ValueError, TypeError) as error:
        # AssertionError is pint's answer to an expression that breaks off, as in "J/".
        raise _error(text, f'has a malformed unit "{unit}"', accepted) from error
    return parsed


@lru_cache(maxsize=1)
def _registry() -> pint.UnitRegistry[Decimal]:
    import pint  # 0.15 s: only those who parse pay for it

    # Decimal: "3 nJ" is then the float 3e-9 and not 3.0000000000000004e-9.
    registry: pint.UnitRegistry[Decimal] = pint.UnitRegistry(None, non_int_type=Decimal)
    for definition in _DEFINITIONS:
        registry.define(definition)
    return registry
