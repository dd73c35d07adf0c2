"""Batch norm is folded into the product before it, as hardware computes the folded product."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode

from precalloc.network.naming import PRODUCT_MODULES

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def fold_batch_norm(model: nn.Module, run: Callable[[nn.Module], object]) -> tuple[nn.Module, tuple[str, ...]]:
    """Fold every batch norm whose only input is the output of one convolution or linear layer.

    The pairs are found by running the model and watching which module's output is another's input, so any Python model
    serves; nothing is traced.

    Parameters
    ----------
    model
        In evaluation mode; it is not changed.
    run
        Runs a model on some real inputs.

    Returns
    -------
    model, folded
        A copy with the batch norms folded and replaced by identities, and their names; the model itself where none is.
    """
    pairs = _find_pairs(model, run)
    if not pairs:
        return model, ()
    # Shared tensors stay shared in the copy, since one memo serves the whole model.
    folded = copy.deepcopy(model)
    norms = set()
    for layer_name, norm_name in pairs:
        norm = folded.get_submodule(norm_name)
        _fold(folded.get_submodule(layer_name), norm)
        norms.add(norm)
    for name, module in list(folded.named_modules(remove_duplicate=False)):
        if module in norms:
            folded.set_submodule(name, nn.Identity())
    return folded, tuple(norm for _, norm in pairs)


def _find_pairs(model: nn.Module, run: Callable[[nn.Module], object]) -> list[tuple[str, str]]:
    names = {module: name for name, module in model.named_modules()}
    watch = _DataFlow()
    candidates = [m for m in names if isinstance(m, (*PRODUCT_MODULES, *_NORMS)) and _is_foldable(m)]
    if not any(isinstance(module, _NORMS) for module in candidates):
        return []
    handles = [h for module in candidates for h in watch.follow(module)]
    try:
        with torch.no_grad(), watch:
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return [(names[layer], names[norm]) for layer, norm in watch.exclusive_pairs()]


def _is_foldable(module: nn.Module) -> bool:
    if torch.nn.utils.parametrize.is_parametrized(module) or (module._forward_pre_hooks or module._forward_hooks):
        return False
    if isinstance(module, _TRANSPOSED) and module.groups > 1:
        return False  # torch's fusion knows no groups here; the batch norm stays digital, which is exact as well
    return not isinstance(module, _NORMS) or (module.track_running_stats and not module.training)


class _DataFlow(TorchFunctionMode):
    """Notes which batch norm takes which layer's output, and which outputs are used by anything else as well."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: list[Tensor] = []  # ids are unique only among living tensors
        self._producer: dict[int, nn.Module] = {}
        self._running: list[nn.Module] = []
        self._taken_by: dict[nn.Module, set[nn.Module | None]] = {}
        self._taken_from: dict[nn.Module, set[nn.Module | None]] = {}

    def follow(self, module: nn.Module) -> tuple[Any, Any]:
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            if isinstance(module, _NORMS):
                layer = self._producer.get(id(args[0]))
                self._taken_from.setdefault(module, set()).add(layer)
                if layer is not None:
                    self._taken_by.setdefault(layer, set()).add(module)
            self._running.append(module)

        def leave(module: nn.Module, _: object, y: Tensor) -> None:
            self._running.pop()
            if isinstance(module, PRODUCT_MODULES):
                self._alive.append(y)
                self._producer[id(y)] = module

        return module.register_forward_pre_hook(enter), module.register_forward_hook(leave)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inside_norm = bool(self._running) and isinstance(self._running[-1], _NORMS)
        if not inside_norm and getattr(func, "__name__", "") != "__get__":  # reading a shape uses no values
            for value in torch.utils._pytree.tree_leaves((args, kwargs)):
                layer = self._producer.get(id(value))
                if layer is not None:
                    self._taken_by.setdefault(layer, set()).add(None)
        return func(*args, **kwargs)

    def exclusive_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Pairs (layer, norm) in which each knows no other partner; a layer without any taker is the model's output."""
        pairs = []
        for layer, takers in self._taken_by.items():
            (taker,) = takers if len(takers) == 1 else (None,)
            if taker is not None and self._taken_from[taker] == {layer}:
                pairs.append((layer, taker))
        return pairs


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    assert isinstance(layer, PRODUCT_MODULES)
    assert isinstance(norm, _NORMS)
    fused: nn.Module
    if isinstance(layer, nn.Linear):
        fused = fuse_linear_bn_eval(layer, norm)
    else:
        fused = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, _TRANSPOSED))
    # In place, since a shared layer has several names.
    layer.register_parameter("weight", fused.get_parameter("weight"))
    layer.register_parameter("bias", fused.get_parameter("bias"))
