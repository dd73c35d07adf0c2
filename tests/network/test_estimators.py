"""Every estimator against analytic damage and against the others; resuming, errors, and the profile that they share."""

import numpy as np
import pytest
import torch
from networks import (
    KINDS,
    SHOT,
    THERMAL,
    WEIGHT,
    EagerAttention,
    LinearSoftmax,
    Perceptron,
    hardware,
    initialised,
    normal,
)
from torch import nn

from precalloc import allocate, profile
from precalloc.errors import ProfileError
from precalloc.network.estimators import Forward, Learned
from precalloc.objective import Granularity, Objective

UNIT = hardware(levels=dict.fromkeys(KINDS, 1.0))
Z = 4.5


def drawn_labels(model, x, copies, seed):
    """Examples several times over, each with a label that the model itself draws: the curvature is then exact."""
    x = x.repeat(copies, *[1] * (x.dim() - 1))
    with torch.no_grad():
        labels = torch.multinomial(model(x).softmax(-1), 1, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "y": labels.squeeze(1)}


@pytest.mark.parametrize("kind", KINDS)
def test_forward_finds_the_analytic_damage_of_every_channel(kind):
    """Linear softmax: s_i = 1/2 mean v_i p_i (1 - p_i), exact for any labels."""
    model, x = initialised(LinearSoftmax(), seed=3), normal(4, 1200, 5)
    chip = hardware((kind,), levels={kind: 1.0})
    found = profile(model, x, chip, margins=0, estimator=Forward("channel", pairs=2, level=1e-3))
    w, p = model.layer.weight.detach().double(), model(x).detach().double().softmax(-1)
    span, energy = w.amax(1) - w.amin(1), x.double().square().sum(1, keepdim=True)
    variance = {
        THERMAL: 5.0 * span**2 * found.sites[0].input_range ** 2 * torch.ones_like(energy),
        WEIGHT: span**2 * energy,
        SHOT: w.square().sum(1) * energy / 5.0,
    }[kind]
    expected = (0.5 * variance * p * (1 - p)).mean(0).numpy()
    error = found.damage_error[kind]
    assert np.all(error < 0.25 * expected), "the comparison would say nothing"
    assert np.all(np.abs(found.damage[kind] - expected) < Z * error)


NETWORKS = {
    "perceptron": (Perceptron(), (6,)),
    "attention": (EagerAttention(), (3, 4)),
    "convolutions": (nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)), (1, 6, 6)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "convolutions" else pytest.mark.slow) for name in NETWORKS]
)
def test_curvature_agrees_with_forward(name):
    model, shape = NETWORKS[name]
    model = initialised(model, seed=1, scale=1.5)
    data = drawn_labels(model, normal(2, 40, *shape), 24, seed=5)
    forward = profile(model, data, UNIT, margins=0, estimator=Forward(pairs=3, level=2e-3))
    curvature = profile(model, data, UNIT, margins=0)
    for kind in KINDS:
        error = np.hypot(forward.site_damage_error[kind], curvature.site_damage_error[kind])
        expected = forward.sum_channels(forward.damage[kind])
        assert np.median(error / expected) < 0.35, "the comparison would say nothing"
        assert np.all(np.abs(curvature.sum_channels(curvature.damage[kind]) - expected) < Z * error)


class Shifted(nn.Module):
    """A rectifier that is off unless noise opens it, pooled over many positions."""

    def __init__(self):
        super().__init__()
        self.filters, self.head = nn.Conv1d(1, 6, 5), nn.Linear(6, 4)

    def forward(self, x):
        return 12.0 * self.head(torch.relu(self.filters(x) - 1.5).mean(2))


def test_forward_at_an_operating_point_sees_the_shift_of_means():
    model, x = initialised(Shifted(), seed=2), normal(3, 320, 1, 68)
    chip = hardware((THERMAL,), levels={THERMAL: 0.3})
    data = drawn_labels(model, x, 4, seed=5)
    strong = profile(model, data, chip, margins=0, estimator=Forward(operating_k=1.0, pairs=1))
    curvature = profile(model, data, chip, margins=0)
    excess = (strong.sum_channels(strong.damage[THERMAL]) - curvature.sum_channels(curvature.damage[THERMAL]))[0]
    assert excess > Z * np.hypot(strong.site_damage_error[THERMAL], curvature.site_damage_error[THERMAL])[0]


