"""What the judges share: a K map as any simulator would get it, and how two simulations are compared.

Nothing here or in the adapters uses precalloc's own simulation: a judge gets the weights of the network, batch norms
folded by torch, and the numbers of ``kmap.json``.
"""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import ttest_ind
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import precalloc
from precalloc import demo_model
from precalloc.kmap_files import kmap_json

EXAMPLES = 250
SEEDS = {"crossbar-thermal": 12, "crossbar-weight": 24}
# At noise of the presets' strength the network loses nothing at 2 repetitions on average, and there is nothing to
# compare; at these it loses about thirty points, and twice the repetitions win most of them back.
LEVELS = {"crossbar-thermal": 0.04, "crossbar-weight": 0.15}

# Differences in standard errors: above it two simulations disagree. Of 12 seeds each, one pair in 1600 does by chance.
BOUND = 4.0

Sites = Mapping[str, Mapping[str, Any]]


class Plan(NamedTuple):
    """A K map as precalloc simulates it and as its file describes it, the level of its noise, and how many seeds."""

    kmap: precalloc.KMap
    sites: dict[str, dict[str, Any]]
    level: float
    seeds: int


class Outcomes(NamedTuple):
    """Accuracy and mean cross-entropy of every seed, on the same examples: two arrays (seeds,)."""

    accuracy: np.ndarray
    loss: np.ndarray


def examples(path: Path, count: int) -> dict[str, np.ndarray]:
    """First examples of a data file."""
    return {name: values[:count] for name, values in np.load(path).items()}


@cache
def allocated(preset: str, granularity: str = "layer") -> Plan:
    """K map of the digits network at 2 repetitions on average."""
    hardware = precalloc.Hardware.load(preset)
    level = LEVELS[preset]
    hardware = replace(hardware, noise=(replace(hardware.noise[0], level=level),))
    calibration = examples(demo_model.CALIBRATION, 128)
    profile = precalloc.profile(demo_model.build(), calibration, hardware, margins=0)
    found = precalloc.allocate(profile, "2x", hardware=hardware, granularity=granularity)
    sites = {site["name"]: site for site in json.loads(kmap_json(found))["sites"]}
    return Plan(found.kmap(), sites, level, SEEDS[preset])


def repeated(plan: Plan, factor: int) -> Plan:
    """The same plan with more repetitions everywhere, in precalloc's simulation alone."""
    repetitions = {name: factor * k for name, k in plan.kmap.repetitions.items()}
    return plan._replace(kmap=replace(plan.kmap, repetitions=repetitions))


def folded_digits() -> nn.Module:
    """The digits network with every batch norm folded into its convolution."""
    network = copy.deepcopy(demo_model.build())
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            module.conv, module.norm = fuse_conv_bn_eval(module.conv, module.norm), nn.Identity()
    return network


def channel_ranges(weight: torch.Tensor) -> torch.Tensor:
    """dW_i: largest minus smallest weight of every output channel, (channels,)."""
    rows = weight.detach().flatten(1)
    return rows.amax(1) - rows.amin(1)


def ours(plan: Plan) -> Outcomes:
    """Simulate with precalloc."""
    evaluation = examples(demo_model.EVALUATION, EXAMPLES)
    found = precalloc.validate(demo_model.build(), evaluation, plan.kmap, seeds=plan.seeds)
    assert found.loss is not None
    return Outcomes(np.array(found.per_seed), np.array(found.loss.per_seed))


def theirs(plan: Plan, build: Callable[[Sites, float], nn.Module]) -> Outcomes:
    """Simulate with a judge; every seed builds its own device."""
    evaluation = examples(demo_model.EVALUATION, EXAMPLES)
    images, labels = torch.tensor(evaluation["images"]), torch.tensor(evaluation["y"])
    outcomes = []
    with torch.random.fork_rng(), torch.no_grad():
        for seed in range(plan.seeds):
            torch.manual_seed(seed)
            logits = build(plan.sites, plan.level).eval()(images)
            right = (logits.argmax(1) == labels).double().mean()
            outcomes.append((float(right), float(F.cross_entropy(logits, labels))))
    return Outcomes(*np.array(outcomes).T)


def assert_silent(plan: Plan, build: Callable[[Sites, float], nn.Module]) -> None:
    """Where the noise vanishes a judge computes the network itself."""
    images = torch.tensor(examples(demo_model.EVALUATION, EXAMPLES)["images"])
    with torch.no_grad():
        judged, expected = build(plan.sites, 1e-9).eval()(images), demo_model.build()(images)
    torch.testing.assert_close(judged, expected, rtol=1e-4, atol=1e-4)


def differences(first: Outcomes, second: Outcomes) -> tuple[Any, Any]:
    """Welch's tests of the differences in accuracy and in loss.

    Both simulate the same examples, so seeds are all that is random, and the intervals are those of the noise alone:
    much narrower than those over examples.
    """
    accuracy, loss = (ttest_ind(a, b, equal_var=False) for a, b in zip(first, second, strict=True))
    return accuracy, loss


def distances(first: Outcomes, second: Outcomes) -> list[float]:
    """Differences in accuracy and in loss, in their standard errors, without sign."""
    return [abs(float(test.statistic)) for test in differences(first, second)]
