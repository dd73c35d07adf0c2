import builtins
import sys

import matplotlib as mpl
import numpy as np
import pytest
from builders import make_hardware, make_profile

import precalloc
from precalloc.errors import DataError, DependencyError, ProfileError
from precalloc.hardware import NoiseKind
from precalloc.plots import COLOURS, _mark_label

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.container import BarContainer

BUDGETS = "2x:100x:7"


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def frame():
    hardware = make_hardware(), make_hardware(((NoiseKind.THERMAL, 0.5),), name="second-chip")
    return precalloc.sweep(make_profile(), BUDGETS, hardware=hardware, granularities=("layer", "channel"))


def simulated(frame):
    """The frame with made-up simulations at two of its budgets."""
    frame = frame.copy()
    some = frame["budget"].isin(frame["budget"].unique()[[1, 4]])
    for prefix in ("", "uniform_"):
        for column in ("accuracy", "drop"):
            value = frame[f"{prefix}{column}"].where(some)
            frame[f"{prefix}simulated_{column}"] = value - 0.01
            frame[f"{prefix}simulated_{column}_low"] = value - 0.03
            frame[f"{prefix}simulated_{column}_high"] = value + 0.02
    return frame


def bars(ax):
    return [container for container in ax.containers if isinstance(container, BarContainer)]


def heights(ax):
    return np.array([[patch.get_height() for patch in container] for container in bars(ax)])


def ends(errorbar):
    """Lower and upper ends of the bars, shape (n, 2)."""
    (lines,) = errorbar.lines[2]
    return np.array([segment[:, 1] for segment in lines.get_segments()])


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def line(ax, label):
    (found,) = [entry for entry in ax.get_lines() if entry.get_label() == label]
    return found.get_xydata()


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_kmap_bars_are_the_repetitions(granularity):
    allocation = precalloc.allocate(make_profile(), "15x", hardware=make_hardware(), granularity=granularity)
    ax = precalloc.plot_kmap(allocation)
    assert heights(ax)[0] == pytest.approx([entry.mean_repetitions for entry in allocation])
    assert line(ax, "uniform K at this budget")[:, 1] == pytest.approx([15.0, 15.0])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [f"block{i}.conv" for i in range(4)]
    if granularity == "channel":
        whiskers = ends(bars(ax)[0].errorbar)
        assert whiskers[:, 0] == pytest.approx([entry.repetitions.min() for entry in allocation])
        assert whiskers[:, 1] == pytest.approx([entry.repetitions.max() for entry in allocation])


def test_bits_are_the_allocations():
    allocation = precalloc.allocate(make_profile(), "15x", hardware=make_hardware())
    assert heights(precalloc.plot_noise_bits(allocation))[0] == pytest.approx([s.noise_bits for s in allocation])


def test_sensitivity_is_the_profiles():
    profile, hardware = make_profile(), make_hardware(((NoiseKind.THERMAL, 0.1), (NoiseKind.SHOT, 2.0)))
    ax = precalloc.plot_sensitivity(profile, hardware)
    assert labels(ax) == ["thermal noise", "shot noise"]
    for drawn, strength, kind in zip(bars(ax), (0.1**2, 1 / 2.0), hardware.kinds, strict=True):
        damage = strength * profile.sum_channels(profile.damage[kind])
        assert [patch.get_height() for patch in drawn] == pytest.approx(damage)
        assert ends(drawn.errorbar)[:, 1] == pytest.approx(damage + strength * profile.site_damage_error[kind])
    assert precalloc.plot_sensitivity(profile).get_title() == f"Sensitivity on {profile.hardware.name}"
    with pytest.raises(ProfileError, match="weight"):
        precalloc.plot_sensitivity(make_profile((NoiseKind.SHOT,)), make_hardware(((NoiseKind.WEIGHT, 0.1),)))


