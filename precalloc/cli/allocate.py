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
    from precalloc import workflow
    from precalloc.allocator import allocate as choose

    if (budget is None) == (max_drop is None):
        raise BudgetError("Give either --budget, such as '15x', or --max-drop, such as 0.02.")
    terminal = Terminal(quiet, as_json, verbose)
    decided = read_choices(include, exclude, fix, tie, k_min, k_max, digital_energy, choices)
    named = () if hardware is None else (hardware,)
    source = Source(model, data, profile, weights, named, validate, compensate, calibrate, refine)
    source.check()
    chosen = source.load_hardware()
    network = source.load_network()
    with terminal.progress() as progress:
        effort = workflow.Effort(
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
        measured = source.load_profile(network, chosen, effort, out)
        wanted = chosen[0] if chosen else measured.hardware
        calibration, compensates = source.load_calibration(), source.compensates(wanted)
        if calibrate is not False and network is not None and calibration is not None:
            checkpoint = workflow.checkpoint_of(out / "calibration")
            measured = workflow.calibrate(
                network, calibration, measured, effort, checkpoint, (wanted, granularity, compensates, decided)
            )
        allocation = choose(
            measured,
            budget,
            max_drop=max_drop,
            hardware=wanted,
            granularity=granularity,
            choices=decided,
            seed=seed,
        )
        if compensates:
            allocation = workflow.compensate(network, calibration, allocation, effort, out)
        if source.refines(wanted, calibration):
            assert network is not None
            allocation = workflow.refine(network, calibration, measured, allocation, effort, out)
        if network is not None and calibration is not None:
            allocation = workflow.safeguard(network, calibration, measured, allocation, effort, out)
        if validate is not None:
            assert network is not None
            examples = workflow.load_examples(validate)
            allocation = workflow.validate_both(network, examples, allocation, effort, out, calibration)
    finish(allocation, measured, out, terminal)
