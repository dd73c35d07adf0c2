"""Trained networks on real data: the allocation keeps what uniform K of the same energy loses.

The fixtures are no part of the repository. Drops are in points.
"""

from functools import cache
from pathlib import Path

import pytest

import precalloc
from precalloc.network.data import load_data
from precalloc.network.models import load_model

FIXTURES = Path(__file__).resolve().parents[2].parent / "shared" / "fixtures"

pytestmark = [
    pytest.mark.fixtures,
    pytest.mark.slow,
    pytest.mark.skipif(not FIXTURES.is_dir(), reason="the shared fixtures are not beside the repository"),
]


@cache
def load(name):
    folder = FIXTURES / name
    model = load_model(f"{folder / 'model.py'}:build")
    return model, load_data(str(folder / "calib.npz")), load_data(str(folder / "eval.npz"))


@pytest.mark.parametrize(
    ("name", "preset", "budget", "most_allocated", "least_uniform"),
    [
        ("cifar10-resnet20", "homodyne-1550nm", "15x", 2.3, 5.5),
        ("cifar10-resnet20", "crossbar-thermal", "2x", 4.0, 4.5),
        ("cifar10-resnet20", "crossbar-weight", "4x", 11.0, 11.5),
        ("kws-dscnn", "crossbar-thermal", "10x", 30.0, 35.0),
    ],
)
def test_allocation_loses_less_than_uniform(name, preset, budget, most_allocated, least_uniform):
    model, calibration, evaluation = load(name)
    hardware = precalloc.Hardware.load(preset)
    profile = precalloc.profile(model, calibration, hardware, margins=0)
    allocation = precalloc.allocate(profile, budget, hardware=hardware)
    allocated = precalloc.validate(model, evaluation, allocation, seeds=3)
    uniform = precalloc.validate(model, evaluation, allocation.uniform_kmap(), seeds=3)
    print(f"{name} {preset} {budget}: allocated {allocated.drop:.4f}, uniform {uniform.drop:.4f}")
    assert allocation.energy_joule <= allocation.budget_joule
    assert 100 * allocated.drop <= most_allocated
    assert 100 * uniform.drop >= least_uniform
