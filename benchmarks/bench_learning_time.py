"""Processor time of one K map by the paper's learning and by precalloc, measured in turn on one thread.

Learning takes as many seconds as steps, so a few dozen steps tell what 1500 take: the difference of a longer and a
shorter run, start-up left out, times the number of steps. precalloc's time is all of it: profile, allocation,
corrections and refinement for one budget. Both see the same calibration examples; ratios are of neighbours in time, and
their median and range over the repeats are printed. Freed memory is kept for both, as in any process that has freed a
large block before. Needs the fixtures, by default in ``../shared/fixtures`` beside the repository:

    python -m benchmarks.bench_learning_time [--cases kws-dscnn:shot] [--calibration N] [--repeats N]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import precalloc
from benchmarks.bench_least_energy import DEFAULT_FIXTURES, Case, Effort, Results
from precalloc.network.estimators import Learned

STEPS = 1500
SHORT, LONG = 10, 70
METHODS = ("precalloc-layer", "precalloc-channel", "precalloc-layer+compensated", "precalloc-channel+compensated")
CASES = ("kws-dscnn:shot", "kws-dscnn:thermal", "kws-dscnn:weight")
# Just below the largest block by which glibc learns how much freed memory to keep (mallopt(3), M_MMAP_THRESHOLD).
LARGEST = 2**25 - 2**16


def keep_freed_memory() -> None:
    """Free one large block, after which glibc keeps what is freed for the next step.

    Until a program happens to do so, learning spends much of its time on fresh pages at every step: what ran before
    would decide on it.
    """
    torch.empty(LARGEST, dtype=torch.uint8)


def seconds(run: Callable[[], object]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def learning(case: Case, granularity: str) -> float:
    """Seconds of the paper's learning for one K map, from the difference of two short runs."""
    budget = f"{case.centre(f'paper-{granularity}')}x"

    def learn(steps: int) -> float:
        estimator = Learned(budget, granularity, steps=steps)
        return seconds(
            lambda: precalloc.profile(case.model, case.calibration, case.hardware, margins=0, estimator=estimator)
        )

    return (learn(LONG) - learn(SHORT)) / (LONG - SHORT) * STEPS


def rows(case: Case, repeats: int) -> list[tuple[str, ...]]:
    """Seconds and their ratios, one row a method."""
    case.plan(METHODS[-1], case.centre(METHODS[-1]))  # torch's own start, and the profile that plans rest on
    taken: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for _ in range(repeats):
        for method, found in taken.items():
            granularity = method.partition("+")[0].rpartition("-")[2]
            profiling = seconds(lambda: precalloc.profile(case.model, case.calibration, case.hardware, margins=0))
            planning = seconds(lambda method=method: case.plan(method, case.centre(method)))
            found.append((learning(case, granularity), profiling + planning))
    table = []
    for method, found in taken.items():
        learned, own = np.array(found).T
        ratio = learned / own
        spread = f"{np.median(ratio):.0f} [{ratio.min():.0f}, {ratio.max():.0f}]"
        table.append((case.fixture, case.noise, method, f"{np.median(learned):.0f}", f"{np.median(own):.1f}", spread))
    return table


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="network:noise")
    parser.add_argument("--calibration", type=int, default=300, help="examples to choose K on")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if not arguments.fixtures.is_dir():
        print(f"Skipped: no fixtures in {arguments.fixtures}; give their folder with --fixtures.")
        return
    torch.set_num_threads(1)
    keep_freed_memory()
    table = Table(
        title=f"seconds for one K map on {arguments.calibration} examples; ratios of {arguments.repeats} runs"
    )
    for column in ("network", "noise", "method", f"learning, {STEPS} steps", "precalloc", "ratio"):
        table.add_column(column, no_wrap=True)
    for fixture, noise in (name.split(":") for name in arguments.cases):
        with tempfile.TemporaryDirectory() as folder:
            effort = Effort(arguments.calibration, examples=100, seeds=1, learning_steps=STEPS)
            case = Case(arguments.fixtures, fixture, noise, effort, Results(Path(folder) / "results.jsonl"))
            for row in rows(case, arguments.repeats):
                table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