def test_curves_are_the_frame(frame):
    ax = precalloc.plot_curve(frame)
    for (hardware, granularity), rows in frame.groupby(["hardware", "granularity"]):
        drawn = line(ax, f"K per {granularity}, {hardware}")
        assert drawn[:, 0] == pytest.approx(1e18 * rows["energy_per_mac_joule"].to_numpy())
        assert drawn[:, 1] == pytest.approx(100 * rows["accuracy"].to_numpy())
        if granularity == "layer":
            drawn = line(ax, f"uniform K, {hardware}")
            assert drawn[:, 0] == pytest.approx(1e18 * rows["uniform_energy_per_mac_joule"].to_numpy())
            assert drawn[:, 1] == pytest.approx(100 * rows["uniform_accuracy"].to_numpy())
    assert line(ax, "clean")[:, 1] == pytest.approx(100 * frame["clean_accuracy"].iloc[0])
    bands = [band.get_paths()[0].vertices[:, 1] for band in ax.collections]
    assert len(bands) == 6
    assert {band.min() for band in bands} >= {100 * frame["accuracy_low"].min()}
    assert {band.max() for band in bands} >= {100 * frame["accuracy_high"].max()}


def test_curves_show_what_was_simulated_and_chosen(frame):
    profile, hardware = make_profile(), make_hardware()
    rows = simulated(frame[(frame["hardware"] == hardware.name) & (frame["granularity"] == "layer")])
    chosen = precalloc.allocate(profile, "10x", hardware=hardware)
    marks = precalloc.landmarks(profile, rows, hardware=hardware, max_drops=(0.1,))
    ax = precalloc.plot_curve(rows, landmarks=marks, chosen=chosen)
    star = line(ax, "chosen: 10x")
    assert star == pytest.approx(np.array([[1e18 * chosen.energy_per_mac_joule, 100 * chosen.predicted.accuracy]]))
    for prefix, name in (("", "K per layer"), ("uniform_", "uniform K")):
        (points,) = [entry for entry in ax.containers if entry.get_label() == f"{name}, simulated"]
        few = rows.dropna(subset="simulated_accuracy")
        assert len(few) == 2
        assert points.lines[0].get_ydata() == pytest.approx(100 * few[f"{prefix}simulated_accuracy"].to_numpy())
        interval = few[[f"{prefix}simulated_accuracy_low", f"{prefix}simulated_accuracy_high"]]
        assert ends(points) == pytest.approx(100 * interval.to_numpy())
    drawn = {entry.get_label(): np.asarray(entry.get_offsets()) for entry in ax.collections}
    for mark, group in marks.groupby("mark"):
        assert drawn[_mark_label(mark)][:, 0] == pytest.approx(1e18 * group["energy_per_mac_joule"].to_numpy())
        assert drawn[_mark_label(mark)][:, 1] == pytest.approx(100 * group["accuracy"].to_numpy())


def test_calibration_is_the_frame(frame):
    rows = simulated(frame)
    ax = precalloc.plot_calibration(rows)
    few = rows.dropna(subset="simulated_drop")
    drawn = {entry.get_label(): entry.lines[0].get_xydata() for entry in ax.containers}
    for granularity, part in few.groupby("granularity"):
        expected = 100 * part[["drop", "simulated_drop"]].to_numpy()
        assert drawn[f"K per {granularity}"] == pytest.approx(expected)
    uniform = few[few["granularity"] == "layer"][["uniform_drop", "uniform_simulated_drop"]]
    assert drawn["uniform K"] == pytest.approx(100 * uniform.to_numpy())


def test_axes_are_given_and_returned(frame):
    allocation = precalloc.allocate(make_profile(), "15x", hardware=make_hardware())
    _, ax = plt.subplots()
    assert precalloc.plot_kmap(allocation, ax) is ax
    assert precalloc.plot_noise_bits(allocation, ax) is ax
    assert precalloc.plot_sensitivity(make_profile(), ax=ax) is ax
    assert precalloc.plot_curve(frame, ax) is ax
    assert precalloc.plot_calibration(simulated(frame), ax) is ax


def test_colours_are_those_of_okabe_and_ito():
    assert set(COLOURS.values()) <= {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}


def test_what_cannot_be_drawn_is_said(frame):
    with pytest.raises(DataError, match="lacks the columns hardware"):
        precalloc.plot_curve(frame.drop(columns="hardware"))
    with pytest.raises(DataError, match="no margins"):
        precalloc.plot_curve(precalloc.sweep(make_profile(margins=False), BUDGETS, hardware=make_hardware()))
    with pytest.raises(DataError, match="--validate"):
        precalloc.plot_calibration(simulated(frame).assign(simulated_drop=np.nan))


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *arguments, **options)

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match=r"precalloc\[plots\]"):
        precalloc.plot_sensitivity(make_profile())
