"""Discovery of sites, what is not covered, and folding of batch norm."""

import copy

import pytest
import torch
from networks import ConvNet, EagerAttention, ModuleAttention, Perceptron, SharedLayer, hardware, initialised, normal
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from precalloc import profile, sites
from precalloc.errors import DataError
from precalloc.network.folding import fold_batch_norm

EXAMPLES = 4


def found_in(model, *shape, **options):
    report = sites(model, normal(2, EXAMPLES, *shape), **options)
    return {site.name: site for site in report.sites}


def figures(site):
    return site.kind, site.macs, site.fan_in, site.channels, site.outputs


class Functional(nn.Module):
    """Products without modules of their own."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(6, 2, 3))
        self.lent = nn.Linear(12, 5)
        self.register_buffer("basis", torch.zeros(5, 3))

    def forward(self, x):
        x = F.conv1d(x, self.kernel, padding="same", groups=2)
        x = F.linear(x.flatten(1).unflatten(1, (-1, 12)), self.lent.weight)
        y = torch.einsum("ntd,dc->ntc", x, self.basis) + x @ self.basis
        return torch.bmm(y.mT, y)[:, 0]


class Sdpa(nn.Module):
    def __init__(self, causal=False):
        super().__init__()
        self.causal = causal
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(F.scaled_dot_product_attention(x, x, x, is_causal=self.causal).mean(1))


def test_modules():
    found = found_in(initialised(ConvNet()), 2, 6, 6)
    assert list(found) == ["stem", "depthwise", "up", "head"]
    assert figures(found["stem"]) == ("conv2d", 36 * 18.0, 18.0, 4, 36.0)  # 3 x 3 positions, 4 channels
    assert figures(found["depthwise"]) == ("conv2d", 36 * 9.0, 9.0, 4, 36.0)
    # 36 inputs meet 2 channels of 2 x 2 weights each: 288 MACs for 4 x 6 x 6 outputs.
    assert figures(found["up"]) == ("conv_transpose2d", 288.0, 2.0, 4, 144.0)
    assert figures(found["head"]) == ("linear", 16.0, 4.0, 4, 4.0)


def test_functional_calls():
    found = found_in(initialised(Functional()), 4, 6)
    assert list(found) == ["conv1d.0", "lent", "einsum.0", "matmul.0", "bmm.0"]
    assert figures(found["conv1d.0"]) == ("conv1d", 36 * 6.0, 6.0, 6, 36.0)
    assert figures(found["lent"]) == ("linear", 15 * 12.0, 12.0, 5, 15.0)
    assert figures(found["einsum.0"]) == ("einsum", 45.0, 5.0, 3, 9.0)
    assert figures(found["matmul.0"]) == ("matmul", 45.0, 5.0, 3, 9.0)
    assert figures(found["bmm.0"]) == ("bmm", 27.0, 3.0, 1, 9.0)


def test_shared_modules_are_one_site_whose_macs_add_up():
    found = found_in(initialised(SharedLayer()), 6)
    assert list(found) == ["shared", "head"]
    assert figures(found["shared"]) == ("linear", 72.0, 6.0, 6, 12.0)


def test_one_module_under_two_names_is_one_site():
    layer = nn.Linear(3, 3)
    assert list(found_in(nn.Sequential(layer, nn.Tanh(), layer), 3)) == ["0"]


def test_attention_products():
    eager = found_in(initialised(EagerAttention()), 3, 4)
    assert list(eager) == ["qkv", "matmul.0", "matmul.1", "head"]
    assert figures(eager["matmul.0"]) == ("matmul", 36.0, 4.0, 1, 9.0)
    assert figures(eager["matmul.1"]) == ("matmul", 36.0, 3.0, 1, 12.0)
    fused = found_in(initialised(Sdpa()), 3, 4)
    assert list(fused) == ["attention_scores.0", "attention_values.0", "head"]
    assert figures(fused["attention_scores.0"]) == ("attention_scores", 36.0, 4.0, 1, 9.0)
    assert figures(fused["attention_values.0"]) == ("attention_values", 36.0, 3.0, 1, 12.0)
    module = found_in(initialised(ModuleAttention()), 3, 4)
    assert sum(site.macs for site in module.values()) == 3 * 4 * 12 + 36 + 36 + 3 * 16 + 12
    assert "attention.out_proj" in module


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_computed_as_torch_does(causal):
    from precalloc.network.interception import intercept

    model, x = initialised(Sdpa(causal)), normal(1, EXAMPLES, 3, 4)
    with torch.no_grad():
        expected = model(x)
        with intercept(model, lambda _, product: product.apply(product.x, product.w)):
            torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (ConvNet(), (2, 6, 6)),
        (Functional(), (4, 6)),
        (SharedLayer(), (6,)),
        (EagerAttention(), (3, 4)),
        (ModuleAttention(), (3, 4)),
        (ModuleAttention(batch_first=False), (3, 4)),
    ],
)
def test_macs_are_half_the_flops_of_the_flop_counter(model, shape):
    model, x = initialised(model), normal(2, EXAMPLES, *shape)
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            model(x)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    macs = sum(site.macs for site in sites(model, x).sites)
    assert macs * EXAMPLES == counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("model", "shape"), [(ConvNet(), (2, 6, 6)), (EagerAttention(), (3, 4)), (SharedLayer(), (6,)), (Sdpa(), (3, 4))]
)
def test_exported_programs_have_the_same_sites(model, shape):
    model, x = initialised(model), normal(2, EXAMPLES, *shape)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(
        model, (x,), dynamic_shapes=((batch, *[torch.export.Dim.STATIC] * len(shape)),)
    ).module()
    original, graph = sites(model, x).sites, sites(exported, x).sites
    assert [figures(site) for site in graph] == [figures(site) for site in original]
    assert {site.name for site in original if site.channels > 1} <= {site.name for site in graph}


def test_covered_models_have_nothing_uncovered():
    for model, shape in ((ConvNet(), (2, 6, 6)), (Functional(), (4, 6)), (ModuleAttention(), (3, 4)), (Sdpa(), (3, 4))):
        assert sites(initialised(model), normal(2, EXAMPLES, *shape)).uncovered == ()


def test_modules_never_called_are_named():
    model = initialised(Perceptron())
    model.spare = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    report = sites(model, normal(2, EXAMPLES, 6))
    assert report.never_called == ("spare.0",)
    assert [site.name for site in report.sites] == ["first", "second"]


class Norms(nn.Module):
    """Batch norms that fold: after a convolution, a transposed convolution and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.conv_norm = nn.Conv2d(2, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)
        self.up, self.up_norm = nn.ConvTranspose2d(4, 3, 2), nn.BatchNorm2d(3, affine=False)
        self.linear, self.linear_norm = nn.Linear(3, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        x = F.relu(self.conv_norm(self.conv(x)))
        x = F.relu(self.up_norm(self.up(x)))
        return self.linear_norm(self.linear(x.mean((2, 3))))


class NotFoldable(nn.Module):
    """Batch norms that must not fold: each pair is used in one way that folding would change."""

    def __init__(self):
        super().__init__()
        self.grouped, self.grouped_norm = nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4)
        self.shared, self.shared_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.skipped, self.skipped_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.method, self.method_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.viewed, self.viewed_norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.grouped_norm(self.grouped(x))
        x = self.shared_norm(self.shared(x)) + self.shared(x)
        y = self.skipped(x)
        x = self.skipped_norm(y) + y
        y = self.method(x)
        x = self.method_norm(y) * y.sigmoid()
        return self.head(self.viewed_norm(self.viewed(x.mean((2, 3))).relu()))


