"""Products of two tensors by index labels: matrix products, and every einsum of two operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from precalloc.network.operators import Call, IsStatic, Product, constant

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def matrix_product(name: str, a: Tensor, b: Tensor, is_static: IsStatic) -> Product | None:
    """Canonical form of a @ b; a weight on the left is the programmed operand, otherwise the right operand is."""
    batch = [f"{chr(ord('A') + i)}" for i in range(max(a.dim(), b.dim()) - 2)]
    if any(_broadcast_clash(a, b, axis) for axis in range(3, len(batch) + 3)):
        a, b = _expand_batches(a, b)
    left = "".join(batch[len(batch) - max(a.dim() - 2, 0) :]) + ("md" if a.dim() > 1 else "d")
    right = "".join(batch[len(batch) - max(b.dim() - 2, 0) :]) + ("dn" if b.dim() > 1 else "d")
    out = "".join(batch) + ("m" if a.dim() > 1 else "") + ("n" if b.dim() > 1 else "")
    return contraction(name, a, b, (left, right, out), is_static, torch.matmul)


def _broadcast_clash(a: Tensor, b: Tensor, axis: int) -> bool:
    return a.dim() >= axis and b.dim() >= axis and a.shape[-axis] != b.shape[-axis]


def _expand_batches(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])


def contraction(
    name: str,
    a: Tensor,
    b: Tensor,
    labels: tuple[str, str, str],
    is_static: IsStatic,
    compute: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Product | None:
    """Product of two operands by their labels and the output's, without repeated or lone summed ones.

    None where numbers are complex: noise and ranges are those of real ones.
    """
    if a.is_complex() or b.is_complex():
        return None
    left, right, out = labels
    equation = f"{left},{right}->{out}"
    apply = compute or (lambda x, w: torch.einsum(equation, x, w))
    if is_static(a) and not is_static(b):
        return _labelled(name, b, a, (right, left, out), lambda x, w: apply(w, x), is_static)
    return _labelled(name, a, b, labels, apply, is_static)


def _labelled(
    name: str,
    x: Tensor,
    w: Tensor,
    labels: tuple[str, str, str],
    apply: Callable[[Tensor, Tensor], Tensor],
    is_static: IsStatic,
) -> Product:
    x_labels, w_labels, out = labels
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
        macs_per_output=constant(fan_in),
        channel_axes=tuple(sorted(out.index(label) - len(out) for label in kept)) if static else None,
        rows=rows if static else None,
        w_mean_square=None if static else lambda w: _sum_to(w.square(), w_labels, out) / fan_in,
        accumulates=bool(summed),
    )


def _sum_to(t: Tensor, labels: str, out: str) -> Tensor:
    """Sum over the labels that are not in ``out`` and arrange the rest so that it broadcasts to ``out``."""
    kept = [label for label in out if label in labels]
    summed = torch.einsum(f"{labels}->{''.join(kept)}", t)
    shape = [summed.shape[kept.index(label)] if label in kept else 1 for label in out]
    return summed.reshape(shape)


def parse_matmul(call: Call) -> Product | None:
    """``matmul``, ``mm``, ``bmm``, ``mv``, ``dot``."""
    a, b = call.operand(0, "input", "self"), call.operand(1, "other", "mat2", "vec", "tensor", "tensor2")
    return matrix_product(call.name, a, b, call.is_static)


def parse_rmatmul(call: Call) -> Product | None:
    """``w.__rmatmul__(x)``, which is x @ w."""
    return matrix_product("matmul", call.args[1], call.args[0], call.is_static)


def parse_addmm(call: Call) -> Product | None:
    """Beta * added + alpha * (a @ b)."""
    a, b = call.operand(1, "mat1", "batch1", "mat"), call.operand(2, "mat2", "batch2", "vec")
    return _with_addition(call, matrix_product(call.name, a, b, call.is_static))


def parse_addbmm(call: Call) -> Product | None:
    """Beta * added + alpha * sum_b a_b @ b_b: the batch is summed as well."""
    a, b = call.operand(1, "batch1"), call.operand(2, "batch2")
    return _with_addition(call, contraction(call.name, a, b, ("bmd", "bdn", "mn"), call.is_static))


def _with_addition(call: Call, product: Product | None) -> Product | None:
    added = call.operand(0, "input", "self")
    beta, alpha = call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1)

    def finish(y: Tensor) -> Tensor:
        scaled = y if alpha == 1 else y * alpha
        return scaled if beta == 0 else scaled + (added if beta == 1 else added * beta)

    return None if product is None else replace(product, finish=finish)


def parse_inner(call: Call) -> Product | None:
    """Sum over the last axis of both operands."""
    a, b = call.operand(0, "input", "self"), call.operand(1, "other")
    if a.dim() == 0 or b.dim() == 0:
        return None  # a scalar scales; nothing is summed
    return _summed_axes(call, a, b, [a.dim() - 1], [b.dim() - 1])


def parse_tensordot(call: Call) -> Product | None:
    """Sum over pairs of axes, or over the last ``dims`` axes of the first and the first of the second operand."""
    a, b, dims = call.operand(0, "a", "self"), call.operand(1, "b", "other"), call.operand(2, "dims", "dims_self")
    if call.kwargs.get("dims_other") is not None or len(call.args) > 3:
        dims = (dims, call.operand(3, "dims_other"))
    dims = 2 if dims is None else dims.tolist() if isinstance(dims, Tensor) else dims
    if isinstance(dims, int):
        dims = (list(range(a.dim() - dims, a.dim())), list(range(dims)))
    return _summed_axes(call, a, b, *dims)


def _summed_axes(call: Call, a: Tensor, b: Tensor, of_a: Sequence[int], of_b: Sequence[int]) -> Product | None:
    left, right = list(_LETTERS[: a.dim()]), list(_LETTERS[a.dim() : a.dim() + b.dim()])
    for i, j in zip(of_a, of_b, strict=True):
        right[j] = left[i]
    summed = {left[i] for i in of_a}
    out = "".join(label for label in left + right if label not in summed)
    return contraction(call.name, a, b, ("".join(left), "".join(right), out), call.is_static)


def parse_einsum(call: Call) -> Product | None:
    """Einsum of two operands; None where it is no plain contraction: `rewriting` brings it into plain ones."""
    labels, operands = einsum_operands(call.args, call.kwargs)
    if len(operands) != 2 or not labels.is_plain(operands):
        return None
    (a, b), (left, right) = operands, labels.operands
    return contraction(call.name, a, b, (left, right, labels.out), call.is_static)


@dataclass(frozen=True)
class EinsumLabels:
    """Explicit labels of an einsum's operands and output, one letter an axis."""

    operands: tuple[str, ...]
    out: str

    def is_plain(self, operands: Sequence[Tensor]) -> bool:
        """Whether no operand repeats a label or has a summed one of its own, and sizes agree without broadcasting."""
        left, right = self.operands
        unique = all(len(set(labels)) == len(labels) for labels in self.operands)
        lone = (set(left) ^ set(right)) - set(self.out)
        sizes = [dict(zip(labels, t.shape, strict=True)) for labels, t in zip(self.operands, operands, strict=True)]
        return unique and not lone and all(sizes[0][label] == sizes[1][label] for label in set(left) & set(right))


