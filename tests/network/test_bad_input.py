"""A user's mistake gets one line that names the thing, its value and the remedy."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import precalloc
from precalloc.errors import DataError, KMapError, ModelError, NondeterministicModelError
from precalloc.hardware import Hardware
from precalloc.network.data import load_data
from precalloc.network.models import load_model

HARDWARE = Hardware.load("homodyne-1550nm")
INPUTS = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return F.dropout(self.linear(x), 0.5, training=True)


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        y = self.linear(x)
        return y - y.mean(0)


def with_nan():
    model = network()
    model[2].weight.data[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (network, {"x": INPUTS, "y": np.zeros(7, int)}, DataError, r"differ in length: .*'x': 8, 'y': 7"),
        (network, {"x": INPUTS, "y": np.full(8, 3)}, DataError, r"Labels run from 3 to 3, .* classes 0 to 2"),
        (network, {"x": INPUTS, "y": np.zeros(8)}, DataError, r"float64.*one class index an example"),
        (network, {"y": np.zeros(8, int)}, DataError, r"holds no inputs"),
        (network, {"x": INPUTS[:0]}, DataError, r"holds no examples"),
        (network, {"x": np.where(np.arange(8)[:, None] == 5, np.nan, INPUTS)}, DataError, r"'x'.*example 5"),
        (network, {"x": INPUTS[:, :3]}, DataError, r"does not take inputs \{'x': \(8, 3\)\}"),
        (network, 3, DataError, r"type int cannot be read"),
        (with_nan, {"x": INPUTS}, ModelError, r"Weight '2.weight' has 1 NaN"),
        (nn.Flatten, {"x": INPUTS}, ModelError, r"no sites"),
        (Noisy, {"x": INPUTS}, NondeterministicModelError, r"different logits on the same input"),
        (Mixing, {"x": INPUTS}, ModelError, r"mixes the examples"),
        (lambda: torch.jit.trace(network(), torch.zeros(1, 4)), {"x": INPUTS}, ModelError, r"scripted"),
        (lambda: torch.compile(network()), {"x": INPUTS}, ModelError, r"compiled.*_orig_mod"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_profile_refuses(model, data, error, message):
    with pytest.raises(error, match=message) as caught:
        precalloc.profile(model(), data, HARDWARE)
    assert "\n" not in str(caught.value)


def test_kmap_of_another_network_is_refused():
    profile = precalloc.profile(network(), {"x": INPUTS}, HARDWARE)
    allocation = precalloc.allocate(profile, "4x", hardware=HARDWARE)
    with pytest.raises(KMapError, match=r"lacks sites \['1'\].*unknown sites \['0', '2'\]"):
        precalloc.validate(nn.Sequential(nn.Tanh(), nn.Linear(4, 3)), {"x": INPUTS}, allocation)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.npz", "nowhere.npz does not exist"),
        ("data.csv", "'data.csv' is not a .npz or .safetensors file"),
        ("no.such.module:data", "'no.such.module' cannot be imported"),
    ],
)
def test_load_data_refuses(spec, message):
    with pytest.raises(DataError, match=message):
        load_data(spec)


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="without pickles"):
        load_data(str(tmp_path / "data.npz"))


def test_load_model_refuses(tmp_path):
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\ndef build():\n    return nn.Linear(2, 2)\nnumber = int\n", encoding="utf-8")
    torch.save({"weight": torch.zeros(3, 3)}, tmp_path / "weights.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pt")
    for spec, weights, message in (
        ("net.py", None, "names no factory"),
        (f"{tmp_path}/other.py:build", None, "other.py does not exist"),
        (f"{file}:make", None, "no callable 'make'. It has: build"),
        (f"{file}:number", None, "returned int, not an nn.Module"),
        (f"{file}:build", "none.pt", "none.pt does not exist"),
        (f"{file}:build", f"{tmp_path}/weights.pt", "do not fit the model"),
        (f"{file}:build", f"{tmp_path}/pickled.pt", "no tensors-only weights file"),
    ):
        with pytest.raises(ModelError, match=message):
            load_model(spec, weights)
