"""Injected noise against the stated variances, with products and their Jacobians computed apart in float64.

The reference knows a product only as a bilinear function y(x, w). Its Jacobian in w holds, for every output, the inputs
of its receptive field, so the covariance of all outputs follows from the stated formulas without the package.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from networks import CPU, KINDS, LEVELS, SHOT, THERMAL, WEIGHT, SharedLayer, hardware, initialised, normal
from torch import Tensor, nn
from torch.nn import functional as F

from precalloc.hardware import Redundancy
from precalloc.kmaps import KMap, SiteRanges
from precalloc.network.batches import Batch
from precalloc.network.interception import intercept
from precalloc.network.noise import NoiseInjector, SiteNoise, additive_deviation
from precalloc.network.normals import Normals
from precalloc.objective import Granularity

INPUT_RANGE, OPERAND_RANGE = 3.0, 2.5
DRAWS = 400
# About 10^5 covariances are compared, whose sampling distribution has heavier tails than a normal one.
ELEMENT_Z, POOLED_Z = 6.5, 4.5


@dataclass(frozen=True)
class Case:
    """One product: the call under test, the same as a bilinear function, and where its channels are.

    ``weight_axes`` and ``output_axes`` are the axes of w and y that number the output channels; None where w is an
    activation. ``fan_in`` is D; ``scale`` is a digital factor on the noisy product.
    """

    call: Callable[[Tensor, Tensor], Tensor]
    product: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    w: Tensor
    fan_in: float
    weight_axes: tuple[int, ...] | None = None
    output_axes: tuple[int, ...] | None = None
    groups_transposed: int = 0
    scale: float = 1.0

    @property
    def static(self):
        return self.output_axes is not None

    def weight_channels(self):
        """Output channel of every weight."""
        if self.groups_transposed:
            per_input, per_group = self.w.shape[0] // self.groups_transposed, self.w.shape[1]
            group = torch.arange(self.w.shape[0]) // per_input
            channels = group[:, None] * per_group + torch.arange(per_group)
            return channels.reshape(*channels.shape, *[1] * (self.w.dim() - 2)).expand(self.w.shape)
        return channel_numbers(self.w.shape, self.weight_axes)

    def output_channels(self):
        """Channel of every output."""
        return channel_numbers(self.product(self.x, self.w).shape, self.output_axes)


def channel_numbers(shape, axes):
    axes = [axis % len(shape) for axis in axes]
    numbers = torch.arange(int(np.prod([shape[axis] for axis in axes])))
    return numbers.reshape([size if axis in axes else 1 for axis, size in enumerate(shape)]).expand(shape)


def convolution(conv, x, w, **options):
    bias = normal(9, w.shape[0])
    fan_in = float(w[0].numel())
    spatial = w.dim() - 2
    return Case(
        lambda x, w: conv(x, w, bias, **options),
        lambda x, w: conv(x, w, **options),
        x,
        w,
        fan_in,
        weight_axes=(0,),
        output_axes=(-1 - spatial,),
    )


def transposed(conv, x, w, groups=1, **options):
    outputs = conv(x, w, groups=groups, **options).numel()
    return Case(
        lambda x, w: conv(x, w, groups=groups, **options),
        lambda x, w: conv(x, w, groups=groups, **options),
        x,
        w,
        x.numel() * w[0].numel() / outputs,  # the mean over outputs, which see parts of the kernel only
        weight_axes=(1,),
        output_axes=(1 - w.dim(),),
        groups_transposed=groups,
    )


def contraction(call, equation, x, w, fan_in, weight_axes=None, output_axes=None, scale=1.0):
    return Case(call, lambda x, w: torch.einsum(equation, x, w), x, w, fan_in, weight_axes, output_axes, scale=scale)


def convolutions():
    x2 = normal(1, 2, 4, 4, 3)
    return {
        "conv1d": convolution(F.conv1d, normal(1, 2, 3, 5), normal(2, 4, 3, 3)),
        "conv1d stride padding": convolution(F.conv1d, normal(1, 2, 3, 7), normal(2, 4, 3, 3), stride=2, padding=1),
        "conv1d same dilation": convolution(
            F.conv1d, normal(1, 2, 2, 6), normal(2, 3, 2, 3), padding="same", dilation=2
        ),
        "conv2d": convolution(F.conv2d, x2, normal(2, 3, 4, 2, 2)),
        "conv2d stride padding": convolution(
            F.conv2d, normal(1, 2, 2, 5, 4), normal(2, 3, 2, 3, 3), stride=(2, 1), padding=(1, 2)
        ),
        "conv2d same": convolution(F.conv2d, normal(1, 1, 2, 4, 3), normal(2, 3, 2, 3, 1), padding="same"),
        "conv2d valid": convolution(F.conv2d, normal(1, 1, 2, 4, 3), normal(2, 3, 2, 3, 2), padding="valid"),
        "conv2d dilation": convolution(F.conv2d, normal(1, 1, 2, 6, 5), normal(2, 3, 2, 2, 2), dilation=(3, 2)),
        "conv2d groups": convolution(F.conv2d, x2, normal(2, 6, 2, 2, 2), groups=2),
        "conv2d depthwise": convolution(F.conv2d, x2, normal(2, 4, 1, 3, 3), groups=4, padding=1),
        "conv2d depthwise multiplier": convolution(F.conv2d, x2, normal(2, 8, 1, 2, 2), groups=4),
        "conv2d channels last": convolution(
            F.conv2d, x2.to(memory_format=torch.channels_last), normal(2, 3, 4, 2, 2), padding=1
        ),
        "conv2d one example without batch": convolution(F.conv2d, x2[0], normal(2, 4, 2, 2, 2), groups=2, padding=1),
        "conv3d": convolution(F.conv3d, normal(1, 1, 2, 3, 4, 3), normal(2, 3, 2, 2, 3, 2), stride=(1, 2, 1)),
        "conv3d groups": convolution(
            F.conv3d, normal(1, 1, 4, 2, 2, 2), normal(2, 4, 2, 2, 2, 2), groups=2, padding=(0, 1, 0)
        ),
        "transposed 1d": transposed(F.conv_transpose1d, normal(1, 2, 3, 4), normal(2, 3, 2, 3)),
        "transposed 1d stride": transposed(F.conv_transpose1d, normal(1, 2, 3, 3), normal(2, 3, 2, 3), stride=2),
        "transposed 2d stride groups": transposed(
            F.conv_transpose2d,
            normal(1, 1, 4, 2, 2),
            normal(2, 4, 2, 3, 2),
            groups=2,
            stride=2,
            padding=1,
            output_padding=(1, 0),
        ),
        "transposed 3d": transposed(F.conv_transpose3d, normal(1, 1, 2, 2, 2, 1), normal(2, 2, 2, 2, 2, 2), stride=2),
    }


def matrix_products():
    a, b, t = normal(1, 5, 4), normal(2, 4, 3), normal(1, 2, 3, 4)
    left, right = normal(1, 2, 3, 4), normal(2, 2, 4, 3)
    right_weight = {"weight_axes": (1,), "output_axes": (-1,)}
    added = normal(3, 5, 3)
    return {
        "linear": contraction(lambda x, w: F.linear(x, w, normal(3, 3)), "nd,od->no", a, b.T, 4.0, (0,), (-1,)),
        "linear tokens": contraction(F.linear, "ntd,od->nto", t, b.T, 4.0, (0,), (-1,)),
        "matmul weight right": contraction(lambda x, w: x @ w, "nd,do->no", a, b, 4.0, **right_weight),
        "matmul weight left": contraction(lambda x, w: w @ x, "dn,od->on", a.T, b.T, 4.0, (0,), (0,)),
        "matmul weight right batch": contraction(torch.matmul, "ntd,do->nto", t, b, 4.0, **right_weight),
        "matmul weight left batch": contraction(
            lambda x, w: torch.matmul(w, x), "ndt,od->not", t.mT, b.T, 4.0, (0,), (1,)
        ),
        "matmul weight with batch": contraction(torch.matmul, "bmd,bdn->bmn", left, right, 4.0, (0, 2), (0, 2)),
        "mm": contraction(torch.mm, "nd,do->no", a, b, 4.0, **right_weight),
        "mv weight": contraction(lambda x, w: w.mv(x), "d,od->o", a[0], b.T, 4.0, (0,), (0,)),
        "rmatmul": contraction(lambda x, w: w.__rmatmul__(x), "nd,do->no", a, b, 4.0, **right_weight),
        "addmm": contraction(
            lambda x, w: torch.addmm(added, x, w, beta=0.5, alpha=2.0), "nd,do->no", a, b, 4.0, (1,), (-1,), 2.0
        ),
        "addmv": contraction(lambda x, w: torch.addmv(added[0], w, x), "d,od->o", a[0], b.T, 4.0, (0,), (0,)),
        "einsum weight right": contraction(
            lambda x, w: torch.einsum("ntd,dho->nhto", x, w),
            "ntd,dho->nhto",
            t,
            normal(2, 4, 2, 2),
            4.0,
            (1, 2),
            (1, 3),
        ),
        "einsum weight left": contraction(
            lambda x, w: torch.einsum("od,...d->...o", w, x), "ntd,od->nto", t, b.T, 4.0, (0,), (-1,)
        ),
        "bmm": contraction(torch.bmm, "bmd,bdn->bmn", left, right, 4.0),
        "matmul of activations": contraction(lambda x, w: x @ w, "bmd,bdn->bmn", left, right, 4.0),
        "matmul of activations broadcast": contraction(
            torch.matmul, "bmd,bdn->bmn", left, right[:1].expand(2, 4, 3), 4.0
        ),
        "matmul of vectors": contraction(torch.matmul, "d,d->", a[0], b[:, 0], 4.0),
        "einsum of activations": contraction(
            lambda x, w: torch.einsum("bmd,bnd->bnm", x, w), "bmd,bnd->bnm", left, right.mT, 4.0
        ),
        "baddbmm": contraction(
            lambda x, w: torch.baddbmm(normal(3, 2, 3, 3), x, w, beta=1, alpha=0.5),
            "bmd,bdn->bmn",
            left,
            right,
            4.0,
            scale=0.5,
        ),
    }


CASES = convolutions() | matrix_products()


class Net(nn.Module):
    """The call of a case, with w as a parameter or as an activation."""

    def __init__(self, case):
        super().__init__()
        self.case = case
        self.weight = nn.Parameter(case.w.clone(memory_format=torch.contiguous_format)) if case.static else None

    def forward(self):
        return self.case.call(self.case.x, self.case.w if self.weight is None else self.weight)


def reference_covariance(case, kinds, k):
    """Covariance of all outputs: thermal and shot noise per output, weight noise through the Jacobian in w."""
    x, w = case.x.double(), case.w.double()
    y = case.product(x, w)
    jacobian = torch.autograd.functional.jacobian(lambda w: case.product(x, w), w).reshape(y.numel(), w.numel())
    energy = jacobian.square().sum(1)  # ||x||^2 of every output's receptive field
    if case.static:
        channel = case.output_channels().flatten()
        rows = [w[case.weight_channels() == c] for c in range(int(channel.max()) + 1)]
        span = torch.stack([row.max() - row.min() for row in rows])
        mean_square = torch.stack([row.square().mean() for row in rows])[channel]
        output_span, weight_span = span[channel], span[case.weight_channels().flatten()]
        output_k, weight_k = (
            torch.as_tensor(k).expand(len(rows))[i.flatten()] for i in (channel, case.weight_channels())
        )
    else:
        output_span, weight_span = (torch.full((size,), OPERAND_RANGE) for size in (y.numel(), w.numel()))
        in_x = torch.autograd.functional.jacobian(lambda x: case.product(x, w), x).reshape(y.numel(), x.numel())
        mean_square = in_x.square().sum(1) / case.fan_in
        output_k, weight_k = (torch.as_tensor(k).expand(size) for size in (y.numel(), w.numel()))
    covariance = torch.zeros(y.numel(), y.numel(), dtype=torch.float64)
    if THERMAL in kinds:
        covariance += torch.diag(LEVELS[THERMAL] ** 2 / output_k * case.fan_in * output_span**2 * INPUT_RANGE**2)
    if SHOT in kinds:
        covariance += torch.diag(mean_square * energy / (output_k * LEVELS[SHOT]))
    if WEIGHT in kinds:
        covariance += jacobian @ torch.diag(LEVELS[WEIGHT] ** 2 / weight_k * weight_span**2).double() @ jacobian.T
    return (covariance * case.scale**2).numpy()


def site_noise(kinds, k, redundancy=Redundancy.SPACE):
    return SiteNoise.of(hardware(kinds, redundancy), np.atleast_1d(k), SiteRanges(INPUT_RANGE, OPERAND_RANGE))


def errors(model, noise, draws=DRAWS, batch=None):
    """Noisy minus clean output of every draw, a new injector each, (draws, outputs)."""
    with torch.no_grad():
        clean = model()
        outputs = []
        for seed in range(draws):
            injector = NoiseInjector({"site": noise}, seed, CPU)
            injector = injector if batch is None else injector.at(batch)
            with intercept(model, lambda _, product, injector=injector: injector("site", product)):
                outputs.append(model())
    return (torch.stack(outputs) - clean).double().reshape(draws, -1).numpy()


def assert_covariance(sample, covariance):
    """Every mean and covariance within ELEMENT_Z standard errors, and the sum of the variances within POOLED_Z."""
    draws, variance = len(sample), np.diag(covariance)
    means = sample.mean(0) / np.sqrt(variance / draws)
    assert np.abs(means).max() < ELEMENT_Z
    found = sample.T @ sample / draws
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / draws)
    z = (found - covariance) / error
    assert np.abs(z).max() < ELEMENT_Z
    correlation = covariance / np.sqrt(np.outer(variance, variance))
    pooled = (np.diag(found) / variance - 1.0).sum() / np.sqrt(2.0 * np.square(correlation).sum() / draws)
    assert abs(pooled) < POOLED_Z


@pytest.mark.parametrize("name", CASES)
def test_reference_is_the_call_under_test(name):
    case = CASES[name]
    zero = case.call(case.x, torch.zeros_like(case.w))
    expected = case.scale * case.product(case.x.double(), case.w.double())
    torch.testing.assert_close((case.call(case.x, case.w) - zero).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kinds", [(kind,) for kind in KINDS], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_variance_of_each_kind_divided_by_k(name, kinds):
    case, k = CASES[name], 2.5
    assert_covariance(errors(Net(case), site_noise(kinds, k)), reference_covariance(case, kinds, k))


@pytest.mark.parametrize("name", CASES)
def test_all_kinds_add_and_channels_carry_their_own_k(name):
    case = CASES[name]
    channels = int(case.output_channels().max()) + 1 if case.static else 1
    k = np.linspace(1.0, 6.0, channels)
    assert_covariance(errors(Net(case), site_noise(KINDS, k)), reference_covariance(case, KINDS, k))


@pytest.mark.parametrize("name", ["linear", "conv2d", "bmm"])
def test_noise_from_streams_of_the_examples_has_the_same_covariance(name):
    case = CASES[name]
    batch = Batch({"x": case.x}, None, start=7)
    assert_covariance(errors(Net(case), site_noise(KINDS, 2.0), batch=batch), reference_covariance(case, KINDS, 2.0))


@pytest.mark.parametrize("kinds", [(kind,) for kind in KINDS], ids=str)
def test_examples_meet_the_same_noise_in_any_batch(kinds):
    model, x = initialised(SharedLayer()).double(), normal(1, 6, 6).double()
    whole, halves = (injector_of(("shared", "head"), kinds, seed=3) for _ in range(2))
    expected = run(model, whole.at(Batch({"x": x}, None)), x)
    parts = [
        run(model, halves.at(Batch({"x": x[at]}, None, start=at.start)), x[at]) for at in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-12, atol=1e-12)
    later = run(model, whole.at(Batch({"x": x}, None, start=1)), x)
    assert torch.equal(later, expected) is (kinds == (WEIGHT,))  # weights are programmed once for all examples


@pytest.mark.parametrize("name", CASES)
def test_additive_deviation_is_exact(name):
    case, found = CASES[name], []
    noise = site_noise((THERMAL, SHOT), 1.5)

    def observe(_, product):
        y = product.apply(product.x, product.w)
        factors = additive_deviation(product, noise, y)
        found.append(torch.ones_like(y, dtype=torch.float64) * factors[0].double())
        return y

    model = Net(case)
    with torch.no_grad(), intercept(model, observe):
        model()
    variance = case.scale**2 * found[0].flatten().square().numpy()
    expected = np.diag(reference_covariance(case, (THERMAL, SHOT), 1.5))
    np.testing.assert_allclose(variance, expected, rtol=1e-4)


def test_attention_products():
    """Scores get their noise before scale and softmax; values are multiplied by exact attention weights here."""
    q, k, v = normal(1, 2, 3, 4), normal(2, 2, 5, 4), normal(3, 2, 5, 3)
    scores = contraction(torch.matmul, "bmd,bdn->bmn", q, k.mT, 4.0)
    values = contraction(torch.matmul, "bmd,bdn->bmn", torch.softmax(q @ k.mT / 2.0, -1), v, 5.0)
    samples = {"attention_scores.0": [], "attention_values.0": []}
    model, kinds = nn.Identity(), KINDS
    for seed in range(DRAWS):
        injector = NoiseInjector(dict.fromkeys(samples, site_noise(kinds, 2.0)), seed, CPU)

        def observe(name, product, injector=injector):
            clean = product.apply(product.x, product.w)
            samples[name].append((injector(name, product) - clean).flatten())
            return clean

        with intercept(model, observe):
            F.scaled_dot_product_attention(q, k, v)
    for (name, sample), case in zip(samples.items(), (scores, values), strict=True):
        assert len(sample) == DRAWS, name
        assert_covariance(torch.stack(sample).double().numpy(), reference_covariance(case, kinds, 2.0))


@pytest.mark.parametrize("kind", KINDS)
def test_channel_granularity_hits_that_channel_alone(kind):
    """With K beyond all measure everywhere else, only the chosen channel's outputs move."""
    for name, chosen in (("conv2d groups", 4), ("transposed 2d stride groups", 2), ("linear", 1)):
        case = CASES[name]
        channels = int(case.output_channels().max()) + 1
        k = np.full(channels, 1e30)
        k[chosen] = 1.0
        moved = np.abs(errors(Net(case), site_noise((kind,), k), draws=3)).max(0) > 1e-6
        assert np.array_equal(moved, (case.output_channels() == chosen).flatten().numpy()), name


