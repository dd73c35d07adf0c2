"""Calibration of predictions: the lines are found, their errors are honest, what it does not serve is left alone."""

import json
import math
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from builders import make_hardware, make_profile
from test_kmap_files import SCHEMA

from precalloc.accuracy import SimulatedAccuracy
from precalloc.allocator import Allocator, allocate
from precalloc.calibration import DEVICE_EXAMPLES, Calibration, Line, NoiseResponse, Prior, SimulatedPoint, _excess
from precalloc.class_terms import ClassTerms
from precalloc.kmap_files import kmap_json, kmap_record
from precalloc.objective import Granularity
from precalloc.prediction import Predictor
from precalloc.profiles import Profile
from precalloc.reporting import report_markdown, warnings

SHOT = make_hardware(levels="continuous")


def predictor(examples=400):
    return Predictor.of(make_profile(examples=examples, m=1), SHOT, Granularity.LAYER)


def simulated_point(found, k, gain, factor, draws=4, seed=0):
    """Margins that shrink, with ``factor`` times the linearised variance."""
    mean, covariance = found.moments(k)
    normal = np.random.default_rng(seed).standard_normal((draws, *mean.shape))
    return SimulatedPoint.of(found, k, (1.0 + gain) * mean + np.sqrt(factor * covariance[:, :, 0]) * normal)


def test_a_point_finds_gain_and_factor_of_its_noise():
    found, errors = predictor(), []
    for seed in range(60):
        point = simulated_point(found, 4.0, -0.2, 2.0, seed=seed)
        errors.append(
            (
                (point.gain + 0.2) / math.sqrt(point.gain_variance),
                (point.log_factor - math.log(2.0)) / math.sqrt(point.log_factor_variance),
            )
        )
    assert point.linearised == pytest.approx(found.clean_accuracy - found.right(4.0).mean())
    assert np.all(np.abs(np.mean(errors, axis=0)) < 4.0 / math.sqrt(60))
    assert np.all((np.std(errors, axis=0) > 0.5) & (np.std(errors, axis=0) < 1.5))


SHIFT = np.array([0.8, 0.0, -0.5, 0.0])


def class_predictor(examples, seed, of_first):
    """Margins of four classes; the nearest other class of a share of the examples is the first."""
    rng = np.random.default_rng(seed)
    classes = np.stack([rng.permutation(4)[:2] for _ in range(examples)])
    some = (rng.random(examples) < of_first) & (classes[:, 0] != 0)
    classes[some, 1] = 0
    plain = make_profile(examples=examples, m=1)
    margins = replace(plain.margins, margins=rng.normal(3.0, 3.0, (examples, 1)), classes=classes)
    return Predictor.of(replace(plain, margins=margins), SHOT, Granularity.LAYER)


def shifted_margins(found, k, seed, level):
    """Margins under noise that shifts their means by class, in proportion to its level."""
    mean, covariance = found.moments(k)
    shift = math.exp(found.log_level(k) - level) * (SHIFT[found.classes[:, :1]] - SHIFT[found.classes[:, 1:]])
    noise = np.sqrt(covariance[:, :, 0]) * np.random.default_rng(seed).standard_normal((1, *mean.shape))
    return mean + shift + np.concatenate([noise, -noise])


def test_shifts_of_classes_are_carried_to_another_k_and_to_examples_of_another_mixture():
    found, other = class_predictor(800, 0, 0.0), class_predictor(20_000, 1, 0.8)
    level = found.log_level(8.0)
    truth = (other.margins > 0).mean() - (shifted_margins(other, 6.0, 9, level) > 0).mean()
    errors = []
    for by_class in (True, False):
        seen_on, target = (p if by_class else replace(p, classes=None) for p in (found, other))
        points = [SimulatedPoint.of(seen_on, k, shifted_margins(found, k, 7, level)) for k in (4.0, 8.0, 16.0)]
        errors.append(target.predict_these(6.0, NoiseResponse.fit(points)).drop - truth)
    assert abs(errors[0]) < 0.01
    assert errors[1] < -0.03


def test_shifts_beyond_the_strongest_point_grow_as_the_deviation_does():
    found = class_predictor(400, 0, 0.0)
    level = found.log_level(8.0)
    response = NoiseResponse.fit(
        [SimulatedPoint.of(found, k, shifted_margins(found, k, 7, level)) for k in (8.0, 16.0)]
    )
    largest = [max(response.shift_at(level + step).value) for step in (-1.0, 0.0, 1.0, 700.0)]
    assert largest[0] == pytest.approx(largest[1] * math.exp(-1.0))
    assert largest[2] == pytest.approx(largest[1] * math.exp(0.5))
    assert math.isfinite(largest[3])


