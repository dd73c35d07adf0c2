"""Everything that multiplies and accumulates is a site, is digital by its nature, or is named."""

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import KINDS, hardware, in_order, initialised, normal
from torch import nn
from torch.ao import quantization
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.flop_counter import FlopCounterMode

from precalloc import Choices, allocate, profile, refine, sites, validate
from precalloc.errors import CoverageError, KMapError, ModelError
from precalloc.kmaps import KMap, SiteRanges
from precalloc.network.interception import intercept
from precalloc.objective import Granularity

N = 4


class Call(nn.Module):
    """One call of a function of the input and a weight, as one row of logits."""

    def __init__(self, function, *shape, buffer=False):
        super().__init__()
        self.function = function
        if buffer:
            self.register_buffer("table", normal(5, *shape))
        else:
            self.table = nn.Parameter(normal(5, *shape))

    def forward(self, x):
        return self.function(x, self.table).reshape(1, -1)


def computed(model, *inputs):
    """Output with every product handed over, and each product's site and MACs."""
    macs = {}

    def note(name, product):
        y = product.apply(product.x, product.w)
        macs[name] = macs.get(name, 0.0) + product.macs_per_output(y) * y.numel()
        return y

    with torch.no_grad(), intercept(model, note):
        y = model(*inputs)
    return y, macs


def assert_same(model, *inputs):
    """The intercepted model computes what the model computes; return its sites' MACs."""
    with torch.no_grad():
        expected = model(*(copy.deepcopy(x) for x in inputs))
    y, macs = computed(model, *inputs)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    return macs


RECURRENT = {
    "LSTM": (nn.LSTM, {}),
    "GRU": (nn.GRU, {}),
    "RNN tanh": (nn.RNN, {}),
    "RNN relu": (nn.RNN, {"nonlinearity": "relu"}),
    "LSTM batch first": (nn.LSTM, {"batch_first": True}),
    "GRU two layers": (nn.GRU, {"num_layers": 2, "dropout": 0.5}),
    "LSTM bidirectional": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "LSTM projected": (nn.LSTM, {"proj_size": 2, "bidirectional": True, "num_layers": 2}),
    "GRU without bias": (nn.GRU, {"bias": False, "bidirectional": True}),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_their_matrix_products(name):
    kind, options = RECURRENT[name]
    model = initialised(kind(3, 5, **options), seed=1)
    x = normal(2, 6, N, 3)
    macs = assert_same(model, x)
    weights = {key: value for key, value in model.named_parameters() if key.startswith("weight")}
    assert macs == {key: 6 * N * value.numel() for key, value in weights.items()}
    hidden = kind(3, 5, **options)(x)[1]
    start = tuple(normal(3, *part.shape) for part in hidden) if isinstance(hidden, tuple) else normal(3, *hidden.shape)
    assert_same(model, x, start)
    assert_same(model, x[:, 0])  # one sequence without an axis of examples


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("lengths", [[6, 4, 4, 1], [2, 6, 1, 3], [5, 5, 5, 5]])
def test_packed_sequences_do_no_macs_on_padding(name, lengths):
    kind, options = RECURRENT[name]
    first = options.get("batch_first", False)
    layer = initialised(kind(3, 5, **options), seed=1)

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=first, enforce_sorted=False)
            y, hidden = self.layer(packed)
            hidden = hidden if isinstance(hidden, tuple) else (hidden,)
            return torch.cat([pad_packed_sequence(y, batch_first=first)[0].flatten(), *(h.flatten() for h in hidden)])

    macs = assert_same(Packed(), normal(2, N, 6, 3) if first else normal(2, 6, N, 3))
    assert macs["layer.weight_ih_l0"] == sum(lengths) * layer.weight_ih_l0.numel()
    assert macs["layer.weight_hh_l0"] == sum(lengths) * layer.weight_hh_l0.numel()


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells(kind):
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = kind(3, 5)

        def forward(self, x):
            state = self.cell(x[0])
            for step in x[1:]:
                state = self.cell(step, state)
            return state[0] if isinstance(state, tuple) else state

    model = initialised(Unrolled(), seed=1)
    weights = {f"cell.{key}": 6 * N * getattr(model.cell, key).numel() for key in ("weight_ih", "weight_hh")}
    assert assert_same(model, normal(2, 6, N, 3)) == weights


