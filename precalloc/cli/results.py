"""What the commands that end in a K map write and show."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from precalloc.allocation import Allocation


def finish(allocation: Allocation, out: Path) -> None:
    """Write the results and show them."""
    from precalloc import workflow
    from precalloc.console import kmap_table, standard_console, summary_table
    from precalloc.reporting import warnings

    written = workflow.write_results(allocation, out, shlex.join(["precalloc", *sys.argv[1:]]))
    console = standard_console()
    console.print(kmap_table(allocation))
    console.print(summary_table(allocation))
    for warning in warnings(allocation):
        typer.echo(f"Note: {warning}")
    typer.echo(f"Written to {out}: {', '.join(path.name for path in written)}")
