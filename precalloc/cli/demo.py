"""`precalloc demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precalloc.cli.options import (
    DEFAULT_HARDWARE,
    HardwareName,
    Json,
    OneGranularity,
    OutFolder,
    Quiet,
    Seed,
    Verbose,
)
from precalloc.cli.results import finish
from precalloc.cli.terminal import Terminal
from precalloc.objective import Granularity

# Uniform K visibly loses accuracy at this budget on the demo's network, and the allocation does not.
DEMO_BUDGET = "8x"


def demo(
    out: OutFolder = Path("precalloc-demo"),
    hardware: HardwareName = DEFAULT_HARDWARE,
    budget: Annotated[str, typer.Option(help="As for 'allocate'.")] = DEMO_BUDGET,
    granularity: OneGranularity = Granularity.LAYER,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run the whole flow on a bundled network for handwritten digits."""
    from precalloc import demo_model, workflow
    from precalloc.allocator import allocate as choose
    from precalloc.hardware import Hardware

    terminal = Terminal(quiet, as_json, verbose)
    chosen = Hardware.load(hardware)
    model, calibration = demo_model.build(), workflow.load_examples(str(demo_model.CALIBRATION))
    with terminal.progress() as progress:
        effort, kept = (
            workflow.Effort(seed=seed, progress=progress, announce=terminal.announce),
            out / workflow.PROFILE_FILE,
        )
        profile = workflow.measure(model, "precalloc demo", calibration, chosen, effort, workflow.checkpoint_of(kept))
        profile.save(kept)
        wanted = (chosen, str(granularity), chosen.digital_biases, None)
        checkpoint = workflow.checkpoint_of(out / "calibration")
        profile = workflow.calibrate(model, calibration, profile, effort, checkpoint, wanted)
        allocation = choose(profile, budget, hardware=chosen, granularity=granularity, seed=seed)
        if chosen.digital_biases:
            allocation = workflow.compensate(model, calibration, allocation, effort, kept.parent)
        evaluation = workflow.load_examples(str(demo_model.EVALUATION))
        allocation = workflow.validate_both(model, evaluation, allocation, effort, kept.parent)
    finish(allocation, profile, out, terminal)
