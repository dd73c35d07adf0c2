"""Calibration and evaluation data: arrays by name, or any iterable of batches, as batches of one type."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from precalloc.errors import DataError

LABEL_NAMES = ("y", "labels", "label")


@dataclass(frozen=True)
class Batch:
    """Consecutive examples: inputs by the names that the data gives them, and labels where there are any.

    ``start`` is the index of the first of them in the data.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    start: int = 0

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(next(iter(self.inputs.values())))

    def take(self, count: int) -> Batch:
        """The first ``count`` examples."""
        return Batch(
            {name: value[:count] for name, value in self.inputs.items()},
            None if self.labels is None else self.labels[:count],
            self.start,
        )


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

    inputs: dict[str, Tensor]
    labels: Tensor | None = None

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(next(iter(self.inputs.values())))

    @property
    def labelled(self) -> bool:
        """Whether the examples carry labels."""
        return self.labels is not None

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through the examples in batches of at most ``batch_size``."""
        for start in range(0, self.examples, batch_size):
            chosen = slice(start, start + batch_size)
            yield Batch(
                {name: value[chosen] for name, value in self.inputs.items()},
                None if self.labels is None else self.labels[chosen],
                start,
            )


def as_data(data: object) -> Data:
    """Bring what a user passes into one form.

    Parameters
    ----------
    data
        A `Data`; a mapping of arrays by the forward's parameter names (labels under ``y`` or ``labels``); a pair
        (inputs, labels) of arrays; or an iterable of such batches, for example a ``DataLoader``.

    Raises
    ------
    DataError
        If it is none of these, holds no examples, differs in length, or is not finite.
    """
    if isinstance(data, Data):
        return data
    if isinstance(data, Mapping):
        return _from_arrays(dict(data))
    if isinstance(data, Tensor | np.ndarray):
        return _from_arrays({"x": data})
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in data):
        return _from_arrays({"x": data[0], "y": data[1]})
    if isinstance(data, Iterable):
        return _from_batches(data)
    raise DataError(
        f"Data of type {type(data).__name__} cannot be read. Pass arrays by name, a pair (inputs, labels), or batches."
    )


def load_data(spec: str) -> Data:
    """Read ``.npz`` or ``.safetensors`` arrays, or call ``module:factory`` (``file.py:factory``) for data.

    Raises
    ------
    DataError
        If the file is missing, is of another type, or its arrays do not fit together.
    """
    path = Path(spec)
    if path.suffix == ".npz":
        return _from_arrays(_read_npz(_existing(path)), spec)
    if path.suffix == ".safetensors":
        return _from_arrays(_read_safetensors(_existing(path)), spec)
    if ":" in spec:
        from precalloc.network.models import call_factory

        return as_data(call_factory(spec, DataError))
    raise DataError(f"Data '{spec}' is not a .npz or .safetensors file, nor module:factory.")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"Data file {path} does not exist. Check the path.")
    return path


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as .npz without pickles ({error}). Save plain arrays with numpy.savez."
        ) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as .safetensors ({error}). Save it anew.") from error


def _from_arrays(arrays: dict[str, Any], origin: str = "data") -> ArrayData:
    tensors = {name: torch.as_tensor(value) for name, value in arrays.items()}
    label_name = next((name for name in LABEL_NAMES if name in tensors), None)
    labels = tensors.pop(label_name) if label_name else None
    if not tensors:
        raise DataError(f"{origin} holds no inputs (arrays: {sorted(arrays)}). Add the forward's inputs by name.")
    lengths = {name: len(value) if value.dim() else 0 for name, value in tensors.items()}
    if labels is not None:
        lengths[str(label_name)] = len(labels)
    if len(set(lengths.values())) != 1:
        raise DataError(f"Arrays of {origin} differ in length: {lengths}. Each needs one row an example.")
    if 0 in lengths.values():
        raise DataError(f"{origin} holds no examples. Give at least one.")
    for name, value in tensors.items():
        _check_finite(name, value, origin)
    return ArrayData(tensors, labels)


def _check_finite(name: str, value: Tensor, origin: str) -> None:
    if not value.is_floating_point() or bool(value.isfinite().all()):
        return
    row = int((~value.isfinite()).reshape(len(value), -1).any(1).nonzero()[0])
    raise DataError(f"Array '{name}' of {origin} has NaN or infinity, first in example {row}. Remove or mend it.")


def _from_batches(batches: Iterable[object]) -> ArrayData:
    """Join batches to arrays: every pass must see the same examples in the same order, shuffling loader or not."""
    parts = [_from_arrays(_batch_arrays(batch), f"batch {index}") for index, batch in enumerate(batches)]
    if not parts:
        raise DataError("The data iterable yielded no batch. Give at least one.")
    try:
        inputs = {name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs}
        labels = [part.labels for part in parts if part.labels is not None]
        return ArrayData(inputs, torch.cat(labels) if len(labels) == len(parts) else None)
    except (RuntimeError, KeyError) as error:
        raise DataError(f"Batches do not join to one array each ({error}). Pad them to one shape.") from error


def _batch_arrays(batch: object) -> dict[str, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, Tensor | np.ndarray):
        return {"x": batch}
    if isinstance(batch, Sequence) and len(batch) == 2:
        inputs, labels = batch
        return {**(dict(inputs) if isinstance(inputs, Mapping) else {"x": inputs}), "y": labels}
    raise DataError(f"A batch of type {type(batch).__name__} cannot be read. Yield (inputs, labels) or arrays by name.")


def data_hash(data: Data) -> str:
    """Fingerprint of the examples and labels, for provenance and to keep selection and reporting data apart."""
    digest = hashlib.sha256()
    for batch in data.batches(256):
        for name, value in sorted(batch.inputs.items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        if batch.labels is not None:
            digest.update(batch.labels.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
