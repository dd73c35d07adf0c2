"""Charts as coordinates in a drawing, for templates to write as SVG.

SVG written by a template needs no plotting library, takes its colours from the page (light, dark, print) and keeps its
texts as text, for readers and for screen readers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Of a curve's drawing, in units of its view box.
WIDTH, HEIGHT = 640.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 14.0, 44.0
# Of a drawing of bars: where they begin, what the longest of them gets at least and at most, and how wide a character
# of the text beside it is at most.
BARS_WIDTH, BARS_LEFT, BARS_SHORTEST, BARS_LONGEST, BARS_CHARACTER = 420.0, 158.0, 40.0, 170.0, 7.2


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, a group a site.

    ``fractions`` are lengths in [0, 1], one a series; ``texts`` the same values in words.
    """

    title: str
    note: str
    series: tuple[str, ...]
    names: tuple[str, ...]
    fractions: tuple[tuple[float, ...], ...]
    texts: tuple[str, ...]

    @property
    def longest(self) -> float:
        """Length of a bar of 1 in the drawing: what the longest text beside it leaves."""
        left = BARS_WIDTH - BARS_LEFT - 12.0 - BARS_CHARACTER * max(map(len, self.texts))
        return min(max(left, BARS_SHORTEST), BARS_LONGEST)


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval, in the drawing's coordinates."""

    name: str
    kind: str
    text: str
    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Line:
    """A curve with the band of its 95 % interval, as SVG paths."""

    name: str
    kind: str
    path: str
    band: str


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map of values to coordinates."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Coordinate of a value, kept within the drawing."""
        low, high, x = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = 0.5 if high == low else (x - low) / (high - low)
        return round(self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start), 2)

    def ticks(self, factor: float = 1.0) -> list[Tick]:
        """Round values, of which ``factor`` times is written."""
        steps = (
            _round_steps_log(self.low * factor, self.high * factor)
            if self.log
            else _round_steps(self.low * factor, self.high * factor)
        )
        return [Tick(self(step / factor), f"{step:.10g}") for step in steps]


def bars(
    title: str,
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    texts: Sequence[str],
    *,
    series: Sequence[str] = ("allocated",),
    log: bool = False,
    note: str = "",
) -> Bars:
    """Lay out bars; what is not positive and finite has none. On a logarithmic scale they start at half the least."""
    shown = [value for group in values for value in group if 0.0 < value < math.inf]
    low, high = (min(shown) / 2.0, max(shown)) if shown else (0.0, 1.0)

    def fraction(value: float) -> float:
        if not 0.0 < value < math.inf:
            return 0.0
        return math.log(value / low) / math.log(high / low) if log else value / high

    note = f"{note}; logarithmic" if log and note else "logarithmic" if log else note
    lengths = tuple(tuple(round(fraction(value), 4) for value in group) for group in values)
    return Bars(title, note, tuple(series), tuple(names), lengths, tuple(texts))


def line(name: str, kind: str, points: Sequence[tuple[float, float, float, float]], x: Scale, y: Scale) -> Line:
    """Lay out a curve through (energy, value, low, high)."""
    path = "M" + " L".join(f"{x(energy)} {y(value)}" for energy, value, _, _ in points)
    upper = [f"{x(energy)} {y(high)}" for energy, _, _, high in points]
    lower = [f"{x(energy)} {y(low)}" for energy, _, low, _ in reversed(points)]
    return Line(name, kind, path, "M" + " L".join([*upper, *lower]) + " Z")


def covering(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """Ends of an axis that covers values with a margin."""
    low, high = min(values), max(values)
    room = margin * (high - low) or max(abs(high), 1.0) * margin
    return low - room, high + room


def _round_steps(low: float, high: float, most: int = 7) -> list[float]:
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1.0, 2.0, 5.0, 10.0) if power * m >= rough)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _round_steps_log(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = len(powers) > 4
    steps = [10.0**power * m for power in powers for m in ((1.0,) if decades else (1.0, 2.0, 5.0))]
    return [step for step in steps if low <= step <= high]
