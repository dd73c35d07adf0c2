"""The program: anticipated errors, and options that cannot be read, become one line and an exit code."""

from __future__ import annotations

from typing import Any, cast

import typer
from typer.core import TyperGroup

from precalloc.errors import PrecallocError

# The error of any option or command that cannot be read; typer gives it no name of its own.
_UsageError = cast("type[Any]", typer.BadParameter.__base__)


class ProgramGroup(TyperGroup):
    """Commands whose anticipated errors are a line on standard error and exit code 2, and whose interruption is 130."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - the type of click's context depends on typer's release
        """Run a command."""
        try:
            return super().invoke(ctx)
        except PrecallocError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(2) from error
        except _UsageError as error:
            if not error.format_message():  # a group without a command: its help is the answer
                raise
            typer.echo(f"Error: {error.format_message()} Try '{(error.ctx or ctx).command_path} --help'.", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("Interrupted. Run the same command again to resume its measurement.", err=True)
            raise typer.Exit(130) from error