class Tagger(nn.Module):
    """Recurrent, with the last state classified."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.recurrent, self.head = kind(3, 5, batch_first=True, bidirectional=True), nn.Linear(10, 4)

    def forward(self, x):
        return self.head(self.recurrent(x)[0].mean(1))


def test_recurrent_networks_profile_and_validate():
    model, x = initialised(Tagger(), seed=1), normal(2, 8, 6, 3)
    measured = profile(model, x, hardware(), batch_size=4, margins=2)
    assert [site.kind for site in measured.sites] == ["linear"] * 5
    assert [site.channels for site in measured.sites] == [20, 20, 20, 20, 4]
    for kind in KINDS:
        assert (measured.damage[kind] > 0).all()
    names = {site.name for site in measured.sites}
    ranges = {site.name: SiteRanges(site.input_range) for site in measured.sites}
    kmap = KMap(Granularity.LAYER, hardware(), {name: torch.ones(1).numpy() * 1e12 for name in names}, ranges)
    assert validate(model, x, kmap, seeds=1).drop == 0.0


def test_mixed_lengths_in_packed_batches_say_what_to_do():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 4)

        def forward(self, x):
            lengths = (x != 0).any(-1).sum(1)
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(self.recurrent(packed)[1][0])

    model, x = initialised(Packed(), seed=1), normal(2, 8, 6, 3)
    x[::2, 4:] = 0.0
    with pytest.raises(ModelError, match=r"batch_size=1"):
        profile(model, x, hardware())
    assert len(profile(model, x, hardware(), batch_size=1).sites) == 3


CALLS = {
    "baddbmm": (lambda x, w: torch.baddbmm(x[:, :, :1], x, w.expand(N, 3, 3), beta=0.5), (3, 3), N * 9 * 3),
    "addbmm": (lambda x, w: torch.addbmm(w, x, x.mT, alpha=2.0), (3, 3), N * 9 * 3),
    "addbmm in place": (lambda x, w: (w * 1.0).addbmm_(x, x.mT), (3, 3), N * 9 * 3),
    "addmm in place": (lambda x, w: (x[0] * 1.0).addmm_(x[1], w), (3, 3), 27),
    "matmul into": (lambda x, w: torch.matmul(x, w, out=torch.empty(N, 3, 2)), (3, 2), N * 18),
    "matmul into another shape": (lambda x, w: torch.matmul(x, w, out=torch.empty(0)), (3, 2), N * 18),
    "inner": (torch.inner, (2, 3), N * 18),
    "tensordot": (lambda x, w: torch.tensordot(x, w, dims=2), (3, 3, 5), N * 9 * 5),
    "tensordot axes": (lambda x, w: torch.tensordot(x, w, dims=([2, 1], [0, 2])), (3, 5, 3), N * 9 * 5),
    "dot": (lambda x, w: torch.stack([torch.dot(row, w) for row in x.flatten(1)]), (9,), N * 9),
    "linear with one row": (F.linear, (3,), N * 9),
    "multi_dot": (lambda x, w: torch.linalg.multi_dot([x[0], w, x[1], x[2][:, :1]]), (3, 3), 9 + 9 + 9),
    "multi_dot with vectors": (lambda x, w: torch.linalg.multi_dot([x[0, 0], w, x[1], x[2, 0]]), (3, 3), 9 + 9 + 3),
    "bilinear": (lambda x, w: F.bilinear(x, x, w), (5, 3, 3), N * 3 * 5 * 9),
    "einsum of three": (lambda x, w: torch.einsum("nij,jk,nik->ni", x, w, x), (3, 3), N * 27 + N * 9),
    "einsum with a diagonal": (lambda x, w: torch.einsum("nii,ik->nk", x, w), (3, 2), N * 6),
    "einsum with a lone index": (lambda x, w: torch.einsum("nij,jk->k", x, w), (3, 2), 6),
    "einsum with dots": (lambda x, w: torch.einsum("...j,jk", x, w), (3, 2), N * 18),
    "einsum by sublists": (lambda x, w: torch.einsum(x, [0, 1, 2], w, [2, 3], [0, 3, 1]), (3, 2), N * 18),
    "convolution": (
        lambda x, w: torch.convolution(x, w, None, [1], [1], [1], False, [0], 1),
        (2, 3, 3),
        N * 3 * 2 * 9,
    ),
    "convolution transposed": (
        lambda x, w: torch.convolution(x, w, None, [2], [0], [1], True, [0], 1),
        (3, 2, 2),
        N * 9 * 4,
    ),
    "convolution with computed weights": (lambda x, w: F.conv1d(x, w * x[0, 0, 0]), (2, 3, 2), N * 2 * 2 * 6),
    "linear with computed weights": (lambda x, w: F.linear(x, w * x[0, 0, 0], w[:, 0]), (2, 3), N * 3 * 2 * 3),
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_that_hold_products(name):
    function, shape, expected = CALLS[name]
    x = normal(2, N, 3, 3)
    model = Call(function, *shape)
    assert sum(assert_same(model, x).values()) == expected
    assert sites(model, x).uncovered == ()


# The flop counter knows neither products of vectors nor bilinear forms and sums of a batch.
NOT_COUNTED = (
    "dot",
    "linear with one row",
    "multi_dot with vectors",
    "bilinear",
    "addbmm",
    "addbmm in place",
    "addmm in place",
)


def test_covered_as_the_flop_counter_counts():
    x = normal(2, N, 3, 3)
    for name, (function, shape, expected) in CALLS.items():
        if name in NOT_COUNTED:
            continue
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            Call(function, *shape)(x)
        assert counter.get_total_flops() == 2 * expected, name


class Parametrised(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.first, self.second = make(nn.Linear(3, 5)), make(nn.Linear(5, 5))
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return self.head(torch.tanh(self.second(torch.tanh(self.second(x)))))


class Merged(nn.Linear):
    """An adapter that is added to the weight at run time."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.down, self.up = nn.Parameter(torch.zeros(2, sizes[0])), nn.Parameter(torch.zeros(sizes[1], 2))

    def forward(self, x):
        return F.linear(x, self.weight + self.up @ self.down, self.bias)


