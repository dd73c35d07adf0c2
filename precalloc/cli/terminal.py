"""How a command talks: tables for people, nothing when quiet, one line of JSON for programs."""

from __future__ import annotations

import json
import logging
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import typer

from precalloc.progress import Progress, silent

if TYPE_CHECKING:
    from rich.table import Table


class Terminal:
    """Where the words of a command go.

    Results go to standard output, and to nowhere when quiet or when programs listen; what is being done goes to
    standard error. ``verbose`` shows the log of all precalloc modules there.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False, verbose: bool = False) -> None:
        self._quiet, self._as_json = quiet, as_json
        if verbose:
            _log_to_standard_error()

    def announce(self, text: str) -> None:
        """Say which work is coming."""
        if not self._quiet:
            typer.echo(text, err=True)

    def progress(self) -> AbstractContextManager[Progress]:
        """Show progress bars on a terminal."""
        from precalloc.console import progress_bars

        return nullcontext(silent) if self._quiet else progress_bars()

    def show(self, *tables: Table) -> None:
        """Show tables to people."""
        from precalloc.console import standard_console

        if not (self._quiet or self._as_json):
            standard_console().print(*tables, sep="\n")

    def say(self, text: str) -> None:
        """Say a line to people."""
        if not (self._quiet or self._as_json):
            typer.echo(text)

    def result(self, record: dict[str, Any]) -> None:
        """Give programs the result: one line of JSON."""
        if self._as_json:
            typer.echo(json.dumps(record, allow_nan=False))


def _log_to_standard_error() -> None:
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("precalloc").setLevel(logging.DEBUG)