class FunctionalNorm(nn.Module):
    """The output of a convolution goes to a function before its batch norm, in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(F.relu_(self.conv(x))).mean((2, 3)))


class NormOfTwo(nn.Module):
    """One batch norm after two convolutions."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.norm = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return (self.norm(self.one(x)) * self.norm(self.other(x))).mean((2, 3))


def with_statistics(model):
    model = initialised(model, seed=1)
    for index, module in enumerate(m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        module.running_mean.copy_(normal(10 + index, module.num_features))
        module.running_var.copy_(normal(20 + index, module.num_features).square() + 0.5)
    return model


@pytest.mark.parametrize(
    ("model", "channels", "names"),
    [
        (Norms(), 2, ("conv_norm", "up_norm", "linear_norm")),
        (NotFoldable(), 4, ()),
        (FunctionalNorm(), 2, ()),
        (NormOfTwo(), 2, ()),
        (nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten()), 2, ("1",)),
    ],
)
def test_folding(model, channels, names):
    model, x = with_statistics(model), normal(2, EXAMPLES, channels, 4, 4)
    state, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    with torch.no_grad():
        expected = model(x)
        folded, found = fold_batch_norm(model, lambda m: m(x))
        assert found == names
        assert (folded is model) == (not names)
        torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-5)
    assert all(isinstance(folded.get_submodule(name), nn.Identity) for name in names)
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert sites(model, x).folded == names


def test_folded_weights_are_what_is_measured():
    """A gain of the batch norm scales the weights' range, and so the variance of weight noise."""
    model = with_statistics(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    model[1].running_mean.zero_()
    x = normal(2, 16, 4)
    plain = profile(copy.deepcopy(model), x, hardware())
    with torch.no_grad():
        model[1].weight[1] *= 3.0
    scaled = profile(model, x, hardware())
    for kind in plain.kinds:
        ratio = scaled.noise_variance[kind] / plain.noise_variance[kind]
        assert ratio.tolist() == pytest.approx([1.0, 9.0, 1.0], rel=1e-5)


@pytest.mark.parametrize("keyword", [False, True])
def test_exported_programs_profile_as_their_origin(keyword):
    model, x = initialised(Perceptron(), seed=1), normal(2, 12, 6)
    args, kwargs = ((), {"x": x[:4]}) if keyword else ((x[:4],), {})
    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=64)}}
    exported = torch.export.export(model, args, kwargs, dynamic_shapes=shapes).module()
    one, other = (profile(m, x, hardware(), batch_size=4, margins=2) for m in (model, exported))
    assert [site.name for site in other.sites] == ["first", "second"]
    for kind in one.kinds:
        assert other.damage[kind].tolist() == pytest.approx(one.damage[kind].tolist(), rel=1e-5)


def test_inputs_that_an_exported_program_refuses_get_its_own_message():
    model, x = initialised(Perceptron(), seed=1), normal(2, 12, 6)
    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=64)}}
    exported = torch.export.export(model, (x,), dynamic_shapes=shapes).module()
    with pytest.raises(DataError, match=r"does not take inputs \{'x': \(12, 5\)\}"):
        sites(exported, x[:, :5])
