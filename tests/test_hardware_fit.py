import numpy as np
import pytest

from precalloc.errors import HardwareError
from precalloc.hardware import NoiseKind
from precalloc.hardware_fit import fit_noise, unit_variances

LEVELS = {NoiseKind.THERMAL: 0.01, NoiseKind.WEIGHT: 0.05, NoiseKind.SHOT: 3.0}


def measurement(kinds, draws=400, vectors=24, channels=10, fan_in=16, seed=0):
    """Outputs of a simulated device, written out draw by draw as the physics has it."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(channels, fan_in)) * np.geomspace(0.3, 3.0, channels)[:, None]
    inputs = rng.normal(size=(vectors, fan_in)) * np.geomspace(0.1, 10.0, vectors)[:, None]
    outputs = np.tile(inputs @ weights.T, (draws, 1, 1))
    ranges = np.ptp(weights, axis=1)
    if NoiseKind.WEIGHT in kinds:
        errors = rng.normal(size=(draws, channels, fan_in)) * LEVELS[NoiseKind.WEIGHT] * ranges[:, None]
        outputs += np.einsum("vf,dcf->dvc", inputs, errors)
    if NoiseKind.THERMAL in kinds:
        per_mac = rng.normal(size=(draws, vectors, channels, fan_in)) * LEVELS[NoiseKind.THERMAL]
        outputs += per_mac.sum(-1) * ranges * np.ptp(inputs)
    if NoiseKind.SHOT in kinds:
        norms = np.linalg.norm(inputs, axis=1)[:, None] * np.linalg.norm(weights, axis=1)
        outputs += rng.normal(size=outputs.shape) * norms / np.sqrt(fan_in * LEVELS[NoiseKind.SHOT])
    return outputs, weights, inputs


@pytest.mark.parametrize(
    "kinds", [("thermal",), ("weight",), ("shot",), ("thermal", "shot"), ("weight", "thermal")], ids="+".join
)
def test_levels_are_found_within_their_errors(kinds):
    fitted = fit_noise(*measurement(kinds), kinds, source="simulated")
    assert tuple(noise.term.kind for noise in fitted) == kinds
    for noise in fitted:
        truth = LEVELS[noise.term.kind]
        assert abs(noise.term.level - truth) < 4 * noise.error
        assert noise.error < 0.05 * truth
        assert noise.term.source == "simulated"


@pytest.mark.parametrize("kind", list(NoiseKind))
def test_errors_are_those_of_repeated_measurements(kind):
    runs = [fit_noise(*measurement((kind,), draws=60, vectors=8, seed=seed), (kind,))[0] for seed in range(40)]
    spread = np.std([run.term.level for run in runs], ddof=1)
    stated = np.sqrt(np.mean([run.error**2 for run in runs]))
    # 40 runs know their spread to 1 / sqrt(78) = 11 %, the mean of 40 jackknives of 19 degrees of freedom to 3 %.
    assert abs(np.log(stated / spread)) < 4 * 0.115


def test_input_range_rescales_thermal_noise():
    outputs, weights, inputs = measurement(("thermal",))
    own = fit_noise(outputs, weights, inputs, ("thermal",))[0].term.level
    wide = fit_noise(outputs, weights, inputs, ("thermal",), input_range=2 * float(np.ptp(inputs)))[0].term.level
    assert wide == pytest.approx(own / 2, rel=1e-9)


def test_unit_variances_by_hand():
    units = unit_variances([[1.0, -2.0]], [[3.0, 4.0], [0.0, 1.0]])
    assert units[NoiseKind.THERMAL].tolist() == [[2 * 4**2 * 3**2], [2 * 4**2 * 3**2]]
    assert units[NoiseKind.WEIGHT].tolist() == [[9 * 25], [9 * 1]]
    assert units[NoiseKind.SHOT].tolist() == [[5 * 25 / 2], [5 * 1 / 2]]


def test_mistakes_are_named():
    outputs, weights, inputs = measurement(("thermal",), draws=30)
    with pytest.raises(HardwareError, match="at least 20 draws"):
        fit_noise(outputs[:5], weights, inputs, ("thermal",))
    with pytest.raises(HardwareError, match="do not fit"):
        fit_noise(outputs, weights[:, :3], inputs, ("thermal",))
    with pytest.raises(HardwareError, match="No noise kind"):
        fit_noise(outputs, weights, inputs, ())
    with pytest.raises(HardwareError, match="NaN"):
        fit_noise(np.full_like(outputs, np.nan), weights, inputs, ("thermal",))
    with pytest.raises(HardwareError, match="'readout' is unknown"):
        fit_noise(outputs, weights, inputs, ("readout",))
    with pytest.raises(HardwareError, match="cannot tell"):
        fit_noise(outputs[:, :1], weights, inputs[:1], ("thermal", "weight"))
    with pytest.raises(HardwareError, match="range or norm is 0"):
        fit_noise(outputs, weights, np.ones_like(inputs), ("thermal",))
    with pytest.raises(HardwareError, match="same in all draws"):
        fit_noise(np.zeros_like(outputs), weights, inputs, ("thermal",))
    brighter_is_quieter = outputs / np.linalg.norm(inputs, axis=1)[:, None]
    with pytest.raises(HardwareError, match="show no shot noise"):
        fit_noise(brighter_is_quieter, weights, inputs, ("thermal", "shot"))
