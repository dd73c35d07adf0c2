"""`precalloc predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precalloc.cli.options import Json, Quiet, Verbose
from precalloc.cli.terminal import Terminal


def predict(
    kmap: Annotated[Path, typer.Option(help="kmap.json that 'precalloc allocate' wrote.")],
    profile: Annotated[Path, typer.Option(help="Profile of the examples, by 'precalloc profile' with the same model.")],
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Predict the accuracy on given examples, from a noiseless profile of them."""
    from precalloc.allocation import Allocation
    from precalloc.console import prediction_table
    from precalloc.example_prediction import predict as expect
    from precalloc.kmap_files import accuracy_record
    from precalloc.profiles import Profile

    terminal = Terminal(quiet, as_json, verbose)
    allocation, examples = Allocation.load(kmap), Profile.load(profile)
    found = {name: expect(allocation, examples, uniform=name == "uniform") for name in ("allocated", "uniform")}
    assert examples.margins is not None  # else nothing was predicted
    terminal.show(prediction_table(found, len(examples.margins.margins), examples.provenance.examples))
    if allocation.calibration is None:
        terminal.say("Note: linearised noise alone; calibrated, by allocate with MODEL and --data, it is closer.")
    terminal.result(
        {"kmap": str(kmap), "profile": str(profile)} | {name: accuracy_record(each) for name, each in found.items()}
    )
