"""Averaging over the label: margins of the other label, the fitted chance, and what it takes off the error."""

import numpy as np
import pytest

from precalloc.labels import LabelChances
from precalloc.orthants import orthant_probability, random_directions
from precalloc.prediction import Distortion, Predictor, _summarise

CLASSES, NOISE = 4, 0.6
STEEPNESS = 1.7


def population(examples, seed):
    """Margins (n, 3) nearest first, and logits and labels: softmax(1.7 z) is the chance of every class."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 1.5, (examples, CLASSES))
    chance = np.exp(STEEPNESS * logits)
    chance /= chance.sum(1, keepdims=True)
    labels = (chance.cumsum(1) < rng.random((examples, 1))).sum(1)
    return margins_of(logits, labels), logits, labels


def margins_of(logits, labels):
    others = logits.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return np.sort(logits[np.arange(len(labels)), labels][:, None] - others, axis=1)[:, : CLASSES - 1]


def losses(margins):
    """Loss of every example under independent noise on the logits, (n,), as `Predictor` averages it."""
    m = margins.shape[1]
    covariance = np.broadcast_to(NOISE**2 * (np.eye(m) + 1.0), (len(margins), m, m))
    found = Predictor(
        margins, np.zeros(1), np.zeros((1, 1)), random_directions(len(margins), m, 0), LabelChances.fit(margins)
    )
    raw = np.all(margins > 0, axis=1) - orthant_probability(margins, covariance, found.directions)[0]
    return raw, *found._lost(margins, covariance, Distortion())


def test_the_other_label_has_the_margins_of_the_nearest_class():
    margins, logits, labels = population(400, 0)
    chances = LabelChances.fit(margins)
    others = logits.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    expected = margins_of(logits, others.argmax(1))[chances.rows]
    mean, covariance = chances.exchanged(margins, np.broadcast_to(np.eye(3) + 1.0, (400, 3, 3)))
    np.testing.assert_allclose(np.sort(mean, axis=1), expected, atol=1e-12)
    # Independent noise of equal strength on all logits looks the same from every class.
    np.testing.assert_allclose(covariance, np.broadcast_to(np.eye(3) + 1.0, covariance.shape), atol=1e-12)


def test_steepness_is_that_of_the_labels():
    """Of the two strongest classes a and b, softmax(s z) gives a the chance 1 / (1 + exp(-s (z_a - z_b)))."""
    chances = LabelChances.fit(population(20_000, 1)[0])
    found = np.log(chances.chance / (1.0 - chances.chance)) / chances.margin
    assert found.std() < 1e-6
    assert abs(found.mean() - STEEPNESS) < 4.0 * np.sqrt(chances.covariance[0, 0])
    assert np.sqrt(chances.covariance[0, 0]) < 0.05


def test_the_mean_stays_and_the_error_shrinks():
    raw, lost, _ = losses(population(40_000, 2)[0])
    difference = raw - lost
    assert abs(difference.mean()) < 4.0 * difference.std() / np.sqrt(len(raw))
    assert lost.var() < 0.35 * raw.var()


def test_intervals_of_the_average_cover():
    """Of 200 samples of 150 examples, as many intervals as should hold the mean over 40 000 examples."""
    truth, hits = losses(population(40_000, 2)[0])[0].mean(), 0
    for seed in range(200):
        margins = population(150, 100 + seed)[0]
        _, lost, of_method = losses(margins)
        part = _summarise(np.all(margins > 0, axis=1).astype(float), lost, of_method)
        hits += part.drop_low <= truth <= part.drop_high
    assert hits >= 181  # three standard deviations below 190


def test_without_labels_nothing_is_averaged():
    assert LabelChances.fit(np.abs(population(100, 3)[0])).rows.size == 0


@pytest.mark.parametrize("m", [1, 2])
def test_labels_beyond_the_two_strongest_classes_stay(m):
    margins = np.array([[-1.0, -0.5], [0.3, 1.0], [-0.2, 0.4]])[:, :m]
    rows = LabelChances.fit(margins).rows.tolist()
    assert rows == ([0, 1, 2] if m == 1 else [1, 2])


def test_classes_that_are_named_too_often_are_less_likely_the_label():
    """Logits of one class are too high: where it is ahead, the label is the other more often than margins say."""
    rng = np.random.default_rng(5)
    logits, labels = population(20_000, 5)[1:]
    logits = logits + np.array([1.0 / STEEPNESS, 0.0, 0.0, 0.0])
    rows, others = np.arange(len(labels)), logits.copy()
    others[rows, labels] = -np.inf
    order = others.argsort(axis=1)[:, ::-1][:, : CLASSES - 1]
    margins = logits[rows, labels][:, None] - np.take_along_axis(logits, order, 1)
    classes = np.concatenate([labels[:, None], order], axis=1)
    biased = np.where(classes[:, 0] == 0, 1.0, 0.0) - np.where(classes[:, 1] == 0, 1.0, 0.0)
    some = rng.permutation(len(labels))[:4000]
    known, alike = LabelChances.fit(margins[some], classes[some]), LabelChances.fit(margins[some])
    errors = []
    for chances in (known, alike):
        excess = biased[some][chances.rows]
        truth = 1.0 / (1.0 + np.exp(excess - STEEPNESS * chances.margin))
        errors.append(np.abs(chances.chance - truth)[excess != 0.0].mean())
    assert errors[0] < 0.25 * errors[1]
    assert errors[0] < 0.02


def test_the_first_examples_keep_what_was_fitted_to_all():
    margins = population(400, 6)[0]
    whole = LabelChances.fit(margins)
    part = whole.first(100)
    assert part.rows.tolist() == [row for row in whole.rows.tolist() if row < 100]
    np.testing.assert_array_equal(part.chance, whole.chance[: len(part.rows)])
    np.testing.assert_array_equal(part.certainty(100), whole.certainty(400)[:100])
    assert np.all(part.certainty(100)[part.rows] == 2.0 * part.chance - 1.0)
