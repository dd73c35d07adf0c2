"""An allocation that loses to uniform K in simulation gives way to it, and one that does not is left alone."""

from dataclasses import replace

import numpy as np
import pytest

from precalloc import Hardware, allocate, demo_model, profile, safeguard
from precalloc.errors import DataError
from precalloc.hardware import NoiseKind
from precalloc.network.data_files import load_data
from precalloc.network.data_parts import first


@pytest.fixture(scope="module")
def measured():
    model, data = demo_model.build(), first(load_data(str(demo_model.CALIBRATION)), 150)
    return model, data, profile(model, data, Hardware.load("homodyne-1550nm"))


def test_a_good_allocation_is_kept(measured):
    model, data, found = measured
    allocation = allocate(found, "4x")
    kept = safeguard(model, data, found, allocation, draws=2, batch_size=75)
    assert np.array_equal(kept.repetitions, allocation.repetitions)
    # At 4x the noise of this network is far beyond what second order describes.
    assert kept.notes[0].startswith("The separable model is off by more than a factor 2")


def test_separable_damage_has_no_note(measured):
    """Weak noise is described by second order; its damage summed a hundred times wrong is not."""
    model, data, found = measured
    allocation = allocate(found, "300x")
    kept = safeguard(model, data, found, allocation, draws=4, batch_size=75)
    assert not kept.notes
    wrong = replace(found, damage={NoiseKind.SHOT: 100.0 * found.damage[NoiseKind.SHOT]})
    noted = safeguard(model, data, wrong, allocate(wrong, "300x"), draws=4, batch_size=75)
    assert "exaggerates" in noted.notes[0]


def test_a_bad_allocation_gives_way_to_uniform_k(measured):
    """Sensitivities turned upside down starve just what needs many repetitions."""
    model, data, found = measured
    wrong = replace(found, damage={NoiseKind.SHOT: 1e-4 / found.damage[NoiseKind.SHOT].clip(1e-6)})
    allocation = allocate(wrong, "8x")
    kept = safeguard(model, data, wrong, allocation, draws=2, batch_size=75)
    assert np.allclose(kept.repetitions, allocation.uniform.repetitions)
    assert kept.energy_joule <= allocation.budget_joule * (1 + 1e-9)
    assert kept.objective == kept.uniform.damage
    assert kept.predicted == allocation.uniform.predicted
    assert kept.notes[0].startswith(
        "Uniform K is kept: simulated on 50 held-out calibration examples with 2 noise draws"
    )


def test_other_data_is_refused(measured):
    model, data, found = measured
    with pytest.raises(DataError, match="not those of the profile"):
        safeguard(model, first(data, 100), found, allocate(found, "4x"))
