"""Options by which the user decides what is analog and what K may be; the same for every command that allocates."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from precalloc.errors import ChoiceError

if TYPE_CHECKING:
    from precalloc.choices import Choices

_PANEL = "Choices: PATTERN is a site's name with * and ?, kind:PATTERN, position:first or position:last"


def _option(name: str, text: str, metavar: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(name, help=text, metavar=metavar, rich_help_panel=_PANEL)
    return option


Include = Annotated[list[str] | None, _option("--include", "Only these are analog; repeatable.", "PATTERN")]
Exclude = Annotated[list[str] | None, _option("--exclude", "These stay digital; repeatable.", "PATTERN")]
Fix = Annotated[list[str] | None, _option("--fix", "K of these is given; repeatable.", "PATTERN=K")]
Tie = Annotated[list[str] | None, _option("--tie", "These share one K; repeatable.", "PATTERN")]
LeastK = Annotated[list[str] | None, _option("--k-min", "Least K of these; repeatable.", "PATTERN=K")]
LargestK = Annotated[list[str] | None, _option("--k-max", "Largest K of these; repeatable.", "PATTERN=K")]
DigitalEnergy = Annotated[
    str | None, _option("--digital-energy", "Energy of what stays digital, such as '1 pJ/MAC'.", "ENERGY")
]
ChoicesFile = Annotated[Path | None, _option("--choices", "TOML file with all of these.", "FILE")]


def read_choices(
    include: Iterable[str] | None,
    exclude: Iterable[str] | None,
    fix: Iterable[str] | None,
    tie: Iterable[str] | None,
    k_min: Iterable[str] | None,
    k_max: Iterable[str] | None,
    digital_energy: str | None,
    file: Path | None,
) -> Choices:
    """Join the choices of a file and those of the options, which win.

    Raises
    ------
    ChoiceError, UnitError
        If something cannot be read.
    """
    from precalloc.choices import Choices
    from precalloc.units import parse_energy_per_mac

    given = Choices(
        tuple(include or ()),
        tuple(exclude or ()),
        _numbers(fix, "--fix"),
        tuple(tie or ()),
        _numbers(k_min, "--k-min"),
        _numbers(k_max, "--k-max"),
        None if digital_energy is None else parse_energy_per_mac(digital_energy),
    )
    return given if file is None else Choices.load(file).joined(given)


def _numbers(texts: Iterable[str] | None, option: str) -> dict[str, float]:
    """Read "PATTERN=K" texts."""
    result = {}
    for text in texts or ():
        pattern, _, number = text.rpartition("=")
        try:
            result[pattern] = float(number)
        except ValueError:
            pattern = ""
        if not pattern:
            raise ChoiceError(f"{option} {text!r} must be PATTERN=K, for example 'head=8'.")
    return result
