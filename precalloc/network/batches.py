"""Batches of examples, read from what data sets and loaders yield."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from precalloc.errors import DataError
from precalloc.network.contents import Contents, first_tensor, named_leaves

LABEL_NAMES = ("y", "labels", "label")


@dataclass(frozen=True)
class Batch:
    """Consecutive examples: inputs by the names that the data gives them, and labels where there are any.

    An input is a tensor whose first axis numbers the examples, or any nesting of such in dicts, lists and tuples.
    ``start`` is the index of the first example in the data.
    """

    inputs: dict[str, Any]
    labels: Tensor | None
    start: int = 0

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(first_tensor(self.inputs))

    @property
    def bytes(self) -> int:
        """Memory that inputs and labels take."""
        return sum(leaf.numel() * leaf.element_size() for leaf in self._tensors())

    def contents(self) -> Contents:
        """Digests of the examples."""
        return Contents.of(self.inputs, self.labels)

    def joins(self, other: Batch) -> bool:
        """Whether the examples of both fit into one array each."""
        mine, structure = tree_flatten(self.inputs)
        theirs, other_structure = tree_flatten(other.inputs)
        if structure != other_structure or (self.labels is None) != (other.labels is None):
            return False
        return all(map(_join_leaves, (*mine, self.labels), (*theirs, other.labels)))

    def _tensors(self) -> list[Tensor]:
        return [leaf for leaf in (*tree_leaves(self.inputs), self.labels) if isinstance(leaf, Tensor)]

    def map(self, change: Callable[[Tensor], Tensor], start: int | None = None) -> Batch:
        """Change every array, labels included; the first example is number ``start`` of the data then."""
        inputs = tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, self.inputs)
        labels = None if self.labels is None else change(self.labels)
        return Batch(inputs, labels, self.start if start is None else start)

    def channels_last(self) -> Batch:
        """The same with the channels of images last in memory, or itself where there are no images."""
        if not any(map(_is_image, tree_leaves(self.inputs))):
            return self
        return replace(self, inputs=tree_map(_with_channels_last, self.inputs))

    def rows(self, index: slice | Tensor, start: int | None = None) -> Batch:
        """Give some of the examples, the first of which is number ``start`` of the data."""
        return self.map(lambda leaf: leaf[index], start)

    def take(self, count: int) -> Batch:
        """The first ``count`` examples."""
        return self.rows(slice(count))

    def split(self, size: int) -> Iterator[Batch]:
        """Go through the examples in batches of at most ``size``."""
        for first in range(0, self.size, size):
            yield self.rows(slice(first, first + size), self.start + first)


def read_batch(batch: object, origin: str = "data") -> Batch:
    """Read what a data set yields: arrays by name, (inputs, labels), (inputs,) or inputs alone.

    Raises
    ------
    DataError
        If it is none of these, or its arrays do not fit together or are not finite.
    """
    inputs, labels = _inputs_and_labels(batch, origin)
    tensors = tree_map(lambda leaf: torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf, inputs)
    named = {name: leaf for name, leaf in named_leaves(tensors) if isinstance(leaf, Tensor)}
    if not named:
        raise DataError(f"{origin} holds no inputs. Add the forward's inputs by name.")
    lengths = {name: len(leaf) if leaf.dim() else 0 for name, leaf in named.items()}
    targets = None if labels is None else torch.as_tensor(labels)
    if targets is not None:
        lengths["labels"] = len(targets) if targets.dim() else 0
    if len(set(lengths.values())) != 1:
        raise DataError(f"Arrays of {origin} differ in length: {lengths}. Each needs one row an example.")
    if 0 in lengths.values():
        raise DataError(f"{origin} holds no examples. Give at least one.")
    for name, leaf in named.items():
        _check_finite(name, leaf, origin)
    return Batch(tensors, targets)


def _inputs_and_labels(batch: object, origin: str) -> tuple[dict[str, Any], Any]:
    if isinstance(batch, Mapping):
        arrays = dict(batch)
        label_name = next((name for name in LABEL_NAMES if name in arrays), None)
        labels = None if label_name is None else arrays.pop(label_name)
        if not arrays:
            raise DataError(f"{origin} holds no inputs (arrays: {sorted(batch)}). Add the forward's inputs by name.")
        return arrays, labels
    if isinstance(batch, Tensor | np.ndarray):
        return {"x": batch}, None
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        inputs, labels = batch[0], batch[1] if len(batch) == 2 else None
        if isinstance(inputs, tuple | list):
            return {str(index): value for index, value in enumerate(inputs)}, labels
        return (dict(inputs) if isinstance(inputs, Mapping) else {"x": inputs}), labels
    raise DataError(
        f"A batch of type {type(batch).__name__} cannot be read. Yield (inputs, labels), with several inputs in a "
        "tuple of their own, or arrays by name."
    )


def _check_finite(name: str, value: Tensor, origin: str) -> None:
    if not value.is_floating_point() or bool(value.isfinite().all()):
        return
    row = int((~value.isfinite()).reshape(len(value), -1).any(1).nonzero()[0])
    raise DataError(f"Array '{name}' of {origin} has NaN or infinity, first in example {row}. Remove or mend it.")


def _join_leaves(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return type(one) is type(other) and bool(one == other)
    return (one.shape[1:], one.dtype, one.device) == (other.shape[1:], other.dtype, other.device)


def _is_image(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() == 4


def _with_channels_last(leaf: Any) -> Any:
    return leaf.to(memory_format=torch.channels_last) if _is_image(leaf) else leaf


def join(parts: list[Batch]) -> Batch:
    """Put batches after one another, each of which `Batch.joins` the first."""
    if len(parts) == 1:
        return parts[0]
    _, structure = tree_flatten(parts[0].inputs)
    columns = zip(*(tree_leaves(part.inputs) for part in parts), strict=True)
    leaves = [torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
    labels = [part.labels for part in parts if part.labels is not None]
    return Batch(tree_unflatten(leaves, structure), torch.cat(labels) if labels else None)
