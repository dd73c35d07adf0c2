"""`precalloc sweep`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

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
    Json,
    NoiseSeeds,
    OptionalCalibration,
    OptionalModel,
    OutFolder,
    OutputName,
    ProfileFile,
    Quiet,
    Seed,
    TaskName,
    Verbose,
    Weights,
)
from precalloc.cli.sources import Source
from precalloc.cli.terminal import Terminal

if TYPE_CHECKING:
    import pandas as pd


class Granularities(StrEnum):
    """Which curves to draw beside uniform K."""

    LAYER = "layer"
    CHANNEL = "channel"
    BOTH = "both"


def sweep(
    budgets: Annotated[str, typer.Option(help="FIRST:LAST:COUNT, such as '2x:200x:15', or a list '5x,10x'.")],
    out: OutFolder,
    model: OptionalModel = None,
    hardware: Annotated[
        list[str] | None, typer.Option(help="Preset or TOML file; give several to compare them.")
    ] = None,
    data: OptionalCalibration = None,
    profile: ProfileFile = None,
    weights: Weights = None,
    granularity: Annotated[Granularities, typer.Option(help="Which curves beside uniform K.")] = Granularities.BOTH,
    compensate: Compensate = None,
    calibrate: Calibrate = None,
    validate: Annotated[str | None, typer.Option(help="Other data to simulate points on; needs MODEL.")] = None,
    points: Annotated[int, typer.Option(min=1, help="Budgets to simulate with --validate.")] = 4,
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
    pictures: Annotated[bool, typer.Option(help="Draw PNG and SVG; needs matplotlib.")] = True,
    parquet: Annotated[bool, typer.Option("--parquet", help="Write curve.parquet too; needs pyarrow.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Draw accuracy against energy over many budgets, predicted and, at a few of them, simulated."""
    from precalloc import sweep_runs, workflow
    from precalloc.calibration_cache import CalibrationCache
    from precalloc.compensation_cache import CompensationCache
    from precalloc.marking import curve_landmarks
    from precalloc.sweeping import allocations_within, parse_each, several, sweep_allocators, sweep_frame

    terminal = Terminal(quiet, as_json, verbose)
    decided = read_choices(include, exclude, fix, tie, k_min, k_max, digital_energy, choices)
    source = Source(model, data, profile, weights, tuple(hardware or ()), validate, compensate, calibrate)
    source.check()
    sweep_runs.require_writers(pictures, parquet)
    chosen, parsed = several(source.load_hardware()), parse_each(budgets)
    network, calibration = source.load_network(), source.load_calibration()
    granularities = ("layer", "channel") if granularity is Granularities.BOTH else (granularity.value,)
    with terminal.progress() as progress:
        effort = workflow.Effort(seed, batch_size, seeds, allow_uncovered, task, output, progress, terminal.announce)
        measured = source.load_profile(network, chosen, effort, out, reuse=True)
        allocators = sweep_allocators(measured, chosen or None, granularities, seed=seed, choices=decided)
        compensation = None
        if network is not None and calibration is not None:
            kept = out / sweep_runs.COMPENSATED_FOLDER
            compensation = CompensationCache(kept, network, calibration, effort, source.compensates)
            if calibrate is not False:
                kept = out / sweep_runs.CALIBRATED_FOLDER
                cache = CalibrationCache(kept, network, calibration, measured, effort, source.compensates)
                allocators = cache.calibrate_all(allocators)
        allocations = allocations_within(allocators, parsed)
        unread: tuple[str, ...] = ()
        if validate is not None:
            assert network is not None
            examples, unread = workflow.without_calibration(workflow.load_examples(validate), calibration)
            allocations = sweep_runs.simulate_some(network, examples, allocations, points, effort, out, compensation)
    frame = sweep_frame(allocations)
    marks = curve_landmarks(allocators, frame)
    written = sweep_runs.write_sweep(out, frame, marks, pictures=pictures, parquet=parquet)
    for note in (*unread, *sweep_runs.notes(allocations, source.compensates)):
        terminal.say(f"Note: {note}")
    _finish(terminal, frame, marks, [str(path) for path in written])


def _finish(terminal: Terminal, frame: pd.DataFrame, marks: pd.DataFrame, written: list[str]) -> None:
    from precalloc.console import landmarks_tables

    terminal.show(*landmarks_tables(marks))
    if frame["accuracy"].isna().any():
        terminal.say("Note: The profile holds no margins, so no accuracy is predicted.")
    terminal.say(f"Written: {', '.join(written)}")
    terminal.result({"landmarks": marks.to_dict("records"), "rows": len(frame), "files": written})