def test_an_advantage_of_labels_is_carried_to_another_k_and_counts_for_either_label():
    found, other = predictor(4000), predictor(20_000)
    level = found.log_level(8.0)

    def simulated(of, k):
        mean, covariance = of.moments(k)
        wins = 0.15 * math.exp(of.log_level(k) - level / 2.0)  # deviations at K = 8, in proportion to the level
        noise = np.sqrt(covariance[:, :, 0]) * np.random.default_rng(5).standard_normal((1, *mean.shape))
        return mean + wins + np.concatenate([noise, -noise])

    response = NoiseResponse.fit([SimulatedPoint.of(found, k, simulated(found, k)) for k in (4.0, 8.0)])
    truth = (other.margins > 0).mean() - (simulated(other, 6.0) > 0).mean()
    without = replace(response, advantage=0.0)
    assert response.advantage == pytest.approx(0.15 * math.exp(response.gain.centre - level / 2.0), rel=0.05)
    # The label that an example has, and averaged over what it may have: the other label would win as well.
    for predict in (other.predict_these, other.predict):
        assert predict(6.0, response).drop == pytest.approx(truth, abs=0.003)
        assert predict(6.0, without).drop > truth + 0.01
        assert predict(6.0, replace(response, advantage_variance=0.01)).drop_high > predict(6.0, response).drop_high


def test_records_of_releases_without_shifts_and_advantage_have_none():
    record = calibration().to_record()
    of_uniform = record["responses"]["uniform"]
    for entry in (of_uniform, *of_uniform["points"]):
        for name in ("shift", "advantage", "advantage_variance"):
            del entry[name]
    assert Calibration.from_record(record, "the test") == calibration()


def test_a_drop_that_gaussian_margins_do_not_explain_is_an_excess():
    """Examples that noise should not reach are turned over all the same; without them there is no excess."""
    found = predictor(2000)
    mean, covariance = found.moments(40.0)
    normal = np.random.default_rng(0).standard_normal((4, *mean.shape))
    noisy = mean + np.sqrt(covariance[:, :, 0]) * normal
    same, other = SimulatedPoint.of(found, 40.0, noisy), noisy.copy()
    far = np.flatnonzero(mean[:, 0] > 4.0 * np.sqrt(covariance[:, 0, 0]))[::10]
    other[:, far] *= -1.0
    odd = SimulatedPoint.of(found, 40.0, other)
    assert abs(same.excess) < 3.0 * math.sqrt(same.excess_variance)
    assert odd.excess > 4.0 * math.sqrt(odd.excess_variance)
    assert odd.simulated > same.simulated


def test_pairs_of_draws_tell_how_far_the_excess_is_known():
    """Opposite draws that lose different examples, the same number in each pair: pairs show no spread, draws do."""
    lost = np.zeros((4, 100))
    lost[0, :10] = lost[1, 10:20] = lost[2, :10] = lost[3, 10:20] = 1.0
    value, variance = _excess(lost, 0.1)
    assert value == pytest.approx(0.0)
    one_more = (1.0 / (2 * 100) / 0.1) ** 2  # no spread at all does not show that there is none
    assert variance == pytest.approx(one_more)
    assert _excess(lost[:2], 0.1)[1] > 10.0 * variance