@pytest.mark.parametrize(
    ("kind", "redundancy", "averaged"),
    [
        (THERMAL, Redundancy.TIME, True),
        (THERMAL, Redundancy.POWER, False),
        (WEIGHT, Redundancy.SPACE, True),
        (WEIGHT, Redundancy.TIME, False),
        (WEIGHT, Redundancy.POWER, False),
        (SHOT, Redundancy.POWER, True),
        (SHOT, Redundancy.TIME, True),
    ],
)
def test_what_the_redundancy_does_not_average_is_not_divided_by_k(kind, redundancy, averaged):
    case, k = CASES["linear"], 9.0
    sample = errors(Net(case), site_noise((kind,), k, redundancy))
    assert_covariance(sample, reference_covariance(case, (kind,), k if averaged else 1.0))


def injector_of(model_sites, kinds, seed, k=1.0, **options):
    ranges = {name: SiteRanges(INPUT_RANGE, OPERAND_RANGE) for name in model_sites}
    repetitions = {name: np.array([k]) for name in model_sites}
    return NoiseInjector.of(KMap(Granularity.LAYER, hardware(kinds), repetitions, ranges), seed, CPU, **options)


def run(model, injector, x):
    with torch.no_grad(), intercept(model, injector):
        return model(x)


def test_weight_errors_are_drawn_once_for_all_examples_and_calls():
    model, x = initialised(SharedLayer()), normal(1, 5, 6)
    sites = ("shared", "head")
    injector = injector_of(sites, (WEIGHT,), seed=3)
    first = run(model, injector, x)
    assert torch.equal(run(model, injector, x), first)
    torch.testing.assert_close(run(model, injector, x[2:4]), first[2:4])
    programmed = {}

    def note(name, product):
        y = injector(name, product)
        effective = torch.linalg.lstsq(product.x.double(), (y - model.get_submodule(name).bias).double()).solution
        programmed.setdefault(name, []).append(effective)
        return y

    run(model, note, normal(2, 20, 6))
    assert len(programmed["shared"]) == 2
    torch.testing.assert_close(programmed["shared"][0], programmed["shared"][1], rtol=1e-4, atol=1e-4)
    assert not torch.equal(run(model, injector_of(sites, (WEIGHT,), seed=4), x), first)


