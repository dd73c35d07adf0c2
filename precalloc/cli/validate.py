"""`precalloc validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precalloc.cli.options import (
    BatchSize,
    Evaluation,
    Json,
    Model,
    NoiseSeeds,
    OutputName,
    Quiet,
    Seed,
    TaskName,
    Verbose,
    Weights,
)
from precalloc.cli.terminal import Terminal


def validate(
    model: Model,
    data: Evaluation,
    kmap: Annotated[Path, typer.Option(help="kmap.json that 'precalloc allocate' wrote.")],
    weights: Weights = None,
    seeds: NoiseSeeds = 8,
    task: TaskName = None,
    output: OutputName = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Simulate the accuracy and the loss of a K map under noise."""
    from precalloc import workflow
    from precalloc.console import simulation_table
    from precalloc.kmaps import KMap

    terminal = Terminal(quiet, as_json, verbose)
    repetitions = KMap.load(kmap)
    network, examples = workflow.load(model, weights), workflow.load_examples(data)
    with terminal.progress() as progress:
        effort = workflow.Effort(
            seed, batch_size, seeds, task=task, output=output, progress=progress, announce=terminal.announce
        )
        simulated = workflow.simulate(network, examples, repetitions, effort, workflow.checkpoint_of(kmap))
    terminal.show(simulation_table(simulated))
    notes = workflow.doubts(repetitions, network, examples)
    for note in notes:
        terminal.say(f"Note: {note}")
    terminal.result({"kmap": str(kmap), "simulated": simulated.to_record(), "notes": list(notes)})
