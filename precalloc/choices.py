"""What the user decides and the optimisation must obey: which sites are analog, and what their K may be.

A pattern is a site's name with ``*``, ``?`` and ``[...]`` as in file names, ``kind:PATTERN`` for the kinds of sites
(``kind:attention_*``), or ``position:first`` and ``position:last`` for the first and last analog site.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from precalloc.errors import ChoiceError
from precalloc.hardware import Hardware
from precalloc.objective import largest_uniform, smallest_k, smallest_uniform
from precalloc.profiles import FloatArray, Site
from precalloc.units import parse_energy_per_mac

_POSITIONS = {"position:first": 0, "position:last": -1}


@dataclass(frozen=True)
class Choices:
    """The user's decisions; by default every site is analog and free.

    Parameters
    ----------
    include, exclude
        Patterns of the sites that are analog (all where ``include`` is empty), and of those that are digital after all.
    fixed : pattern -> K
        Sites whose K is given.
    ties
        Patterns; all sites (and channels) that match one share one K.
    k_min, k_max : pattern -> K
        Bounds beside those of the hardware; where several match, the tightest holds.
    digital_energy_per_mac_joule
        Energy of one MAC that stays digital; None where it is not known.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    fixed: Mapping[str, float] = field(default_factory=dict)
    ties: tuple[str, ...] = ()
    k_min: Mapping[str, float] = field(default_factory=dict)
    k_max: Mapping[str, float] = field(default_factory=dict)
    digital_energy_per_mac_joule: float | None = None

    def __post_init__(self) -> None:
        for name in ("fixed", "k_min", "k_max"):
            for pattern, k in getattr(self, name).items():
                if not (isinstance(k, int | float) and 0.0 < k < math.inf):
                    raise ChoiceError(f"K = {k!r} of pattern {pattern!r} must be a positive number.")

    @classmethod
    def load(cls, path: str | Path) -> Choices:
        """Read a TOML file of choices, with keys named as the options of the command line.

        Raises
        ------
        ChoiceError
            If the file is missing, is no TOML, or holds anything else.
        """
        try:
            record = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ChoiceError(f"Choices {path} cannot be read as TOML ({error}). Check the file.") from error
        return cls.from_record(record, str(path))

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str) -> Choices:
        """Read decoded choices; ``where`` names their origin in messages.

        Raises
        ------
        ChoiceError
            As ``load`` does.
        """
        known = {"include": list, "exclude": list, "tie": list, "fix": dict, "k_min": dict, "k_max": dict}
        for key, value in record.items():
            if key == "digital_energy" and isinstance(value, str):
                continue
            if key not in known or not isinstance(value, known[key]):
                raise ChoiceError(
                    f"{where}: '{key}' is unknown or of the wrong form. Lists 'include', 'exclude' and 'tie', tables "
                    "'fix', 'k_min' and 'k_max' of pattern = K, and the text 'digital_energy' are understood."
                )
        energy = record.get("digital_energy")
        return cls(
            tuple(record.get("include", ())),
            tuple(record.get("exclude", ())),
            dict(record.get("fix", {})),
            tuple(record.get("tie", ())),
            dict(record.get("k_min", {})),
            dict(record.get("k_max", {})),
            None if energy is None else parse_energy_per_mac(energy),
        )

    def joined(self, other: Choices) -> Choices:
        """Both choices at once; where both give a K or an energy for the same, that of ``other``."""
        mine, theirs = (
            {entry.name: getattr(choices, entry.name) for entry in fields(choices)} for choices in (self, other)
        )
        energy = "digital_energy_per_mac_joule"
        merged = {name: mine[name] + theirs[name] for name in ("include", "exclude", "ties")}
        merged |= {name: {**mine[name], **theirs[name]} for name in ("fixed", "k_min", "k_max")}
        return Choices(**merged, **{energy: mine[energy] if theirs[energy] is None else theirs[energy]})

    def analog(self, sites: Sequence[Site]) -> npt.NDArray[np.bool_]:
        """Which sites are analog, shape (sites,).

        Raises
        ------
        ChoiceError
            If a pattern matches no site, or no site is left.
        """
        chosen = np.ones(len(sites), dtype=bool)
        if self.include:
            chosen = np.any([matching(pattern, sites, "include") for pattern in self.include], axis=0)
        for pattern in self.exclude:
            chosen &= ~matching(pattern, sites, "exclude")
        if not chosen.any():
            raise ChoiceError("No site is left for the analog hardware. Exclude fewer, or include more.")
        return np.asarray(chosen)

    def bounds(self, sites: Sequence[Site], hardware: Hardware) -> Bounds:
        """Resolve bounds and ties of analog sites on a hardware.

        Raises
        ------
        ChoiceError
            If a pattern matches none of them, or what is asked for contradicts itself or the hardware.
        """
        lower = np.full(len(sites), smallest_k(hardware.repetition))
        upper = np.full(len(sites), hardware.repetition.k_max)
        for pattern, k in self.k_min.items():
            lower = np.where(matching(pattern, sites, "k-min"), np.maximum(lower, k), lower)
        for pattern, k in self.k_max.items():
            upper = np.where(matching(pattern, sites, "k-max"), np.minimum(upper, k), upper)
        for pattern, k in self.fixed.items():
            chosen = matching(pattern, sites, "fix")
            _require_realisable(k, pattern, hardware)
            lower = np.where(chosen, np.maximum(lower, k), lower)
            upper = np.where(chosen, np.minimum(upper, k), upper)
        ties = _tie_groups([matching(pattern, sites, "tie") for pattern in self.ties], len(sites))
        return Bounds(*_realisable(lower, upper, ties, sites, hardware), ties if self.ties else None)

    def of_analog(self) -> Choices:
        """Give the decisions about analog sites alone, for a profile that holds no others."""
        return replace(self, include=(), exclude=())