def test_another_device_has_other_errors_and_is_the_same_for_the_same_seed():
    model, x = initialised(SharedLayer()), normal(1, 5, 6)
    one, other = (injector_of(("shared", "head"), (WEIGHT,), seed=3) for _ in range(2))
    first = run(model, one, x), run(model, other, x)
    one.reprogram()
    other.reprogram()
    second = run(model, one, x), run(model, other, x)
    assert torch.equal(*first)
    assert torch.equal(*second)
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_twin_has_the_errors_that_it_would_draw_itself_whichever_runs_first(sign, order, keeps):
    model, x, sites = initialised(SharedLayer()), normal(1, 5, 6), ("shared", "head")
    alone = [run(model, injector_of(sites, KINDS, seed=3, sign=each), x) for each in (-1.0, sign)]
    first = injector_of(sites, KINDS, seed=3, sign=-1.0, keeps=keeps)
    second = injector_of(sites, KINDS, seed=3, sign=sign, twin=first)
    seen = [run(model, injector, x) for injector in (first, second)[::order]][::order]
    torch.testing.assert_close(seen, alone)
    assert torch.equal(seen[0], alone[0])


def test_kept_numbers_are_drawn_once_and_serve_every_twin_unchanged(monkeypatch):
    model, x, sites = initialised(SharedLayer()), normal(1, 5, 6), ("shared", "head")
    alone = run(model, injector_of(sites, (THERMAL, SHOT), seed=3), x)
    drawn, draw = [], Normals._draw
    monkeypatch.setattr(Normals, "_draw", lambda self, t, layout: drawn.append(t.shape) or draw(self, t, layout))
    first = injector_of(sites, (THERMAL, SHOT), seed=3, keeps=True)
    second = injector_of(sites, (THERMAL, SHOT), seed=3, twin=first)
    third = injector_of(sites, (THERMAL, SHOT), seed=3, twin=second)
    assert all(torch.equal(run(model, injector, x), alone) for injector in (first, second, third))
    assert len(drawn) == 3  # two calls of the shared layer, one of the head


