"""Tasks: losses, scores, and curvature draws whose second moment is the Hessian of the loss in the outputs."""

import math

import numpy as np
import pytest
import torch
from networks import CPU, KINDS, Perceptron, hardware, initialised, normal
from torch import nn
from torch.nn import functional as F

from precalloc import profile, sites, validate
from precalloc.errors import DataError, ModelError
from precalloc.kmaps import KMap, SiteRanges
from precalloc.network.batches import Batch
from precalloc.network.criteria import Classification, CustomLoss, Regression, TokenClassification, draw_classes
from precalloc.network.draws import ExampleDraws
from precalloc.network.tasks import Task, resolve_task
from precalloc.objective import Granularity

CHIP = hardware()
X = normal(1, 8, 6)
DRAWS, Z = 600, 5.0


def coupled(output, labels):
    """A loss with a full Hessian of both signs of curvature."""
    return (output.exp().sum(1) - 3.0 * output[:, 0] * output[:, 1]) * (1.0 + labels)


CRITERIA = {
    "classification": (Classification(), normal(2, 2, 3), torch.tensor([0, 2])),
    "tokens": (TokenClassification(), normal(3, 2, 2, 3), torch.tensor([[0, 2], [1, -100]])),
    "channels first": (TokenClassification(), normal(3, 2, 3, 2), torch.tensor([[0, 2], [1, -100]])),
    "next tokens": (TokenClassification(shift=True), normal(3, 2, 3, 4), torch.tensor([[0, 2, 3], [1, 1, -100]])),
    "regression": (Regression(), normal(4, 2, 3), normal(5, 2, 3)),
    "one number": (Regression(), normal(4, 2), normal(5, 2)),
    "custom": (CustomLoss(coupled), normal(6, 2, 3), torch.tensor([0, 1])),
}


def of(name):
    criterion, output, labels = CRITERIA[name]
    return criterion, output, criterion.reference(output, Batch({"x": output}, labels))


def exact_hessian(criterion, output, reference):
    """Hessian of sum_n weight_n loss_n, positive part of every example's block, (n, m, m)."""
    output = output.double()
    weight = criterion.weight(output, reference)
    size = output[0].numel()
    full = torch.autograd.functional.hessian(lambda y: (criterion.loss(y, reference) * weight).sum(), output)
    blocks = full.reshape(len(output), size, len(output), size)
    values, vectors = torch.linalg.eigh(torch.stack([blocks[n, :, n] for n in range(len(output))]))
    return torch.einsum("nik,nk,njk->nij", vectors, values.clamp(min=0), vectors)


@pytest.mark.parametrize("name", CRITERIA)
def test_draws_have_the_hessian_as_second_moment(name):
    criterion, output, reference = of(name)
    products, across = [], []
    for seed in range(DRAWS):
        leaf = output.clone().requires_grad_()
        loss = criterion.sampled_loss(leaf, reference, ExampleDraws((seed,), 0, len(output), CPU))
        v = torch.autograd.grad(loss, leaf)[0].reshape(len(output), -1).double()
        products.append(v[:, :, None] * v[:, None, :])
        across.append(v[0, :, None] * v[1, None, :])
    for found, expected in ((products, exact_hessian(criterion, output, reference)), (across, 0.0)):
        sample = torch.stack(found)
        error = sample.std(0) / DRAWS**0.5
        assert bool(((sample.mean(0) - expected).abs() <= Z * error + 1e-6).all())


def drawn_gradients(logits, points):
    """What is sent backwards from logits (classes,), for labels drawn at some points of [0, 1): (points, classes)."""
    labels, scale = draw_classes(logits.expand(len(points), -1), points)
    return (logits.softmax(0) - F.one_hot(labels, len(logits))) * scale[:, None]


POINTS = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000


@pytest.mark.parametrize("sure", [0.0, 3.0, 8.0])
def test_labels_of_two_classes_leave_nothing_to_chance(sure):
    """Whichever label is drawn, the squared gradient is the curvature p (1 - p)."""
    logits = torch.tensor([sure, 0.0], dtype=torch.float64)
    p = logits.softmax(0)
    g = drawn_gradients(logits, POINTS)
    torch.testing.assert_close(g.square(), p.prod().expand_as(g))


def test_labels_of_a_sure_network_tell_of_its_curvature():
    """Drawn with p, one in a thousand would; the mean over all points is the Hessian all the same."""
    logits = torch.cat([torch.tensor([9.0]), normal(8, 7)]).double()
    p = logits.softmax(0)
    assert p[0] > 0.999
    g = drawn_gradients(logits, POINTS)
    torch.testing.assert_close(g.T @ g / len(g), p.diag() - torch.outer(p, p), rtol=1e-3, atol=1e-9)
    assert g.square().sum(1).std() < 0.05 * g.square().sum(1).mean()