class Adapter(Merged):
    """An adapter with products of its own."""

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.down), self.up)


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(layer)


PARAMETRISED = {
    "weight norm": torch.nn.utils.parametrizations.weight_norm,
    "weight norm by hooks": old_weight_norm,
    "spectral norm": torch.nn.utils.parametrizations.spectral_norm,
    "spectral norm by hooks": torch.nn.utils.spectral_norm,
    "merged adapter": lambda layer: Merged(layer.in_features, layer.out_features),
}


def randomised(model):
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(20 + index, *parameter.shape) * 0.5)
    return model.eval()


@pytest.mark.parametrize("name", PARAMETRISED)
def test_weights_that_are_computed_are_weights(name):
    """A weight that is computed anew at each call is programmed once: same site, same error in both calls."""
    model, x = randomised(Parametrised(PARAMETRISED[name])), normal(2, 8, 3)
    macs = assert_same(model, x)
    assert macs == {"first": 8 * 15.0, "second": 8 * 50.0, "head": 8 * 20.0}
    report = sites(model, x)
    assert [site.channels for site in report.sites] == [5, 5, 4]
    assert report.uncovered == ()
    plain = Parametrised(lambda layer: layer).eval()
    with torch.no_grad():
        for layer in ("first", "second", "head"):
            source = model.get_submodule(layer)
            weight = source.weight + source.up @ source.down if name == "merged adapter" and layer != "head" else None
            plain.get_submodule(layer).weight.copy_(source.weight if weight is None else weight)
            plain.get_submodule(layer).bias.copy_(source.bias)
    one, other = (profile(m, x, hardware(), batch_size=4, margins=0) for m in (model, plain))
    for kind in KINDS:
        assert one.damage[kind].tolist() == pytest.approx(other.damage[kind].tolist(), rel=1e-4)


def test_products_of_weights_alone_are_digital():
    report = sites(Parametrised(PARAMETRISED["merged adapter"]).eval(), normal(2, N, 3))
    assert {(item.operator, item.reason) for item in report.digital} == {("matmul", "depends on no input")}
    assert sum(item.macs for item in report.digital) * N == 5 * 2 * 3 + 2 * 5 * 2 * 5


