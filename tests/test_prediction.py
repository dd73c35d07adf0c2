import math

import numpy as np
import pytest
from builders import make_hardware, make_profile

from precalloc.errors import ProfileError
from precalloc.hardware import NoiseKind, Redundancy
from precalloc.objective import Granularity
from precalloc.orthants import orthant_probability
from precalloc.prediction import Predictor, _summarise

SHOT = make_hardware()


def normal_cdf(x):
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))


def sampled(mean, covariance, count, seed=0):
    """Orthant probabilities by plain Monte-Carlo, with NumPy's own multivariate normal."""
    rng = np.random.default_rng(seed)
    draws = [rng.multivariate_normal(mu, c, count, method="svd") for mu, c in zip(mean, covariance, strict=True)]
    return np.array([np.all(d > 0.0, axis=1).mean() for d in draws])


def test_one_margin_is_the_closed_form():
    predictor = Predictor.of(make_profile(m=1), SHOT, Granularity.LAYER)
    k = np.array([2.0, 5.0, 1.0, 30.0])
    mean, covariance = predictor.moments(k)
    expected = [normal_cdf(mu / math.sqrt(c)) for mu, c in zip(mean[:, 0], covariance[:, 0, 0], strict=True)]
    right, error = orthant_probability(mean, covariance, predictor.directions)
    np.testing.assert_allclose(right, expected, atol=2e-8)
    assert not error.any()
    assert predictor.right(k).mean() == pytest.approx(np.mean(expected), abs=2e-8)


@pytest.mark.parametrize("m", [2, 3, 5])
def test_probabilities_agree_with_brute_force(m):
    predictor = Predictor.of(make_profile(m=m, examples=200), SHOT, Granularity.LAYER)
    mean, covariance = predictor.moments(3.0)
    right, error = orthant_probability(mean, covariance, predictor.directions)
    count = 20_000
    reference = sampled(mean, covariance, count)
    variance = np.sum(reference * (1 - reference)) / count + error.sum()
    assert abs(np.sum(right - reference)) < 4.0 * math.sqrt(variance)


def test_integration_error_of_single_examples_is_honest():
    predictor = Predictor.of(make_profile(examples=40), SHOT, Granularity.LAYER)
    mean, covariance = predictor.moments(3.0)
    frames = np.linalg.qr(np.random.default_rng(3).standard_normal((40 * 500, 3, 3)))[0].reshape(40, 1500, 3)
    right, error = orthant_probability(mean, covariance, frames)
    count = 20_000
    reference = sampled(mean, covariance, count)
    z = (right - reference) / np.sqrt(error + np.maximum(reference * (1 - reference), 1 / count) / count)
    assert np.abs(z).max() < 4.5


def test_independent_margins_multiply():
    mean = np.array([[1.0, 0.5, -0.3]])
    covariance = np.diag([1.0, 4.0, 0.25])[None]
    directions = Predictor.of(make_profile(), SHOT, Granularity.LAYER).directions[:200].reshape(1, -1, 3)
    right, error = orthant_probability(mean, covariance, directions)
    expected = normal_cdf(1.0) * normal_cdf(0.25) * normal_cdf(-0.6)
    assert abs(right[0] - expected) < 4.0 * math.sqrt(error[0])
    assert math.sqrt(error[0]) < 0.01


def test_semidefinite_covariance_and_noiseless_margins():
    mean = np.array([[1.0, 2.0], [1.0, -2.0], [0.0, 1.0], [1.0, 2.0]])
    covariance = np.zeros((4, 2, 2))
    covariance[3] = [[1.0, 2.0], [2.0, 4.0]]  # second margin is exactly twice the first
    directions = Predictor.of(make_profile(m=2), SHOT, Granularity.LAYER).directions[:4]
    right, _ = orthant_probability(mean, covariance, directions)
    np.testing.assert_allclose(right[:3], [1.0, 0.0, 0.0])
    many = np.linalg.qr(np.random.default_rng(0).standard_normal((2000, 2, 2)))[0].reshape(1, -1, 2)
    right, error = orthant_probability(mean[3:], covariance[3:], many)
    assert abs(right[0] - normal_cdf(1.0)) < 4.0 * math.sqrt(error[0])