def test_noise_common_to_the_examples_of_a_device_shows_in_the_error():
    found, errors = predictor(1600), []
    mean = found.moments(4.0)[0]
    for seed in range(60):
        gains = np.random.default_rng(seed).normal(-0.2, 0.1, (2, 1600 // DEVICE_EXAMPLES))
        point = SimulatedPoint.of(found, 4.0, (1.0 + gains.repeat(DEVICE_EXAMPLES, axis=1)[..., None]) * mean)
        errors.append((point.gain + 0.2) / math.sqrt(point.gain_variance))
    assert abs(np.mean(errors)) < 4.0 / math.sqrt(60)
    assert 0.7 < np.std(errors) < 1.3


PRIOR = Prior(1.0, 0.3, 0.1)


def line(value, variance=1e-6):
    x = np.arange(len(value), dtype=float) - 1.0
    return Line.fit(x, np.array(value), np.full(len(x), variance), PRIOR)


def test_the_line_through_exact_points_is_found_and_errors_grow_away_from_it():
    found = line(0.7 + 0.2 * np.array([-1.0, 0.0, 1.0, 2.0]))
    assert found.at(0.5)[0] == pytest.approx(0.8, abs=0.05)
    inside, outside = found.at(0.5)[1], found.at(6.0)[1]
    assert 0.0 < inside < 0.2
    assert outside > inside


def test_points_off_the_line_widen_it():
    assert line([1.7, -0.3, 1.7, -0.3]).spread > 2.0 * line([0.7, 0.7, 0.7, 0.7]).spread


def gain_at(k):
    return -0.3 * (k / 4.0) ** -0.6


def test_lines_of_simulated_points_cover_what_they_did_not_see():
    """Of predictions between the points, 95 % intervals cover the truth as often as they should."""
    found, inside = predictor(200), np.zeros(2)
    for seed in range(24):
        points = [
            simulated_point(found, k, gain_at(k), 1.5 * (k / 4.0) ** -0.2, seed=10 * seed + i)
            for i, k in enumerate((2.0, 4.0, 8.0, 16.0))
        ]
        at, error = NoiseResponse.fit(points).at(found.log_level(6.0))
        inside += (
            abs(at.gain - gain_at(6.0)) <= 1.96 * error.gain,
            abs(at.log_factor - math.log(1.5 * 1.5**-0.2)) <= 1.96 * error.log_factor,
        )
    assert np.all(inside >= 20)  # 19 or fewer of 24 have a probability of 0.6 % where each is inside with 95 %


def test_gain_and_factor_beyond_all_points_stay_finite():
    response = NoiseResponse.fit([simulated_point(predictor(), k, gain_at(k), 1.5) for k in (2.0, 4.0, 8.0)])
    quiet, loud = response.at(-700.0)[0], response.at(700.0)[0]
    assert abs(quiet.gain) < 0.01
    assert loud.gain == -1.0
    assert math.isfinite(loud.log_factor)


def calibration(granularity=Granularity.LAYER, compensated=False):
    points = [
        SimulatedPoint(x, -0.2, 1e-6, ClassTerms(), 0.0, 0.0, 0.5, 1e-6, 0.0, 1e-6, 0.0, 0.0)
        for x in (0.0, 1.0, 2.0, 3.0)
    ]
    response = NoiseResponse.fit(points)
    return Calibration(SHOT, granularity, compensated, {"allocated": response, "uniform": response}, 400, 4)


def test_predictions_use_it_for_its_hardware_and_granularity_only():
    plain, calibrated = make_profile(), replace(make_profile(), calibration=calibration())
    before, after = allocate(plain, "15x", hardware=SHOT), allocate(calibrated, "15x", hardware=SHOT)
    assert np.array_equal(before.repetitions, after.repetitions)
    assert after.predicted.drop > before.predicted.drop
    assert after.predicted.drop_high - after.predicted.drop_low > before.predicted.drop_high - before.predicted.drop_low
    assert after.uniform.predicted.drop > before.uniform.predicted.drop
    other = allocate(calibrated, "15x", hardware=make_hardware(per_mac=2e-18))
    assert other.calibration is None
    assert Allocator.of(calibrated, SHOT, Granularity.CHANNEL).calibration is None


def test_a_wanted_accuracy_costs_what_the_calibrated_upper_limit_asks_for():
    profile = make_profile(examples=2000)
    before = allocate(profile, max_drop=0.05, hardware=SHOT)
    after = allocate(replace(profile, calibration=calibration()), max_drop=0.05, hardware=SHOT)
    assert after.energy_joule > before.energy_joule
    assert after.predicted.drop_high <= 0.05
    assert after.predicted.drop_high > 0.045


def test_profiles_and_kmaps_carry_it(tmp_path):
    profile = replace(make_profile(), calibration=calibration())
    assert Profile.load(profile.save(tmp_path / "profile.npz")).calibration == profile.calibration
    found = allocate(profile, max_drop=0.1, hardware=SHOT)
    record = json.loads(kmap_json(found))
    jsonschema.Draft202012Validator(SCHEMA).validate(record)
    assert Calibration.from_record(record["calibration"], "the test") == profile.calibration
    assert (record["confidence"], record["confirmed"]) == (0.975, None)


def test_confirmation_is_said():
    found = allocate(replace(make_profile(), calibration=calibration()), max_drop=0.1, hardware=SHOT)
    assert "Unconfirmed" in report_markdown(found)
    rng, clean = np.random.default_rng(0), np.ones(1000, bool)
    for share, word, confirmed in ((0.95, "Confirmed", True), (0.7, "Not confirmed", False)):
        seen = found.with_simulation(SimulatedAccuracy.from_outcomes(rng.random((4, 1000)) < share, clean))
        assert seen.confirmation.startswith(f"{word}: with 97.5 % confidence")
        assert kmap_record(seen)["confirmed"] is confirmed
    assert allocate(make_profile(), "15x", hardware=SHOT).confirmation == ""


def test_what_predictions_rest_on_is_said():
    plain = allocate(make_profile(), "15x", hardware=SHOT)
    assert any("linearised noise alone" in warning for warning in warnings(plain))
    calibrated = allocate(replace(make_profile(), calibration=calibration(compensated=True)), "15x", hardware=SHOT)
    assert any("with bias corrections, which this one lacks" in warning for warning in warnings(calibrated))
    assert "calibrated by 4 allocated" in report_markdown(calibrated)
