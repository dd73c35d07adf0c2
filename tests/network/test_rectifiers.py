"""Slopes with noise ahead of rectifiers integrated out: their mean, their spread, and where nothing is integrated."""

import dataclasses

import numpy as np
import pytest
import torch
from networks import KINDS, SHOT, THERMAL, WEIGHT, hardware, initialised, normal
from torch import nn
from torch.nn import functional as F

from precalloc import allocate, profile
from precalloc.network.batches import Batch
from precalloc.network.criteria import Regression
from precalloc.network.curvature import ChannelSlots
from precalloc.network.operating_point import Judged, Slopes, batch_slopes
from precalloc.network.rectifiers import Blend, IntegratedSlopes, integrated_slopes
from precalloc.network.tasks import Task

Z, DRAWS = 4.5, 600


class Rectified(nn.Module):
    """One rectifier, by choice in place or behind an output that something else sees; nothing nonlinear follows."""

    def __init__(self, how="plain"):
        super().__init__()
        self.how, self.first, self.head = how, nn.Conv1d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        y = self.first(x)
        if self.how == "scaled":
            y = 1.5 * y
        z = torch.relu_(y) if self.how == "in place" else F.relu(y)
        if self.how == "seen":
            z = z + y
        return self.head(z.mean(2))


def setting(how="plain", chip=None, corrections=False):
    """A model with its task, data, slots and a K map of noise that is strong ahead of the rectifier alone."""
    model, x, task = initialised(Rectified(how), seed=1, scale=1.5), normal(2, 6, 2, 9), Task(Regression())
    found = profile(model, {"x": x}, hardware(KINDS), task="regression", margins=0)
    kmap = allocate(found, "10x", hardware=chip).kmap()
    kmap = dataclasses.replace(kmap, repetitions={"first": np.array([0.3, 0.5, 0.2, 0.4]), "head": np.array([1e6])})
    if corrections:
        kmap = kmap.compensated({"first": np.array([0.3, -0.2, 0.1, -0.4])})
    judged = Judged.of(model, task, Batch({"x": x}, normal(3, 6, 3)))
    return model, task, judged, kmap, ChannelSlots.of_sites({site.name: site.channels for site in found.sites})


def slopes(seeds, *setting):
    """Sensitivities of the first site as drawn, integrated, and that without curvature, (draws, 3, channels)."""
    rows = []
    for seed in seeds:
        drawn = batch_slopes(*setting, seed, (1.0,), {})
        found = integrated_slopes(*setting, seed, {})
        np.testing.assert_allclose(found.drawn.sensitivity, drawn.sensitivity, rtol=1e-4)
        assert found.drawn.corrections.keys() == drawn.corrections.keys()
        for site, slope in found.drawn.corrections.items():
            np.testing.assert_allclose(slope, drawn.corrections[site], rtol=1e-4)
        uncurved = drawn.sensitivity + found.excess
        rows.append([each[:4] for each in (drawn.sensitivity, uncurved + found.curved, uncurved)])
    return np.array(rows)


@pytest.mark.parametrize(
    ("kind", "how", "corrections"), [(THERMAL, "plain", False), (SHOT, "plain", True), (THERMAL, "in place", True)]
)
def test_integrals_have_the_mean_of_draws_and_a_fraction_of_their_variance(kind, how, corrections):
    """Exactly, since the loss is quadratic in what the rectifier gives."""
    drawn, whole, uncurved = slopes(range(DRAWS), *setting(how, hardware((kind,)), corrections)).swapaxes(0, 1)
    difference = whole - drawn
    error = difference.std(0) / DRAWS**0.5
    assert np.all(np.abs(difference.mean(0)) < Z * error)
    assert np.max(np.abs((uncurved - drawn).mean(0)) / error) > 3 * Z, "curvature would not be missed"
    assert whole.var(0).sum() < 0.3 * drawn.var(0).sum()


