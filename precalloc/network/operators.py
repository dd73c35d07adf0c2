"""The one canonical form of every multiply-accumulate operator, and how operators are told apart."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IsStatic = Callable[[Tensor], bool]


@dataclass(frozen=True)
class Product:
    """One call of a MAC operator: y = apply(x, w), with w the operand that is programmed into the array.

    Parameters
    ----------
    operator
        Name of the operator, the site's kind.
    x, w
        Streamed and programmed operand.
    apply
        Computes y from (x, w); everything else of the call (bias, stride, ...) is bound.
    x_energy
        ||x||^2 of every output's receptive field, broadcastable to y.
    channel_axes
        Axes of y, counted from the end, that number the output channels; None where w is an activation.
    rows
        Weights (channels, row length) of a static w.
    w_mean_square
        ||w||^2 / D of every output for an activation w, broadcastable to y.
    macs_per_output
        D, the fan-in: MACs per element of y; for transposed convolutions their mean over the output.
    finish
        Digital rest of the call, applied to y after noise (scaling and addition of ``addmm``).
    accumulates
        Whether anything is summed; an outer product only multiplies.
    batched
        Whether the outermost axis of x and y goes over products that are alike and apart, as that of images does.
    identity
        Tells weights apart, also where they are computed anew at every call; set by the interception.
    """

    operator: str
    x: Tensor
    w: Tensor
    apply: Callable[[Tensor, Tensor], Tensor]
    x_energy: Callable[[Tensor], Tensor]
    macs_per_output: Callable[[Tensor], float]
    channel_axes: tuple[int, ...] | None = None
    rows: Callable[[Tensor], Tensor] | None = None
    w_mean_square: Callable[[Tensor], Tensor] | None = None
    finish: Callable[[Tensor], Tensor] | None = None
    accumulates: bool = True
    batched: bool = False
    identity: Hashable = None

    @property
    def is_static(self) -> bool:
        """Whether w is a weight, with output channels of its own, and not an activation."""
        return self.rows is not None

    def per_channel(self, values: Tensor, y: Tensor) -> Tensor:
        """Shape per-channel values (channels,) so that they broadcast to y."""
        assert self.channel_axes is not None
        shape = [1] * y.dim()
        for axis in self.channel_axes:
            shape[axis] = y.shape[axis]
        return values.view(shape)

    def channel_sum(self, y: Tensor) -> Tensor:
        """Sum what is shaped as the output over everything but its channels, (channels,)."""
        others = self.other_axes(y)
        return (y.sum(others) if others else y).flatten()

    def other_axes(self, y: Tensor) -> list[int]:
        """Axes of the output y that number no channels."""
        assert self.channel_axes is not None
        kept = {axis + y.dim() for axis in self.channel_axes}
        return [axis for axis in range(y.dim()) if axis not in kept]


@dataclass(frozen=True)
class Call:
    """A call as `torch.overrides.TorchFunctionMode` sees it, and which of its operands are weights."""

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_static: IsStatic

    def operand(self, position: int, *names: str) -> Any:
        """Argument by position or by any of its names; None where it is not given."""
        if position < len(self.args):
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), None)

    def with_operands(self, *names: str) -> Callable[[Tensor, Tensor], Tensor]:
        """Repeat the call with other tensors as its first two operands, whose names are given."""
        rest = {key: value for key, value in self.kwargs.items() if key not in names}
        return lambda x, w: self.func(x, w, *self.args[2:], **rest)


def operator_name(func: Callable[..., Any]) -> str:
    """Name that Python functions, tensor methods and the operators of an exported graph share.

    ``conv2d`` for ``F.conv2d`` and ``aten.conv2d.default`` alike; operators outside of ATen keep their namespace.
    """
    schema = getattr(func, "_schema", None)
    if schema is not None:
        name: str = schema.name
    else:
        name = getattr(func, "_qualified_op_name", None) or getattr(func, "__name__", None) or repr(func)
    return name.removeprefix("aten::")


def wide_dtype(t: Tensor) -> torch.dtype:
    """Type in which squares of a tensor's values are computed: single precision for half-precision numbers."""
    return torch.float32 if t.dtype in (torch.float16, torch.bfloat16) else t.dtype


def widened(t: Tensor) -> Tensor:
    """Bring half-precision numbers to single precision: their squares leave the range of half precision."""
    return t.to(wide_dtype(t))


def constant(value: float) -> Callable[[Tensor], float]:
    """Function of the output that is the same for all outputs."""
    return lambda _: value
