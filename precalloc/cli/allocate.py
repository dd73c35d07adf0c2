"""`precalloc allocate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precalloc.cli.options import (
    AllowUncovered,
    BatchSize,
    NoiseSeeds,
    OneGranularity,
    OptionalCalibration,
    OptionalHardware,
    OptionalModel,
    OutFolder,
    OutputName,
    ProfileFile,
    Seed,
    TaskName,
    Weights,
)
from precalloc.cli.results import finish
from precalloc.errors import BudgetError, HardwareError, ModelError
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
    validate: Annotated[str | None, typer.Option(help="Other data to simulate on; needs MODEL.")] = None,
    seeds: NoiseSeeds = 8,
    task: TaskName = None,
    output: OutputName = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    allow_uncovered: AllowUncovered = False,
) -> None:
    """Choose K within a budget, or at the least energy for an accuracy, and write the K map and a report."""
    from precalloc import workflow
    from precalloc.allocator import allocate as choose
    from precalloc.console import progress_bars
    from precalloc.hardware import Hardware
    from precalloc.profiles import Profile

    _check_request(budget, max_drop, model, data, profile, hardware, validate)
    chosen = None if hardware is None else Hardware.load(hardware)
    network = workflow.load(model, weights) if model and (validate or not profile) else None
    with progress_bars() as progress:
        effort = workflow.Effort(seed, batch_size, seeds, allow_uncovered, task, output, progress)
        if profile is not None:
            measured = Profile.load(profile)
        else:
            calibration, kept = workflow.load_examples(str(data)), out / workflow.PROFILE_FILE
            assert network is not None
            assert chosen is not None
            measured = workflow.measure(network, str(model), calibration, chosen, effort, workflow.checkpoint_of(kept))
            measured.save(kept)
        allocation = choose(measured, budget, max_drop=max_drop, hardware=chosen, granularity=granularity, seed=seed)
        if validate is not None:
            assert network is not None
            allocation = workflow.validate_both(network, workflow.load_examples(validate), allocation, effort, out)
    finish(allocation, out)


def _check_request(
    budget: str | None,
    max_drop: float | None,
    model: str | None,
    data: str | None,
    profile: Path | None,
    hardware: str | None,
    validate: str | None,
) -> None:
    if (budget is None) == (max_drop is None):
        raise BudgetError("Give either --budget, such as '15x', or --max-drop, such as 0.02.")
    if profile is None and (model is None or data is None):
        raise ModelError("Give MODEL and --data to profile a model, or --profile with a saved profile.")
    if profile is None and hardware is None:
        raise HardwareError("Give --hardware, a preset name or TOML file: 'precalloc hardware' lists the presets.")
    if profile is not None and data is not None:
        raise ModelError("Give either --profile or --data: the profile already holds what calibration data tells.")
    if validate is not None and model is None:
        raise ModelError("--validate simulates the model: give MODEL as well.")