@pytest.mark.parametrize("how", ["scaled", "seen"])
def test_only_what_goes_straight_and_alone_into_a_rectifier_is_integrated(how):
    drawn, whole, _ = slopes(range(3), *setting(how, hardware((THERMAL,)))).swapaxes(0, 1)
    assert np.all(drawn != 0.0)
    np.testing.assert_array_equal(whole, drawn)


def test_noise_that_repetition_does_not_average_is_not_integrated():
    """A floor's share of the noise does not answer to K."""
    chip = hardware((THERMAL, SHOT))
    floor = dataclasses.replace(chip.noise[0], averaged_by=frozenset())
    chip = dataclasses.replace(chip, noise=(floor, chip.noise[1]))
    drawn, whole, _ = slopes(range(3), *setting("plain", chip)).swapaxes(0, 1)
    np.testing.assert_array_equal(whole, drawn)


def test_where_there_is_no_noise_slopes_are_zero():
    """Shot noise of an empty input, behind which the rectifier is at its kink."""
    model, task, judged, kmap, slots = setting("plain", hardware((SHOT,)))
    torch.nn.init.zeros_(model.first.bias)
    empty = dataclasses.replace(judged.batch, inputs={"x": torch.zeros(6, 2, 9)})
    found = integrated_slopes(model, task, dataclasses.replace(judged, batch=empty), kmap, slots, 5, {})
    for values in (found.drawn.sensitivity, found.excess, found.curved):
        np.testing.assert_allclose(values[:4], 0.0, atol=1e-12)


def test_weight_errors_are_drawn_as_ever():
    drawn, whole, _ = slopes(range(3), *setting("plain", hardware((WEIGHT,)))).swapaxes(0, 1)
    assert np.all(drawn != 0.0)
    np.testing.assert_array_equal(whole, drawn)


def test_parts_of_a_batch_add_up_to_the_whole():
    model, task, judged, kmap, slots = setting("plain", hardware((SHOT,)), corrections=True)
    whole = integrated_slopes(model, task, judged, kmap, slots, 5, {})
    parts = [
        integrated_slopes(model, task, Judged.of(model, task, part), kmap, slots, 5, {})
        for part in judged.batch.split(4)
    ]
    assert len(parts) == 2
    for of in (lambda each: each.excess, lambda each: each.curved):
        np.testing.assert_allclose(sum(map(of, parts)), of(whole), rtol=1e-4)


def test_a_blend_trusts_the_integrals_as_far_as_they_account_for_the_draws():
    k, drawn = np.array([1.0, 2.0]), np.array([4.0, -2.0])
    blend, slopes = Blend(2), Slopes(3.0 * drawn, {})
    first = blend.slopes([IntegratedSlopes(slopes, np.array([-6.0, 3.0]), np.array([0.0, 3.0]))], 3.0, k)
    # The draws' slope is 4 - 1, the integrals' 2 + 0: two thirds of it.
    np.testing.assert_allclose(first.sensitivity, drawn + 2 / 3 * np.array([-2.0, 2.0]))
    held = blend.slopes([IntegratedSlopes(slopes, np.array([9.0, 6.0]), None)], 3.0, k)
    # Means over both steps: 3 and (2 + 7.5) / 2, which is more than all of it; the curvature of before is held.
    np.testing.assert_allclose(held.sensitivity, drawn + np.array([3.0, 3.0]))
    other = Blend(2)
    other.restore(blend.state())
    again = IntegratedSlopes(slopes, np.array([-6.0, 0.0]), np.array([1.0, 1.0]))
    np.testing.assert_array_equal(*(each.slopes([again], 3.0, k).sensitivity for each in (blend, other)))


def test_a_blend_of_draws_that_want_less_energy_is_the_draws():
    drawn = np.array([-4.0, 1.0])
    found = Blend(2).slopes([IntegratedSlopes(Slopes(drawn, {}), np.ones(2), np.ones(2))], 1.0, np.ones(2))
    np.testing.assert_array_equal(found.sensitivity, drawn)


def test_curvature_is_estimated_in_every_eighth_step():
    assert [step for step in range(20) if Blend.bends(step)] == [0, 8, 16]
