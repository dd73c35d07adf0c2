"""Reference pages that are made from the program itself each time the site is built, and so are never behind it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from typer.cli import get_docs_for_click

if TYPE_CHECKING:
    from sphinx.application import Sphinx  # the tests of these pages do without

FOLDER = Path("reference")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for its sources."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def command_line() -> str:
    """Markdown of all commands, their arguments and options."""
    from precalloc.cli import app

    command = typer.main.get_command(app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="precalloc", title="Command line")


def public_names() -> str:
    """Directives for all that ``precalloc`` exports: functions, plots, values (errors have a section of their own)."""
    import precalloc

    exported = {name: getattr(precalloc, name) for name in precalloc.__all__ if not name.startswith("__")}
    functions = [name for name, value in exported.items() if not inspect.isclass(value)]
    plots = [name for name in functions if name.startswith("plot_")]
    values = [n for n, value in exported.items() if inspect.isclass(value) and not issubclass(value, Exception)]
    return "\n".join(
        [
            *_section("Functions", [f".. autofunction:: precalloc.{name}" for name in functions if name not in plots]),
            *_section("Plots", [f".. autofunction:: precalloc.{name}" for name in plots]),
            *_section("Values", [f".. autoclass:: precalloc.{name}\n   :members:" for name in values]),
        ]
    )


def _section(title: str, directives: list[str]) -> list[str]:
    return [title, "-" * len(title), "", *directives, ""]


PAGES = {"cli.md": command_line, "public.txt": public_names}


def _write(app: Sphinx) -> None:
    for name, make in PAGES.items():
        (Path(app.srcdir) / FOLDER / name).write_text(make(), encoding="utf-8")