@dataclass(frozen=True, eq=False)
class Bounds:
    """What the K of every site may be: realisable bounds (sites,), and group labels (sites,), -1 where untied."""

    lower: FloatArray
    upper: FloatArray
    ties: npt.NDArray[np.int64] | None


def matching(pattern: str, sites: Sequence[Site], option: str) -> npt.NDArray[np.bool_]:
    """Which sites a pattern matches, shape (sites,).

    Raises
    ------
    ChoiceError
        If it matches none; the message lists near matches.
    """
    if pattern in _POSITIONS:
        found = np.zeros(len(sites), dtype=bool)
        found[_POSITIONS[pattern]] = True
        return found
    by_kind = pattern.startswith("kind:")
    wanted = pattern.removeprefix("kind:")
    names = [site.kind if by_kind else site.name for site in sites]
    found = np.array([fnmatchcase(name, wanted) for name in names])
    if not found.any():
        what = "kind of site" if by_kind else "site"
        raise ChoiceError(f"Pattern {pattern!r} of '{option}' matches no {what}. {_suggest(wanted, names)}")
    return found


def _suggest(wanted: str, names: Iterable[str]) -> str:
    """Near matches of a pattern, or a few of the names that there are."""
    distinct = list(dict.fromkeys(names))
    near = difflib.get_close_matches(wanted.strip("*?"), distinct, 4, 0.5)
    lead = "Near it are" if near else "There are"
    listed = ", ".join(f"'{name}'" for name in near or distinct[:4])
    return f"{lead} {listed}{'' if near or len(distinct) <= 4 else ', ...'}."


def _require_realisable(k: float, pattern: str, hardware: Hardware) -> None:
    below, above = largest_uniform(hardware.repetition, k), smallest_uniform(hardware.repetition, k)
    if below != k and above != k:
        near = " or ".join(f"{value:g}" for value in (below, above) if value is not None)
        raise ChoiceError(f"{hardware.name!r} cannot repeat {pattern!r} {k:g} times. Fix K at {near}.")


def _tie_groups(matches: Sequence[npt.NDArray[np.bool_]], count: int) -> npt.NDArray[np.int64]:
    """Label of each site's group, -1 where untied; groups that share a site become one."""
    groups = np.full(count, -1, dtype=np.int64)
    for label, chosen in enumerate(matches):
        touched = np.unique(groups[chosen & (groups >= 0)])
        groups[chosen | np.isin(groups, touched)] = label
    return groups


def _realisable(
    lower: FloatArray, upper: FloatArray, ties: npt.NDArray[np.int64], sites: Sequence[Site], hardware: Hardware
) -> tuple[FloatArray, FloatArray]:
    """Round bounds inwards to what the hardware realises, and intersect those of each group."""
    for group in np.unique(ties[ties >= 0]):
        lower[ties == group], upper[ties == group] = lower[ties == group].max(), upper[ties == group].min()
    low = [smallest_uniform(hardware.repetition, float(k)) for k in lower]
    high = [largest_uniform(hardware.repetition, float(k)) for k in upper]
    for site, first, last, a, b in zip(sites, low, high, lower, upper, strict=True):
        if first is None or last is None or first > last:
            raise ChoiceError(
                f"Site '{site.name}' is left no K that {hardware.name!r} can realise: at least {a:g} and at most {b:g} "
                "are asked for (fixed K, bounds and tied sites together). Loosen one of them."
            )
    return np.array(low, dtype=float), np.array(high, dtype=float)