def test_labels_of_a_certain_network_have_no_curvature():
    logits = torch.tensor([200.0, 0.0, -200.0])
    assert bool((drawn_gradients(logits, POINTS) == 0.0).all())


@pytest.mark.parametrize("name", CRITERIA)
def test_draws_belong_to_examples(name):
    """Gradients of the second example are the same alone and beside the first."""
    criterion, output, reference = of(name)
    found = []
    for rows in (slice(0, 2), slice(1, 2)):
        leaf = output[rows].clone().requires_grad_()
        draws = ExampleDraws((7,), rows.start, len(leaf), CPU)
        found.append(torch.autograd.grad(criterion.sampled_loss(leaf, reference[rows], draws), leaf)[0][-1])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_token_losses_are_those_of_the_counted_positions():
    criterion, logits, reference = of("next tokens")
    assert reference.tolist() == [[2, 3, -100], [1, -100, -100]]
    assert criterion.weight(logits, reference).tolist() == [2, 1]
    expected = [F.cross_entropy(logits[0, :2], torch.tensor([2, 3])), F.cross_entropy(logits[1, :1], torch.tensor([1]))]
    torch.testing.assert_close(criterion.loss(logits, reference), torch.stack(expected))
    best = logits.argmax(-1)
    right = [((best[0, :2] == reference[0, :2]).sum() / 2).item(), float(best[1, 0] == 1)]
    assert criterion.score(logits, reference).tolist() == right


def test_language_models_predict_their_own_tokens_without_padding():
    tokens = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])
    batch = Batch({"input_ids": tokens, "attention_mask": (tokens > 0).long()}, None)
    reference = TokenClassification(shift=True).reference(normal(1, 2, 4, 10), batch)
    assert reference.tolist() == [[6, 7, -100, -100], [9, -100, -100, -100]]


class Wrapped(nn.Module):
    """Passes on what a function makes of a perceptron's logits."""

    def __init__(self, make=lambda y: y):
        super().__init__()
        self.body, self.make = initialised(Perceptron(), seed=1), make

    def forward(self, x):
        return self.make(self.body(x))


@pytest.mark.parametrize(
    ("make", "labels", "expected"),
    [
        (lambda y: y, torch.arange(8) % 4, "classification"),
        (lambda y: y, None, "classification"),
        (lambda y: y, normal(2, 8, 4), "regression"),
        (lambda y: y[:, 0], normal(2, 8), "regression"),
        (lambda y: y[:, :1], normal(2, 8), "regression"),
        (lambda y: y.view(8, 2, 2), torch.ones(8, 2, dtype=torch.int64), "token-classification"),
        (lambda y: y[:, :, None].expand(8, 4, 5), torch.ones(8, 5, dtype=torch.int64), "token-classification"),
    ],
)
def test_the_task_is_told_from_output_and_labels(make, labels, expected):
    assert resolve_task(None, Wrapped(make), Batch({"x": X}, labels)).name == expected


