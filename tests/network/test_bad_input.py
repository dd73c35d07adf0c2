"""A user's mistake gets one line that names the thing, its value and the remedy."""

import re

import numpy as np
import pytest
import torch
from networks import THERMAL, LinearSoftmax, Perceptron, SharedLayer, hardware, initialised, normal
from safetensors.torch import save_file
from torch import nn

from precalloc import profile, sites, validate
from precalloc.errors import DataError, KMapError, ModelError, NondeterministicModelError, PrecallocError
from precalloc.kmaps import KMap, SiteRanges
from precalloc.network.data import as_data
from precalloc.network.data_files import load_data
from precalloc.network.models import load_model
from precalloc.objective import Granularity

CHIP = hardware((THERMAL,))
X = normal(1, 8, 6)
Y = torch.arange(8) % 4


def perceptron():
    return initialised(Perceptron(), seed=1)


def fails(error, pattern, call, *args, **kwargs):
    """The call raises ``error`` with one line that matches ``pattern`` and ends as a sentence."""
    with pytest.raises(error, match=pattern) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert isinstance(caught.value, PrecallocError)
    assert "\n" not in message
    assert len(message) < 500


def with_bad_weight(value):
    model = perceptron()
    with torch.no_grad():
        model.second.weight[1, 2] = value
    return model


def data_with(value):
    x = X.clone()
    x[5, 3] = value
    return x


@pytest.mark.parametrize(
    ("labels", "pattern"),
    [
        (Y[:5], r"differ in length: .*'x': 8, 'labels': 5.*one row an example"),
        (Y + 2, r"Labels run from 2 to 5, but the model has classes 0 to 3"),
        (Y - 1, r"Labels run from -1 to 2"),
        (Y.float(), r"Labels have shape \(8,\), type torch\.float32\. Give one class index"),
        (nn.functional.one_hot(Y), r"Labels have shape \(8, 4\)"),
    ],
)
def test_labels(labels, pattern):
    fails(DataError, pattern, profile, perceptron(), {"x": X, "y": labels}, CHIP)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_and_data_that_are_not_finite(value):
    pattern = r"Weight 'second\.weight' has 1 NaN or infinite values\. Load sound weights"
    for call in (sites, lambda model, data: profile(model, data, CHIP)):
        fails(ModelError, pattern, call, with_bad_weight(value), X)
        fails(
            DataError,
            r"'x' of data has NaN or infinity, first in example 5\. Remove",
            call,
            perceptron(),
            data_with(value),
        )
    fails(ModelError, pattern, validate, with_bad_weight(value), X, kmap({"first": 1, "second": 1}))


def test_logits_that_are_not_finite():
    class Overflow(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x):
            return self.layer(x) * torch.inf

    fails(ModelError, r"output has NaN or infinite values.*Check weights", profile, initialised(Overflow()), X, CHIP)


def test_model_without_sites():
    fails(ModelError, r"The model has no sites: no convolution", profile, nn.Softmax(dim=1), X, CHIP)


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return self.layer(nn.functional.dropout(x, 0.5, training=True))


def test_model_that_gives_different_outputs():
    pattern = r"different outputs on the same input \(by [\d.e-]+\)\. Switch off"
    fails(NondeterministicModelError, pattern, profile, initialised(Random()), X, CHIP)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript as a whole
def test_scripted_and_compiled_models():
    model = perceptron()
    scripted = torch.jit.trace(model, X)
    fails(ModelError, r"is scripted, which hides its products\. Pass the module", sites, scripted, X)
    fails(ModelError, r"'1' is scripted", sites, nn.Sequential(nn.Identity(), scripted), X)
    fails(ModelError, r"is compiled, which hides its products", sites, torch.compile(model), X)


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (X[:, :5], r"does not take inputs \{'x': \(8, 5\)\}: mat1 and mat2"),
        ({"a": X, "b": X}, r"does not take inputs \{'a': \(8, 6\), 'b': \(8, 6\)\}"),
        ({"x": X, "target": Y}, r"'target': \(8,\)\}.*Name arrays as the forward's parameters, and labels 'y'\."),
        ({"y": Y}, r"holds no inputs \(arrays: \['y'\]\)"),
        (X[:0], r"holds no examples"),
        ([], r"yielded no batch"),
        ([X[:4], X[4:, :3]], r"does not take inputs"),
        (3.0, r"type float cannot be read\. Pass arrays by name"),
        (["text"], r"A batch of type str cannot be read"),
    ],
)
def test_inputs_that_the_model_does_not_take(data, pattern):
    fails(DataError, pattern, profile, perceptron(), data, CHIP)


class Wordless(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.layer, self.make = nn.Linear(6, 4), make

    def forward(self, x):
        return self.make(self.layer(x))


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda y: y[:, None], r"output \(8, 1, 4\) with no labels does not tell the task.*--task"),
        (lambda y: y.sum(1), r"output \(8,\) with no labels does not tell the task"),
        (lambda _: "text", r"output \(str\) holds no tensor\. Give forward_fn"),
        (lambda _: {}, r"output \(dict\) holds no tensor"),
        (lambda _: (), r"output \(tuple\) holds no tensor"),
        (lambda y: {"a": y, "b": y[:2]}, r"several outputs: a \(8, 4\), b \(2, 4\)\. Choose one with --output"),
        (lambda y: (y, y), r"several outputs: 0 \(8, 4\), 1 \(8, 4\)\. Choose"),
    ],
)
def test_outputs_without_logits(make, pattern):
    fails(ModelError, pattern, profile, Wordless(make), X, CHIP)


