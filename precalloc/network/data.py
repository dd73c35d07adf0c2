"""Calibration and evaluation data: arrays by name, or any iterable of batches, as batches of one type."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map, tree_unflatten
from torch.utils.data import DataLoader, SequentialSampler

from precalloc.errors import DataError

LABEL_NAMES = ("y", "labels", "label")
_HASHED_AT_ONCE = 256


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
        return len(_first_tensor(self.inputs))

    def rows(self, index: slice | Tensor, start: int | None = None) -> Batch:
        """Give some of the examples, the first of which is number ``start`` of the data."""
        inputs = tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, self.inputs)
        labels = None if self.labels is None else self.labels[index]
        return Batch(inputs, labels, self.start if start is None else start)

    def take(self, count: int) -> Batch:
        """The first ``count`` examples."""
        return self.rows(slice(count))

    def split(self, size: int) -> Iterator[Batch]:
        """Go through the examples in batches of at most ``size``."""
        for first in range(0, self.size, size):
            yield self.rows(slice(first, first + size), self.start + first)


@runtime_checkable
class Data(Protocol):
    """Labelled or unlabelled examples that can be gone through any number of times, in the same order."""

    @property
    def examples(self) -> int:
        """Number of examples."""
        ...

    @property
    def labelled(self) -> bool:
        """Whether the examples carry labels; otherwise the model's own predictions are the reference."""
        ...

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through the examples in batches of at most ``batch_size``."""
        ...


@dataclass(frozen=True)
class ArrayData:
    """Examples in memory: tensors whose first axis numbers the examples."""

    inputs: dict[str, Any]
    labels: Tensor | None = None

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(_first_tensor(self.inputs))

    @property
    def labelled(self) -> bool:
        """Whether the examples carry labels."""
        return self.labels is not None

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through the examples in batches of at most ``batch_size``."""
        return Batch(self.inputs, self.labels).split(batch_size)


