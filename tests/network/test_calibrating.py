"""Calibrated predictions of a trained network hold on data and noise that they have not seen."""

import numpy as np
import pytest
from networks import THERMAL, WEIGHT, LinearSoftmax, Perceptron, hardware, initialised, normal
from scipy.stats import norm

from precalloc import Hardware, allocate, calibrate, compensate, demo_model, profile, validate
from precalloc.errors import DataError, ProfileError
from precalloc.network.data import as_data
from precalloc.network.data_files import load_data
from precalloc.network.noisy_margins import NoisyMargins
from precalloc.network.preparation import TaskChoices, prepared

# Four comparisons hold together in 95 % of cases where each does in 98.75 %: half-widths are of 95 % intervals.
ALL_FOUR = norm.ppf(1.0 - 0.05 / 8) / norm.ppf(0.975)


def test_calibrated_predictions_of_the_demo_hold():
    model, chip = demo_model.build(), Hardware.load("homodyne-1550nm")
    data, evaluation = (load_data(str(path)) for path in (demo_model.CALIBRATION, demo_model.EVALUATION))
    plain = profile(model, data, chip)
    calibrated = calibrate(model, data, plain, examples=200, points=3, draws=2, compensate=False)
    for budget in ("4x", "7x"):
        found = allocate(calibrated, budget)
        seen = [validate(model, evaluation, kmap, seeds=4) for kmap in (found.kmap(), found.uniform_kmap())]
        for predicted, simulated in zip((found.predicted, found.uniform.predicted), seen, strict=True):
            widths = predicted.drop_high - predicted.drop_low, simulated.drop_high - simulated.drop_low
            assert abs(predicted.drop - simulated.drop) <= ALL_FOUR * np.hypot(*widths) / 2.0
    uncalibrated = allocate(plain, "4x").uniform.predicted
    assert abs(uncalibrated.drop - seen_at_4x(model, evaluation, plain).drop) > 0.05


def seen_at_4x(model, evaluation, measured):
    return validate(model, evaluation, allocate(measured, "4x").uniform_kmap(), seeds=2)


def test_draws_are_pairs_of_opposite_noise_of_which_what_is_linear_cancels():
    model = initialised(LinearSoftmax())
    data = as_data({"x": normal(3, 40, 5)})
    chip = hardware((THERMAL, WEIGHT))
    measured = profile(model, {"x": normal(3, 40, 5)}, chip)
    kmap = allocate(measured, "2x").kmap()
    with prepared(model, data, kmap, TaskChoices(), 16) as ready:
        seen = NoisyMargins(ready, data, 16, measured.margins.margins.shape[1]).under(kmap, 4, 0)
    clean = measured.margins.margins
    for pair in (seen[:2], seen[2:]):
        np.testing.assert_allclose(pair.mean(axis=0), clean, atol=1e-4)
        assert np.abs(pair[0] - clean).mean() > 0.01
    assert np.abs(seen[0] - seen[2]).mean() > 0.01


def test_refusals_and_the_same_result_after_an_interruption(tmp_path):
    model, x = initialised(Perceptron(), 1, 3.0), normal(2, 60, 6)
    chip = Hardware.load("homodyne-1550nm")
    measured = profile(model, {"x": x}, chip)
    with pytest.raises(DataError, match="not those of the profile"):
        calibrate(model, {"x": x + 1.0}, measured)
    with pytest.raises(ProfileError, match="no margins per layer"):
        calibrate(model, {"x": x}, profile(model, {"x": x}, chip, margins=0))

    def stop(done, *_):
        if done == 3:
            raise KeyboardInterrupt

    options = {"points": 2, "draws": 2}
    whole = calibrate(model, {"x": x}, measured, **options)
    assert whole.calibration.compensated
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, {"x": x}, measured, **options, progress=stop, checkpoint=tmp_path / "kept")
    resumed = calibrate(model, {"x": x}, measured, **options, checkpoint=tmp_path / "kept")
    assert resumed.calibration == whole.calibration
    corrected = compensate(model, {"x": x}, allocate(resumed, "5x"))
    assert corrected.calibration == whole.calibration
