"""On real trained networks the allocation keeps accuracy where uniform K of the same energy loses it."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from precalloc import Hardware, allocate, compensate, profile, validate
from precalloc.network.data import ArrayData
from precalloc.network.data_files import load_data
from precalloc.network.models import load_model

FIXTURES = Path(__file__).resolve().parents[2].parent / "shared" / "fixtures"

pytestmark = [
    pytest.mark.fixtures,
    pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no trained networks: {FIXTURES} does not exist"),
]


def first(data, count):
    return ArrayData({name: value[:count] for name, value in data.inputs.items()}, data.labels[:count])


def simulate(network, hardware, budget, seeds, examples=None, uniform_examples=None):
    """Simulated accuracy of the allocation and of uniform K at the same energy, on data that K was not chosen on.

    Each on the first so many examples; where uniform K loses much, few tell.
    """
    folder = FIXTURES / network
    model = load_model(f"{folder / 'model.py'}:build")
    calibration, evaluation = load_data(str(folder / "calib.npz")), load_data(str(folder / "eval.npz"))
    chip = Hardware.load(hardware)
    found = allocate(profile(model, calibration, chip, margins=0), budget, hardware=chip)
    assert found.uniform.energy_joule <= found.budget_joule * (1 + 1e-9)
    assert found.energy_joule <= found.budget_joule * (1 + 1e-9)
    uniform = found.uniform_kmap()
    counts = examples or evaluation.examples, uniform_examples or examples or evaluation.examples
    return tuple(
        validate(model, first(evaluation, count), plan, seeds=seeds)
        for plan, count in zip((found, uniform), counts, strict=True)
    )


def least_gain(allocated, uniform):
    """Lower end of the 95 % interval of the gain in accuracy, seed by seed."""
    gain = np.array(allocated.per_seed) - np.array(uniform.per_seed)
    return gain.mean() - student.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5


@pytest.mark.slow
def test_resnet20_shot_noise():
    allocated, uniform = simulate("cifar10-resnet20", "homodyne-1550nm", "15x", seeds=2, uniform_examples=1500)
    assert allocated.examples == 5000
    assert allocated.clean_accuracy == pytest.approx(0.8748, abs=0.001)
    assert allocated.drop <= 0.023
    assert uniform.drop > 0.05
    assert uniform.drop_low > allocated.drop_high


@pytest.mark.slow
def test_resnet20_thermal_noise():
    """Two draws of noise tell little of their spread; four of fewer examples, in pairs, do."""
    allocated, uniform = simulate("cifar10-resnet20", "crossbar-thermal", "2x", seeds=4, examples=1500)
    assert uniform.drop > 0.045
    assert least_gain(allocated, uniform) > 0.0


@pytest.mark.slow
def test_resnet20_weight_noise():
    """A seed is a device, and devices differ more than allocations; so pairs of the same device are compared."""
    allocated, uniform = simulate("cifar10-resnet20", "crossbar-weight", "4x", seeds=8, examples=1000)
    assert uniform.drop > 0.12
    assert least_gain(allocated, uniform) > 0.01


def test_kws_thermal_noise():
    allocated, uniform = simulate("kws-dscnn", "crossbar-thermal", "32x", seeds=4)
    assert allocated.clean_accuracy == pytest.approx(0.890, abs=0.001)
    assert uniform.drop > 0.07
    assert uniform.drop_low > allocated.drop_high


def test_kws_shot_noise_compensated():
    """Plain curvature starves what shifts the mean, and scores below uniform K; compensated it scores above."""
    folder = FIXTURES / "kws-dscnn"
    model, chip = load_model(f"{folder / 'model.py'}:build"), Hardware.load("homodyne-1550nm")
    calibration, evaluation = load_data(str(folder / "calib.npz")), load_data(str(folder / "eval.npz"))
    found = allocate(profile(model, calibration, chip, margins=0), "20x", hardware=chip)
    found = compensate(model, calibration, found)
    allocated, uniform = (validate(model, evaluation, plan, seeds=8) for plan in (found, found.uniform_kmap()))
    assert allocated.accuracy > 0.835
    assert uniform.accuracy > 0.815
    assert least_gain(allocated, uniform) > 0.0
