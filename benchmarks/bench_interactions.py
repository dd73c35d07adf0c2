"""How far the damage of all sites together is from the sum of what each does alone.

Allocation takes damage to be separable. Printed per network and noise, at a uniform K where the drop is a point or
two: the sum of the damages that curvature predicts; the sum of those measured with noise at one site at a time; the
damage with noise everywhere; and the ratio of the last two, all in nats on the first calibration examples, with
standard errors over batches. A site alone meets the very noise that it has among all others, in pairs of opposite
sign, so that the ratio is far better known than the damages. Needs the fixtures, by default in ``../shared/fixtures``
beside the repository:

    python -m benchmarks.bench_interactions [--cases kws-dscnn:shot] [--examples N] [--pairs N]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import precalloc
from benchmarks.bench_least_energy import CASES, DEFAULT_FIXTURES, PRESETS, first
from precalloc.kmaps import KMap
from precalloc.network.data_files import load_data
from precalloc.network.forward import model_device
from precalloc.network.models import load_model
from precalloc.network.noise import NoiseInjector
from precalloc.network.operating_point import Judged, clean_values, noisy_values
from precalloc.network.state import derived_seed, untouched
from precalloc.network.tasks import Task

BATCH = 16
NOISELESS = 1e30


def damages(model, data, kmaps: list[KMap], pairs: int) -> np.ndarray:
    """Mean increase of the loss by batch and K map, (batches, K maps); every K map meets the same noise."""
    task, found, device = Task(), [], model_device(model)
    with untouched(model):
        for index, batch in enumerate(data.batches(BATCH)):
            judged = Judged.of(model, task, batch)
            clean = clean_values(model, task, judged)[0].mean()
            row = []
            for kmap in kmaps:
                noisy = [
                    noisy_values(model, task, judged, NoiseInjector.of(kmap, derived_seed(index, pair), device, sign))
                    for pair in range(pairs)
                    for sign in (1.0, -1.0)
                ]
                row.append(np.mean([values[0].mean() for values in noisy]) - clean)
            found.append(row)
    return np.array(found)


def alone(kmap: KMap, site: str) -> KMap:
    """The K map with noise at one site only."""
    own = {name: k if name == site else np.full_like(k, NOISELESS) for name, k in kmap.repetitions.items()}
    return replace(kmap, repetitions=own)


def row(fixtures: Path, fixture: str, noise: str, k: float, examples: int, pairs: int) -> tuple[str, ...]:
    """Measure one case at uniform K."""
    folder, hardware = fixtures / fixture, precalloc.Hardware.load(PRESETS[noise])
    model = load_model(f"{folder / 'model.py'}:build")
    data = first(load_data(str(folder / "calib.npz")), examples)
    profile = precalloc.profile(model, data, hardware, margins=0)
    allocation = precalloc.allocate(profile, f"{k}x", hardware=hardware)
    kmap = allocation.uniform_kmap()
    seen = damages(model, data, [kmap, *(alone(kmap, name) for name in kmap.repetitions)], pairs)
    together, summed = seen[:, 0], seen[:, 1:].sum(axis=1)
    ratio, root = together.mean() / summed.mean(), len(seen) ** 0.5
    spread = (together - ratio * summed).std(ddof=1) / root / abs(summed.mean())
    return (
        fixture,
        noise,
        f"{k:g}",
        f"{allocation.uniform.damage:.4f}",
        *(f"{values.mean():.4f} +- {values.std(ddof=1) / root:.4f}" for values in (summed, together)),
        f"{ratio:.2f} +- {spread:.2f}",
    )


def main() -> None:
    """Measure the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    every = [":".join(case) for case in CASES]
    parser.add_argument("--cases", nargs="+", default=every, choices=every)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=1)
    arguments = parser.parse_args()
    if not arguments.fixtures.is_dir():
        print(f"Skipped: no fixtures in {arguments.fixtures}; give their folder with --fixtures.")
        return
    table = Table(title=f"damage in nats at uniform K, {arguments.examples} examples, {arguments.pairs} pairs of draws")
    for column in ("network", "noise", "K", "curvature", "sum of single sites", "all sites", "all / sum"):
        table.add_column(column, no_wrap=True)
    for fixture, noise in (name.split(":") for name in arguments.cases):
        k = CASES[fixture, noise]["uniform"]
        table.add_row(*row(arguments.fixtures, fixture, noise, k, arguments.examples, arguments.pairs))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