def test_adapters_with_products_of_their_own():
    model = randomised(Parametrised(lambda layer: Adapter(layer.in_features, layer.out_features)))
    macs = assert_same(model, normal(2, N, 3))
    assert macs["first"] == N * 15
    assert macs["first/linear.0"] == N * 6
    assert macs["first/linear.1"] == N * 10


def test_tied_autoencoder_has_two_sites():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.code = nn.Linear(4, 4)

        def forward(self, x):
            return F.linear(torch.tanh(self.code(x)), self.code.weight.t())

    assert assert_same(initialised(Tied(), seed=1), normal(2, N, 4)) == {"code": N * 16, "linear.0": N * 16}


def test_tied_embedding_as_output_head():
    class Language(nn.Module):
        def __init__(self, functional):
            super().__init__()
            self.embed, self.functional = nn.Embedding(7, 4), functional
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            x = self.embed(tokens).mean(1)
            return F.linear(x, self.embed.weight) if self.functional else self.head(x)

    tokens = torch.randint(0, 7, (N, 3), generator=torch.Generator().manual_seed(1))
    for functional, name in ((False, "head"), (True, "embed")):
        model = initialised(Language(functional), seed=1)
        assert assert_same(model, tokens) == {name: N * 28}
        assert [site.channels for site in profile(model, {"tokens": tokens}, hardware()).sites] == [7]


def test_one_function_on_weights_of_different_shapes():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList([normal(1, 5, 3), normal(2, 4, 5)])
            self.step = Step(self.weights)

        def forward(self, x):
            return self.step(self.step(x, 0), 1)

    class Step(nn.Module):
        def __init__(self, weights):
            super().__init__()
            self.weights = weights

        def forward(self, x, index):
            return F.linear(x, self.weights[index])

    assert assert_same(Listed(), normal(2, N, 3)) == {"step/linear.0": N * 15, "step/linear.1": N * 20}


def test_outer_products_and_integers_are_digital():
    angles = Call(lambda x, w: x + torch.einsum("i,j->ij", x[:, 0], w), 3, buffer=True)
    rotary = Call(lambda x, w: x + (w[:, None] @ x[:, :1].T).T, 3, buffer=True)
    counting = Call(lambda x, w: x + ((x > 0).long() @ torch.ones(3, 3, dtype=torch.long)) * w, 3)
    for model, reason in ((angles, "without summing"), (rotary, "without summing"), (counting, "integer")):
        report = sites(model, normal(2, N, 3))
        assert report.sites == report.uncovered == ()
        assert len(report.digital) == 1
        assert reason in report.digital[0].reason


def test_buffers_that_activations_are_written_into_are_no_weights():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("cache", torch.zeros(N, 3))
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            self.cache[:] = self.layer(x)
            return x @ self.cache.T

    found = {site.name: site.channels for site in sites(initialised(Cached(), seed=1), normal(2, N, 3)).sites}
    assert found == {"layer": 3, "matmul.0": 1}


def test_sites_that_stay_digital_have_no_noise():
    """With every other site all but noiseless, the one noisy site is heard only while it is analog."""
    model, x = initialised(Tagger(), seed=1), normal(2, 32, 6, 3)
    measured = profile(model, x, hardware(), margins=0)
    quiet = {"fixed": {"recurrent.*": 1e12}}
    analog = allocate(measured, "1e13x", choices=Choices(**quiet, k_max={"head": 0.1}))
    digital = allocate(measured, "1e13x", choices=Choices(**quiet, exclude=("head",)))
    assert validate(model, x, analog, seeds=2).drop > 0.0
    assert validate(model, x, digital, seeds=2).drop == 0.0
    assert validate(model, x, digital.uniform_kmap(), seeds=2).drop == 0.0
    with pytest.raises(KMapError, match=r"lacks sites \['head'\]"):
        validate(model, x, replace(digital.kmap(), digital=frozenset()))


