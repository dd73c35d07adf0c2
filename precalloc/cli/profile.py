"""`precalloc profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precalloc.cli.options import (
    AllowUncovered,
    BatchSize,
    Calibration,
    HardwareName,
    Model,
    OutputName,
    Seed,
    TaskName,
    Weights,
)


def profile(
    model: Model,
    data: Calibration,
    hardware: HardwareName,
    out: Annotated[Path, typer.Option(help="Profile file to write (.npz).")],
    weights: Weights = None,
    task: TaskName = None,
    output: OutputName = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    allow_uncovered: AllowUncovered = False,
) -> None:
    """Measure how much noise on each layer costs; run again after an interruption to resume."""
    from precalloc import workflow
    from precalloc.console import progress_bars
    from precalloc.hardware import Hardware

    chosen = Hardware.load(hardware)
    network, examples = workflow.load(model, weights), workflow.load_examples(data)
    with progress_bars() as progress:
        effort = workflow.Effort(
            seed, batch_size, allow_uncovered=allow_uncovered, task=task, output=output, progress=progress
        )
        measured = workflow.measure(network, model, examples, chosen, effort, workflow.checkpoint_of(out))
    measured.save(out)
    typer.echo(f"{len(measured.sites)} sites of {measured.provenance.examples} examples: {out}")
