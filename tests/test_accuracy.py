import math

import numpy as np
import pytest

from precalloc.accuracy import SimulatedAccuracy, SimulatedLoss


def test_figures_of_a_small_table():
    correct = np.array([[True, True, False, True], [True, False, False, True]])
    result = SimulatedAccuracy.from_outcomes(correct, np.array([True, True, True, False]))
    assert result.accuracy == 5 / 8
    assert result.clean_accuracy == 3 / 4
    assert result.drop == pytest.approx(1 / 8)
    assert result.per_seed == (0.75, 0.5)
    assert (result.examples, result.seeds) == (4, 2)


def test_all_right_still_leaves_doubt():
    result = SimulatedAccuracy.from_outcomes(np.ones((8, 50), bool), np.ones(50, bool))
    assert result.accuracy == result.accuracy_high == 1.0
    assert 0.9 < result.accuracy_low < 0.95  # rule of three and a bit
    assert result.drop_low < 0.0 < result.drop_high


def test_one_seed_and_one_example_are_accepted():
    assert SimulatedAccuracy.from_outcomes(np.ones((1, 20), bool), np.ones(20, bool)).seeds == 1
    assert SimulatedAccuracy.from_outcomes(np.ones((4, 1), bool), np.ones(1, bool)).examples == 1


@pytest.mark.parametrize(("example_spread", "seed_spread"), [(1.0, 0.0), (1.0, 0.3), (0.0, 0.5)])
def test_intervals_cover_the_population_mean(example_spread, seed_spread):
    """Both a hard example and an unlucky noise draw are shared by many outcomes; 95 % of intervals hold the truth."""
    rng, trials, seeds, n = np.random.default_rng(0), 600, 8, 150
    scale = math.sqrt(1.0 + example_spread**2 + seed_spread**2)
    truth = 0.5 * (1.0 + math.erf(1.0 / scale / math.sqrt(2.0)))
    hits = 0
    for _ in range(trials):
        a = example_spread * rng.standard_normal((1, n))
        b = seed_spread * rng.standard_normal((seeds, 1))
        correct = 1.0 + a + b + rng.standard_normal((seeds, n)) > 0.0
        result = SimulatedAccuracy.from_outcomes(correct, np.ones(n, bool))
        hits += result.accuracy_low <= truth <= result.accuracy_high
    assert abs(hits / trials - 0.95) < 3.0 * math.sqrt(0.95 * 0.05 / trials)


def test_weighted_means_are_those_of_tokens():
    rng = np.random.default_rng(0)
    losses, clean, tokens = rng.random((3, 20)), rng.random(20), rng.integers(1, 9, 20).astype(float)
    found = SimulatedLoss.from_losses(losses, clean, tokens)
    assert found.loss == pytest.approx(np.average(losses.mean(0), weights=tokens))
    assert found.clean_loss == pytest.approx(np.average(clean, weights=tokens))
    assert found.increase == pytest.approx(found.loss - found.clean_loss)
    np.testing.assert_allclose(found.per_seed, np.average(losses, axis=1, weights=tokens))
    right = rng.random((3, 20)) < 0.5
    accuracy = SimulatedAccuracy.from_outcomes(right, right[0], tokens)
    assert accuracy.accuracy == pytest.approx(np.average(right.mean(0), weights=tokens))


def test_loss_intervals_cover_the_population_mean():
    """Examples of unequal weight, correlated with their loss, and noise draws: 95 % of intervals hold the truth."""
    rng, trials, hits, hits_increase = np.random.default_rng(0), 600, 0, 0
    for _ in range(trials):
        tokens = rng.integers(1, 10, 150).astype(float)  # E[w] = 5, E[w^2] = 95 / 3
        clean = tokens + rng.standard_normal(150)
        increase = 0.5 + 0.3 * rng.standard_normal((8, 1)) + rng.standard_normal((8, 150))
        found = SimulatedLoss.from_losses(clean + increase, clean, tokens)
        truth = 95.0 / 3.0 / 5.0
        hits += found.loss_low <= truth + 0.5 <= found.loss_high
        hits_increase += found.increase_low <= 0.5 <= found.increase_high
    for count in (hits, hits_increase):
        assert abs(count / trials - 0.95) < 3.0 * math.sqrt(0.95 * 0.05 / trials)
