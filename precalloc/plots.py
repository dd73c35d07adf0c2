"""Plots of profiles, allocations and sweeps: each draws on a matplotlib axis and returns it.

The only file that knows matplotlib (the ``plots`` extra). Colours are those of Okabe and Ito, "Color Universal Design"
(2008), which readers with any colour vision tell apart; markers, dashes and hatches repeat what they say.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from precalloc.errors import DataError, DependencyError
from precalloc.hardware import NoiseKind
from precalloc.marking import KNEE
from precalloc.objective import require_kinds
from precalloc.profiles import Site

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from precalloc.allocation import Allocation
    from precalloc.hardware import Hardware
    from precalloc.profiles import Profile

BLUE, VERMILION, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#666666"
COLOURS = {"uniform": VERMILION, "layer": BLUE, "channel": GREEN}
_KIND_COLOURS = {NoiseKind.THERMAL: VERMILION, NoiseKind.WEIGHT: BLUE, NoiseKind.SHOT: GREEN}
_DASHES, _MARKERS = ("-", "--", "-.", ":"), "os^D"
_HATCHES = {NoiseKind.THERMAL: "", NoiseKind.WEIGHT: "//", NoiseKind.SHOT: ".."}
_ATTO = 1e18
_SIMULATED = ", simulated"
_LONG_LEGEND = 6
_NAMED_SITES = 40  # more names than that cannot be read under one axis


def plot_kmap(allocation: Allocation, ax: Axes | None = None) -> Axes:
    """Draw K of every site as bars, from the least to the greatest K of its channels as whiskers, and uniform K.

    Parameters
    ----------
    allocation
        What to draw.
    ax
        Where to; a new figure's without.

    Raises
    ------
    DependencyError
        If matplotlib is not installed; so do all functions of this module.
    """
    ax = ax or _new_axis()
    mean = np.array([entry.mean_repetitions for entry in allocation])
    low = np.array([entry.repetitions.min() for entry in allocation])
    high = np.array([entry.repetitions.max() for entry in allocation])
    whiskers = np.array([mean - low, high - mean]) if np.any(high > low) else None
    ax.bar(np.arange(len(mean)), mean, yerr=whiskers, color=COLOURS[str(allocation.granularity)], ecolor="0.2")
    ax.axhline(allocation.uniform.repetitions, color=VERMILION, linestyle="--", label="uniform K at this budget")
    ax.set(yscale="log", ylabel="repetitions K", title=f"{allocation.hardware.name}, {allocation.request}")
    ax.legend(frameon=False)
    return _name_sites(ax, [entry.site for entry in allocation])


def plot_noise_bits(allocation: Allocation, ax: Axes | None = None) -> Axes:
    """Draw the effective bits of every site's output, log2(range / (sqrt(12) sigma) + 1), as bars."""
    ax = ax or _new_axis()
    bits = np.array([entry.noise_bits for entry in allocation])
    ax.bar(np.arange(len(bits)), bits, color=COLOURS[str(allocation.granularity)])
    ax.set(ylabel="noise bits", title=f"{allocation.hardware.name}, {allocation.request}")
    return _name_sites(ax, [entry.site for entry in allocation])


def plot_sensitivity(profile: Profile, hardware: Hardware | None = None, ax: Axes | None = None) -> Axes:
    """Draw the damage of every site at K = 1, one bar a noise, with its standard error over examples.

    Parameters
    ----------
    profile
        What was measured.
    hardware
        Whose noises to draw, at their strengths; by default that for which the profile was measured.
    ax
        Where to; a new figure's without.

    Raises
    ------
    ProfileError
        If the profile lacks a noise kind of the hardware.
    """
    ax = ax or _new_axis()
    hardware = hardware or profile.hardware
    require_kinds(profile, hardware)
    width, positions = 0.8 / len(hardware.noise), np.arange(len(profile.sites))
    for i, term in enumerate(hardware.noise):
        damage = term.strength * profile.sum_channels(profile.damage[term.kind])
        error = term.strength * profile.site_damage_error[term.kind]
        shift = (i - (len(hardware.noise) - 1) / 2.0) * width
        style: dict[str, Any] = {
            "color": _KIND_COLOURS[term.kind],
            "hatch": _HATCHES[term.kind],
            "label": f"{term.kind} noise",
        }
        ax.bar(positions + shift, damage, width, yerr=error, ecolor="0.2", **style)
    ax.set(yscale="log", ylabel="damage at K = 1", title=f"Sensitivity on {hardware.name}")
    ax.legend(frameon=False)
    return _name_sites(ax, profile.sites)


