"""The command line's reference page, made from the program itself each time the site is built."""

from pathlib import Path

import typer
from sphinx.application import Sphinx
from typer.cli import get_docs_for_click

TARGET = Path("reference/cli.md")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the page before Sphinx looks for its sources."""
    app.connect("builder-inited", lambda app: (Path(app.srcdir) / TARGET).write_text(reference(), encoding="utf-8"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def reference() -> str:
    """Markdown of all commands, their arguments and options."""
    from precalloc.cli import app

    command = typer.main.get_command(app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="precalloc", title="Command line")
