"""Random networks of all operators, with branches, reuse, broadcasting and views between them.

Every network maps (N, 3, 4) to logits through steps that keep that shape. Its covered MACs must be half the FLOPs of
torch's counter, and at every call of every site the noise must have the stated variance, which is computed here from
the operands alone.
"""

# ruff: noqa: ARG005 - every step takes the same three, whatever it needs of them
from dataclasses import replace

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import CPU, LEVELS, SHOT, THERMAL, WEIGHT, hardware, normal
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from precalloc import sites
from precalloc.kmaps import SiteRanges
from precalloc.network.interception import intercept
from precalloc.network.noise import NoiseInjector, SiteNoise, weight_range

N, T, D = 3, 3, 4
INPUT_RANGE, OPERAND_RANGE, DRAWS, Z = 2.0, 1.5, 8, 5.0


class Mixer(nn.Module):
    """One block of several products, for reuse."""

    def __init__(self):
        super().__init__()
        self.linear, self.conv = nn.Linear(D, D), nn.Conv1d(T, T, 3, padding=1)
        self.depthwise, self.up = nn.Conv1d(T, T, 3, padding=2, groups=T), nn.ConvTranspose1d(T, T, 2, stride=2)
        self.left, self.right = nn.Parameter(normal(1, T, T)), nn.Parameter(normal(2, D, D))
        self.shift = nn.Parameter(normal(3, D, D))


STEPS = {
    "linear": lambda m, a, b: m.linear(a),
    "functional linear": lambda m, a, b: F.linear(a, m.right),
    "computed weight": lambda m, a, b: F.linear(a, m.right * torch.tanh(m.shift)),
    "conv": lambda m, a, b: m.conv(a),
    "depthwise": lambda m, a, b: m.depthwise(a)[..., 1:5],
    "transposed": lambda m, a, b: m.up(a)[..., ::2],
    "weight right": lambda m, a, b: a @ m.right,
    "weight left": lambda m, a, b: m.left @ a,
    "scores": lambda m, a, b: (a @ b.mT) @ b,
    "broadcast": lambda m, a, b: a @ b[:1].mT @ a,
    "bmm": lambda m, a, b: torch.bmm(a.mT, b).mT[:, :T],
    "baddbmm": lambda m, a, b: torch.baddbmm(a, b, m.right.expand(N, D, D), beta=0.5),
    "addmm": lambda m, a, b: torch.addmm(b.reshape(-1, D), a.reshape(-1, D), m.right).reshape(N, T, D),
    "einsum": lambda m, a, b: torch.einsum("ntd,nsd->nts", a, b) @ b,
    "einsum of three": lambda m, a, b: torch.einsum("ntd,de,nse->nts", a, m.right, b) @ a,
    "einsum lone": lambda m, a, b: a * torch.einsum("ntd,nde->nt", a, b.mT)[..., None],
    "tensordot": lambda m, a, b: torch.tensordot(a, m.right, dims=1),
    "multi_dot": lambda m, a, b: a + torch.linalg.multi_dot([a[0], m.right, b[0].mT, b[1]]),
    "attention": lambda m, a, b: F.scaled_dot_product_attention(a, b, a + b),
    "in place": lambda m, a, b: m.linear(a).relu_(),
    "into": lambda m, a, b: torch.matmul(a, m.right, out=torch.empty(N, T, D)),
    "view": lambda m, a, b: a.transpose(0, 1).contiguous().transpose(0, 1),
    "flip": lambda m, a, b: a.flip(-1).mT.contiguous().mT,
    "branch": lambda m, a, b: a + torch.tanh(b),
    "mean": lambda m, a, b: a - b.mean(1, keepdim=True),
}


