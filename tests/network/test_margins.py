"""First-order covariance of the class margins against injected noise, whatever axis numbers the examples."""

import copy

import numpy as np
import pytest
import torch
from networks import (
    CPU,
    KINDS,
    WEIGHT,
    ConvNet,
    EagerAttention,
    ModuleAttention,
    Perceptron,
    SharedLayer,
    TimeFirst,
    hardware,
    in_order,
    initialised,
    normal,
)
from torch import nn

from precalloc import profile
from precalloc.errors import ModelError
from precalloc.kmaps import KMap, SiteRanges
from precalloc.network import convolutions, observation
from precalloc.network.interception import intercept
from precalloc.network.noise import NoiseInjector
from precalloc.objective import Granularity

UNIT = hardware(levels=dict.fromkeys(KINDS, 1.0))
EXAMPLES, MARGINS, DRAWS = 5, 2, 400
LARGE_K = 1e8  # noise so small that the network is linear in it
PROBING_SEEDS = 60  # the covariance under weight noise is estimated from random changes of the weights
Z = 5.0  # some 1500 entries

NETWORKS = {
    "perceptron": (Perceptron(), (6,)),
    "convolutions": (ConvNet(), (2, 6, 6)),
    "layer called twice": (SharedLayer(), (6,)),
    "eager attention": (EagerAttention(), (3, 4)),
    "nn.MultiheadAttention": (ModuleAttention(), (3, 4)),
    "nn.MultiheadAttention, tokens first": (ModuleAttention(batch_first=False), (3, 4)),
    "time first": (TimeFirst(), (4, 4)),
}


def network(name):
    model, shape = NETWORKS[name]
    return initialised(copy.deepcopy(model), seed=1), in_order(normal(2, EXAMPLES, *shape))


def table_of(model, x, kind, seed=0, **options):
    return profile(model, x, hardware((kind,)), seed=seed, margins=MARGINS, **options)


def margins_of(logits, order):
    """Logit of the strongest class minus those of the next, for an order fixed by the noiseless network."""
    ranked = logits.gather(1, order)
    return ranked[:, :1] - ranked[:, 1 : 1 + MARGINS]


def injected_covariance(model, x, found, kind, site):
    """Covariance per example at unit noise on one site, upper triangle, with standard errors."""
    model, x = copy.deepcopy(model).double(), x.double()
    repetitions = {s.name: np.array([LARGE_K if s.name == site else 1e30]) for s in found.sites}
    ranges = {s.name: SiteRanges(s.input_range, s.operand_range) for s in found.sites}
    kmap = KMap(Granularity.LAYER, hardware((kind,), levels={kind: 1.0}), repetitions, ranges)
    with torch.no_grad():
        logits = model(x)
        order = logits.argsort(1, descending=True)
        moved = []
        for seed in range(DRAWS):
            with intercept(model, NoiseInjector.of(kmap, seed, CPU)):
                moved.append(margins_of(model(x), order) - margins_of(logits, order))
    sample = torch.stack(moved).numpy() * LARGE_K**0.5
    upper = np.triu_indices(MARGINS)
    products = sample[:, :, upper[0]] * sample[:, :, upper[1]]
    return products.mean(0), products.std(0, ddof=1) / DRAWS**0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_covariance_is_that_of_injected_noise(name, kind):
    model, x = network(name)
    seeds = PROBING_SEEDS if kind is WEIGHT else 1
    found = [table_of(model, x, kind, seed) for seed in range(seeds)]
    tables = np.array([one.margins.site_covariance[kind] for one in found])
    error = tables.std(0, ddof=1) / seeds**0.5 if seeds > 1 else np.zeros_like(tables[0])
    for index, site in enumerate(found[0].sites):
        expected, expected_error = injected_covariance(model, x, found[0], kind, site.name)
        # Rounding: the tables hold single precision.
        bound = Z * np.hypot(error[:, index], expected_error) + 1e-6 * np.abs(expected).max()
        assert np.all(np.abs(tables.mean(0)[:, index] - expected) < bound), site.name


