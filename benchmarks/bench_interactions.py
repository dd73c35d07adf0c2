"""How far the damage of all sites together is from the sum of what each does alone.

Allocation takes damage to be separable. Printed per network and noise, at uniform K: the sum of the damages that
curvature predicts; the sum of those measured with noise at one site at a time (`precalloc.network.estimators.forward`
at that K); the damage with noise everywhere; and the ratio of the last two, all in nats on the first calibration
examples, with standard errors over batches. Needs the fixtures, by default in ``../shared/fixtures`` beside the
repository:

    python benchmarks/bench_interactions.py [--cases kws-dscnn:shot] [--examples N] [--pairs N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import precalloc
from benchmarks.bench_least_energy import CASES, DEFAULT_FIXTURES, PRESETS, first
from precalloc.network.curvature import BatchSums
from precalloc.network.data_files import load_data
from precalloc.network.estimators import Forward
from precalloc.network.forward import model_device
from precalloc.network.models import load_model
from precalloc.network.noise import NoiseInjector
from precalloc.network.operating_point import Judged, noisy_values
from precalloc.network.state import derived_seed, untouched
from precalloc.network.tasks import Task

BATCH = 32


def together(model, data, kmap, pairs: int) -> tuple[float, float]:
    """Damage of a K map and its standard error; every batch has noise of its own, in pairs of opposite sign."""
    task, sums, device = Task(), BatchSums(1), model_device(model)
    with untouched(model):
        for index, batch in enumerate(data.batches(BATCH)):
            judged = Judged.of(model, task, batch)
            clean = noisy_values(model, task, judged, lambda _, product: product.apply(product.x, product.w))[0].sum()
            noisy = [
                noisy_values(model, task, judged, NoiseInjector.of(kmap, derived_seed(index, pair), device, sign))[
                    0
                ].sum()
                for pair in range(pairs)
                for sign in (1.0, -1.0)
            ]
            sums.add(np.array([np.mean(noisy) - clean]), batch.size)
    return float(sums.mean()[0]), float(sums.error()[0])


def row(fixtures: Path, fixture: str, noise: str, k: float, examples: int, pairs: int) -> tuple[str, ...]:
    """Measure one case at uniform K."""
    folder, hardware = fixtures / fixture, precalloc.Hardware.load(PRESETS[noise])
    model = load_model(f"{folder / 'model.py'}:build")
    data = first(load_data(str(folder / "calib.npz")), examples)
    forward = Forward(pairs=pairs, operating_k=k, batch_size=BATCH)
    alone = precalloc.profile(model, data, hardware, margins=0, estimator=forward)
    curvature = precalloc.profile(model, data, hardware, margins=0)
    strength = {term.kind: term.strength for term in hardware.noise}
    summed = sum(strength[kind] / k * alone.damage[kind].sum() for kind in alone.kinds)
    # Sites share their examples, so errors of single sites add up at worst.
    error = sum(strength[kind] / k * alone.site_damage_error[kind].sum() for kind in alone.kinds)
    predicted = sum(strength[kind] / k * curvature.damage[kind].sum() for kind in curvature.kinds)
    kmap = precalloc.allocate(curvature, f"{k}x", hardware=hardware).uniform_kmap()
    value, value_error = together(model, data, kmap, pairs)
    ratio = value / summed
    spread = abs(ratio) * np.hypot(error / summed, value_error / value)
    return (
        fixture,
        noise,
        f"{k:g}",
        f"{predicted:.4f}",
        f"{summed:.4f} +- {error:.4f}",
        f"{value:.4f} +- {value_error:.4f}",
        f"{ratio:.2f} +- {spread:.2f}",
    )


def main() -> None:
    """Measure the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=DEFAULT_FIXTURES)
    parser.add_argument("--cases", nargs="+", default=["kws-dscnn:shot", "cifar10-resnet20:shot"])
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
        k = CASES[fixture, noise]
        table.add_row(*row(arguments.fixtures, fixture, noise, k, arguments.examples, arguments.pairs))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
