"""Processor time of profiling and of noisy passes, as ratios to clean forward passes over the same examples.

- a profile of all sites, channels and noise kinds without prediction tables, in clean passes (at most 4 wanted);
- what prediction tables add to it, in backward passes of all gradients (at most the classes followed + 2 wanted: three
  margins follow four classes);
- a noisy pass in clean passes, for thermal (at most 2.5 wanted), shot (at most 3) and weight noise;
- the prediction of one K map from margins that are tabled, linearised and calibrated, in milliseconds.

Everything runs in one process on one thread, in turn, so that a ratio compares neighbours in time; the medians of the
ratios are printed with their range over the repeats. Needs the CIFAR-10 ResNet20 fixture, by default in
``../shared/fixtures`` beside the repository:

    python benchmarks/bench_speed.py [--fixtures DIR] [--examples N] [--repeats N]

By default all 2000 examples of its calibration set are taken: on a few, what is done once (first ranges, the survey)
weighs more.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import precalloc
from precalloc.allocator import Allocator
from precalloc.network.data import Data
from precalloc.network.data_files import load_data
from precalloc.network.data_parts import first
from precalloc.network.forward import Forward
from precalloc.network.interception import intercept
from precalloc.network.models import load_model
from precalloc.network.noise import NoiseInjector
from precalloc.objective import Granularity

DEFAULT_FIXTURES = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
FIXTURE = "cifar10-resnet20"
PRESETS = {"thermal": "crossbar-thermal", "shot": "homodyne-1550nm", "weight": "crossbar-weight"}
CLEAN, BACKWARD, PROFILE, TABLES = "clean pass", "clean pass and backward pass", "profile", "profile with tables"
WANTED = {PROFILE: "<= 4", "pass with thermal noise": "<= 2.5", "pass with shot noise": "<= 3"}
MARGINS, BATCH = 3, 32
PREDICTIONS, CALIBRATED_ON = 30, 64

Seconds = NDArray[np.float64]


def clean_pass(model: nn.Module, data: Data, kmap: precalloc.KMap | None = None) -> None:
    """Run all examples without gradients, under a K map's noise if one is given."""
    injector = None if kmap is None else NoiseInjector.of(kmap, 0, torch.device("cpu"))
    with torch.no_grad(), nullcontext() if injector is None else intercept(model, injector):
        for batch in data.batches(BATCH):
            Forward()(model, batch)


def backward_pass(model: nn.Module, data: Data) -> None:
    """Run all examples and the gradients of all activations and weights."""
    for batch in data.batches(BATCH):
        torch.autograd.grad(Forward()(model, batch).sum(), list(model.parameters()))


def make_calls(model: nn.Module, data: Data) -> dict[str, Callable[[], object]]:
    """Everything that is timed, by name."""
    chips = {kind: precalloc.Hardware.load(preset) for kind, preset in PRESETS.items()}
    every = replace(chips["shot"], noise=tuple(chip.noise[0] for chip in chips.values()))

    def profile(margins: int) -> precalloc.Profile:
        return precalloc.profile(
            model, data, every, margins=margins, batch_size=BATCH, prediction_examples=data.examples
        )

    measured = profile(0)
    kmaps = {kind: precalloc.allocate(measured, "8x", hardware=chip).kmap() for kind, chip in chips.items()}
    calls: dict[str, Callable[[], object]] = {
        CLEAN: lambda: clean_pass(model, data),
        BACKWARD: lambda: backward_pass(model, data),
        PROFILE: lambda: profile(0),
        TABLES: lambda: profile(MARGINS),
    }
    for kind, kmap in kmaps.items():
        calls[f"pass with {kind} noise"] = lambda kmap=kmap: clean_pass(model, data, kmap)  # type: ignore[misc]
    return calls


def measure(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, Seconds]:
    """Processor seconds of every call, (repeats,), all calls in turn."""
    taken = {name: np.zeros(repeats) for name in calls}
    for repeat in track(range(repeats), console=Console(stderr=True)):
        for name, call in calls.items():
            start = time.process_time()
            call()
            taken[name][repeat] = time.process_time() - start
    return taken


def make_table(taken: dict[str, Seconds], examples: int) -> Table:
    """Medians and ranges of the ratios."""
    repeats = len(taken[CLEAN])
    table = Table(title=f"{FIXTURE}, {examples} examples, batches of {BATCH}, one thread, {repeats} repeats in turn")
    for column in ("what", "processor s", "in", "ratio", "range", "wanted"):
        table.add_column(column, no_wrap=True)

    def add(name: str, seconds: Seconds, unit: str, one: Seconds, wanted: str) -> None:
        ratio = seconds / one
        spread = f"{ratio.min():.2f} to {ratio.max():.2f}"
        table.add_row(name, f"{np.median(seconds):.2f}", unit, f"{np.median(ratio):.2f}", spread, wanted)

    for name, seconds in taken.items():
        add(name, seconds, "clean passes", taken[CLEAN], WANTED.get(name, ""))
    extra, backward = taken[TABLES] - taken[PROFILE], taken[BACKWARD] - taken[CLEAN]
    add(f"tables of {MARGINS} margins", extra, "backward passes", backward, f"<= {MARGINS + 1 + 2}")
    return table


def prediction_table(model: nn.Module, data: Data) -> Table:
    """Processor milliseconds of a prediction: medians and ranges."""
    chip = precalloc.Hardware.load(PRESETS["shot"])
    profile = precalloc.profile(model, data, chip, prediction_examples=data.examples)
    table = Table(title=f"prediction of one K map, {data.examples} examples, {PREDICTIONS} times")
    for column in ("K per", "prediction", "median, ms", "range"):
        table.add_column(column, no_wrap=True)
    for level in (Granularity.LAYER, Granularity.CHANNEL):
        calibrated = precalloc.calibrate(model, data, profile, granularity=level.value, examples=CALIBRATED_ON)
        allocator = Allocator.of(calibrated, chip, level)
        assert allocator.predictor is not None
        k, _ = allocator.solve(8.0 * allocator.objective.cost_at_k1)
        calls = {"linearised": allocator.predictor.predict, "calibrated": allocator.predict}
        for name, seconds in measure({name: partial(call, k) for name, call in calls.items()}, PREDICTIONS).items():
            ms = 1e3 * seconds
            table.add_row(str(level), name, f"{np.median(ms):.1f}", f"{ms.min():.1f} to {ms.max():.1f}")
    return table


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--examples", type=int, default=2000, help="of the calibration set")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    spec = arguments.fixtures / FIXTURE
    if not spec.is_dir():
        print(f"Skipped: no fixture in {spec}; give the fixtures' folder with --fixtures.")
        return
    torch.set_num_threads(1)
    model = load_model(f"{spec / 'model.py'}:build")
    data = first(load_data(str(spec / "calib.npz")), arguments.examples)
    table = make_table(measure(make_calls(model, data), arguments.repeats), data.examples)
    console = Console(width=120)
    console.print(table)
    console.print(prediction_table(model, data))


if __name__ == "__main__":
    main()
