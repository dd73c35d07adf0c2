"""`precalloc hardware`: the presets."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer()


@app.callback(invoke_without_command=True)
def list_by_default(context: typer.Context) -> None:
    """List the hardware presets, or show one as a TOML file to start from."""
    if context.invoked_subcommand is None:
        list_hardware()


@app.command("list")
def list_hardware() -> None:
    """List the presets."""
    from precalloc.console import hardware_table, standard_console
    from precalloc.hardware import Hardware

    standard_console().print(hardware_table({name: Hardware.load(name) for name in Hardware.presets()}))


@app.command("show")
def show_hardware(name: Annotated[str, typer.Argument(help="Preset name or TOML file.")]) -> None:
    """Show a hardware as TOML: a file to start your own from."""
    from precalloc.hardware import Hardware

    typer.echo(Hardware.load(name).to_toml(), nl=False)