def test_margins_are_those_of_the_label_nearest_first():
    model, x = network("perceptron")
    labels = torch.tensor([0, 1, 2, 3, 0])
    found = profile(model, (x, labels), UNIT, margins=3)
    with torch.no_grad():
        logits = model(x).double().numpy()
    for row, label, margins, classes in zip(
        logits, labels.tolist(), found.margins.margins, found.margins.classes, strict=True
    ):
        np.testing.assert_allclose(margins, np.sort(row[label] - np.delete(row, label)), rtol=1e-5, atol=1e-6)
        assert classes[0] == label
        np.testing.assert_allclose(row[label] - row[classes[1:]], margins, rtol=1e-5, atol=1e-6)
    right = np.all(found.margins.margins > 0, axis=1).mean()
    assert found.clean_accuracy == pytest.approx(right)


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_sum_to_their_site(name):
    model, x = network(name)
    found = profile(model, x, UNIT, margins=MARGINS, batch_size=2)
    for kind in KINDS:
        summed = np.add.reduceat(found.margins.channel_covariance[kind], found.channel_offsets[:-1], axis=1)
        largest = np.abs(summed).max()
        np.testing.assert_allclose(summed, found.margins.site_covariance[kind], rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("name", NETWORKS)
def test_values_are_the_same_in_parts_of_a_batch(name, monkeypatch):
    """Large outputs are worked on some examples at a time; here, even small ones."""
    model, x = network(name)
    whole = profile(model, x, UNIT, margins=MARGINS)
    for module in (observation, convolutions):
        monkeypatch.setattr(module, "_PART_VALUES", 50)
    cut = profile(model, x, UNIT, margins=MARGINS)
    for kind in KINDS:
        np.testing.assert_allclose(cut.damage[kind], whole.damage[kind], rtol=1e-4)
        np.testing.assert_allclose(cut.noise_variance[kind], whole.noise_variance[kind], rtol=1e-5)
        expected, found = whole.margins.channel_covariance[kind], cut.margins.channel_covariance[kind]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not WEIGHT])
def test_every_example_has_the_row_that_it_has_alone(name, kind):
    """Batches of five, of two and one, and of one: rows are tied to their examples, not to places in the batch."""
    model, x = network(name)
    together, twos, alone = (table_of(model, x, kind, batch_size=size).margins for size in (EXAMPLES, 2, 1))
    largest = np.abs(together.site_covariance[kind]).max()
    for other in (twos, alone):
        np.testing.assert_allclose(other.margins, together.margins, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            other.site_covariance[kind], together.site_covariance[kind], rtol=1e-3, atol=1e-5 * largest
        )


def test_tokens_first_is_the_same_network_as_examples_first():
    models = [initialised(ModuleAttention(batch_first=first), seed=1) for first in (True, False)]
    x = normal(2, EXAMPLES, 3, 4)
    one, other = (profile(model, x, UNIT, margins=MARGINS) for model in models)
    for kind in KINDS:
        if kind is not WEIGHT:
            largest = np.abs(one.margins.site_covariance[kind]).max()
            np.testing.assert_allclose(
                other.margins.site_covariance[kind], one.margins.site_covariance[kind], rtol=1e-3, atol=1e-6 * largest
            )


def test_prediction_tables_hold_the_first_examples_only():
    model, x = network("perceptron")
    some = profile(model, x, UNIT, margins=MARGINS, batch_size=2, prediction_examples=3).margins
    every = profile(model, x, UNIT, margins=MARGINS, batch_size=2).margins
    assert some.margins.shape == (3, MARGINS)
    assert np.array_equal(some.margins, every.margins[:3])
    for kind in KINDS:
        assert some.site_covariance[kind].shape == (3, 2, 3)


class Centred(nn.Module):
    """Takes the batch's mean off a hidden layer: every example moves every other."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        hidden = self.first(x)
        return self.second(torch.tanh(hidden - hidden.mean(0)))


class AttentionAcrossExamples(nn.Module):
    """Attention over the wrong axis, a well-known slip."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 1), nn.Linear(4, 3)

    def forward(self, x):
        x = x.unsqueeze(1)  # (examples, 1, features) is read as (tokens, examples, features)
        return self.head(self.attention(x, x, x, need_weights=False)[0].squeeze(1))


@pytest.mark.parametrize(("model", "features"), [(Centred(), 6), (AttentionAcrossExamples(), 4)])
def test_models_that_mix_examples_are_refused(model, features):
    model = initialised(model, seed=1)
    with pytest.raises(ModelError, match=r"mixes the examples of a batch.*batch_size=1"):
        profile(model, normal(2, 8, features), UNIT)
    assert profile(model, normal(2, 8, features), UNIT, batch_size=1).provenance.examples == 8
