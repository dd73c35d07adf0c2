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
from precalloc.cli.planning import Wanted, plan
from precalloc.cli.results import finish
from precalloc.cli.sources import Source
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
    from precalloc import demo_model
    from precalloc.workflow import Effort

    terminal = Terminal(quiet, as_json, verbose)
    data, others = str(demo_model.CALIBRATION), str(demo_model.EVALUATION)
    source = Source(demo_model.SPECIFICATION, data, None, None, (hardware,), others, None, None, None)
    with terminal.progress() as progress:
        effort = Effort(seed=seed, progress=progress, announce=terminal.announce)
        allocation, profile = plan(source, Wanted(budget, None, granularity), effort, out)
    finish(allocation, profile, out, terminal)
