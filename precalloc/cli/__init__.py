"""The command line: one file a command; each joins a few calls and shows their result."""

from __future__ import annotations

import typer

from precalloc.cli import allocate, demo, hardware, predict, profile, report, sites, sweep, validate
from precalloc.cli.application import ProgramGroup

app = typer.Typer(
    cls=ProgramGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Choose how often an analog accelerator repeats each layer of a trained network.",
)
for command in (
    demo.demo,
    sites.sites,
    profile.profile,
    allocate.allocate,
    sweep.sweep,
    predict.predict,
    validate.validate,
    report.report,
):
    app.command()(command)
app.add_typer(hardware.app, name="hardware")


def main() -> None:
    """Run the command line."""
    app()
