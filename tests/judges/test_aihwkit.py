"""aihwkit finds that a K map loses to thermal noise what precalloc finds."""

import pytest
from aihwkit_judge import aihwkit_network
from judging import BOUND, allocated, assert_silent, distances, ours, repeated, theirs

pytest.importorskip("aihwkit", reason="aihwkit is not installed: 'make judges' installs it")


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_accuracy_and_loss_agree(granularity):
    plan = allocated("crossbar-thermal", granularity)
    assert max(distances(ours(plan), theirs(plan, aihwkit_network))) < BOUND


def test_twice_the_repetitions_are_told_apart():
    plan = allocated("crossbar-thermal")
    assert min(distances(ours(repeated(plan, 2)), theirs(plan, aihwkit_network))) > BOUND


def test_silent_tiles_compute_the_network():
    assert_silent(allocated("crossbar-thermal"), aihwkit_network)