class Random(nn.Module):
    """A program: each step takes two earlier values and one of two mixers, which are reused."""

    def __init__(self, program):
        super().__init__()
        self.mixers = nn.ModuleList(Mixer() for _ in range(2))
        self.head, self.program = nn.Linear(D, 3), program
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters()):
                parameter.copy_(normal(40 + index, *parameter.shape) * 0.5)

    def forward(self, x):
        values = [x]
        for step, mixer, first, second in self.program:
            a, b = values[first % len(values)], values[second % len(values)]
            y = STEPS[step](self.mixers[mixer], a, b)
            values.append(y / (1.0 + y.detach().abs().mean()))
        return self.head((values[-1] + values[len(values) // 2]).mean(1))


programs = st.lists(
    st.tuples(st.sampled_from(list(STEPS)), st.integers(0, 1), st.integers(0, 5), st.integers(0, 5)),
    min_size=2,
    max_size=7,
)
CHECK = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.differing_executors]
)


@CHECK
@given(programs)
def test_covered_macs_are_half_the_flops(program):
    model, x = Random(program).eval(), normal(2, N, T, D)
    report = sites(model, x)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    assert sum(site.macs for site in report.sites) * N == counter.get_total_flops() / 2
    assert report.uncovered == report.digital == ()


def test_every_step_is_covered_alone():
    for step in STEPS:
        test_covered_macs_are_half_the_flops.hypothesis.inner_test([(step, 0, 0, 0)])


def rows_and_axis(product, y):
    """Weights by output channel and that channel's axis, from the operator's definition alone."""
    w = product.w.double()
    match product.operator:
        case "conv1d":
            return w.flatten(1), -2
        case "conv_transpose1d":
            return w.transpose(0, 1).flatten(1), -2
        case "linear":
            return w, -1
    return (w, -2) if y.shape[-1] != w.shape[-1] else (w.mT, -1)  # standing on the left, or on the right


def additive_variance(product, y):
    """Thermal and shot variance of every output at K = 1; the fan-in is counted with ones in the place of numbers."""
    x, w = product.x, product.w
    bare = product.apply(x, torch.zeros_like(w))
    jacobian = torch.autograd.functional.jacobian(lambda w: product.apply(x, w) - bare, w).reshape(y.numel(), -1)
    energy = jacobian.double().square().sum(1).reshape(y.shape)
    if product.is_static:
        rows, axis = rows_and_axis(product, y)
        shape = [1] * y.dim()
        shape[axis] = -1
        fan_in = rows.shape[1] if product.operator != "conv_transpose1d" else x.numel() * w[0].numel() / y.numel()
        span = (rows.amax(1) - rows.amin(1)).reshape(shape)
        mean_square = rows.square().mean(1).reshape(shape)
    else:
        in_x = torch.autograd.functional.jacobian(lambda x: product.apply(x, w) - bare, x).reshape(y.numel(), -1)
        fan_in = float((jacobian != 0).sum(1).max())
        span, mean_square = OPERAND_RANGE, in_x.double().square().sum(1).reshape(y.shape) / fan_in
    return LEVELS[THERMAL] ** 2 * fan_in * span**2 * INPUT_RANGE**2 + energy * mean_square / LEVELS[SHOT]


def noise_of(kinds):
    return SiteNoise.of(hardware(kinds), np.ones(1), SiteRanges(INPUT_RANGE, OPERAND_RANGE))


def assert_unit(standard, what):
    """Independent standard normal numbers: their mean square within Z standard errors of one."""
    assert abs(float(standard.square().mean()) - 1.0) < Z * (2.0 / standard.numel()) ** 0.5, what


@CHECK
@given(programs.filter(lambda program: not any(step == "baddbmm" for step, *_ in program)))
def test_noise_at_every_call_has_the_stated_variance(program):
    model, additive, programmed = Random(program).eval(), noise_of((THERMAL, SHOT)), noise_of((WEIGHT,))
    calls = iter(range(10_000))

    def check(name, product):
        seed = 100 * next(calls)
        y = product.apply(product.x, product.w)
        draws = [NoiseInjector({name: additive}, seed + i, CPU)(name, product) - y for i in range(DRAWS)]
        variance = additive_variance(product, y)
        heard = variance > 0.0  # a receptive field of zeros has no shot noise, but thermal noise always
        assert bool(heard.all()), name
        assert_unit(torch.stack(draws).double() / variance.sqrt(), (name, "thermal and shot"))
        seen = []
        spying = replace(product, apply=lambda x, w: seen.append(w) or product.apply(x, w))
        for i in range(DRAWS):
            NoiseInjector({name: programmed}, seed + i, CPU)(name, spying)
        errors = torch.stack(seen).double() - product.w.double()
        span = OPERAND_RANGE
        if product.is_static:
            errors = torch.stack([product.rows(error) for error in errors])
            rows = rows_and_axis(product, y)[0]
            span = weight_range(rows)[:, None]
        assert_unit(errors / (LEVELS[WEIGHT] * span), (name, "weight"))
        return y

    with torch.no_grad(), intercept(model, check):
        model(normal(2, N, T, D))