def einsum_operands(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[EinsumLabels, list[Tensor]]:
    """Labels and operands of an einsum, from ``(equation, *operands)`` or ``(operand, sublist, ..., out)``."""
    equation = args[0] if args else kwargs["equation"]
    if isinstance(equation, Tensor):
        return _sublist_operands(args)
    operands = args[1] if len(args) == 2 and isinstance(args[1], Sequence) else args[1:]
    return _explicit_labels(equation.replace(" ", ""), list(operands)), list(operands)


def _sublist_operands(args: tuple[Any, ...]) -> tuple[EinsumLabels, list[Tensor]]:
    operands, sublists = list(args[0 : len(args) - len(args) % 2 : 2]), list(args[1::2])

    def text(sublist: Sequence[Any]) -> str:
        return "".join("..." if label is Ellipsis else _LETTERS[label] for label in sublist)

    equation = ",".join(text(sublist) for sublist in sublists)
    if len(args) % 2:
        equation += "->" + text(args[-1])
    return _explicit_labels(equation, operands), operands


def _explicit_labels(equation: str, operands: list[Tensor]) -> EinsumLabels:
    inputs, arrow, out = equation.partition("->")
    parts = inputs.split(",")
    hidden = [t.dim() - len(part.replace("...", "")) for part, t in zip(parts, operands, strict=True)]
    free = [letter for letter in _LETTERS if letter not in equation]
    most = max((count for part, count in zip(parts, hidden, strict=True) if "..." in part), default=0)
    dots = "".join(free[:most])
    if not arrow:
        letters = inputs.replace(",", "").replace(".", "")
        out = "..." + "".join(sorted(label for label in set(letters) if letters.count(label) == 1))
    # The ellipsis of an operand with fewer axes stands for the last ones.
    labels = (part.replace("...", dots[most - count :]) for part, count in zip(parts, hidden, strict=True))
    return EinsumLabels(tuple(labels), out.replace("...", dots))
