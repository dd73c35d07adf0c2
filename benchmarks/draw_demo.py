"""Draw the README's picture: simulated accuracy against energy for the bundled network, uniform K beside precalloc's.

Both are compensated, and precalloc's K refined, as ``precalloc allocate`` does of its own accord where the model is at
hand; ``validate``'s noise has taken part in neither.

    python benchmarks/draw_demo.py docs/demo.png

Needs matplotlib (the ``bench`` extra). Prints the numbers that it draws.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

import precalloc
from precalloc import demo_model
from precalloc.network.data_files import load_data
from precalloc.plots import energy_axis

BUDGETS = ("3x", "4x", "6x", "8x", "12x", "16x", "24x", "32x")


def main(target: Path) -> None:
    """Simulate every budget on the evaluation data and draw both curves with their 95 % intervals."""
    model, hardware = demo_model.build(), precalloc.Hardware.load("homodyne-1550nm")
    evaluation = load_data(str(demo_model.EVALUATION))
    calibration = load_data(str(demo_model.CALIBRATION))
    profile = precalloc.profile(model, calibration, hardware)
    curves: dict[str, list[tuple[float, float, float, float]]] = {"uniform K": [], "precalloc, one K per layer": []}
    clean = 0.0
    for budget in BUDGETS:
        start = precalloc.compensate(model, calibration, precalloc.allocate(profile, budget), check=False)
        allocation = precalloc.refine(model, calibration, profile, start)
        for name, plan in zip(curves, (allocation.uniform_kmap(), allocation), strict=True):
            simulated = precalloc.validate(model, evaluation, plan)
            clean = simulated.clean_accuracy
            point = (simulated.accuracy, simulated.accuracy_low, simulated.accuracy_high)
            curves[name].append((allocation.energy_per_mac_joule * 1e18, *(100 * value for value in point)))
            print(f"{budget:>4} {name:28} {point[0]:.3f} [{point[1]:.3f}, {point[2]:.3f}]")
    _, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for (name, points), colour, marker in zip(curves.items(), ("#D55E00", "#0072B2"), "so", strict=True):
        energy, accuracy, low, high = zip(*points, strict=True)
        axis.plot(energy, accuracy, color=colour, marker=marker, label=name)
        axis.fill_between(energy, low, high, color=colour, alpha=0.15)
    axis.axhline(100 * clean, color="0.4", linestyle="--", linewidth=1, label="clean")
    energy_axis(axis).set(ylabel="accuracy (%)", title="Digits, homodyne optics at 1550 nm")
    axis.legend(frameon=False, loc="lower right")
    target.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(target, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/demo.png"))