def test_examples_meet_the_noise_that_another_injector_keeps_for_their_batch():
    model, x, sites = initialised(SharedLayer()), normal(1, 6, 6), ("shared", "head")
    batches = [Batch({"x": x[at]}, None, start=at.start) for at in (slice(0, 4), slice(4, 6))]
    one, other, alone = (injector_of(sites, KINDS, seed=3, keeps=keeps) for keeps in (True, False, False))
    for batch in batches:
        expected = run(model, alone.at(batch), batch.inputs["x"])
        assert torch.equal(run(model, one.at(batch), batch.inputs["x"]), expected)
        assert torch.equal(run(model, other.at(batch, like=one), batch.inputs["x"]), expected)


def test_numbers_beyond_those_that_are_kept_are_new_ones():
    """A twin that noise leads along another way meets other shapes, and more of them."""
    source = Normals(torch.Generator().manual_seed(1), keeps=True)
    kept = [source.like(torch.empty(shape), None) for shape in ((3, 2), (4,))]
    again = source.again()
    same, other, more = (again.like(torch.empty(shape), None) for shape in ((3, 2), (6,), (5,)))
    assert torch.equal(same, kept[0])
    values = torch.cat([each.flatten() for each in (*kept, other, more)])
    assert len(values.unique()) == len(values)


