"""The program: anticipated errors become one line and an exit code."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from precalloc.errors import PrecallocError


class ProgramGroup(TyperGroup):
    """Commands whose anticipated errors are a line on standard error and exit code 2, and whose interruption is 130."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - the type of click's context depends on typer's release
        """Run a command."""
        try:
            return super().invoke(ctx)
        except PrecallocError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("Interrupted. Run the same command again to resume its measurement.", err=True)
            raise typer.Exit(130) from error
