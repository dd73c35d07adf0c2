"""Thermal noise as IBM's aihwkit simulates it: output noise of inference tiles (docs/judges.md has the formulas).

Rasch et al., "A flexible and fast PyTorch toolkit for simulating training and inference on analog crossbar arrays",
AICAS 2021, arXiv:2104.02184.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from judging import Sites, channel_ranges, folded_digits
from torch import nn

if TYPE_CHECKING:
    from aihwkit.simulator.configs import TorchInferenceRPUConfig


def aihwkit_network(sites: Sites, level: float) -> nn.Module:
    """The digits network on aihwkit's tiles, with the thermal noise of a K map at sigma_t = ``level``."""
    network = folded_digits()
    for name, site in sites.items():
        network.set_submodule(name, _analog(network.get_submodule(name), site, level))
    return network


def _analog(layer: nn.Module, site: Mapping[str, Any], level: float) -> nn.Module:
    """A layer on one tile: channel i in units of dW_i / sqrt(K_i), which is also its digital scale."""
    analog = _tile(layer, tile_config(level * site["fan_in"] ** 0.5, site["input_range"]))
    scales = channel_ranges(layer.weight) / torch.tensor(site["repetitions"]).sqrt()
    analog.analog_module.set_weights(dense_weight(layer) / scales[:, None], layer.bias, apply_weight_scaling=False)
    analog.analog_module.set_mapping_scales(scales)
    analog.weight = layer.weight  # unused by the tile, which has its own; the network reads its type from it
    return analog


def _tile(layer: nn.Module, config: TorchInferenceRPUConfig) -> nn.Module:
    from aihwkit.nn import AnalogConv2d, AnalogLinear

    if isinstance(layer, nn.Linear):
        return AnalogLinear(layer.in_features, layer.out_features, rpu_config=config)
    assert isinstance(layer, nn.Conv2d)
    sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
    return AnalogConv2d(*sizes, rpu_config=config)


def tile_config(deviation: float, input_range: float) -> TorchInferenceRPUConfig:
    """Perfect converters without bounds, inputs in units of their range, noise on the outputs and nothing else."""
    from aihwkit.simulator.configs import TorchInferenceRPUConfig
    from aihwkit.simulator.parameters import IOParameters, MappingParameter
    from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType

    # Sizes of 0 keep every layer on one tile.
    config = TorchInferenceRPUConfig(mapping=MappingParameter(max_input_size=0, max_output_size=0))
    config.forward = IOParameters(
        inp_res=-1,
        out_res=-1,
        inp_bound=-1.0,
        out_bound=-1.0,
        bound_management=BoundManagementType.NONE,
        noise_management=NoiseManagementType.CONSTANT,  # divides inputs by nm_thres and multiplies outputs by it
        nm_thres=input_range,
        out_noise=deviation,
    )
    return config


def dense_weight(layer: nn.Module) -> torch.Tensor:
    """Weights as one matrix (outputs, inputs); groups, which aihwkit has not, become its diagonal blocks."""
    weight = layer.weight.detach().flatten(1)
    if getattr(layer, "groups", 1) == 1:
        return weight
    per_group = weight.reshape(layer.groups, -1, weight.shape[1])
    return torch.block_diag(*per_group)