def test_noise_of_activations_is_drawn_anew_at_every_use():
    model, x = initialised(SharedLayer()), normal(1, 5, 6)
    for kind in (THERMAL, SHOT):
        injector = injector_of(("shared", "head"), (kind,), seed=3)
        assert not torch.equal(run(model, injector, x), run(model, injector, x))
    case = CASES["bmm"]
    injector = injector_of(("site",), (WEIGHT,), seed=3)
    with intercept(Net(case), lambda _, product: injector("site", product)):
        assert not torch.equal(Net(case)(), Net(case)())


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS], ids=str)
def test_same_seed_same_bits(kinds):
    model, x, sites = initialised(SharedLayer()), normal(1, 5, 6), ("shared", "head")
    first = run(model, injector_of(sites, kinds, seed=7), x)
    assert torch.equal(run(model, injector_of(sites, kinds, seed=7), x), first)
    assert not torch.equal(run(model, injector_of(sites, kinds, seed=8), x), first)


def test_k_scales_the_same_standard_normal_numbers():
    """Two K maps with one seed see the same draws: common random numbers for paired comparisons."""
    case = CASES["conv2d"]
    for kind in KINDS:
        once = errors(Net(case), site_noise((kind,), 1.0), draws=1)
        four_times = errors(Net(case), site_noise((kind,), 4.0), draws=1)
        np.testing.assert_allclose(four_times, once / 2.0, rtol=1e-3, atol=1e-5)


