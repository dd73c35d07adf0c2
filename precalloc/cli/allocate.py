"""`precalloc allocate`."""

from __future__ import annotations

from typing import Annotated

import typer

from precalloc.cli.deciding import (
    ChoicesFile,
    DigitalEnergy,
    Exclude,
    Fix,
    Include,
    LargestK,
    LeastK,
    Tie,
    read_choices,
)
from precalloc.cli.options import (
    AllowUncovered,
    BatchSize,
    Calibrate,
    Compensate,
    EstimatorName,
    Json,
    NoiseSeeds,
    OneGranularity,
    OptionalCalibration,
    OptionalHardware,
    OptionalModel,
    OutFolder,
    OutputName,
    ProfileFile,
    Quiet,
    Refine,
    Seed,
    TaskName,
    Verbose,
    Weights,
)
from precalloc.cli.planning import Wanted, plan
from precalloc.cli.results import finish
from precalloc.cli.sources import Source
from precalloc.cli.terminal import Terminal
from precalloc.errors import BudgetError
from precalloc.objective import Granularity


def allocate(
    out: OutFolder,
    model: OptionalModel = None,
    hardware: OptionalHardware = None,
    data: OptionalCalibration = None,
    profile: ProfileFile = None,
    weights: Weights = None,
    budget: Annotated[str | None, typer.Option(help="'3 nJ', '20 aJ/MAC', '15x' or '40% of 15x'.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Instead of a budget: 0.02 is two points.")] = None,
    granularity: OneGranularity = Granularity.LAYER,
    compensate: Compensate = None,
    calibrate: Calibrate = None,
    refine: Refine = None,
    estimator: EstimatorName = "curvature",
    validate: Annotated[str | None, typer.Option(help="Other data to simulate on; needs MODEL.")] = None,
    seeds: NoiseSeeds = 8,
    task: TaskName = None,
    output: OutputName = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    allow_uncovered: AllowUncovered = False,
    include: Include = None,
    exclude: Exclude = None,
    fix: Fix = None,
    tie: Tie = None,
    k_min: LeastK = None,
    k_max: LargestK = None,
    digital_energy: DigitalEnergy = None,
    choices: ChoicesFile = None,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Choose K within a budget, or at the least energy for an accuracy, and write the K map and a report."""
    from precalloc.workflow import Effort

    if (budget is None) == (max_drop is None):
        raise BudgetError("Give either --budget, such as '15x', or --max-drop, such as 0.02.")
    terminal = Terminal(quiet, as_json, verbose)
    decided = read_choices(include, exclude, fix, tie, k_min, k_max, digital_energy, choices)
    named = () if hardware is None else (hardware,)
    source = Source(model, data, profile, weights, named, validate, compensate, calibrate, refine)
    source.check()
    with terminal.progress() as progress:
        effort = Effort(
            seed,
            batch_size,
            seeds,
            allow_uncovered,
            task,
            output,
            progress,
            terminal.announce,
            estimator=estimator,
            learn_budget=budget,
            learn_granularity=granularity,
        )
        allocation, measured = plan(source, Wanted(budget, max_drop, granularity, decided), effort, out)
    finish(allocation, measured, out, terminal)
