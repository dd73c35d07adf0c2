"""What the drawings of ``report.html`` show."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from precalloc import figures
from precalloc.accuracy import SimulatedAccuracy
from precalloc.allocation import Allocation
from precalloc.allocator import Allocator
from precalloc.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Bars,
    Interval,
    Line,
    Scale,
    Tick,
    bars,
    covering,
    line,
)
from precalloc.objective import Granularity, Objective
from precalloc.prediction import Prediction
from precalloc.profiles import Profile
from precalloc.trade_offs import TradeOff, trade_offs
from precalloc.units import format_energy

_ATTO = 1e18
_REACH = 8.0  # the curve goes from an eighth of the energy to eight times as much
_POINTS = 9


@dataclass(frozen=True)
class Curve:
    """Accuracy against energy around the allocation; coordinates, and the points that were drawn."""

    lines: tuple[Line, ...]
    marks: tuple[Interval, ...]
    mark_at: float
    clean: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    points: tuple[TradeOff, ...]


@dataclass(frozen=True)
class Comparison:
    """Predicted beside simulated drops, in points."""

    rows: tuple[Interval, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Charts:
    """All drawings; None where there is nothing to draw from."""

    by_site: tuple[Bars, ...]
    energy: Bars
    curve: Curve | None
    comparison: Comparison | None


def charts(allocation: Allocation, profile: Profile | None) -> Charts:
    """Lay out the drawings of a report; without the profile there is no curve, and damage instead of sensitivity."""
    return Charts(
        _by_site(allocation, profile), _energy(allocation), _curve(allocation, profile), _comparison(allocation)
    )


def _by_site(a: Allocation, profile: Profile | None) -> tuple[Bars, ...]:
    names = [entry.site.name for entry in a]
    mean_k = [(entry.mean_repetitions,) for entry in a]
    macs = [(entry.site.macs,) for entry in a]
    bits = [(entry.noise_bits,) for entry in a]
    return (
        bars("Repetitions K", names, mean_k, [figures.repetitions(entry) for entry in a], log=True,
             note="" if a.granularity is Granularity.LAYER else "mean over channels (least to most)"),
        bars("MACs per inference", names, macs, [figures.count(entry.site.macs) for entry in a]),
        _sensitivity(a, profile, names),
        bars("Noise bits", names, bits, [f"{entry.noise_bits:.1f}" for entry in a]),
    )  # fmt: skip


def _sensitivity(a: Allocation, profile: Profile | None, names: list[str]) -> Bars:
    if profile is None:
        damage, title = [entry.damage for entry in a], "Damage at this K"
    else:
        objective = Objective.of(profile, a.hardware, Granularity.LAYER)
        at_k1 = dict(zip((site.name for site in profile.sites), objective.site_floor + objective.damage, strict=True))
        damage, title = [float(at_k1[name]) for name in names], "Sensitivity: damage at K = 1"
    texts = [f"{value:.3g}" for value in damage]
    return bars(title, names, [(value,) for value in damage], texts, log=True)


def _energy(a: Allocation) -> Bars:
    # A site's channels share its cost equally, so energy is proportional to the mean of their K.
    before = [
        entry.energy_joule / entry.mean_repetitions * a.uniform.held.get(entry.site.name, a.uniform.repetitions)
        for entry in a
    ]
    values = [(old, entry.energy_joule) for old, entry in zip(before, a, strict=True)]
    texts = [f"{format_energy(old)} → {format_energy(new)}" for old, new in values]
    series = f"uniform K = {figures.repetitions(a.uniform)}", "allocated"
    return bars("Energy per inference", [entry.site.name for entry in a], values, texts, series=series)


def _curve(a: Allocation, profile: Profile | None) -> Curve | None:
    if profile is None or a.predicted is None:
        return None
    allocator = Allocator.of(profile, a.hardware, a.granularity, seed=a.seed, choices=a.choices)
    energies = [a.energy_joule * _REACH ** (2.0 * i / (_POINTS - 1) - 1.0) for i in range(_POINTS)]
    points = trade_offs(allocator, energies)
    if len(points) < 2:
        return None
    chosen, per_mac = _at_this_energy(a), _ATTO / a.macs
    allocated = [(per_mac * p.energy_joule, *_percents(p.predicted)) for p in points]
    uniform = [
        (per_mac * p.uniform.energy_joule, *_percents(p.uniform.predicted)) for p in points if p.uniform.predicted
    ]
    heights = [y for point in (*allocated, *uniform) for y in point[1:]]
    heights += [y for _, _, accuracy in chosen for y in _percents(accuracy)]
    x = Scale(min(p[0] for p in (*allocated, *uniform)), max(p[0] for p in (*allocated, *uniform)),
              LEFT, WIDTH - RIGHT, log=True)  # fmt: skip
    clean = 100.0 * a.predicted.clean_accuracy
    y = Scale(*covering([*heights, clean]), HEIGHT - BOTTOM, TOP)
    return Curve(
        lines=(line("uniform K", "uniform", uniform, x, y), line("allocated", "allocated", allocated, x, y)),
        marks=tuple(
            _interval(name, kind, figures.accuracy(value), _percents(value), y) for name, kind, value in chosen
        ),
        mark_at=x(per_mac * a.energy_joule),
        clean=y(clean),
        x_ticks=tuple(x.ticks()),
        y_ticks=tuple(y.ticks()),
        points=tuple(points),
    )


def _at_this_energy(a: Allocation) -> list[tuple[str, str, Prediction | SimulatedAccuracy]]:
    """Name, kind and accuracy of what is marked on the curve: the chosen point, and what was simulated there."""
    found = [
        ("chosen, predicted", "chosen", a.predicted),
        ("allocated, simulated", "allocated", a.simulated),
        ("uniform K, simulated", "uniform", a.uniform.simulated),
    ]
    return [(name, kind, value) for name, kind, value in found if value is not None and not math.isnan(value.accuracy)]


def _comparison(a: Allocation) -> Comparison | None:
    found = [
        ("allocated, predicted", "allocated", a.predicted),
        ("allocated, simulated", "allocated", a.simulated),
        ("uniform K, predicted", "uniform", a.uniform.predicted),
        ("uniform K, simulated", "uniform", a.uniform.simulated),
    ]
    shown = [(name, kind, value) for name, kind, value in found if value is not None and not math.isnan(value.drop)]
    if a.simulated is None or not shown:
        return None
    ends = [100.0 * end for _, _, value in shown for end in (value.drop_low, value.drop_high)]
    x = Scale(*covering([*ends, 0.0]), 170.0, WIDTH - RIGHT)
    rows = [
        _interval(name, kind, figures.drop(v), (100.0 * v.drop, 100.0 * v.drop_low, 100.0 * v.drop_high), x)
        for name, kind, v in shown
    ]
    return Comparison(tuple(rows), tuple(x.ticks()))


def _interval(
    name: str, kind: str, text: str, values: tuple[float, float, float], scale: Callable[[float], float]
) -> Interval:
    middle, low, high = values
    return Interval(name, kind, text, scale(low), scale(middle), scale(high))


def _percents(value: Prediction | SimulatedAccuracy | None) -> tuple[float, float, float]:
    assert value is not None
    return 100.0 * value.accuracy, 100.0 * value.accuracy_low, 100.0 * value.accuracy_high