def plot_curve(
    frame: pd.DataFrame,
    ax: Axes | None = None,
    *,
    landmarks: pd.DataFrame | None = None,
    chosen: Allocation | None = None,
) -> Axes:
    """Draw accuracy against energy per MAC: predicted as lines with 95 % bands, simulated as points with 95 % bars.

    Colour tells uniform K, K per layer and K per channel; dashes and markers tell the hardware.

    Parameters
    ----------
    frame
        What ``precalloc.sweep`` gave.
    ax
        Where to; a new figure's without.
    landmarks
        What ``precalloc.landmarks`` gave: the knee and the least energies are marked on the curves.
    chosen
        An allocation to mark with a star.

    Raises
    ------
    DataError
        If the frame is no sweep, or holds no accuracies.
    """
    ax = ax or _new_axis()
    _require_columns(frame, "hardware", "granularity", "energy_per_mac_joule", "accuracy", "clean_accuracy")
    frame = frame.dropna(subset="accuracy")
    if frame.empty:
        raise DataError("The sweep holds no accuracies: its profile has no margins. Profile the model with margins.")
    for i, (name, rows) in enumerate(frame.groupby("hardware", sort=False)):
        suffix = f", {name}" if frame["hardware"].nunique() > 1 else ""
        style = _DASHES[i % len(_DASHES)], _MARKERS[i % len(_MARKERS)]
        for granularity, part in rows.groupby("granularity", sort=False):
            _draw_curve(ax, part, "", str(granularity), f"K per {granularity}{suffix}", style)
        first = rows[rows["granularity"] == rows["granularity"].iloc[0]]
        _draw_curve(ax, first, "uniform_", "uniform", f"uniform K{suffix}", style)
    ax.axhline(100.0 * frame["clean_accuracy"].iloc[0], color=GREY, linestyle=":", label="clean")
    if landmarks is not None:
        _draw_landmarks(ax, landmarks)
    if chosen is not None and chosen.predicted is not None:
        point = _ATTO * chosen.energy_per_mac_joule, 100.0 * chosen.predicted.accuracy
        ax.plot(*point, color="black", marker="*", markersize=13, linestyle="none", label=f"chosen: {chosen.request}")
    ax.set(ylabel="accuracy (%)")
    return _short_legend(energy_axis(ax))


def energy_axis(ax: Axes) -> Axes:
    """Make the horizontal axis one of energy in aJ/MAC: logarithmic, with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set(xscale="log", xlabel="energy (aJ/MAC)")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    return ax


def _short(value: float) -> str:
    """Write a round number briefly: 0.5, 20, 500k, 2M."""
    step, unit = next(((step, unit) for step, unit in ((1e6, "M"), (1e3, "k")) if value >= step), (1.0, ""))
    return f"{value / step:g}{unit}"


def plot_calibration(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw simulated against predicted drop in points, both with 95 % bars; on the diagonal they agree.

    Parameters
    ----------
    frame
        What ``precalloc sweep --validate`` wrote: a sweep with simulated columns, missing where not simulated.
    ax
        Where to; a new figure's without.

    Raises
    ------
    DataError
        If no row was simulated.
    """
    ax = ax or _new_axis()
    _require_columns(frame, "granularity", "drop", "simulated_drop", "uniform_simulated_drop")
    points = frame.dropna(subset=["drop", "simulated_drop"])
    if points.empty:
        raise DataError("No point of the sweep was simulated. Give 'precalloc sweep' other data with --validate.")
    for granularity, part in points.groupby("granularity", sort=False):
        _draw_calibration(ax, part, "", str(granularity), f"K per {granularity}")
    first = points[points["granularity"] == points["granularity"].iloc[0]]
    _draw_calibration(ax, first, "uniform_", "uniform", "uniform K")
    ax.set(xscale="linear", yscale="linear")
    ax.axline((0.0, 0.0), slope=1.0, color=GREY, linestyle=":", label="equal")
    ax.set(xlabel="predicted drop (points)", ylabel="simulated drop (points)")
    ax.legend(frameon=False)
    return ax


