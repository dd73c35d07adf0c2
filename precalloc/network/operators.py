"""Registry of multiply-accumulate operators: each call is brought into one canonical form, a `Product`.

Operators are looked up by name, which Python functions (``F.conv2d``), tensor methods (``x @ w``) and the operators of
an exported graph (``torch.ops.aten.conv2d.default``) share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


Parser = Callable[[str, Callable[..., Tensor], tuple[Any, ...], dict[str, Any], IsStatic], Product | None]


def operator_name(func: Callable[..., Any]) -> str:
    """Name under which a function is registered: ``conv2d`` for ``F.conv2d`` and ``aten.conv2d.default`` alike."""
    schema = getattr(func, "_schema", None)
    name: str = schema.name.split("::")[-1] if schema is not None else getattr(func, "__name__", repr(func))
    return _ALIASES.get(name, name)


def parse_product(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], is_static: IsStatic
) -> Product | None:
    """Bring a call into canonical form; None where the function is no supported product.

    Parameters
    ----------
    func, args, kwargs
        The call as `torch.overrides.TorchFunctionMode` sees it.
    is_static
        Tells weights (parameters, buffers and views of them) from activations.
    """
    name = operator_name(func)
    parser = _PARSERS.get(name)
    return None if parser is None else parser(name, func, args, kwargs, is_static)


def _operand(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, *names: str) -> Any:
    if position < len(args):
        return args[position]
    return next((kwargs[name] for name in names if name in kwargs), None)


def _with_operands(
    func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, str]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Repeat the call with other tensors as its first two operands."""
    rest = {key: value for key, value in kwargs.items() if key not in names}
    return lambda x, w: func(x, w, *args[2:], **rest)


def _constant(value: float) -> Callable[[Tensor], float]:
    return lambda _: value


def _parse_linear(
    name: str, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], _: IsStatic
) -> Product | None:
    x, w = _operand(args, kwargs, 0, "input"), _operand(args, kwargs, 1, "weight")
    if w.dim() != 2:
        return None
    return Product(
        operator=name,
        x=x,
        w=w,
        apply=_with_operands(func, args, kwargs, ("input", "weight")),
        x_energy=lambda x: x.square().sum(-1, keepdim=True),
        macs_per_output=_constant(float(w.shape[1])),
        channel_axes=(-1,),
        rows=lambda w: w,
    )


def _group_energy(x: Tensor, groups: int, spatial: int) -> Tensor:
    """Sum of squares over each group's channels, (N, groups, *space)."""
    x = x if x.dim() == spatial + 2 else x.unsqueeze(0)
    if groups == x.shape[1]:
        return x.square()
    if groups == 1:
        return x.square().sum(1, keepdim=True)
    energy: Tensor = x.square().unflatten(1, (groups, -1)).sum(2)
    return energy


def _parse_conv(
    name: str, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], _: IsStatic
) -> Product | None:
    x, w = _operand(args, kwargs, 0, "input"), _operand(args, kwargs, 1, "weight")
    spatial = w.dim() - 2
    groups = int(_operand(args, kwargs, 6, "groups") or 1)
    window = {
        key: value
        for position, key in ((3, "stride"), (4, "padding"), (5, "dilation"))
        if (value := _operand(args, kwargs, position, key)) is not None
    }
    conv = (torch.conv1d, torch.conv2d, torch.conv3d)[spatial - 1]

    def x_energy(x: Tensor) -> Tensor:
        ones = x.new_ones((groups, 1, *w.shape[2:]))
        field = conv(_group_energy(x, groups, spatial), ones, None, groups=groups, **window)
        return _spread_groups(field, x.dim() == spatial + 2, w.shape[0] // groups, groups)

    return Product(
        operator=name,
        x=x,
        w=w,
        apply=_with_operands(func, args, kwargs, ("input", "weight")),
        x_energy=x_energy,
        macs_per_output=_constant(float(w[0].numel())),
        channel_axes=(-1 - spatial,),
        rows=lambda w: w.flatten(1),
    )


def _spread_groups(field: Tensor, batched: bool, channels_per_group: int, groups: int) -> Tensor:
    """Give every output channel its group's field; one group broadcasts."""
    if groups > 1 and channels_per_group > 1:
        field = field.repeat_interleave(channels_per_group, dim=1)
    return field if batched else field.squeeze(0)


def _parse_conv_transpose(
    name: str, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], _: IsStatic
) -> Product | None:
    x, w = _operand(args, kwargs, 0, "input"), _operand(args, kwargs, 1, "weight")
    spatial = w.dim() - 2
    groups = int(_operand(args, kwargs, 6, "groups") or 1)
    window = {
        key: value
        for position, key in ((3, "stride"), (4, "padding"), (5, "output_padding"), (7, "dilation"))
        if (value := _operand(args, kwargs, position, key)) is not None
    }
    conv = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[spatial - 1]
    channels = w.shape[1] * groups

    def x_energy(x: Tensor) -> Tensor:
        ones = x.new_ones((groups, 1, *w.shape[2:]))
        field = conv(_group_energy(x, groups, spatial), ones, None, groups=groups, **window)
        return _spread_groups(field, x.dim() == spatial + 2, w.shape[1], groups)

    return Product(
        operator=name,
        x=x,
        w=w,
        apply=_with_operands(func, args, kwargs, ("input", "weight")),
        x_energy=x_energy,
        macs_per_output=lambda y: x.numel() * w[0].numel() / y.numel(),
        channel_axes=(-1 - spatial,),
        rows=lambda w: w.unflatten(0, (groups, -1)).transpose(1, 2).reshape(channels, -1),
    )


