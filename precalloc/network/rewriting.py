"""Operators that hold several products, written out as simpler ones that are then intercepted one by one."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from precalloc.network import recurrent
from precalloc.network.contractions import einsum_operands


def rewriting_of(name: str, func: Callable[..., Any], args: tuple[Any, ...]) -> Callable[..., Any] | None:
    """Function that computes the same from simpler operators; None where there is none."""
    if name in _HOLDING_PRODUCTS:
        return _without_override_check(func)
    if name == "einsum" and len(args) < 3 and not isinstance(args[-1], Sequence):
        return None  # one operand: nothing is multiplied
    return _REWRITTEN.get(name)


def _einsum(*args: Any, **kwargs: Any) -> Tensor:
    """Einsum of any number of operands, two at a time from the left, as torch contracts them."""
    labels, operands = einsum_operands(args, kwargs)
    terms = [_without_repeats(*term) for term in zip(labels.operands, operands, strict=True)]
    while len(terms) > 1:
        first, second, *rest = terms
        later = set(labels.out).union(*(of_term for of_term, _ in rest))
        terms = [_contract_pair(first, second, later), *rest]
    return torch.einsum(f"{terms[0][0]}->{labels.out}", terms[0][1])


Term = tuple[str, Tensor]


def _without_repeats(labels: str, t: Tensor) -> Term:
    """Take the diagonal of axes with the same label."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            i = labels.index(label)
            j = labels.index(label, i + 1)
            t = t.diagonal(dim1=i, dim2=j)
            labels = labels[:i] + labels[i + 1 : j] + labels[j + 1 :] + label
    return labels, t


def _contract_pair(first: Term, second: Term, later: set[str]) -> Term:
    """Contract two terms; labels of one alone that nobody needs later are summed beforehand."""
    first, second = _without_lone(first, second[0], later), _without_lone(second, first[0], later)
    sizes: dict[str, int] = {}
    for labels, t in (first, second):
        for label, size in zip(labels, t.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    first, second = ((labels, t.expand([sizes[label] for label in labels])) for labels, t in (first, second))
    out = "".join(label for label in sizes if label in later)
    return out, torch.einsum(f"{first[0]},{second[0]}->{out}", first[1], second[1])


def _without_lone(term: Term, other: str, later: set[str]) -> Term:
    labels, t = term
    lone = [i for i, label in enumerate(labels) if label not in later and label not in other]
    return "".join(label for i, label in enumerate(labels) if i not in lone), t.sum(lone) if lone else t


def _multi_dot(tensors: Sequence[Tensor], *, out: Tensor | None = None) -> Tensor:
    """Chain of matrix products in the order of fewest MACs; a vector may stand at either end."""
    assert out is None
    chain = [tensors[0].unsqueeze(0) if tensors[0].dim() == 1 else tensors[0], *tensors[1:]]
    chain[-1] = chain[-1].unsqueeze(1) if chain[-1].dim() == 1 else chain[-1]
    y = _multiply_chain(chain, _best_splits([chain[0].shape[0], *(t.shape[1] for t in chain)]), 0, len(chain) - 1)
    y = y.squeeze(0) if tensors[0].dim() == 1 else y
    return y.squeeze(-1) if tensors[-1].dim() == 1 else y


def _best_splits(sizes: list[int]) -> dict[tuple[int, int], int]:
    """Where to split every part of a chain, by dynamic programming."""
    count = len(sizes) - 1
    cost: dict[tuple[int, int], int] = {(i, i): 0 for i in range(count)}
    best: dict[tuple[int, int], int] = {}
    for length in range(1, count):
        for i in range(count - length):
            j = i + length
            costs = [cost[i, k] + cost[k + 1, j] + sizes[i] * sizes[k + 1] * sizes[j + 1] for k in range(i, j)]
            cost[i, j] = min(costs)
            best[i, j] = i + costs.index(cost[i, j])
    return best


def _multiply_chain(chain: Sequence[Tensor], splits: dict[tuple[int, int], int], i: int, j: int) -> Tensor:
    if i == j:
        return chain[i]
    split = splits[i, j]
    return torch.mm(_multiply_chain(chain, splits, i, split), _multiply_chain(chain, splits, split + 1, j))


def _chain_matmul(*matrices: Tensor) -> Tensor:
    return _multi_dot(matrices)


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_o = sum_ij x_i W_oij z_j + b_o: a linear layer whose inputs are the products x_i z_j, made digitally."""
    outer = input1.unsqueeze(-1) * input2.unsqueeze(-2)
    return F.linear(outer.flatten(-2), weight.flatten(1), bias)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *_: object,
) -> Tensor:
    """Convolution of any kind, as decomposed exported programs hold it."""
    spatial = weight.dim() - 3
    if transposed:
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial]
        return conv(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return (F.conv1d, F.conv2d, F.conv3d)[spatial](x, weight, bias, stride, padding, dilation, groups)


_REWRITTEN: dict[str, Callable[..., Any]] = {
    "einsum": _einsum,
    "multi_dot": _multi_dot,
    "linalg_multi_dot": _multi_dot,
    "chain_matmul": _chain_matmul,
    "bilinear": _bilinear,
    "convolution": _convolution,
    "_convolution": _convolution,
    **recurrent.KERNELS,
}

# Python functions that hold products of their own. A mode receives them whole, before their body runs.
_HOLDING_PRODUCTS = frozenset({"multi_head_attention_forward"})


def _without_override_check(func: Callable[..., Any]) -> Callable[..., Any]:
    """Copy of a torch Python function that runs its body instead of asking the active mode again (an endless loop)."""
    no = dict.fromkeys(
        ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), lambda *_: False
    )
    assert isinstance(func, types.FunctionType)
    copy = types.FunctionType(
        func.__code__, {**func.__globals__, **no}, func.__name__, func.__defaults__, func.__closure__
    )
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy
