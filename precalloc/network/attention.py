"""Fused attention, written out as its two products: softmax(scale Q K^T + mask) V."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from precalloc.network.contractions import matrix_product
from precalloc.network.operators import Product


def attend(
    compute: Callable[[Product], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` with its products done by ``compute``; a fused kernel would hide them."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = compute(_product("attention_scores", query, key.mT))
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = _masked_softmax(scores, attn_mask)
    return compute(_product("attention_values", F.dropout(weights, dropout_p) if dropout_p else weights, value))


def _product(operator: str, a: Tensor, b: Tensor) -> Product:
    product = matrix_product(operator, a, b, lambda _: False)
    assert product is not None
    return product


def _masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over keys; a query that may see no key attends to nothing, as in torch's own kernels."""
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype is torch.bool:
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
    scores = scores + mask
    blind = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.softmax(-1).masked_fill(blind, 0.0)