class TwoLayers(nn.Module):
    """One hidden unit 1 x_1 - 1 x_2 and one output 2 h + 0.5 x_1: small enough for pencil and paper."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0, -1.0]]))
            self.out.weight.copy_(torch.tensor([[2.0, 0.5]]))

    def forward(self, x):
        return self.out(torch.cat([self.hidden(x), x[:, :1]], dim=1))


@pytest.mark.parametrize(
    ("kind", "level", "variance"),
    [
        # x = (3, 4), h = -1; dW = 2 and 1.5, dx = 8 and 6, D = 2 in both layers.
        # hidden 0.01^2 * 2 * 2^2 * 8^2 = 0.0512; out 0.01^2 * 2 * 1.5^2 * 6^2 = 0.0162; 2^2 * 0.0512 + 0.0162
        (THERMAL, 0.01, 0.221),
        # hidden 0.1^2 * 2^2 * (9 + 16) = 1; out, whose two weights have errors of variance 0.0225 each:
        # E[(W + e)^2] var(h) + 0.0225 * (h^2 + x_1^2) = (4 + 0.0225) * 1 + 0.0225 * (1 + 9) = 4.2475
        (WEIGHT, 0.1, 4.2475),
        # hidden 2 * 25 / (2 * 100) = 0.25; out 4.25 * E[h^2 + x_1^2] / (2 * 100) = 4.25 * (1 + 0.25 + 9) / 200
        (SHOT, 100.0, 4.0 * 0.25 + 4.25 * 10.25 / 200.0),
    ],
)
def test_tiny_network_by_hand(kind, level, variance):
    model, draws = TwoLayers(), 2000
    hand = hardware((kind,), levels={kind: level})
    ranges = {"hidden": SiteRanges(8.0), "out": SiteRanges(6.0)}
    kmap = KMap(Granularity.LAYER, hand, {name: np.ones(1) for name in ranges}, ranges)
    x = torch.tensor([[3.0, 4.0]])
    sample = np.array([float(run(model, NoiseInjector.of(kmap, seed, CPU), x)) for seed in range(draws)])
    squares = (sample - (-2.0 + 1.5)) ** 2
    assert abs(squares.mean() - variance) < 4.5 * squares.std() / draws**0.5


CONVOLUTIONS = [
    {"padding": 1},
    {"stride": 2, "padding": (1, 2)},
    {"stride": (2, 1), "dilation": (1, 2), "groups": 2},
    {"padding": "same", "dilation": (2, 1)},
    {"padding": "valid", "groups": 4},
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # windows of even size need one more zero on one side
@pytest.mark.parametrize("options", CONVOLUTIONS)
@pytest.mark.parametrize("window", [(3, 3), (2, 4), (1, 1)])
def test_norms_of_receptive_fields_are_convolutions_of_squares(options, window):
    x, groups = normal(3, 2, 4, 9, 8), options.get("groups", 1)
    layer = initialised(nn.Conv2d(4, 8, window, **options), seed=1)
    found = {}

    def note(site, product):
        found[site] = product.x_energy(product.x)
        return product.apply(product.x, product.w)

    with torch.no_grad(), intercept(layer, note):
        y = layer(x)
    (energy,), ones = found.values(), torch.ones(8, 4 // groups, *window)
    expected = F.conv2d(x.square(), ones, None, layer.stride, layer.padding, layer.dilation, groups)
    torch.testing.assert_close(energy.expand_as(y), expected, rtol=1e-5, atol=1e-6)
