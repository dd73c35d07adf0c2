"""`precalloc sites`."""

from __future__ import annotations

import typer

from precalloc.cli.options import Calibration, Model, Weights


def sites(model: Model, data: Calibration, weights: Weights = None) -> None:
    """List the sites of a model, and what is not covered."""
    from precalloc import workflow
    from precalloc.console import sites_table, standard_console
    from precalloc.figures import count
    from precalloc.network.sites import discover

    report = discover(workflow.load(model, weights), workflow.load_examples(data))
    console = standard_console()
    console.print(sites_table(report.sites))
    for entry in report.uncovered:
        typer.echo(f"not covered: {entry.name} ({entry.operator}, {count(entry.macs)} MACs)")
    for product in report.digital:
        typer.echo(f"digital: {product.name} ({product.operator}, {count(product.macs)} MACs, {product.reason})")
    for name in report.never_called:
        typer.echo(f"never called: {name}")
    if report.folded:
        typer.echo(f"{len(report.folded)} batch norms are folded into the product before them")