def matrix_product(name: str, a: Tensor, b: Tensor, is_static: IsStatic) -> Product | None:
    """Canonical form of a @ b; a weight on the left is the programmed operand, otherwise the right operand is."""
    if a.dim() == 1 and b.dim() == 1:
        return _parse_einsum("einsum", torch.einsum, ("i,i->", a, b), {}, is_static)
    batch = [f"{chr(ord('A') + i)}" for i in range(max(a.dim(), b.dim()) - 2)]
    if any(_broadcast_clash(a, b, axis) for axis in range(3, len(batch) + 3)):
        a, b = _expand_batches(a, b)
    left = "".join(batch[len(batch) - max(a.dim() - 2, 0) :]) + ("md" if a.dim() > 1 else "d")
    right = "".join(batch[len(batch) - max(b.dim() - 2, 0) :]) + ("dn" if b.dim() > 1 else "d")
    out = "".join(batch) + ("m" if a.dim() > 1 else "") + ("n" if b.dim() > 1 else "")
    if is_static(a) and not is_static(b):
        return _labelled(name, b, a, right, left, out, lambda x, w: torch.matmul(w, x), is_static)
    return _labelled(name, a, b, left, right, out, torch.matmul, is_static)


def _broadcast_clash(a: Tensor, b: Tensor, axis: int) -> bool:
    return a.dim() >= axis and b.dim() >= axis and a.shape[-axis] != b.shape[-axis]


def _expand_batches(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])


def _labelled(
    name: str,
    x: Tensor,
    w: Tensor,
    x_labels: str,
    w_labels: str,
    out: str,
    apply: Callable[[Tensor, Tensor], Tensor],
    is_static: IsStatic,
) -> Product:
    """Product given by index labels, as in an einsum of two operands without repeated or lone summed labels."""
    sizes = dict(zip(x_labels + w_labels, (*x.shape, *w.shape), strict=True))
    fan_in = float(math.prod(sizes[label] for label in set(x_labels) - set(out)))
    static = is_static(w)
    kept = [label for label in w_labels if label in out]
    summed = [label for label in w_labels if label not in out]
    order = sorted(kept, key=out.index) + summed

    def rows(w: Tensor) -> Tensor:
        return w.permute([w_labels.index(label) for label in order]).reshape(-1, int(fan_in))

    return Product(
        operator=name,
        x=x,
        w=w,
        apply=apply,
        x_energy=lambda x: _sum_to(x.square(), x_labels, out),
        macs_per_output=_constant(fan_in),
        channel_axes=tuple(sorted(out.index(label) - len(out) for label in kept)) if static else None,
        rows=rows if static else None,
        w_mean_square=None if static else lambda w: _sum_to(w.square(), w_labels, out) / fan_in,
    )


