"""`predict`: the accuracy on given examples, from their own noiseless margins."""

import numpy as np
import pytest
import torch
from networks import KINDS, SHOT, THERMAL, WEIGHT, LinearSoftmax, Perceptron, hardware, initialised, normal
from torch import nn

from precalloc import allocate, calibrate, predict, profile, validate
from precalloc.errors import ProfileError

SEEDS, Z = 120, 4.0


class Dynamic(nn.Module):
    """Logits as a product of two activations: noise of every kind moves them linearly."""

    def forward(self, x):
        return (x[:, None, :4] @ x[:, 4:].reshape(-1, 4, 3))[:, 0]


def noisy_labels(model, x, seed):
    """Labels that the model has right most of the time."""
    with torch.no_grad():
        logits = model(x)
    return (logits + 0.5 * logits.std() * normal(seed, *logits.shape)).argmax(1)


def two_sets(model, features, examples=150):
    """Calibration data, and evaluation data of other ranges."""
    x, other = normal(1, examples, features), 2.5 * normal(2, examples, features)
    return {"x": x, "y": noisy_labels(model, x, 3)}, {"x": other, "y": noisy_labels(model, other, 4)}


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize(
    ("model", "features", "kind"),
    [(LinearSoftmax(), 5, THERMAL), (LinearSoftmax(), 5, SHOT), (Dynamic(), 16, THERMAL), (Dynamic(), 16, WEIGHT)],
)
def test_where_noise_is_linear_it_is_what_simulation_gives_on_these_examples(model, features, kind, granularity):
    model = initialised(model)
    calibration, evaluation = two_sets(model, features)
    chip = hardware((kind,), levels={THERMAL: 0.3, SHOT: 12.0, WEIGHT: 0.5})
    allocation = allocate(profile(model, calibration, chip), "2x", granularity=granularity)
    examples = profile(model, evaluation, chip)
    for kmap, uniform in ((allocation.kmap(), False), (allocation.uniform_kmap(), True)):
        found = predict(allocation, examples, uniform=uniform)
        seen = validate(model, evaluation, kmap, seeds=SEEDS)
        error = np.std(seen.per_seed, ddof=1) / SEEDS**0.5
        assert found.clean_accuracy == pytest.approx(seen.clean_accuracy)
        assert seen.drop > 0.02
        assert abs(found.drop - seen.drop) < Z * np.hypot(error, (found.drop_high - found.drop_low) / 3.92)
        assert found.accuracy == pytest.approx(found.clean_accuracy - found.drop)


def test_intervals_are_of_method_and_calibration_and_not_of_sampling():
    model = initialised(Perceptron(), 1, 3.0)
    calibration, evaluation = two_sets(model, 6, 200)
    chip = hardware((SHOT,))
    plain = profile(model, calibration, chip)
    examples = profile(model, evaluation, chip)
    widths = []
    for measured in (plain, calibrate(model, calibration, plain, points=2)):
        allocation = allocate(measured, "4x")
        found = predict(allocation, examples)
        assert found.drop_low <= found.drop <= found.drop_high
        assert found.accuracy_low <= found.accuracy <= found.accuracy_high
        widths.append(
            (found.drop_high - found.drop_low, allocation.predicted.drop_high - allocation.predicted.drop_low)
        )
    assert widths[0][0] < 0.5 * widths[0][1]
    assert widths[0][0] < widths[1][0]


def test_refusals():
    model = initialised(Perceptron())
    data, chip = {"x": normal(1, 40, 6)}, hardware(KINDS)
    measured = profile(model, data, chip)
    allocation = allocate(measured, "2x")
    with pytest.raises(ProfileError, match="another model"):
        predict(allocation, profile(initialised(Perceptron(), 7), data, chip))
    with pytest.raises(ProfileError, match="no margins"):
        predict(allocation, profile(model, data, chip, margins=0))
    with pytest.raises(ProfileError, match="other sites"):
        predict(allocation, measured.select(np.array([True, False])))
    with pytest.raises(ProfileError, match="weight noise"):
        predict(allocation, profile(model, data, hardware((SHOT,))))
