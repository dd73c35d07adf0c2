"""What the commands that end in a K map write and show."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precalloc.allocation import Allocation, UniformAllocation
    from precalloc.cli.terminal import Terminal
    from precalloc.profiles import Profile


def finish(allocation: Allocation, profile: Profile | None, out: Path, terminal: Terminal) -> None:
    """Write the results and show them."""
    from precalloc.console import kmap_table, summary_table
    from precalloc.report import Report
    from precalloc.reporting import warnings

    written = Report.of(allocation, profile, shlex.join(["precalloc", *sys.argv[1:]])).save(out)
    notes = warnings(allocation)
    terminal.show(kmap_table(allocation), summary_table(allocation))
    if allocation.confirmation:
        terminal.say(allocation.confirmation)
    for note in notes:
        terminal.say(f"Note: {note}")
    terminal.say(f"Written to {out}: {', '.join(path.name for path in written)}")
    terminal.result(_headline(allocation) | {"warnings": list(notes), "files": [str(path) for path in written]})


def _headline(allocation: Allocation) -> dict[str, Any]:
    return {
        "request": allocation.request,
        "granularity": str(allocation.granularity),
        "hardware": allocation.hardware.name,
        "allocated": _figures(allocation, allocation.objective),
        "uniform": _figures(allocation.uniform, allocation.uniform.damage)
        | {"repetitions": allocation.uniform.repetitions},
        "energy_per_mac_joule": allocation.energy_per_mac_joule,
        "saving": allocation.saving,
        "lower_bound": allocation.lower_bound,
        "gap": allocation.gap,
        "status": allocation.status,
        "confirmed": allocation.is_confirmed,
    }


def _figures(entry: Allocation | UniformAllocation, damage: float) -> dict[str, Any]:
    from precalloc.kmap_files import accuracy_record

    return {
        "energy_joule": entry.energy_joule,
        "damage": damage,
        "predicted": accuracy_record(entry.predicted),
        "simulated": accuracy_record(entry.simulated),
    }