def _sum_to(t: Tensor, labels: str, out: str) -> Tensor:
    """Sum over the labels that are not in ``out`` and arrange the rest so that it broadcasts to ``out``."""
    kept = [label for label in out if label in labels]
    summed = torch.einsum(f"{labels}->{''.join(kept)}", t)
    shape = [summed.shape[kept.index(label)] if label in kept else 1 for label in out]
    return summed.reshape(shape)


def _parse_matmul(
    name: str, _: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], is_static: IsStatic
) -> Product | None:
    a = _operand(args, kwargs, 0, "input", "self")
    b = _operand(args, kwargs, 1, "other", "mat2", "vec", "tensor2")
    return matrix_product(name, a, b, is_static)


def _parse_rmatmul(
    _: str, __: Callable[..., Tensor], args: tuple[Any, ...], ___: dict[str, Any], is_static: IsStatic
) -> Product | None:
    return matrix_product("matmul", args[1], args[0], is_static)


def _parse_addmm(
    name: str, _: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], is_static: IsStatic
) -> Product | None:
    added = _operand(args, kwargs, 0, "input", "self")
    a = _operand(args, kwargs, 1, "mat1", "batch1", "mat")
    b = _operand(args, kwargs, 2, "mat2", "batch2", "vec")
    product = matrix_product(name, a, b, is_static)
    beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)

    def finish(y: Tensor) -> Tensor:
        scaled = y if alpha == 1 else y * alpha
        return scaled if beta == 0 else scaled + (added if beta == 1 else added * beta)

    return None if product is None else _replace_finish(product, finish)


def _replace_finish(product: Product, finish: Callable[[Tensor], Tensor]) -> Product:
    return Product(**{**product.__dict__, "finish": finish})


def _parse_einsum(
    name: str, _: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], is_static: IsStatic
) -> Product | None:
    equation = _operand(args, kwargs, 0, "equation")
    operands = args[1] if len(args) == 2 and isinstance(args[1], Sequence) else args[1:]
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    a, b = operands
    labels = _einsum_labels(equation.replace(" ", ""), a.dim(), b.dim())
    if labels is None:
        return None
    left, right, out = labels
    equation = f"{left},{right}->{out}"
    if is_static(a) and not is_static(b):
        return _labelled(name, b, a, right, left, out, lambda x, w: torch.einsum(equation, w, x), is_static)
    return _labelled(name, a, b, left, right, out, lambda x, w: torch.einsum(equation, x, w), is_static)


def _einsum_labels(equation: str, a_dim: int, b_dim: int) -> tuple[str, str, str] | None:
    """Explicit labels of both operands and the output; None where this is no plain contraction of two operands."""
    inputs, arrow, out = equation.partition("->")
    left, right = inputs.split(",")
    free = [chr(code) for code in range(ord("A"), ord("Z") + 1) if chr(code) not in equation]
    a_dots, b_dots = a_dim - len(left.replace("...", "")), b_dim - len(right.replace("...", ""))
    dots = "".join(free[: max(a_dots, b_dots, 0)])
    if not arrow:
        letters = (left + right).replace(".", "")
        out = "..." + "".join(sorted(label for label in set(letters) if letters.count(label) == 1))
    left = left.replace("...", dots[len(dots) - a_dots :] if a_dots else "")
    right = right.replace("...", dots[len(dots) - b_dots :] if b_dots else "")
    out = out.replace("...", dots)
    summed = (set(left) | set(right)) - set(out)
    plain = len(set(left)) == len(left) and len(set(right)) == len(right)
    contracted = bool(summed) and all(label in left and label in right for label in summed)
    return (left, right, out) if plain and contracted else None


_ALIASES = {
    "__matmul__": "matmul",
    "linalg_matmul": "matmul",
}

_PARSERS: dict[str, Parser] = {
    "linear": _parse_linear,
    "conv1d": _parse_conv,
    "conv2d": _parse_conv,
    "conv3d": _parse_conv,
    "conv_transpose1d": _parse_conv_transpose,
    "conv_transpose2d": _parse_conv_transpose,
    "conv_transpose3d": _parse_conv_transpose,
    "matmul": _parse_matmul,
    "mm": _parse_matmul,
    "bmm": _parse_matmul,
    "mv": _parse_matmul,
    "__rmatmul__": _parse_rmatmul,
    "addmm": _parse_addmm,
    "addmv": _parse_addmm,
    "baddbmm": _parse_addmm,
    "einsum": _parse_einsum,
}
