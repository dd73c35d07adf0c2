"""Hardware descriptions as files: TOML with units, for people."""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Iterable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from precalloc.errors import HardwareError, UnitError
from precalloc.hardware import AVERAGED_BY, Hardware, NoiseKind, NoiseTerm, Redundancy, Repetition
from precalloc.hardware_records import to_tables
from precalloc.units import format_energy, parse_quantity

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _energy(text: object, per: str) -> float:
    """Read "0.2 pJ" or "0.2 pJ/MAC" for an entry whose name says per what it is meant."""
    if not isinstance(text, str):
        raise ValueError(f'needs a unit: write for example "{text} pJ"')
    try:
        return parse_quantity(text, ("joule", f"joule/{per}")).value
    except UnitError as error:
        raise ValueError(str(error)) from error


def _levels(value: object) -> object:
    """Read ``levels``: a keyword, or the realisable K in ascending order."""
    if value in ("integer", "continuous"):
        return value
    numbers = [float(level) for level in value if _is_number(level)] if isinstance(value, list) else []
    ascending = all(low < high for low, high in zip([0.0, *numbers], numbers, strict=False))
    if not numbers or len(numbers) != len(cast("list[object]", value)) or not ascending or math.isinf(numbers[-1]):
        raise ValueError(
            'must be "integer", "continuous" or an ascending list of positive numbers such as [1, 2, 4, 8]'
        )
    return tuple(numbers)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Table(BaseModel):
    """A table whose entries are all known and are not converted from other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _EnergyWithUnits(_Table):
    per_mac: Annotated[float, BeforeValidator(partial(_energy, per="MAC"))]
    per_conversion: Annotated[float, BeforeValidator(partial(_energy, per="conversion"))] = 0.0
    source: str = ""


class _Repetition(_Table):
    redundancy: Annotated[Redundancy, Field(strict=False)]
    levels: Annotated[str | tuple[float, ...], BeforeValidator(_levels)] = "integer"
    min: _Positive | None = None
    max: _Positive | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.levels, tuple):
            if self.min not in (None, self.levels[0]) or self.max not in (None, self.levels[-1]):
                raise ValueError("a list of levels already sets the range; leave out min and max")
        elif self.max is not None and self.max < (self.min or 1.0):
            raise ValueError(f"max = {self.max:g} is below min = {self.min or 1.0:g}")
        if self.levels == "integer" and not all(bound is None or bound.is_integer() for bound in (self.min, self.max)):
            raise ValueError('integer levels need whole numbers for min and max; or set levels = "continuous"')
        return self

    def value(self) -> Repetition:
        if isinstance(self.levels, tuple):
            return Repetition(self.redundancy, self.levels, self.levels[0], self.levels[-1])
        return Repetition(self.redundancy, self.levels, self.min or 1.0, self.max or math.inf)


class _Noise(_Table):
    kind: Annotated[NoiseKind, Field(strict=False)]
    sigma: _Positive | None = None
    photons_per_mac: _Positive | None = None
    averaged_by: list[Annotated[Redundancy, Field(strict=False)]] | None = None
    source: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        wanted, other = ("photons_per_mac", "sigma") if self.kind is NoiseKind.SHOT else ("sigma", "photons_per_mac")
        if getattr(self, other) is not None:
            raise ValueError(f"{self.kind} noise is given by {wanted}, not by {other}")
        if getattr(self, wanted) is None:
            raise ValueError(f"{self.kind} noise needs {wanted}")
        return self

    def value(self) -> NoiseTerm:
        level = self.photons_per_mac if self.kind is NoiseKind.SHOT else self.sigma
        assert level is not None, "the validator asks for it"
        averaged_by = AVERAGED_BY[self.kind] if self.averaged_by is None else frozenset(self.averaged_by)
        return NoiseTerm(self.kind, level, averaged_by, self.source)


class _Digital(_Table):
    biases: bool = False


class _File(_Table):
    format: Literal["precalloc/hardware"] = Field(alias="schema")
    version: Literal[1]
    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    repetition: _Repetition
    noise: Annotated[list[_Noise], Field(min_length=1)]
    energy: _EnergyWithUnits
    digital: _Digital = _Digital()

    @model_validator(mode="after")
    def _check(self) -> Self:
        kinds = [entry.kind for entry in self.noise]
        repeated = next((kind for kind in kinds if kinds.count(kind) > 1), None)
        if repeated is not None:
            raise ValueError(f"{repeated} noise is given twice; add the variances and give it once")
        if self.energy.per_mac == 0 and self.energy.per_conversion == 0:
            raise ValueError("energy: neither MACs nor conversions cost any, so there is nothing to allocate")
        return self

    def value(self) -> Hardware:
        return Hardware(
            name=self.name,
            noise=tuple(entry.value() for entry in self.noise),
            repetition=self.repetition.value(),
            energy_per_mac_joule=self.energy.per_mac,
            energy_per_conversion_joule=self.energy.per_conversion,
            description=self.description,
            energy_source=self.energy.source,
            digital_biases=self.digital.biases,
        )


def preset_names() -> tuple[str, ...]:
    """Names of the presets that come with the package, in alphabetical order."""
    entries = (resources.files("precalloc") / "presets").iterdir()
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml")))


def load(source: str | os.PathLike[str]) -> Hardware:
    """Read a preset by name or a TOML file by path.

    Raises
    ------
    HardwareError
        If there is no such preset or file, or what it says is malformed; names file, entry, value and remedy.
    """
    text = os.fspath(source)
    if text in preset_names():
        content = (resources.files("precalloc") / "presets" / f"{text}.toml").read_text(encoding="utf-8")
        return parse(content, where=text)
    path = Path(text)
    if path.is_file():
        try:
            return parse(path.read_text(encoding="utf-8"), where=text)
        except (OSError, UnicodeDecodeError) as error:
            raise HardwareError(f"Hardware file {text} cannot be read: {error}.") from error
    if path.suffix == ".toml":
        raise HardwareError(f"Hardware file {text} does not exist. Presets need no file: {', '.join(preset_names())}.")
    raise HardwareError(
        f'Unknown hardware "{text}".{_suggestion(text, preset_names())} '
        f"Presets: {', '.join(preset_names())}; or give the path of a TOML file."
    )


def parse(content: str, where: str) -> Hardware:
    """Read the content of a TOML file; ``where`` names it in messages."""
    try:
        tables = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise HardwareError(f"{where} is not valid TOML: {error}.") from error
    try:
        return _File.model_validate(tables).value()
    except ValidationError as error:
        raise _explain(error, where) from error


def to_toml(hardware: Hardware) -> str:
    """Describe a hardware as a TOML file that ``load`` reads back to an equal value."""
    import tomli_w

    exact = partial(format_energy, digits=17)
    tables = to_tables(hardware) | {
        "energy": {
            "per_mac": exact(hardware.energy_per_mac_joule),
            "per_conversion": exact(hardware.energy_per_conversion_joule),
            "source": hardware.energy_source,
        }
    }
    # TOML has no null; tables come after plain entries, and arrays of tables last.
    tables["repetition"] = {key: value for key, value in tables["repetition"].items() if value is not None}
    return tomli_w.dumps(tables | {"noise": tables.pop("noise")})


def _suggestion(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f' Did you mean "{near[0]}"?' if near else ""


def _explain(error: ValidationError, where: str) -> HardwareError:
    """Say the first thing that is wrong in one line, and how many others there are."""
    problems = error.errors(include_url=False)
    # Unknown entries first: a misspelt name is also a missing one, and the misspelling is what to mend.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    more = f" ({len(problems) - 1} more to mend after it)" if len(problems) > 1 else ""
    return HardwareError(f"Hardware {where}: {_describe(first)}{more}")


def _describe(problem: ErrorDetails) -> str:
    entry = _entry_name(problem["loc"])
    if problem["type"] == "extra_forbidden":
        names = _names_beside(problem["loc"])
        return f"unknown entry {entry}.{_suggestion(str(problem['loc'][-1]), names)} Known here: {', '.join(names)}."
    if problem["type"] == "missing":
        return f"{entry} is missing; add it."
    message = (
        problem["msg"]
        .removeprefix("Value error, ")
        .replace("Input should", "must")
        .replace("String should", "must")
        .rstrip(".")
    )
    if isinstance(problem["input"], dict | BaseModel) or message.startswith(f'"{problem["input"]}"'):
        return f"{entry}: {message}." if entry else f"{message}."
    return f"{entry} = {problem['input']!r}: {message}."


def _entry_name(loc: tuple[int | str, ...]) -> str:
    """Name an entry as its file does: ``noise[0].sigma`` for ("noise", 0, "sigma")."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _names_beside(loc: tuple[int | str, ...]) -> list[str]:
    tables: dict[str, type[_Table]] = {
        "repetition": _Repetition,
        "noise": _Noise,
        "energy": _EnergyWithUnits,
        "digital": _Digital,
    }
    table = tables[str(loc[0])] if len(loc) > 1 else _File
    return [field.alias or name for name, field in table.model_fields.items()]
