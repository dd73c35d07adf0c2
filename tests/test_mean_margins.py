"""Mean margins under noise: gain, class shifts and what labels win are found, with honest errors, and shrink."""

import math

import numpy as np
import pytest

from precalloc.calibration import DEVICE_EXAMPLES
from precalloc.class_terms import ClassTerms
from precalloc.mean_margins import MeanMargins, pooled

GAIN, FACTOR, NOISE = -0.15, 0.7, 1.3
SHIFT = np.array([0.4, -0.3, 0.0, 0.0, 0.6])


def noisy_margins(seed, examples=1200, shift=SHIFT, gain=GAIN, wins=0.0):
    """Margins of five classes, nearest first, with their classes, and under noise that moves their means."""
    rng = np.random.default_rng(seed)
    logits, label = rng.normal(0.0, 2.0, (examples, 5)), rng.integers(5, size=examples)
    rows = np.arange(examples)
    others = logits.copy()
    others[rows, label] = -np.inf
    order = others.argsort(axis=1)[:, ::-1][:, :3]
    classes = np.concatenate([label[:, None], order], axis=1)
    clean = logits[rows, label][:, None] - np.take_along_axis(logits, order, 1)
    moved = (1.0 + gain) * clean + shift[classes[:, :1]] - shift[order] + wins
    normal = rng.standard_normal((1, *clean.shape))
    spread = NOISE * math.sqrt(FACTOR) * np.concatenate([normal, -normal])  # a pair of opposite noise
    spread += 0.3 * rng.standard_normal((1, *clean.shape))  # what of the shift is each example's own
    return clean, moved + spread, np.full(clean.shape, NOISE**2), classes, rows // DEVICE_EXAMPLES


def test_gain_shifts_and_factor_are_found_with_honest_errors():
    errors = []
    for seed in range(40):
        found = MeanMargins.fit(*noisy_margins(seed))
        assert found.shift.classes == (0, 1, 2, 3, 4)
        # Margins see differences alone: their mean is nobody's.
        seen, truth = (np.array(v) - np.mean(v) for v in (found.shift.value, SHIFT))
        errors.append(
            [(found.gain - GAIN) / math.sqrt(found.gain_variance), *(seen - truth) / np.sqrt(found.shift.variance)]
        )
        assert found.factor == pytest.approx(FACTOR + 0.09 / NOISE**2, rel=0.1)
    mean, deviation = np.mean(errors, axis=0), np.std(errors, axis=0)
    assert np.all(np.abs(mean) < 0.3 + 4.0 / math.sqrt(40))  # the prior holds the shifts back a little
    assert np.all((deviation > 0.6) & (deviation < 1.5))


def test_what_labels_win_is_found_with_an_honest_error_and_held_back_where_little_tells():
    wins = 0.05 * NOISE
    found = [MeanMargins.fit(*noisy_margins(seed, wins=wins)) for seed in range(40)]
    errors = np.array([(each.advantage - wins) / math.sqrt(each.advantage_variance) for each in found])
    assert abs(np.mean(errors)) < 4.0 / math.sqrt(40)
    assert 0.6 < np.std(errors) < 1.5
    few = [MeanMargins.fit(*noisy_margins(seed, examples=40, wins=6.0 * wins)) for seed in range(10)]
    assert max(each.advantage_variance for each in few) < (0.03 * NOISE) ** 2
    assert np.mean([each.advantage for each in few]) < 0.8 * 6.0 * wins


def test_a_gain_alone_takes_the_shifts_for_something_else():
    clean, noisy, variance, classes, device = noisy_margins(0)
    whole, without = (MeanMargins.fit(clean, noisy, variance, each, device) for each in (classes, None))
    rest = [noisy.mean(0) - (1.0 + found.gain) * clean - found.shift.of_margins(classes) for found in (whole, without)]
    assert without.shift == ClassTerms()
    assert np.var(rest[0][np.abs(clean) < 2.0]) < 0.5 * np.var(rest[1][np.abs(clean) < 2.0])


def test_shifts_that_few_examples_tell_of_are_held_near_zero():
    few = MeanMargins.fit(*noisy_margins(3, examples=40, shift=np.zeros(5)))
    many = MeanMargins.fit(*noisy_margins(3, examples=4000, shift=np.zeros(5)))
    assert max(many.shift.variance) < 0.2 * min(few.shift.variance)
    assert max(map(abs, few.shift.value)) < 3.0 * math.sqrt(max(few.shift.variance))
    assert max(few.shift.variance) < (0.4 * NOISE) ** 2


def test_shifts_of_points_are_pooled_in_proportion_to_the_noise_level():
    points = [(x, ClassTerms((1, 4), (2.0 * math.exp(x), -math.exp(x)), (0.1, 0.2))) for x in (0.0, 1.0, 2.0)]
    found = pooled(points, 0.5)
    assert found.classes == (1, 4)
    np.testing.assert_allclose(found.value, [2.0 * math.exp(0.5), -math.exp(0.5)])
    # No smaller than at the point that tells most, however many points see the same examples.
    assert found.variance[0] > 0.1 * math.exp(2.0 * (0.5 - 2.0))
    assert found.variance[1] == pytest.approx(2.0 * found.variance[0])


def test_a_class_that_one_point_alone_tells_of_counts():
    found = pooled([(0.0, ClassTerms((3,), (1.0,), (0.1,))), (0.0, ClassTerms())], 0.0)
    assert found == ClassTerms((3,), (1.0,), (0.1,))
