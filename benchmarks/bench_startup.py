"""Seconds from starting the interpreter to a finished ``precalloc allocate``, beside importing torch alone.

Prints the median and the range of several runs, taken in turn. Run: python benchmarks/bench_startup.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from precalloc.hardware import Hardware, NoiseKind
from precalloc.profiles import MarginTable, Profile, Provenance, Site

RUNS = 9
SITES, CHANNELS, EXAMPLES, MARGINS = 50, 256, 1000, 3


def synthetic_profile() -> Profile:
    """Make a profile of the size of ResNet50's, with margins per layer."""
    rng = np.random.default_rng(0)
    total, kind = SITES * CHANNELS, NoiseKind.SHOT
    sites = tuple(Site(f"site{i}", "conv2d", 1e7, 1e5, 100.0, CHANNELS, 1.0, 1.0, 0.0) for i in range(SITES))
    upper = np.triu_indices(MARGINS)
    reach = rng.normal(0.0, 0.5, (EXAMPLES, SITES, MARGINS))
    table = MarginTable(
        np.sort(rng.exponential(4.0, (EXAMPLES, MARGINS)), axis=1),
        {kind: (reach[:, :, upper[0]] * reach[:, :, upper[1]]).astype(np.float32)},
    )
    damage = {kind: rng.lognormal(-6.0, 2.0, total)}
    ones = {kind: np.ones(total)}
    origin = Provenance("synthetic", "0", "0", EXAMPLES, True, "none", 0, 99.99)
    hardware = Hardware.load("homodyne-1550nm")
    return Profile(sites, damage, ones, {kind: np.ones(SITES)}, ones, 0.95, 0.2, hardware, origin, table)


def seconds(*arguments: str) -> float:
    """Wall time of one run of this interpreter, which finds modules compiled as installed ones are."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        profile = synthetic_profile().save(Path(folder) / "profile.npz")
        common = (
            "-c",
            "from precalloc.cli import main; main()",
            "allocate",
            "--profile",
            str(profile),
            "--out",
            folder,
        )
        cases = {
            "python alone": ("-c", "pass"),
            "import torch": ("-c", "import torch"),
            "allocate --budget 15x": (*common, "--budget", "15x"),
            "allocate --budget 15x, per channel": (*common, "--budget", "15x", "--granularity", "channel"),
            "allocate --max-drop 0.02": (*common, "--max-drop", "0.02"),
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(RUNS):
            for name, arguments in cases.items():
                times[name].append(seconds(*arguments))
    print(f"{SITES} sites, {SITES * CHANNELS} channels, {EXAMPLES} examples; {RUNS} runs each")
    for name, values in times.items():
        print(f"{name:36} {statistics.median(values):5.2f} s  [{min(values):.2f}, {max(values):.2f}]")


if __name__ == "__main__":
    main()
