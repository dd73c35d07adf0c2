"""Repetitions done one by one with AnalogVNN's noise lose what precalloc finds that a K map loses."""

import pytest
from analogvnn_judge import thermal_network, weight_network
from judging import BOUND, allocated, assert_silent, distances, ours, repeated, theirs

pytest.importorskip("analogvnn", reason="analogvnn is not installed: 'make judges' installs it")

# AnalogVNN copies tensors with torch.tensor.
pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
    pytest.mark.parametrize(
        ("preset", "build"), [("crossbar-thermal", thermal_network), ("crossbar-weight", weight_network)]
    ),
]


def test_accuracy_and_loss_agree(preset, build):
    plan = allocated(preset)
    assert max(distances(ours(plan), theirs(plan, build))) < BOUND


def test_twice_the_repetitions_are_told_apart(preset, build):
    plan = allocated(preset)
    assert min(distances(ours(repeated(plan, 2)), theirs(plan, build))) > BOUND


def test_silent_noise_leaves_the_network(preset, build):
    assert_silent(allocated(preset), build)
