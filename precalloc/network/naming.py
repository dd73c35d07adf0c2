"""Names of products, and which tensors are weights: what depends on parameters and buffers alone is a weight as well.

Parametrised layers compute their weight in the forward pass (weight norm, spectral norm, fake quantisation, W + B A of
an adapter). Such a weight is programmed once like any other, so it is followed through the functions that make it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from precalloc.network.operators import Product

PRODUCT_MODULES = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

# Recurrent layers hold several weights under these names (and a suffix for layer and direction).
_RECURRENT_WEIGHTS = ("weight_ih", "weight_hh", "weight_hr")


@dataclass
class Frame:
    """One running module call; functional products are numbered within it, so a second call repeats the names."""

    path: str
    module: nn.Module | None
    counts: Counter[str] = field(default_factory=Counter)

    def child(self, name: str) -> str:
        """Dotted name below this module."""
        return f"{self.path}.{name}" if self.path else name


Roots = frozenset[int]


class Weights:
    """Knows parameters, buffers and views of them by their storage, and what was computed from these by identity.

    Takes the modules as ``named_modules`` gives them: to walk the model again for each table is dear in short passes.
    """

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        buffers = [(path, *item) for path, module in modules for item in module._buffers.items()]
        parameters = [(path, *item) for path, module in modules for item in module._parameters.items()]
        self.owners: dict[int, tuple[str, str]] = {}
        for path, name, tensor in _once((*buffers, *parameters)):
            storage = storage_of(tensor)
            if storage is not None and tensor.numel() > 0:
                self.owners[storage] = path, name
        found = (storage_of(parameter) for _, _, parameter in _once(parameters))
        self._parameters = {storage for storage in found if storage is not None}
        self._derived = WeakTensorKeyDictionary()

    def roots(self, t: Tensor) -> Roots | None:
        """Storages of the parameters and buffers that ``t`` depends on; None where it depends on anything else."""
        storage = storage_of(t)
        if storage is not None and storage in self.owners:
            return frozenset((storage,))
        found: Roots | None = self._derived.get(t) if self._derived else None  # to look into an empty one is dear
        return found

    def is_static(self, t: Tensor) -> bool:
        """Whether ``t`` is a weight."""
        return self.roots(t) is not None

    def owners_of(self, roots: Roots) -> list[tuple[str, str]]:
        """Module path and attribute of every root, in the model's order."""
        if len(roots) == 1:
            (root,) = roots
            return [self.owners[root]] if root in self.owners else []
        return [owner for storage, owner in self.owners.items() if storage in roots]

    def is_buffer(self, t: Tensor) -> bool:
        """Whether ``t`` depends on buffers alone: a fixed table, such as the frequencies of a rotary embedding."""
        roots = self.roots(t)
        return roots is not None and not roots & self._parameters

    def follow(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note what one call made of weights, and weights that it overwrote with something else."""
        roots: Roots = frozenset()
        for t in tensors_in((*args, *kwargs.values())):
            found = self.roots(t)
            if found is None:
                self._forget_overwritten(name, args)
                return
            roots |= found
        if roots:
            for t in tensors_in((result,)):
                if storage_of(t) not in self.owners:
                    self._derived[t] = roots

    def identity(self, w: Tensor) -> Hashable:
        """Tell weights apart: the same for a weight that is computed anew from the same parameters."""
        roots = self.roots(w) or w.untyped_storage().data_ptr()
        return roots, w.storage_offset(), tuple(w.shape), w.stride()

    def _forget_overwritten(self, name: str, args: tuple[Any, ...]) -> None:
        """Take a buffer that activations are written into, such as a cache, for no weight from then on."""
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if in_place and args and isinstance(args[0], Tensor) and self.is_static(args[0]):
            self._derived.pop(args[0], None)
            storage = storage_of(args[0])
            if storage is not None:
                self.owners.pop(storage, None)


def _once(named: Iterable[tuple[str, str, Tensor | None]]) -> Iterator[tuple[str, str, Tensor]]:
    """Every tensor under the first of its names."""
    seen = set[int]()
    for path, name, tensor in named:
        if tensor is not None and id(tensor) not in seen:
            seen.add(id(tensor))
            yield path, name, tensor


def storage_of(t: Tensor) -> int | None:
    """Address of a tensor's memory; None where it has none (meta, sparse and quantised formats)."""
    if t.layout is not torch.strided or t.is_meta:
        return None
    return t.untyped_storage().data_ptr()


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among the arguments of a call, in lists and tuples too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


class Names:
    """Names products by the module that owns the weight, else by the running module and the operator's index in it."""

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        self.stack = [Frame("", None)]
        self.weights = Weights(modules)
        self._claimed: dict[str, tuple[object, ...]] = {}

    def name(self, product: Product) -> str:
        """Name of the site that this product belongs to; a name is never given to weights of two forms."""
        frame = self.stack[-1]
        form: tuple[object, ...] = (product.operator,)
        if product.is_static:
            form = (product.operator, product.w.shape, product.w.stride())
            owner = self._owner(frame, product.w)
            if owner is not None and self._claimed.setdefault(owner, form) == form:
                return owner
        while True:
            label = f"{product.operator}.{frame.counts[product.operator]}"
            frame.counts[product.operator] += 1
            name = f"{frame.path}/{label}" if frame.path else label
            if self._claimed.setdefault(name, form) == form:
                return name

    def _owner(self, frame: Frame, w: Tensor) -> str | None:
        """Module that a weight belongs to, if it is the running one or lies below it."""
        roots = self.weights.roots(w) or frozenset()
        owners = self.weights.owners_of(roots)
        if isinstance(frame.module, nn.Module) and self._is_own(frame, w, roots, owners):
            return frame.path
        below = f"{frame.path}." if frame.path else ""
        for path, attribute in owners:
            if attribute == "weight" and path.startswith(below):
                return path
            if attribute.startswith(_RECURRENT_WEIGHTS) and f"{path}.".startswith(below):
                return f"{path}.{attribute}" if path else attribute
        return None

    @staticmethod
    def _is_own(frame: Frame, w: Tensor, roots: Roots, owners: list[tuple[str, str]]) -> bool:
        """Whether ``w`` is the running module's ``weight`` or computed from it."""
        parametrised = frame.child("parametrizations.weight")
        if any(path == parametrised or path.startswith(f"{parametrised}.") for path, _ in owners):
            return True
        own = frame.module.__dict__.get("weight")
        if own is None and frame.module is not None:
            own = frame.module._parameters.get("weight", frame.module._buffers.get("weight"))
        if isinstance(own, Tensor) and (storage_of(own) == storage_of(w) or storage_of(own) in roots):
            return True
        return isinstance(frame.module, PRODUCT_MODULES) and not roots