@dataclass(eq=False)
class StreamedData:
    """Examples that are read anew on every pass, a few batches in memory at a time.

    Parameters
    ----------
    parts
        Called once a pass; gives batches of any size.
    examples, labelled
        What the parts hold together.
    origin
        What to call the data in messages.
    """

    parts: Callable[[], Iterable[Batch]]
    examples: int
    labelled: bool
    origin: str = "data"
    _fingerprint: str | None = field(default=None, init=False)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through the examples in batches of at most ``batch_size``.

        Raises
        ------
        DataError
            If a pass gives other examples than the first did.
        """
        seen = _Fingerprint()
        yield from _rechunk(seen.watch(self.parts()), batch_size)
        if self._fingerprint not in (None, seen.value()):
            raise DataError(
                f"{self.origin} gives other examples on every pass (shuffling or random augmentation?). "
                "Switch that off, or pass a list of its batches."
            )
        self._fingerprint = seen.value()

    def fingerprint(self) -> str:
        """Fingerprint of the examples; a whole pass where none was made before."""
        if self._fingerprint is None:
            for _ in self.batches(_HASHED_AT_ONCE):
                pass
        assert self._fingerprint is not None
        return self._fingerprint


def as_data(data: object) -> Data:
    """Bring what a user passes into one form.

    Parameters
    ----------
    data
        A `Data`; a mapping of arrays by the forward's parameter names (labels under ``y`` or ``labels``); a pair
        (inputs, labels) of arrays; or an iterable of such batches, for example a ``DataLoader``. Inputs may be nested.
        A loader that does not shuffle is read anew on every pass; other iterables are gone through once and kept.

    Raises
    ------
    DataError
        If it is none of these, holds no examples, differs in length, or is not finite.
    """
    if isinstance(data, Data):
        return data
    if isinstance(data, Mapping | Tensor | np.ndarray) or _is_pair_of_arrays(data):
        whole = read_batch(data)
        return ArrayData(whole.inputs, whole.labels)
    if isinstance(data, DataLoader) and isinstance(data.sampler, SequentialSampler) and not data.drop_last:
        return _from_loader(data)
    if isinstance(data, Iterable):
        return _from_batches(data)
    raise DataError(
        f"Data of type {type(data).__name__} cannot be read. Pass arrays by name, a pair (inputs, labels), or batches."
    )


def _is_pair_of_arrays(data: object) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in data)


def _from_loader(loader: DataLoader[Any]) -> Data:
    def parts() -> Iterator[Batch]:
        for index, batch in enumerate(loader):
            yield read_batch(batch, f"batch {index}")

    examples = len(loader.sampler)  # type: ignore[arg-type]  # a SequentialSampler has a length
    first = next(iter(parts()), None)
    if first is None:
        raise DataError("The data iterable yielded no batch. Give at least one.")
    return StreamedData(parts, examples, first.labels is not None, "The data loader")


def _from_batches(batches: Iterable[object]) -> Data:
    """Keep batches as they come: every pass must see the same examples in the same order."""
    parts = [read_batch(batch, f"batch {index}") for index, batch in enumerate(batches)]
    if not parts:
        raise DataError("The data iterable yielded no batch. Give at least one.")
    labelled = {part.labels is not None for part in parts}
    if len(labelled) > 1:
        raise DataError("Some batches carry labels and some do not. Give all of them labels, or none.")
    return StreamedData(lambda: parts, sum(part.size for part in parts), labelled.pop())


def read_batch(batch: object, origin: str = "data") -> Batch:
    """Read what a data set yields: arrays by name, (inputs, labels), (inputs,) or inputs alone.

    Raises
    ------
    DataError
        If it is none of these, or its arrays do not fit together or are not finite.
    """
    inputs, labels = _inputs_and_labels(batch, origin)
    tensors = tree_map(lambda leaf: torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf, inputs)
    named = {name: leaf for name, leaf in _named_leaves(tensors) if isinstance(leaf, Tensor)}
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


def _rechunk(parts: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Cut batches of any size anew, in batches of ``size`` and a last one of what is left."""
    held: list[Batch] = []
    start = 0
    for part in parts:
        held.append(part)
        if sum(one.size for one in held) < size:
            continue
        whole = _join(held)
        used = whole.size - whole.size % size
        for first in range(0, used, size):
            yield whole.rows(slice(first, first + size), start + first)
        start += used
        held = [whole.rows(slice(used, None))] if used < whole.size else []
    if held:
        yield _join(held).rows(slice(None), start)


def _join(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    _, structure = tree_flatten_with_path(parts[0].inputs)
    columns = zip(*(tree_leaves(part.inputs) for part in parts), strict=True)
    try:
        leaves = [torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
        labels = [part.labels for part in parts if part.labels is not None]
        return Batch(tree_unflatten(leaves, structure), torch.cat(labels) if labels else None)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"Batches do not join to one array each ({error}). Pad them to one shape.") from error


def _first_tensor(inputs: Mapping[str, Any]) -> Tensor:
    return next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))


def _named_leaves(inputs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Leaves by name: ``x``, or ``features['a'][0]`` where they are nested."""
    return [
        (f"{name}{keystr(path)}", leaf)
        for name, value in inputs.items()
        for path, leaf in tree_flatten_with_path(value)[0]
    ]


class _Fingerprint:
    """Hash of arrays that come in pieces; how they are cut does not matter."""

    def __init__(self) -> None:
        self._digests: dict[str, Any] = {}

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Take in batches while they pass by."""
        for batch in batches:
            for name, leaf in (*_named_leaves(batch.inputs), ("labels", batch.labels)):
                if isinstance(leaf, Tensor):
                    digest = self._digests.setdefault(name, hashlib.sha256())
                    digest.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            yield batch

    def value(self) -> str:
        """Fingerprint of all so far."""
        whole = hashlib.sha256()
        for name, digest in sorted(self._digests.items()):
            whole.update(name.encode() + digest.digest())
        return whole.hexdigest()[:16]


def data_hash(data: Data) -> str:
    """Fingerprint of the examples and labels, for provenance and to keep selection and reporting data apart."""
    if isinstance(data, StreamedData):
        return data.fingerprint()
    seen = _Fingerprint()
    for _ in seen.watch(data.batches(_HASHED_AT_ONCE)):
        pass
    return seen.value()