def test_covariance_is_linear_in_inverse_k_and_keeps_the_floor():
    noise = ((NoiseKind.THERMAL, 0.5), (NoiseKind.WEIGHT, 0.3))
    hardware, profile = make_hardware(noise), make_profile()  # repeated in time: weight noise stays
    predictor = Predictor.of(profile, hardware, Granularity.LAYER)
    k = np.array([2.0, 4.0, 1.0, 8.0])
    thermal = profile.margins.site_covariance[NoiseKind.THERMAL]
    weight = profile.margins.site_covariance[NoiseKind.WEIGHT]
    expected = 0.25 * np.einsum("nut,u->nt", thermal, 1.0 / k) + 0.09 * weight.sum(axis=1)
    np.testing.assert_allclose(predictor.moments(k)[1][:, *np.triu_indices(3)], expected)
    np.testing.assert_allclose(predictor.moments(np.inf)[1][:, 0, 0], 0.09 * weight.sum(axis=1)[:, 0])


def test_infinite_repetitions_are_clean_and_accuracy_rises_with_k():
    predictor = Predictor.of(make_profile(), SHOT, Granularity.LAYER)
    clean = predictor.predict(np.inf)
    assert clean.drop == 0.0
    assert clean.accuracy == clean.clean_accuracy == predictor.clean_accuracy
    drops = [predictor.predict(k).drop for k in (1.0, 4.0, 16.0, 64.0, 1024.0)]
    assert drops == sorted(drops, reverse=True)
    assert drops[0] > 0.05


def test_channels_of_one_k_are_their_layer():
    profile = make_profile()
    layer = Predictor.of(profile, SHOT, Granularity.LAYER).predict(np.array([2.0, 5.0, 1.0, 9.0]))
    channel = Predictor.of(profile, SHOT, Granularity.CHANNEL).predict(np.repeat([2.0, 5.0, 1.0, 9.0], [4, 6, 1, 3]))
    assert layer.accuracy == pytest.approx(channel.accuracy, abs=1e-9)


def test_intervals_cover_the_population():
    """Of 200 profiles of 150 examples each, 95 % of the intervals hold the mean over 30 000 examples."""
    population = make_profile(examples=30_000, m=1)
    whole = Predictor.of(population, SHOT, Granularity.LAYER)
    right, error = orthant_probability(*whole.moments(4.0), whole.directions)
    clean = np.all(whole.margins > 0, axis=1).astype(float)
    parts = [
        _summarise(clean[s], clean[s] - right[s], error[s].sum() / 150**2)
        for s in (slice(150 * i, 150 * i + 150) for i in range(200))
    ]
    accuracy_hits = sum(p.accuracy_low <= right.mean() <= p.accuracy_high for p in parts)
    drop_hits = sum(p.drop_low <= (clean - right).mean() <= p.drop_high for p in parts)
    sigma = math.sqrt(200 * 0.95 * 0.05)
    assert accuracy_hits > 190 - 3 * sigma
    assert drop_hits > 190 - 3 * sigma


def test_losses_that_were_extrapolated_too_far_leave_no_accuracy_below_zero():
    found = _summarise(np.array([1.0, 1.0, 0.0]), np.array([1.2, 1.1, -0.2]), 0.5)
    assert found.accuracy == 0.0
    assert found.accuracy_low == pytest.approx(0.0, abs=1e-12)
    assert found.accuracy_high > 0.5


def test_paired_drop_is_known_better_than_accuracy():
    p = Predictor.of(make_profile(examples=1000), SHOT, Granularity.LAYER).predict(64.0)
    assert p.drop_high - p.drop_low < 0.5 * (p.accuracy_high - p.accuracy_low)


def test_same_seed_same_numbers():
    first, second = (Predictor.of(make_profile(), SHOT, Granularity.LAYER, seed=7).predict(3.0) for _ in range(2))
    assert first == second


def test_what_the_profile_lacks_is_named():
    with pytest.raises(ProfileError, match="no margins"):
        Predictor.of(make_profile(margins=False), SHOT, Granularity.LAYER)
    with pytest.raises(ProfileError, match="weight noise"):
        Predictor.of(
            make_profile(kinds=(NoiseKind.SHOT,)),
            make_hardware(((NoiseKind.WEIGHT, 0.1),), Redundancy.SPACE),
            Granularity.LAYER,
        )
