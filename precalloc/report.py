"""A report of an allocation: the files that a person and a compiler take away."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from precalloc.allocation import Allocation
from precalloc.errors import ProfileError
from precalloc.kmap_files import kmap_csv, kmap_json
from precalloc.output_files import write_files
from precalloc.profiles import Profile
from precalloc.refinements import REFINED
from precalloc.rendering import render
from precalloc.report_charts import charts
from precalloc.reporting import report_markdown, warnings


@dataclass(frozen=True, eq=False)
class Report:
    """An allocation with what people read about it.

    Parameters
    ----------
    allocation
        What to report, simulated or not.
    profile
        What it was made from; it adds the sensitivities and the energy-accuracy curve around the allocation.
    command
        The command line that repeats it; left out where empty.
    """

    allocation: Allocation
    profile: Profile | None = None
    command: str = ""

    @classmethod
    def of(cls, allocation: Allocation, profile: Profile | None = None, command: str = "") -> Report:
        """Make a report.

        Raises
        ------
        ProfileError
            If the profile is not the one that the allocation was made from.
        """
        if profile is not None:
            _require_same(allocation, profile)
        return cls(allocation, profile, command)

    @cached_property
    def html(self) -> str:
        """One self-contained page: styles, script and drawings are in it, and nothing is fetched from anywhere."""
        found = charts(self.allocation, self.profile)
        return render(
            "report.html.j2",
            a=self.allocation,
            charts=found,
            warnings=warnings(self.allocation),
            command=self.command,
        )

    @property
    def markdown(self) -> str:
        """The same figures as text."""
        return report_markdown(self.allocation, self.command)

    def save(self, directory: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write ``kmap.json``, ``kmap.csv``, ``report.md`` and ``report.html``: all of them or none.

        Raises
        ------
        PrecallocError
            If the directory cannot be written.
        """
        contents = {
            "kmap.json": kmap_json(self.allocation),
            "kmap.csv": kmap_csv(self.allocation),
            "report.md": self.markdown,
            "report.html": self.html,
        }
        return write_files(directory, contents)

    def _repr_html_(self) -> str:
        return render("notebook_report.html.j2", a=self.allocation, warnings=warnings(self.allocation))


def _require_same(allocation: Allocation, profile: Profile) -> None:
    ours, theirs = allocation.provenance, profile.provenance
    same = (ours.model_hash, ours.data_hash, ours.estimator.removesuffix(REFINED), ours.seed) == (
        theirs.model_hash, theirs.data_hash, theirs.estimator, theirs.seed,
    )  # fmt: skip
    sites = {entry.site.name for entry in (*allocation, *allocation.digital)}
    if not same or sites != {site.name for site in profile.sites}:
        raise ProfileError(
            f"The allocation was not made from this profile (of {theirs.model or 'an unnamed model'}, "
            f"{theirs.examples} examples, seed {theirs.seed}). Give the profile that it was made from, or none."
        )
