"""`precalloc sites`."""

from __future__ import annotations

from dataclasses import asdict

from precalloc.cli.options import Calibration, Json, Model, Quiet, Verbose, Weights
from precalloc.cli.terminal import Terminal


def sites(
    model: Model,
    data: Calibration,
    weights: Weights = None,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the sites of a model, and what is not covered."""
    from precalloc import workflow
    from precalloc.console import sites_table
    from precalloc.figures import count
    from precalloc.network.sites import discover

    terminal = Terminal(quiet, as_json, verbose)
    report = discover(workflow.load(model, weights), workflow.load_examples(data))
    terminal.show(sites_table(report.sites))
    for entry in report.uncovered:
        macs = f"{count(entry.macs)} MACs" if entry.understood else "its kernel is not looked into"
        terminal.say(f"not covered: {entry.name} ({entry.operator}, {macs})")
    for product in report.digital:
        terminal.say(f"digital: {product.name} ({product.operator}, {count(product.macs)} MACs, {product.reason})")
    for name in report.never_called:
        terminal.say(f"never called: {name}")
    if report.folded:
        terminal.say(f"{len(report.folded)} batch norms are folded into the product before them")
    terminal.result(asdict(report))
