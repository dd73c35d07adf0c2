"""Profile files."""

import json
from dataclasses import replace

import numpy as np
import pytest
from builders import make_hardware, make_profile

from precalloc import Profile
from precalloc.errors import ProfileError
from precalloc.hardware import NoiseKind
from precalloc.profiles import write_npz


def test_a_profile_reads_back(tmp_path):
    saved = make_profile(hardware=make_hardware(levels=(1.0, 2.0, 4.0), k_max=4.0, per_conversion=1e-17))
    read = Profile.load(saved.save(tmp_path / "profile.npz"))
    for field in ("sites", "hardware", "provenance", "kinds", "clean_accuracy", "clean_loss"):
        assert getattr(read, field) == getattr(saved, field)
    for field in ("damage", "damage_error", "site_damage_error", "noise_variance"):
        for kind in saved.kinds:
            np.testing.assert_array_equal(getattr(read, field)[kind], getattr(saved, field)[kind])
    np.testing.assert_array_equal(read.margins.margins, saved.margins.margins)
    for field in ("site_covariance", "channel_covariance"):
        for kind in saved.kinds:
            np.testing.assert_array_equal(getattr(read.margins, field)[kind], getattr(saved.margins, field)[kind])
    assert read.margins.classes is None


def test_classes_of_margins_read_back_and_stay_with_a_selection(tmp_path):
    profile, classes = make_profile(), np.arange(1200).reshape(300, 4) % 7
    saved = replace(profile, margins=replace(profile.margins, classes=classes))
    read = Profile.load(saved.save(tmp_path / "profile.npz"))
    np.testing.assert_array_equal(read.margins.classes, classes)
    np.testing.assert_array_equal(read.select(np.array([True, False, True, True])).margins.classes, classes)


def test_torn_profile_is_refused_with_a_remedy(tmp_path):
    path = make_profile().save(tmp_path / "profile.npz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ProfileError, match=r"profile.npz is not a precalloc profile .* Profile the model again"):
        Profile.load(path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": 99}, "holds precalloc/profile version 99; this release reads precalloc/profile version 1"),
        ({"hardware": {"name": "chip"}}, "is not a precalloc profile .*Profile the model again"),
        ({"sites": [{"name": "conv"}]}, "is not a precalloc profile .*Profile the model again"),
        ({"kinds": ["magnetic"]}, "is not a precalloc profile .*magnetic.*Profile the model again"),
    ],
)
def test_profile_with_another_header_is_refused(tmp_path, changes, expected):
    path = make_profile(kinds=(NoiseKind.SHOT,)).save(tmp_path / "profile.npz")
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(arrays.pop("header").tobytes())
    write_npz(path, header | changes, arrays)
    with pytest.raises(ProfileError, match=expected):
        Profile.load(path)
