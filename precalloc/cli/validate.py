"""`precalloc validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precalloc.cli.options import BatchSize, Evaluation, Model, NoiseSeeds, OutputName, Seed, TaskName, Weights


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
) -> None:
    """Simulate the accuracy and the loss of a K map under noise."""
    from precalloc import workflow
    from precalloc.console import progress_bars, simulation_table, standard_console
    from precalloc.kmaps import KMap

    repetitions = KMap.load(kmap)
    network, examples = workflow.load(model, weights), workflow.load_examples(data)
    with progress_bars() as progress:
        effort = workflow.Effort(seed, batch_size, seeds, task=task, output=output, progress=progress)
        simulated = workflow.simulate(network, examples, repetitions, effort, workflow.checkpoint_of(kmap))
    standard_console().print(simulation_table(simulated))
