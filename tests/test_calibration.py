"""Calibration of predictions: the line is found, its error is honest, and what it does not serve is left alone."""

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
from precalloc.calibration import Calibration, NoiseScale, SimulatedPoint
from precalloc.kmap_files import kmap_json, kmap_record
from precalloc.objective import Granularity
from precalloc.prediction import Predictor
from precalloc.profiles import Profile
from precalloc.reporting import report_markdown, warnings

SHOT = make_hardware(levels="continuous")


def predictor(examples=400):
    return Predictor.of(make_profile(examples=examples, m=1), SHOT, Granularity.LAYER)


def simulated_point(found, k, factor, draws=4, seed=0):
    """Accuracies of noise draws whose covariance is ``factor`` times the linearised one."""
    right = found.right(k, factor)
    outcomes = np.random.default_rng(seed).random((draws, len(right))) < right
    return SimulatedPoint.of(found, k, outcomes.mean(axis=1).tolist(), found.clean_accuracy, found.examples)


def test_a_point_finds_the_factor_of_its_noise():
    found = predictor()
    errors = []
    for seed in range(40):
        point = simulated_point(found, 4.0, 2.0, seed=seed)
        errors.append((point.log_factor - math.log(2.0)) / math.sqrt(point.variance))
        assert point.linearised == pytest.approx(found.clean_accuracy - found.right(4.0).mean())
    assert abs(np.mean(errors)) < 4.0 / math.sqrt(40)
    assert 0.4 < np.std(errors) < 1.6


def exact_points(intercept, slope, levels, variance=1e-6):
    return [SimulatedPoint(x, intercept + slope * x, variance, 0.0, 0.0) for x in levels]


def test_the_line_through_exact_points_is_found_and_errors_grow_away_from_it():
    scale = NoiseScale.fit(exact_points(0.7, 0.2, [-1.0, 0.0, 1.0, 2.0]))
    assert scale.at(0.5)[0] == pytest.approx(0.8, abs=0.05)
    inside, outside = scale.at(0.5)[1], scale.at(6.0)[1]
    assert 0.0 < inside < 0.2
    assert outside > inside


def test_points_off_the_line_widen_it():
    scattered = [
        replace(p, log_factor=p.log_factor + d)
        for p, d in zip(exact_points(0.7, 0.2, range(4)), (1, -1, 1, -1), strict=True)
    ]
    assert NoiseScale.fit(scattered).spread > 2.0 * NoiseScale.fit(exact_points(0.7, 0.2, range(4))).spread


def test_lines_of_simulated_points_cover_what_they_did_not_see():
    """Of predictions between the points, 95 % intervals of log factor cover the truth as often as they should."""
    found, inside = predictor(200), 0
    for seed in range(24):
        points = [
            simulated_point(found, k, 1.5 * (k / 4.0) ** -0.2, seed=10 * seed + i)
            for i, k in enumerate((2.0, 4.0, 8.0, 16.0))
        ]
        log_factor, error = NoiseScale.fit(points).at(found.log_level(6.0))
        inside += abs(log_factor - math.log(1.5 * 1.5**-0.2)) <= 1.96 * error
    assert inside >= 20  # 19 or fewer of 24 have a probability of 0.6 % where each is inside with 95 %


def calibration(granularity=Granularity.LAYER, compensated=False, intercept=0.7):
    scale = NoiseScale.fit(exact_points(intercept, 0.0, range(4)))
    return Calibration(SHOT, granularity, compensated, {"allocated": scale, "uniform": scale}, 400, 4)


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