def test_refinement_obeys_choices():
    model, x = initialised(Tagger(), seed=1), normal(2, 24, 6, 3)
    measured = profile(model, x, hardware(), margins=0)
    ties = ("recurrent.weight_*_reverse",)
    choices = Choices(exclude=("head",), fixed={"recurrent.weight_hh_l0": 3.0}, ties=ties)
    start = allocate(measured, "2x", choices=choices)
    refined = refine(model, x, measured, start, steps=5, step_examples=8, draws=2)
    for result in (start, refined):
        assert result.by_site["recurrent.weight_hh_l0"] == 3.0
        assert result.by_site["recurrent.weight_ih_l0_reverse"] == result.by_site["recurrent.weight_hh_l0_reverse"]
        assert [entry.site.name for entry in result.digital] == ["head"]


class Quantised(nn.Module):
    """As trained with simulated quantisation: fused convolution, batch norm and activation, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv, self.norm, self.relu = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.norm(self.conv(self.quant(x))))
        return self.dequant(self.head(x.mean((2, 3))))


@pytest.mark.filterwarnings("ignore")  # torch announces the successor of its quantisation
def test_networks_trained_with_fake_quantisation():
    """Weights are those that quantisation leaves; observers stand still, and are on again afterwards."""
    model, x = initialised(Quantised(), seed=1).train(), normal(2, 8, 2, 6, 6)
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    model = quantization.prepare_qat(quantization.fuse_modules_qat(model, [["conv", "norm", "relu"]]))
    model(x)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measured = profile(model, x * 3.0, hardware(), batch_size=4)
    assert [(site.name, site.channels, site.macs) for site in measured.sites] == [
        ("conv", 4, 16 * 4 * 18.0),
        ("head", 3, 12.0),
    ]
    for kind in KINDS:
        assert (measured.damage[kind][4:] > 0).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.conv.weight_fake_quant.observer_enabled.item() == 1


class Depth(nn.Module):
    """One block that runs many times."""

    def __init__(self):
        super().__init__()
        self.block, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        for _ in range(9):
            x = x + torch.tanh(self.block(x))
        return self.head(x)


def test_recurrent_depth_is_one_site_whose_macs_add_up():
    found = {site.name: site for site in profile(initialised(Depth(), seed=1), normal(2, 8, 4), hardware()).sites}
    assert found["block"].macs == 9 * 16
    assert found["block"].outputs == 9 * 4
    assert list(found) == ["block", "head"]


@pytest.mark.parametrize("mask", [False, True])
def test_transformer_encoder(mask):
    """The fused fast path, which would hide all products, is off; nested tensors are part of it."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

        def forward(self, x):
            hidden = (x[..., 0] > 1.0).bool() if mask else None
            return self.head(self.encoder(x, src_key_padding_mask=hidden)[:, 0])

    model, x = initialised(Encoder(), seed=1), normal(2, N, 5, 8)
    x[:, 0, 0] = 0.0
    report = sites(model, x)
    per_layer = 5 * 8 * 24 + 2 * 2 * 25 * 4 + 5 * 64 + 2 * 5 * 8 * 16
    assert sum(site.macs for site in report.sites) == 2 * per_layer + 24
    assert report.uncovered == ()
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype):
    from networks import Perceptron

    model, x = initialised(Perceptron(), seed=1), normal(2, 400, 6)  # labels are drawn anew: rounded, x is other data
    half = copy.deepcopy(model).to(dtype)
    measured, reference = profile(half, x.to(dtype), hardware(), margins=2), profile(model, x, hardware(), margins=2)
    for kind in KINDS:
        assert measured.damage[kind].sum() == pytest.approx(reference.damage[kind].sum(), rel=0.3)
    ranges = {site.name: SiteRanges(site.input_range) for site in reference.sites}
    kmap = KMap(Granularity.LAYER, hardware(), {name: torch.ones(1).numpy() * 1e12 for name in ranges}, ranges)
    assert validate(half, x.to(dtype), kmap, seeds=1).drop == 0.0


UNCOVERED = {
    "conv_tbc": lambda x, w: torch.conv_tbc(x, w.expand(2, 3, 3), w[0]),
    "cdist": lambda x, w: torch.cdist(x, w.expand(N, 3, 3)),
    "_sparse_mm": lambda x, w: torch.sparse.mm(w.to_sparse(), x[0]),
    "cov": lambda x, w: torch.cov(x[0]) + w,
}