@pytest.mark.parametrize("method", ["penalty", "primal-dual"])
def test_learning_comes_near_the_optimum_that_curvature_finds(method):
    """On a smooth network whose first layer hardly matters; what is left is the noise of the last steps."""
    model, x, chip = (
        initialised(Perceptron(), seed=1, scale=1.5),
        normal(3, 320, 6),
        hardware((SHOT,), levels={SHOT: 0.1}),
    )
    with torch.no_grad():
        model.first.weight *= 0.1
    data = drawn_labels(model, x, 1, seed=5)
    curvature = profile(model, data, chip, margins=0)
    optimum = allocate(curvature, "1x", hardware=chip, granularity="channel")
    options = Learned("1x", "channel", method, steps=250, learning_rate=0.02)
    learned = profile(model, data, chip, margins=0, estimator=options)
    found = allocate(learned, "1x", hardware=chip, granularity="channel")
    assert found.energy_joule == pytest.approx(found.budget_joule, rel=1e-6)
    assert learned.provenance.estimator == f"learned ({method}, 1x)"
    damage = Objective.of(curvature, chip, Granularity.CHANNEL).damage_at(found.repetitions)
    assert damage < optimum.objective + 0.5 * (optimum.uniform.damage - optimum.objective)


ESTIMATORS = {
    "forward": Forward(pairs=1, batch_size=8),
    "penalty": Learned("5x", "channel", steps=12, batch_size=8),
    "primal-dual": Learned("5x", "layer", "primal-dual", steps=12, batch_size=8),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_interrupted_estimate_goes_on_bit_for_bit(name, tmp_path):
    model, x, chip = initialised(Perceptron(), seed=1), normal(3, 64, 6), hardware()
    options = {"margins": 0, "batch_size": 8, "estimator": ESTIMATORS[name]}
    whole, kept = profile(model, x, chip, **options), tmp_path / "kept"

    def stop(done, total, what):
        if what != "profiling" and done * 2 >= total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(model, x, chip, progress=stop, checkpoint=kept, **options)
    assert len(list(tmp_path.iterdir())) == 1
    resumed = profile(model, x, chip, checkpoint=kept, **options)
    assert not list(tmp_path.iterdir())
    for kind in KINDS:
        assert np.array_equal(resumed.damage[kind], whole.damage[kind])
        assert not np.array_equal(whole.damage[kind], profile(model, x, chip, margins=0, batch_size=8).damage[kind])


def test_profiles_of_every_estimator_are_saved_and_say_what_they_are(tmp_path):
    model, x, chip = initialised(Perceptron(), seed=1), normal(3, 64, 6), hardware()
    for name, estimator in ESTIMATORS.items():
        found = profile(model, x, chip, estimator=estimator)
        loaded = type(found).load(found.save(tmp_path / f"{name}.npz"))
        assert loaded.provenance.estimator == found.provenance.estimator != "curvature"
        assert allocate(loaded, "5x").predicted is not None


def test_work_is_told_beforehand():
    model, x, chip = initialised(Perceptron(), seed=1), normal(3, 64, 6), hardware()
    said = []
    found = profile(model, x, chip, estimator=Forward(pairs=2), progress=lambda *step: said.append(step[2]))
    assert said[-1] == f"{1 + 2 * 2 * 2 * 3} forward passes"
    assert Forward(pairs=2).work(found) == "25 forward passes over 64 examples"
    assert Forward("channel", pairs=1).passes(found) == 1 + 2 * 12 * 3
    assert "15.0 times the data" in Learned("5x", steps=30).work(found)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        ("backward", "'backward' is unknown"),
        ("learned", "Learning is for one budget"),
        (Forward(pairs=0), "at least one pair"),
        (Forward(level=float("nan")), "positive level"),
        (Forward("kernel"), "'kernel' is unknown"),
        (Learned("5x", method="newton"), "'newton' is unknown"),
    ],
)
def test_what_is_wrong_with_an_estimator_is_said(estimator, message):
    model, x = initialised(Perceptron(), seed=1), normal(3, 16, 6)
    with pytest.raises(ProfileError, match=message):
        profile(model, x, hardware(), margins=0, estimator=estimator)
