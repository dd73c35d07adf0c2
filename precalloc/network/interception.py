"""Interception of every product of a running model: the only code that reaches into a model.

A `torch.overrides.TorchFunctionMode` sees modules (``nn.Conv2d`` calls ``F.conv2d``), functional calls (``q @ k.mT``)
and the operators of an ``ExportedProgram.module()`` alike, needs no tracing, and leaves the user's classes and graph as
they are. Two alternatives were weighed. A graph rewrite (FX) fails on models that do not trace, and needs a second
mechanism for those. A `TorchDispatchMode` sees below autograd, after operators were decomposed: gradients with respect
to a product's output cannot be taken there, and output channels are lost in flattened matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from precalloc.network.attention import attend
from precalloc.network.naming import PRODUCT_MODULES, Frame, Names
from precalloc.network.operators import Call, Product, operator_name
from precalloc.network.registry import canonical_name, parse_product
from precalloc.network.rewriting import rewriting_of

__all__ = ["PRODUCT_MODULES", "OtherHandler", "ProductHandler", "intercept"]

ProductHandler = Callable[[str, Product], Tensor]
OtherHandler = Callable[[str, str, partial[Any], str | None], Any]

CONSTANT = "depends on no input"
OUTER = "multiplies without summing"
INTEGER = "integer arithmetic"


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
        Called as ``on_other(module path, operator, call, why digital)`` for every other torch function; returns
        ``call()``, whose arguments it may look at. The reason is given where a product is none of the accelerator's,
        and None otherwise.
    """
    modules = list(model.named_modules())
    mode = _InterceptionMode(Names(modules), on_product, on_other)
    handles = [handle for name, module in modules for handle in _track(name, module, mode.names)]
    try:
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _track(path: str, module: nn.Module, names: Names) -> tuple[Any, Any]:
    def enter(module: nn.Module, _: object) -> None:
        names.stack.append(Frame(path, module))

    def leave(module: nn.Module, *_: object) -> None:
        if names.stack[-1].module is module:  # not entered where an earlier pre-hook raised
            names.stack.pop()

    return module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)


class _InterceptionMode(TorchFunctionMode):
    def __init__(self, names: Names, on_product: ProductHandler, on_other: OtherHandler | None) -> None:
        super().__init__()
        self.names, self._on_product, self._on_other = names, on_product, on_other

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operator_name(func)
        canonical = canonical_name(name)
        if kwargs.get("out") is not None and not isinstance(kwargs["out"], tuple):
            return self._into(kwargs["out"], func, args, kwargs)
        if name == "scaled_dot_product_attention":
            return attend(self._product, *args, **kwargs)
        product = parse_product(Call(canonical, func, args, kwargs, self.names.weights.is_static))
        if product is not None:
            reason = self._why_digital(product)
            y = self._product(product) if reason is None else self._other(name, func, args, kwargs, reason)
            return y if canonical == name or not name.endswith("_") or name.endswith("__") else args[0].copy_(y)
        rewriting = rewriting_of(name, func, args)
        if rewriting is not None:
            with self:
                return rewriting(*args, **kwargs)
        return self._other(name, func, args, kwargs, None)

    def _into(self, out: Tensor, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Compute without ``out=`` and write the result there, which is what a later user of it sees."""
        with self:
            y = func(*args, **{key: value for key, value in kwargs.items() if key != "out"})
        return (out if out.shape == y.shape else out.resize_(y.shape)).copy_(y)

    def _product(self, product: Product) -> Tensor:
        if product.is_static:
            product = replace(product, identity=self.names.weights.identity(product.w))
        y = self._on_product(self.names.name(product), product)
        return y if product.finish is None else product.finish(y)

    def _why_digital(self, product: Product) -> str | None:
        """Reason why a product is none of the accelerator's; None where it is."""
        weights = self.names.weights
        if not product.x.is_floating_point():
            return INTEGER
        if weights.is_static(product.x) and product.is_static:
            return CONSTANT
        scales_table = (
            weights.is_buffer(product.w) and product.rows is not None and product.rows(product.w).shape[1] == 1
        )
        return OUTER if scales_table or not product.accumulates else None

    def _other(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], reason: str | None
    ) -> Any:
        call, frame = partial(func, *args, **kwargs), self.names.stack[-1]
        result = call() if self._on_other is None else self._on_other(frame.path, name, call, reason)
        self.names.weights.follow(name, args, kwargs, result)
        return result