@pytest.mark.filterwarnings("ignore")  # torch announces the successor of its quantisation
def test_quantised_modules_are_refused():
    model = initialised(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)), seed=1)
    quantised = quantization.quantize_dynamic(model, {nn.Linear})
    with pytest.raises(ModelError, match=r"'0' \(Linear\) is quantised with packed weights.*before its conversion"):
        sites(quantised, normal(2, N, 3))


@pytest.mark.parametrize("name", UNCOVERED)
def test_what_is_not_covered_is_named(name):
    model, x = Call(UNCOVERED[name], 3, 3), normal(2, N, 3, 3)
    (found,) = sites(model, x).uncovered
    assert name in found.operator
    assert found.macs > 0
    wrapped = nn.Sequential(nn.Linear(3, 3), model, nn.Flatten(1))
    with pytest.raises(CoverageError, match=rf"{name} in '1'.*--allow-uncovered"):
        profile(initialised(wrapped), x, hardware())


@torch.library.custom_op("precalloc_tests::product", mutates_args=())
def opaque_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """A product in a kernel of another library, into which the flop counter cannot look."""
    return x @ w


def test_operators_of_other_libraries_are_named_as_not_understood():
    """Called as a function, as an operator of its name space, or as one overload of that."""
    for function in (opaque_product, torch.ops.precalloc_tests.product, torch.ops.precalloc_tests.product.default):
        model, x = Call(function, 3, 5), normal(2, N, 3)
        (found,) = sites(model, x).uncovered
        assert (found.operator, found.understood, found.macs) == ("precalloc_tests::product", False, 5.0)
        wrapped = initialised(nn.Sequential(nn.Linear(3, 3), model), seed=1)
        with pytest.raises(CoverageError, match=r"precalloc_tests::product in '1' \(its kernel is not looked into\)"):
            profile(wrapped, x, hardware())


class Rare(nn.Module):
    """A layer that runs only where something in the batch is large."""

    def __init__(self):
        super().__init__()
        self.layer, self.rare = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.layer(x)
        return self.rare(y.relu()) if bool((x > 50.0).any()) else y


def with_one_large_value(x):
    for row in range(len(x)):
        changed = x.clone()
        changed[row, 0] = 100.0
        yield changed


def test_layers_that_run_only_on_later_batches_say_what_to_do():
    model, ordinary = initialised(Rare(), seed=1), normal(2, 12, 3)
    x = next(x for x in with_one_large_value(ordinary) if in_order(x)[9, 0] == 100.0)
    assert sites(model, ordinary).never_called == ("rare",)
    with pytest.raises(ModelError, match=r"Site 'rare' runs on later examples.*larger batches \(--batch-size\)"):
        profile(model, x, hardware(), batch_size=4)
    plan = allocate(profile(model, ordinary, hardware(), batch_size=4), "8x")
    with pytest.raises(KMapError, match=r"Site 'rare' runs on this data.*Profile anew in larger batches"):
        validate(model, x, plan, batch_size=4, seeds=1)
    assert len(profile(model, x, hardware(), batch_size=12).sites) == 2  # not among the first three examples


def test_linear_layers_of_transformers_are_taken_by_name():
    """``Conv1D`` computes ``addmm`` with weights of shape (inputs, outputs)."""
    transformers = pytest.importorskip("transformers")

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.expand, self.head = transformers.pytorch_utils.Conv1D(7, 3), nn.Linear(7, 4)

        def forward(self, x):
            return self.head(torch.tanh(self.expand(x)).mean(1))

    model, x = initialised(Block(), seed=1), normal(2, 8, 5, 3)
    measured = profile(model, x, hardware(), margins=2)
    assert [(site.name, site.kind, site.channels, site.macs) for site in measured.sites] == [
        ("expand", "addmm", 7, 5 * 21.0),
        ("head", "linear", 4, 28.0),
    ]
    same = copy.deepcopy(model)
    same.expand = nn.Linear(3, 7)
    with torch.no_grad():
        same.expand.weight.copy_(model.expand.weight.T)
        same.expand.bias.copy_(model.expand.bias)
    for kind in KINDS:
        np.testing.assert_allclose(
            measured.damage[kind], profile(same, x, hardware(), margins=2).damage[kind], rtol=1e-4
        )
    plan = allocate(measured, "8x", choices=Choices(exclude=("expand",)))
    assert [entry.site.name for entry in plan.digital] == ["expand"]
