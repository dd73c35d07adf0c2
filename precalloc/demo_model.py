"""The network and data of the demo: handwritten digits, trained by ``benchmarks/train_demo.py``."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

ASSETS = Path(__file__).parent / "demo_assets"
WEIGHTS = ASSETS / "digits.safetensors"
CALIBRATION = ASSETS / "digits_calibration.npz"
EVALUATION = ASSETS / "digits_evaluation.npz"
SPECIFICATION = "precalloc.demo_model:build"  # as on a command line


def build() -> nn.Module:
    """Build the trained network, in evaluation mode and with its batch norms not yet folded."""
    with torch.device("meta"):  # no initial weights are drawn: the global random state stays as it is
        model = DigitsNet()
    model.load_state_dict(load_file(WEIGHTS), assign=True)
    return model.eval()


class DigitsNet(nn.Module):
    """Convolutional network for 8 x 8 digits: residual and depthwise-separable blocks, pooling, a linear layer.

    Its layers differ in what allocation lives on: how many MACs they do and how much noise they bear.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = _conv_norm(1, width)
        self.block1 = Residual(width)
        self.down = _conv_norm(width, 2 * width, stride=2)
        self.block2 = Residual(2 * width)
        self.separable = Separable(2 * width, 4 * width)
        self.classifier = nn.Linear(4 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 1, 8, 8) with grey levels 0 to 16 to logits (n, 10)."""
        x = images.to(self.classifier.weight.dtype) / 16
        x = self.block1(torch.relu(self.stem(x)))
        x = self.block2(torch.relu(self.down(x)))
        x = self.separable(x)
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv_norm(channels, channels)
        self.second = _conv_norm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, height, width) to the same shape."""
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class Separable(nn.Module):
    """A depthwise convolution and a pointwise one."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = _conv_norm(channels, channels, groups=channels)
        self.pointwise = _conv_norm(channels, out_channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, height, width) to (n, out_channels, height, width)."""
        return torch.relu(self.pointwise(torch.relu(self.depthwise(x))))


def _conv_norm(channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels)))
