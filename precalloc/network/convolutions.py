"""Linear layers and convolutions, plain and transposed, as products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from precalloc.network.contractions import matrix_product
from precalloc.network.operators import Call, Product, constant

# Values that are squared at a time: a megabyte.
_PART_VALUES = 2**18


def parse_linear(call: Call) -> Product | None:
    """Y = x W^T + b, with W of shape (outputs, inputs)."""
    x, w = call.operand(0, "input"), call.operand(1, "weight")
    if w.dim() == 1 or not call.is_static(w):
        return _as_matrix_product(call, x, w)
    return Product(
        operator=call.name,
        x=x,
        w=w,
        apply=call.with_operands("input", "weight"),
        x_energy=lambda x: x.square().sum(-1, keepdim=True),
        macs_per_output=constant(float(w.shape[1])),
        channel_axes=(-1,),
        rows=lambda w: w,
    )


def _as_matrix_product(call: Call, x: Tensor, w: Tensor) -> Product | None:
    bias = call.operand(2, "bias")
    product = matrix_product(call.name, x, w if w.dim() == 1 else w.mT, call.is_static)
    return product if product is None or bias is None else replace(product, finish=lambda y: y + bias)


def _group_energy(x: Tensor, groups: int, spatial: int) -> Tensor:
    """Sum of squares over each group's channels, (N, groups, *space)."""
    x = x if x.dim() == spatial + 2 else x.unsqueeze(0)
    if groups == x.shape[1]:
        return x.square()
    if groups == 1:
        return _squared_sum(x)
    energy: Tensor = x.square().unflatten(1, (groups, -1)).sum(2)
    return energy


def _squared_sum(x: Tensor) -> Tensor:
    """Sum of squares over the channels, some examples at a time: their squares stay in the cache."""
    size = max(1, _PART_VALUES * len(x) // max(x.numel(), 1))
    each = [part.square().sum(1, keepdim=True) for part in x.split(size)]
    return each[0] if len(each) == 1 else torch.cat(each)


def parse_conv(call: Call) -> Product | None:
    """Convolution with weights of shape (channels, inputs / groups, *window)."""
    x, w = call.operand(0, "input"), call.operand(1, "weight")
    spatial = w.dim() - 2
    groups = int(call.operand(6, "groups") or 1)
    static = call.is_static(w)

    def x_energy(x: Tensor) -> Tensor:
        conv = (torch.conv1d, torch.conv2d, torch.conv3d)[spatial - 1]
        window = _options(call, {"stride": 3, "padding": 4, "dilation": 5})
        energy = _group_energy(x, groups, spatial)
        if groups == 1:
            energy = _window_sums(energy, w.shape[2:], **window)
        else:  # depthwise convolutions are made for this: faster than sums along the axes, above all with gradients
            energy = conv(energy, x.new_ones((groups, 1, *w.shape[2:])), None, groups=groups, **window)
        return _spread_groups(energy, x.dim() == spatial + 2, w.shape[0] // groups, groups)

    return Product(
        operator=call.name,
        x=x,
        w=w,
        apply=call.with_operands("input", "weight"),
        x_energy=x_energy,
        batched=x.dim() == spatial + 2,
        macs_per_output=constant(w.numel() / w.shape[0]),
        channel_axes=(-1 - spatial,) if static else None,
        rows=(lambda w: w.flatten(1)) if static else None,
        w_mean_square=None if static else lambda w: w.square().flatten(1).mean(1).reshape(-1, *[1] * spatial),
    )


def _options(call: Call, positions: Mapping[str, int]) -> dict[str, Any]:
    """Options of a convolution that were given, by keyword."""
    found = {key: call.operand(position, key) for key, position in positions.items()}
    return {key: value for key, value in found.items() if value is not None}


def _along(option: int | Sequence[int], axis: int) -> int:
    """A convolution's option along one axis; a single number serves all."""
    if isinstance(option, int):
        return option
    return int(option[axis if len(option) > 1 else 0])


def _padding_along(padding: int | str | Sequence[int], axis: int, reach: int) -> tuple[int, int]:
    """Zeros before and after."""
    if isinstance(padding, str):
        return (reach // 2, reach - reach // 2) if padding == "same" else (0, 0)
    return (_along(padding, axis),) * 2


def _window_sums(
    t: Tensor,
    shape: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Sum one field over a convolution's window, axis by axis: much less work than a convolution with ones."""
    for axis, size in enumerate(shape):
        step, spread = _along(stride, axis), _along(dilation, axis)
        reach = spread * (size - 1)
        t = _window_sum(t, axis - len(shape), reach, step, spread, _padding_along(padding, axis, reach))
    return t


def _window_sum(t: Tensor, axis: int, reach: int, step: int, spread: int, padding: tuple[int, int]) -> Tensor:
    """Sum over the window along one axis, counted from the end."""
    padded = pad(t, [*[0, 0] * (-axis - 1), *padding]) if any(padding) else t
    first, *others = padded.unfold(axis, reach + 1, step)[..., ::spread].unbind(-1)
    if not others:
        return first
    total = first + others[0]
    for part in others[1:]:
        total += part
    return total


def _spread_groups(field: Tensor, batched: bool, channels_per_group: int, groups: int) -> Tensor:
    """Give every output channel its group's field; one group broadcasts."""
    if groups > 1 and channels_per_group > 1:
        field = field.repeat_interleave(channels_per_group, dim=1)
    return field if batched else field.squeeze(0)


def parse_conv_transpose(call: Call) -> Product | None:
    """Transposed convolution with weights of shape (inputs, channels / groups, *window)."""
    x, w = call.operand(0, "input"), call.operand(1, "weight")
    spatial = w.dim() - 2
    groups = int(call.operand(6, "groups") or 1)
    window = _options(call, {"stride": 3, "padding": 4, "output_padding": 5, "dilation": 7})
    static = call.is_static(w)
    conv = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[spatial - 1]
    channels = w.shape[1] * groups

    def rows(w: Tensor) -> Tensor:
        by_group: Tensor = w.unflatten(0, (groups, -1))
        return by_group.transpose(1, 2).reshape(channels, -1)

    def x_energy(x: Tensor) -> Tensor:
        ones = x.new_ones((groups, 1, *w.shape[2:]))
        field = conv(_group_energy(x, groups, spatial), ones, None, groups=groups, **window)
        return _spread_groups(field, x.dim() == spatial + 2, w.shape[1], groups)

    return Product(
        operator=call.name,
        x=x,
        w=w,
        apply=call.with_operands("input", "weight"),
        x_energy=x_energy,
        batched=x.dim() == spatial + 2,
        macs_per_output=lambda y: x.numel() * w[0].numel() / y.numel(),
        channel_axes=(-1 - spatial,) if static else None,
        rows=rows if static else None,
        w_mean_square=None if static else lambda w: rows(w).square().mean(1).reshape(-1, *[1] * spatial),
    )