def pictures(name: str, draw: Callable[[Axes], Axes]) -> dict[str, bytes]:
    """Draw on a figure of its own, whatever the backend, and give ``name.png`` and ``name.svg``."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    draw(figure.subplots())
    found = {}
    # Without dates and random names, the same numbers give the same files.
    with mpl.rc_context({"svg.hashsalt": name}):
        for ending, metadata in (("png", None), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, dpi=150, metadata=metadata)
            found[f"{name}.{ending}"] = buffer.getvalue()
    return found


def _new_axis() -> Axes:
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise DependencyError("Plots need matplotlib. Install it with: pip install 'precalloc[plots]'") from error
    return plt.subplots(figsize=(7.0, 3.8), layout="constrained")[1]


def _name_sites(ax: Axes, sites: Sequence[Site]) -> Axes:
    """Name the sites under the bars, or count them where there are too many to read."""
    if len(sites) <= _NAMED_SITES:
        ax.set_xticks(range(len(sites)), [site.name for site in sites], rotation=90, fontsize="small")
    else:
        ax.set_xlabel("site, in order of execution")
    return ax


def _require_columns(frame: pd.DataFrame, *columns: str) -> None:
    missing = [column for column in columns if column not in frame]
    if missing:
        raise DataError(f"The table lacks the columns {', '.join(missing)}. Give what 'precalloc.sweep' returned.")


def _draw_curve(ax: Axes, rows: pd.DataFrame, prefix: str, curve: str, label: str, style: tuple[str, str]) -> None:
    rows = rows.sort_values(f"{prefix}energy_per_mac_joule")
    energy, colour = _ATTO * rows[f"{prefix}energy_per_mac_joule"], COLOURS[curve]
    accuracy, low, high = (100.0 * rows[f"{prefix}accuracy{end}"] for end in ("", "_low", "_high"))
    ax.plot(energy, accuracy, color=colour, linestyle=style[0], label=label)
    ax.fill_between(energy, low, high, color=colour, alpha=0.15, linewidth=0.0)
    if f"{prefix}simulated_accuracy" in rows and rows[f"{prefix}simulated_accuracy"].notna().any():
        points = rows.dropna(subset=f"{prefix}simulated_accuracy")
        y, bars = _with_bars(points, f"{prefix}simulated_accuracy")
        x = _ATTO * points[f"{prefix}energy_per_mac_joule"]
        ax.errorbar(x, y, bars, color=colour, marker=style[1], linestyle="none", capsize=2, label=label + _SIMULATED)


def _draw_landmarks(ax: Axes, landmarks: pd.DataFrame) -> None:
    for mark, rows in landmarks.groupby("mark", sort=False):
        x, y = _ATTO * rows["energy_per_mac_joule"], 100.0 * rows["accuracy"]
        symbol = "P" if mark == KNEE else "v"
        faces = "none" if str(mark).startswith("1") else GREY
        ax.scatter(
            x, y, marker=symbol, s=45, edgecolors="black", facecolors=faces, zorder=3, label=_mark_label(str(mark))
        )


def _short_legend(ax: Axes) -> Axes:
    """Explain simulated points once, since they have the colours of the lines; a long legend goes beside the axis."""
    handles, labels = ax.get_legend_handles_labels()
    simulated = [i for i, label in enumerate(labels) if label.endswith(_SIMULATED)]
    shown = [i for i in range(len(labels)) if i not in simulated[1:]]
    texts = ["simulated, 95 % interval" if i in simulated else labels[i] for i in shown]
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if len(shown) > _LONG_LEGEND else {}
    ax.legend([handles[i] for i in shown], texts, frameon=False, fontsize="small", **beside)
    return ax


def _mark_label(mark: str) -> str:
    return mark if mark == KNEE else f"least energy, drop below {mark}"


def _draw_calibration(ax: Axes, rows: pd.DataFrame, prefix: str, curve: str, label: str) -> None:
    x, x_bars = _with_bars(rows, f"{prefix}drop")
    y, y_bars = _with_bars(rows, f"{prefix}simulated_drop")
    marker = {"uniform": "s", "layer": "o", "channel": "^"}[curve]
    ax.errorbar(x, y, y_bars, x_bars, color=COLOURS[curve], marker=marker, linestyle="none", capsize=2, label=label)


def _with_bars(rows: pd.DataFrame, column: str) -> tuple[Any, Any]:
    """Values in per cent (n,) and how far their intervals reach below and above (2, n)."""
    value, low, high = (100.0 * rows[f"{column}{end}"].to_numpy(dtype=float) for end in ("", "_low", "_high"))
    return value, np.maximum([value - low, high - value], 0.0)
