"""Repetitions done one by one, with the Gaussian noise of AnalogVNN (docs/judges.md has the formulas).

Shah and Youngblood, "AnalogVNN: A fully modular framework for modeling and optimizing photonic neural networks",
APL Machine Learning 1, 026116 (2023), arXiv:2210.10048.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from judging import Sites, channel_ranges, folded_digits
from torch import Tensor, nn


def thermal_network(sites: Sites, level: float) -> nn.Module:
    """The digits network with every product read out K times, each time with noise of sigma_t = ``level``."""
    network = folded_digits()
    for name, site in sites.items():
        network.get_submodule(name).register_forward_hook(repeated_readout(site, level))
    return network


def weight_network(sites: Sites, level: float) -> nn.Module:
    """The digits network on the mean of K arrays, each programmed with errors of sigma_w = ``level``."""
    network = folded_digits()
    for name, site in sites.items():
        layer = network.get_submodule(name)
        ranges = channel_ranges(layer.weight).view(-1, *[1] * (layer.weight.dim() - 1))
        program = gaussian_noise(level)
        copies = [program(layer.weight / ranges) for _ in range(site["repetitions"])]
        layer.weight = nn.Parameter(torch.stack(copies).mean(0) * ranges)
    return network


def repeated_readout(site: Mapping[str, Any], level: float) -> Callable[[nn.Module, object, Tensor], Tensor]:
    """Hook that reads a layer's outputs K times, in units of their full scale, and averages."""
    noise = gaussian_noise(level * site["fan_in"] ** 0.5)

    def read(layer: nn.Module, _: object, y: Tensor) -> Tensor:
        full_scale = (channel_ranges(layer.weight) * site["input_range"]).view(-1, *[1] * (y.dim() - 2))
        readouts = [noise(y / full_scale) for _ in range(site["repetitions"])]
        return torch.stack(readouts).mean(0) * full_scale

    return read


def gaussian_noise(deviation: float) -> nn.Module:
    """AnalogVNN's layer of a standard deviation; its precision only sets a leakage that it tells and does not use."""
    from analogvnn.nn.noise.GaussianNoise import GaussianNoise

    return GaussianNoise(std=deviation, precision=2**8)