@pytest.mark.parametrize(
    ("make", "labels", "options", "error", "pattern"),
    [
        (lambda y: y[:, :1], torch.ones(8, dtype=torch.int64), {}, ModelError, r"output \(8, 1\) with labels .*--task"),
        (lambda y: y, None, {"task": "guessing"}, ModelError, r"Task 'guessing' is unknown\. Choose classification"),
        (lambda y: y, normal(2, 8, 4), {"task": "classification"}, DataError, r"Give one class index an example"),
        (lambda y: y, normal(2, 8, 3), {"task": "regression"}, DataError, r"\(8, 3\), the model's output \(8, 4\)"),
        (lambda y: y, None, {"loss_fn": coupled}, DataError, r"no labels, which loss_fn needs"),
        (
            lambda y: y,
            torch.ones(8),
            {"loss_fn": lambda y, _: y.sum()},
            ModelError,
            r"loss_fn gave \(\) for 8 examples",
        ),
        (lambda y: y, torch.ones(8), {"loss_fn": lambda y, _: y.abs().sum(1)}, ModelError, r"no positive second deriv"),
        (lambda y: y, torch.ones(8), {"loss_fn": lambda _, t: t}, ModelError, r"does not depend on the model's output"),
        (
            lambda y: y.repeat(1, 200),
            torch.ones(8),
            {"loss_fn": lambda y, _: y.square().sum(1)},
            ModelError,
            r"800 outputs an example; its curvature is decomposed up to 512",
        ),
        (lambda y: y, None, {"metric_fn": lambda y, _: y}, ModelError, r"metric_fn gave \(8, 4\) for 8 examples"),
        (lambda y: y, None, {"task": Task(), "output": 1}, ModelError, r"A Task already says how to run and judge"),
        (lambda y: y, torch.ones(8), {"loss_fn": lambda y, _: y.log().sum(1)}, ModelError, r"loss has NaN or infinite"),
        (
            lambda y: y.view(8, 2, 2),
            torch.ones(8, 2, dtype=torch.int64) * 2,
            {},
            DataError,
            r"run from 2 to 2, but the model has classes 0 to 1",
        ),
        (
            lambda y: y.view(8, 2, 2),
            torch.ones(8, 3, dtype=torch.int64),
            {},
            DataError,
            r"Labels have shape \(8, 3\), the model's output \(8, 2, 2\)",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_the_work(make, labels, options, error, pattern):
    data = {"x": X} if labels is None else {"x": X, "y": labels}
    with pytest.raises(error, match=pattern) as caught:
        profile(Wrapped(make), data, CHIP, **options)
    assert "\n" not in str(caught.value)


def test_quadratic_loss_is_the_same_task_written_twice():
    """Half the squared error as a user's loss has half the damage of mean squared error over two outputs' sum."""
    data = {"x": X, "y": normal(2, 8, 4)}
    built_in = profile(perceptron(), data, CHIP, task="regression")
    custom = profile(perceptron(), data, CHIP, loss_fn=lambda y, t: (y - t).square().mean(1))
    assert custom.clean_loss == pytest.approx(built_in.clean_loss)
    for kind in KINDS:  # eigenvectors of the identity: the very same draws
        np.testing.assert_allclose(custom.damage[kind], built_in.damage[kind], rtol=1e-5)


def perceptron():
    return initialised(Perceptron(), seed=1)


def kmap_of(found, k):
    repetitions = {site.name: np.array([k]) for site in found.sites}
    ranges = {site.name: SiteRanges(3.0, 3.0) for site in found.sites}
    return KMap(Granularity.LAYER, CHIP, repetitions, ranges)


def test_regression_reports_loss_and_no_score():
    model, data = perceptron(), {"x": X, "y": normal(2, 8, 4)}
    kmap = kmap_of(sites(model, data), 1e12)
    found = validate(model, data, kmap, seeds=3)
    with torch.no_grad():
        expected = float((model(X) - data["y"]).square().mean())
    assert math.isnan(found.accuracy)
    assert (found.score, found.task) == ("", "regression")
    assert found.loss.clean_loss == pytest.approx(expected, rel=1e-5)
    assert found.loss.loss == pytest.approx(expected, rel=1e-4)
    measured = profile(model, data, CHIP)
    assert measured.margins is None
    assert math.isnan(measured.clean_accuracy)
    assert measured.clean_loss == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        each = (model(X) - data["y"]).square().mean(1)
    assert measured.clean_loss_error == pytest.approx(float(each.std()) / len(each) ** 0.5, rel=1e-4)


def test_regression_damage_is_that_of_a_linear_network():
    """Noise of variance v on each of m outputs raises the mean squared error by v: damage is exact and known."""
    model = initialised(nn.Linear(6, 4), seed=1)
    found = profile(model, {"x": X, "y": normal(2, 8, 4)}, CHIP)
    span = (model.weight.amax(1) - model.weight.amin(1)).detach().double().numpy()
    expected = 6 * span**2 * found.sites[0].input_range ** 2 / 4
    np.testing.assert_allclose(found.damage[KINDS[0]], expected, rtol=1e-6)


def test_a_metric_takes_the_place_of_accuracy():
    def confidence(logits, labels):
        return logits.softmax(1).gather(1, labels[:, None])[:, 0]

    model, labels = perceptron(), torch.arange(8) % 4
    found = validate(model, {"x": X, "y": labels}, kmap_of(sites(model, X), 1e12), metric_fn=confidence, seeds=2)
    with torch.no_grad():
        expected = float(confidence(model(X), labels).mean())
    assert found.score == "confidence"
    assert found.accuracy == pytest.approx(expected, rel=1e-4)


def test_forward_fn_and_the_choice_of_an_output():
    model, labels = Wrapped(lambda y: {"aux": y[:, :2], "main": y}), torch.arange(8) % 4
    plain = profile(perceptron(), (X, labels), CHIP)
    chosen = profile(model, (X, labels), CHIP, output="main")
    numbered = profile(model, (X, labels), CHIP, output=1)
    called = profile(model, {"a": X, "y": labels}, CHIP, forward_fn=lambda m, inputs: m(x=inputs["a"])["main"])
    for other in (chosen, numbered, called):
        assert other.clean_loss == plain.clean_loss
        assert all(np.array_equal(other.damage[kind], plain.damage[kind]) for kind in KINDS)
