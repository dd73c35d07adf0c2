"""`precalloc profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precalloc.cli.options import (
    AllowUncovered,
    BatchSize,
    Calibration,
    EstimatorName,
    HardwareName,
    Json,
    Model,
    OutputName,
    Quiet,
    Seed,
    TaskName,
    Verbose,
    Weights,
)
from precalloc.cli.terminal import Terminal
from precalloc.objective import Granularity


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
    estimator: EstimatorName = "curvature",
    budget: Annotated[str | None, typer.Option(help="That 'learned' learns for, such as '15x'.")] = None,
    granularity: Annotated[
        Granularity, typer.Option(help="Of the K that 'learned' learns; other estimators serve both.")
    ] = Granularity.LAYER,
    prediction_examples: Annotated[
        int, typer.Option(min=1, help="Examples at most that predictions rest on; memory grows with them.")
    ] = 1000,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure how much noise on each layer costs; run again after an interruption to resume."""
    from precalloc import workflow
    from precalloc.hardware import Hardware

    terminal = Terminal(quiet, as_json, verbose)
    chosen = Hardware.load(hardware)
    network, examples = workflow.load(model, weights), workflow.load_examples(data)
    with terminal.progress() as progress:
        effort = workflow.Effort(
            seed,
            batch_size,
            allow_uncovered=allow_uncovered,
            task=task,
            output=output,
            progress=progress,
            announce=terminal.announce,
            estimator=estimator,
            learn_budget=budget,
            learn_granularity=granularity,
            prediction_examples=prediction_examples,
        )
        measured = workflow.measure(network, model, examples, chosen, effort, workflow.checkpoint_of(out))
    measured.save(out)
    examples_used = measured.provenance.examples
    terminal.say(f"{len(measured.sites)} sites of {examples_used} examples: {out}")
    terminal.result(
        {"profile": str(out), "sites": len(measured.sites), "macs": measured.macs, "examples": examples_used}
    )
