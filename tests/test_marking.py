import numpy as np
import pytest
from builders import make_hardware, make_profile

import precalloc
from precalloc.errors import HardwareError
from precalloc.marking import knee, mark_of


def test_knee_is_where_the_gain_ends():
    energy = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    assert knee(energy, np.array([0.0, 0.5, 0.9, 0.95, 1.0])) == 2
    assert knee(energy, np.full(5, 0.7)) is None
    assert knee(energy[:2], np.array([0.0, 1.0])) is None


@pytest.mark.parametrize(("drop", "name"), [(0.01, "1 point"), (0.02, "2 points"), (0.005, "0.5 points")])
def test_drops_are_named_in_points(drop, name):
    assert mark_of(drop) == name


def test_landmarks_are_those_of_allocate_and_of_the_frame():
    profile, hardware = make_profile(), make_hardware()
    frame = precalloc.sweep(profile, "2x:100x:9", hardware=hardware, granularities=("layer", "channel"))
    found = precalloc.landmarks(profile, frame, hardware=hardware, max_drops=(0.05, 1e-6))
    assert list(found["mark"].unique()) == ["knee", "5 points"]  # no K promises a millionth
    assert not found.duplicated(["curve", "mark"]).any()
    by = found.set_index(["curve", "mark"])
    for granularity in ("layer", "channel"):
        least = precalloc.allocate(profile, max_drop=0.05, hardware=hardware, granularity=granularity)
        row = by.loc[(granularity, "5 points")]
        assert (row["energy_joule"], row["accuracy"]) == (least.energy_joule, least.predicted.accuracy)
        assert row["energy_per_mac_joule"] == pytest.approx(least.energy_per_mac_joule)
        if granularity == "layer":
            assert by.loc[("uniform", "5 points"), "energy_joule"] == least.matching_uniform.energy_joule
        rows = frame[frame["granularity"] == granularity]
        index = knee(rows["energy_joule"].to_numpy(), rows["accuracy"].to_numpy())
        assert by.loc[(granularity, "knee"), "energy_joule"] == rows["energy_joule"].iloc[index]
    assert set(found.columns) >= {"hardware", "mean_repetitions", "drop"}


def test_without_predictions_there_are_none():
    profile, hardware = make_profile(margins=False), make_hardware()
    frame = precalloc.sweep(profile, "2x:100x:4", hardware=hardware)
    assert precalloc.landmarks(profile, frame, hardware=hardware).empty


def test_hardware_of_one_name_are_refused():
    with pytest.raises(HardwareError, match="'test-chip'"):
        precalloc.sweep(make_profile(), "2x", hardware=[make_hardware(), make_hardware(k_max=9.0)])
