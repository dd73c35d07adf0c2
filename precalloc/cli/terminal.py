"""How a command talks: tables for people, nothing when quiet, one line of JSON for programs."""

from __future__ import annotations

import json
import logging
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import typer

from precalloc.progress import Progress, silent
from precalloc.records import plain

if TYPE_CHECKING:
    from rich.table import Table


_log = logging.getLogger(__name__)


class Terminal:
    """Where the words of a command go.

    Results go to standard output, and to nowhere when quiet or when programs listen; what is being done goes to
    standard error. ``verbose`` shows the log of all precalloc modules there.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False, verbose: bool = False) -> None:
        self._quiet, self._as_json = quiet, as_json
        _show_log(verbose)

    def announce(self, text: str) -> None:
        """Say on a terminal, as progress is shown, which work is coming."""
        from precalloc.console import error_console

        _log.info(text)
        console = error_console()
        if console.is_terminal and not self._quiet:
            console.print(text, markup=False)

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
            typer.echo(json.dumps(plain(record), allow_nan=False))


class _StandardError(logging.Handler):
    """Writes to what standard error is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        typer.echo(self.format(record), err=True)


def _show_log(verbose: bool) -> None:
    """Show what precalloc logs on standard error, or leave it to whoever configured logging."""
    logger = logging.getLogger("precalloc")
    logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, _StandardError)]
    logger.setLevel(logging.DEBUG if verbose else logging.NOTSET)
    if verbose:
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