@pytest.mark.parametrize("output", ["c", 2, -3])
def test_outputs_that_are_not_there(output):
    model = Wordless(lambda y: {"a": y, "b": y})
    fails(ModelError, rf"no output '{output}'\. It has: a \(8, 4\), b", profile, model, X, CHIP, output=output)


def test_data_files(tmp_path):
    absent = tmp_path / "absent.npz"
    fails(DataError, rf"{re.escape(str(absent))} does not exist\. Check the path", load_data, str(absent))
    fails(DataError, r"is no \.npz or \.safetensors file", load_data, str(tmp_path / "data.csv"))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, x=np.array([{"a": 1}], dtype=object))
    fails(DataError, r"pickled\.npz cannot be read as \.npz without pickles", load_data, str(pickled))
    damaged = tmp_path / "damaged.npz"
    np.savez(damaged, x=X.numpy())
    damaged.write_bytes(damaged.read_bytes()[:200])
    fails(DataError, r"damaged\.npz cannot be read", load_data, str(damaged))
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"no tensors")
    fails(DataError, r"torn\.safetensors cannot be read as \.safetensors", load_data, str(torn))
    short = tmp_path / "short.npz"
    np.savez(short, x=X.numpy(), labels=Y.numpy()[:3])
    fails(DataError, r"short\.npz differ in length", load_data, str(short))


def test_model_files(tmp_path):
    fails(ModelError, r"absent\.py does not exist", load_model, f"{tmp_path}/absent.py:build")
    fails(ModelError, r"Module 'no_such_package' cannot be imported", load_model, "no_such_package:build")
    fails(ModelError, r"'model' names no factory\. Write path/file\.py:factory", load_model, "model")
    file = tmp_path / "model.py"
    file.write_text("from torch import nn\ndef build():\n    return nn.Linear(6, 4)\ndef text():\n    return 'text'\n")
    fails(ModelError, r"has no callable 'make'\. It has: build, text", load_model, f"{file}:make")
    fails(ModelError, r"returned str, not an nn\.Module", load_model, f"{file}:text")
    needy = tmp_path / "needy.py"
    needy.write_text("import no_such_package\n")
    fails(
        ModelError,
        r"needy\.py needs a package that is missing \(No module named 'no_such_package'\)",
        load_model,
        f"{needy}:build",
    )


def test_weights(tmp_path):
    file = tmp_path / "model.py"
    file.write_text("from torch import nn\ndef build():\n    return nn.Linear(6, 4)\n")
    spec = f"{file}:build"
    fails(ModelError, r"absent\.pt does not exist", load_model, spec, str(tmp_path / "absent.pt"))
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3, 3)}, other)
    fails(ModelError, r"other\.safetensors do not fit the model: .*size mismatch", load_model, spec, str(other))
    text = tmp_path / "text.pt"
    text.write_text("no weights")
    fails(ModelError, r"text\.pt is no tensors-only weights file", load_model, spec, str(text))
    pickled = tmp_path / "pickled.pt"
    torch.save(nn.Linear(6, 4), pickled)
    fails(ModelError, r"pickled\.pt is no tensors-only weights file", load_model, spec, str(pickled))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no weights")
    fails(ModelError, r"damaged\.safetensors is no tensors-only weights file", load_model, spec, str(damaged))
    good = tmp_path / "good.safetensors"
    save_file({"weight": torch.ones(4, 6), "bias": torch.zeros(4)}, good)
    assert torch.equal(load_model(spec, str(good)).weight, torch.ones(4, 6))


def kmap(repetitions):
    values = {name: np.atleast_1d(np.array(k, dtype=float)) for name, k in repetitions.items()}
    return KMap(Granularity.CHANNEL, CHIP, values, {name: SiteRanges(3.0) for name in values})


def test_kmap_of_another_network():
    fails(KMapError, r"lacks sites \['second'\]", validate, perceptron(), X, kmap({"first": 1}))
    fails(
        KMapError, r"unknown sites \['third'\]", validate, perceptron(), X, kmap({"first": 1, "second": 1, "third": 1})
    )
    fails(
        KMapError,
        r"Site 'second' has 4 channels, but 3",
        validate,
        perceptron(),
        X,
        kmap({"first": 1, "second": [1] * 3}),
    )
    fails(KMapError, r"of another network", validate, initialised(SharedLayer()), X, kmap({"first": 1, "second": 1}))
    fails(KMapError, r"of another network", validate, initialised(LinearSoftmax(6)), X, kmap({"first": 1}))


def test_forms_of_data_that_are_taken():
    """Arrays by name, a pair, an array, batches: the same examples."""
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=3)
    for data in (
        {"x": X, "labels": Y},
        (X.numpy(), Y.numpy()),
        loader,
        [{"x": X[:5], "y": Y[:5]}, {"x": X[5:], "y": Y[5:]}],
    ):
        taken, order = as_data(data), as_data((X, Y)).order
        batches = list(taken.batches(5))
        assert torch.equal(torch.cat([batch.inputs["x"] for batch in batches]), X[order])
        assert torch.equal(torch.cat([batch.labels for batch in batches]), Y[order])
        assert taken.order.tolist() == order.tolist()
