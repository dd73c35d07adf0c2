"""`precalloc report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precalloc.cli.options import Json, OutFolder, Quiet, Verbose
from precalloc.cli.results import finish
from precalloc.cli.terminal import Terminal


def report(
    kmap: Annotated[Path, typer.Option(help="kmap.json that 'precalloc allocate' wrote.")],
    out: OutFolder,
    profile: Annotated[
        Path | None, typer.Option(help="Profile that it was made from; adds sensitivities and the curve.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make the report of a K map again, from its files."""
    from precalloc.allocation import Allocation
    from precalloc.profiles import Profile

    allocation = Allocation.load(kmap)
    finish(allocation, None if profile is None else Profile.load(profile), out, Terminal(quiet, as_json, verbose))
