"""Interception of every product of a running model: the only code that reaches into a model, and that names sites.

A `torch.overrides.TorchFunctionMode` sees modules (``nn.Conv2d`` calls ``F.conv2d``), functional calls (``q @ k.mT``)
and the operators of an ``ExportedProgram.module()`` alike, needs no tracing, and leaves the user's classes and graph as
they are. Two alternatives were weighed. A graph rewrite (FX) fails on models that do not trace, and needs a second
mechanism for those. A `TorchDispatchMode` sees below autograd, after operators were decomposed: gradients with respect
to a product's output cannot be taken there, and output channels are lost in flattened matrix products.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from precalloc.network.operators import Product, matrix_product, operator_name, parse_product

ProductHandler = Callable[[str, Product], Tensor]
OtherHandler = Callable[[str, str, Callable[[], Any]], Any]

PRODUCT_MODULES = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@contextmanager
def intercept(model: nn.Module, on_product: ProductHandler, on_other: OtherHandler | None = None) -> Iterator[None]:
    """Hand every product that ``model`` computes within the block to ``on_product``; all hooks are gone afterwards.

    Parameters
    ----------
    model
        Runs as it is; nothing of it is replaced.
    on_product
        Called as ``on_product(site name, product)``; its result takes the place of ``product.apply(x, w)``.
    on_other
        Called as ``on_other(module path, operator, call)`` for every other torch function; returns ``call()``.
    """
    mode = _InterceptionMode(_Names(model), on_product, on_other)
    handles = [handle for name, module in model.named_modules() for handle in _track(name, module, mode.names)]
    try:
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _track(path: str, module: nn.Module, names: _Names) -> tuple[Any, Any]:
    def enter(module: nn.Module, _: object) -> None:
        names.stack.append(_Frame(path, module))

    def leave(module: nn.Module, *_: object) -> None:
        if names.stack[-1].module is module:  # not entered where an earlier pre-hook raised
            names.stack.pop()

    return module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)


@dataclass
class _Frame:
    """One running module call; functional products are numbered within it, so a second call repeats the names."""

    path: str
    module: nn.Module | None
    counts: Counter[str] = field(default_factory=Counter)


def _storage(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


class _Names:
    """Names products by the module that owns the weight, else by the running module and the operator's index in it."""

    def __init__(self, model: nn.Module) -> None:
        self.stack = [_Frame("", None)]
        self.owners = {
            _storage(tensor): name.rpartition(".")[::2]
            for name, tensor in (*model.named_buffers(), *model.named_parameters())
            if tensor.device.type != "meta" and tensor.numel() > 0
        }

    def is_static(self, t: Tensor) -> bool:
        return _storage(t) in self.owners

    def name(self, product: Product) -> str:
        frame = self.stack[-1]
        module = frame.module
        if product.is_static:
            own = getattr(module, "weight", None)
            if isinstance(own, Tensor) and (
                _storage(own) == _storage(product.w) or isinstance(module, PRODUCT_MODULES)
            ):
                return frame.path
            path, attribute = self.owners.get(_storage(product.w), ("", ""))
            if attribute == "weight" and path.startswith(f"{frame.path}." if frame.path else ""):
                return path
        index = frame.counts[product.operator]
        frame.counts[product.operator] += 1
        return f"{frame.path}/{product.operator}.{index}" if frame.path else f"{product.operator}.{index}"


class _InterceptionMode(TorchFunctionMode):
    def __init__(self, names: _Names, on_product: ProductHandler, on_other: OtherHandler | None) -> None:
        super().__init__()
        self.names, self._on_product, self._on_other = names, on_product, on_other

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operator_name(func)
        if name == "scaled_dot_product_attention":
            return self._attention(*args, **kwargs)
        if name in _COMPOSITES:
            with self:
                return _without_override_check(func)(*args, **kwargs)
        product = parse_product(func, args, kwargs, self.names.is_static)
        if product is not None:
            return self._product(product)
        if self._on_other is not None:
            return self._on_other(self.names.stack[-1].path, name, lambda: func(*args, **kwargs))
        return func(*args, **kwargs)

    def _product(self, product: Product) -> Tensor:
        y = self._on_product(self.names.name(product), product)
        return y if product.finish is None else product.finish(y)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attention as its two products, softmax(scale Q K^T + mask) V; a fused kernel would hide them."""
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        scores = self._product(_attention_product("attention_scores", query, key.mT))
        scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        weights = (
            F.dropout(_masked_softmax(scores, attn_mask), dropout_p)
            if dropout_p
            else _masked_softmax(scores, attn_mask)
        )
        return self._product(_attention_product("attention_values", weights, value))


def _attention_product(operator: str, a: Tensor, b: Tensor) -> Product:
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


# Python functions that hold products of their own. A mode receives them whole, before their body runs.
_COMPOSITES = frozenset({"multi_head_attention_forward"})


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
