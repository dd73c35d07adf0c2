"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precalloc.objective import Granularity

DEFAULT_HARDWARE = "homodyne-1550nm"

Model = Annotated[str, typer.Argument(help="path/file.py:factory, package.module:factory, .pt2 file or model folder")]
OptionalModel = Annotated[str | None, typer.Argument(help="As for 'profile'; not needed with --profile.")]
Weights = Annotated[str | None, typer.Option(help="Weights to load into the model (.safetensors or .pt).")]
_DATA = "a .npz or .safetensors file, a saved data set, an image folder, or module:factory"
Calibration = Annotated[str, typer.Option(help=f"Calibration data: {_DATA}.")]
Evaluation = Annotated[str, typer.Option(help=f"Evaluation data: {_DATA}.")]
OptionalCalibration = Annotated[
    str | None, typer.Option("--data", help="Calibration data, to profile and compensate MODEL on.")
]
ProfileFile = Annotated[Path | None, typer.Option(help="Profile that 'precalloc profile' wrote.")]
HardwareName = Annotated[str, typer.Option(help="Preset name or TOML file; see 'precalloc hardware'.")]
OptionalHardware = Annotated[
    str | None, typer.Option(help="As for 'profile'; with --profile, by default the one that was profiled for.")
]
OneGranularity = Annotated[Granularity, typer.Option(help="One K per layer or per channel.")]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="classification, token-classification, language-model or regression; told from output and labels "
        "where it can be.",
    ),
]
OutputName = Annotated[
    str | None, typer.Option("--output", help="Name or index of the output that counts, where the model has several.")
]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn at random.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples at a time; bounds the memory.")]
NoiseSeeds = Annotated[int, typer.Option("--seeds", min=1, help="Noise draws per example in simulations.")]
Compensate = Annotated[
    bool | None,
    typer.Option(help="Correct digital biases for the noise's mean shift; by default where the hardware has them."),
]
Calibrate = Annotated[
    bool | None,
    typer.Option(help="Simulate a few K maps so that predictions hold; by default where MODEL and --data are given."),
]
EstimatorName = Annotated[
    str,
    typer.Option(
        help="curvature (one pass), forward (noise at one layer at a time), or learned (the paper's, for the budget)."
    ),
]
Refine = Annotated[
    bool | None,
    typer.Option(
        help="Improve K and bias corrections under their own noise; by default where MODEL and --data are given and "
        "not all noise is of weights."
    ),
]
AllowUncovered = Annotated[bool, typer.Option("--allow-uncovered", help="Go on where MACs belong to no site.")]
OutFolder = Annotated[Path, typer.Option(help="Folder for the results.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done, on standard error.")]
