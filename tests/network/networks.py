"""Tiny networks, data and hardware with known properties."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from precalloc.hardware import AVERAGED_BY, Hardware, NoiseKind, NoiseTerm, Redundancy, Repetition
from precalloc.network.data import canonical_order

THERMAL, WEIGHT, SHOT = NoiseKind.THERMAL, NoiseKind.WEIGHT, NoiseKind.SHOT
KINDS = (THERMAL, WEIGHT, SHOT)
LEVELS = {THERMAL: 0.05, WEIGHT: 0.2, SHOT: 3.0}
CPU = torch.device("cpu")


def hardware(kinds=KINDS, redundancy=Redundancy.SPACE, levels=LEVELS, lattice="continuous", digital_biases=False):
    """Build hardware with these noise kinds; by default copies in space, which average all of them."""
    terms = tuple(NoiseTerm(kind, levels[kind], AVERAGED_BY[kind], "a test") for kind in kinds)
    return Hardware("test-chip", terms, Repetition(redundancy, lattice, 0.1), 1e-18, digital_biases=digital_biases)


def normal(seed, *shape):
    """Draw standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_order(x):
    """Sort examples as precalloc takes them, so that tables by example can be compared row by row."""
    return x[canonical_order(x)]


def initialised(model, seed=0, scale=1.0):
    """Fill all parameters from a seed: weights of variance scale^2 / fan-in, small biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 25.0
            parameter.copy_(values * scale / fan_in**0.5)
    return model.eval()


class LinearSoftmax(nn.Module):
    """Logits W x + b: the one network whose sensitivities are known in closed form."""

    def __init__(self, features=5, classes=4):
        super().__init__()
        self.layer = nn.Linear(features, classes)

    def forward(self, x):
        return self.layer(x)


class Perceptron(nn.Module):
    """Two linear layers with a smooth nonlinearity."""

    def __init__(self, features=6, hidden=8, classes=4):
        super().__init__()
        self.first, self.second = nn.Linear(features, hidden), nn.Linear(hidden, classes)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class ConvNet(nn.Module):
    """Strided, grouped and transposed convolutions with smooth nonlinearities."""

    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        x = F.gelu(self.stem(x))
        x = torch.tanh(self.up(F.gelu(self.depthwise(x))))
        return self.head(x.mean((2, 3)))


class SharedLayer(nn.Module):
    """One layer that is called twice: one site whose weight errors are the same in both calls."""

    def __init__(self, features=6, classes=4):
        super().__init__()
        self.shared, self.head = nn.Linear(features, features), nn.Linear(features, classes)

    def forward(self, x):
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x)))))


class EagerAttention(nn.Module):
    """Attention written with ``@``, on (examples, tokens, features)."""

    def __init__(self, features=4, classes=3):
        super().__init__()
        self.qkv, self.head = nn.Linear(features, 3 * features), nn.Linear(features, classes)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        attention = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        return self.head((attention @ v).mean(1))


class ModuleAttention(nn.Module):
    """``nn.MultiheadAttention`` with examples first or tokens first; the input always has examples first."""

    def __init__(self, features=4, classes=3, batch_first=True):
        super().__init__()
        self.attention = nn.MultiheadAttention(features, 2, batch_first=batch_first)
        self.head = nn.Linear(features, classes)
        self.batch_first = batch_first

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.attention(x, x, x, need_weights=False)[0]
        return self.head(y.mean(1 if self.batch_first else 0))


class TimeFirst(nn.Module):
    """A recurrent network by hand, on (time, examples, features) within."""

    def __init__(self, features=4, hidden=5, classes=3):
        super().__init__()
        self.embed = nn.Linear(features, hidden)
        self.step = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x):
        inputs = self.embed(x.transpose(0, 1))
        state = torch.zeros_like(inputs[0])
        for one in inputs:
            state = torch.tanh(one + self.step(state))
        return self.head(state)


def numpy_rng(seed):
    """Generator of a test's own random choices."""
    return np.random.default_rng(seed)
