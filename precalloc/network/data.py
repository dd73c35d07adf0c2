"""Calibration and evaluation data: arrays by name, or any iterable of batches, as batches of one type.

Random numbers, blocks of examples and parts such as "the first 128" go with an example's place in the data. So that
nothing depends on how a user happens to have sorted it (by class, in a folder), examples are taken in canonical order:
sorted by digests of their inputs, equal inputs by their labels. To all purposes that is a random order, and it is the
same for the same examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from precalloc.errors import DataError
from precalloc.network import keeping
from precalloc.network.batches import Batch, join, read_batch
from precalloc.network.contents import Contents, first_tensor
from precalloc.network.keeping import keep

# Examples whose digests are taken together: what a pass over files holds at a time.
_AT_ONCE = 64

Places = NDArray[np.intp]


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


@runtime_checkable
class Recognised(Data, Protocol):
    """Data that keeps the digests of its examples; it is taken as it is."""

    def contents(self) -> Contents:
        """Digests of the examples in the order in which they are taken."""
        ...


class CanonicalData:
    """Examples that can be read at any place, and are taken in canonical order.

    Parameters
    ----------
    read
        Gives the examples at some places, which are numbered as in the user's data.
    examples
        Number of examples.
    labels
        Gives all labels in the user's order; None where there are none.
    """

    def __init__(self, read: Callable[[Places], Batch], examples: int, labels: Callable[[], Tensor] | None) -> None:
        self.read, self.examples, self.labelled = read, examples, labels is not None
        self._labels = labels

    @cached_property
    def _sorted(self) -> tuple[Places, Contents]:
        places = np.split(np.arange(self.examples), range(_AT_ONCE, self.examples, _AT_ONCE))
        found = Contents.join([self.read(some).contents() for some in places])
        order = found.order()
        return order, found.take(order)

    @property
    def order(self) -> Places:
        """Place in the user's data of every example that is taken, (examples,)."""
        return self._sorted[0]

    def contents(self) -> Contents:
        """Digests of the examples in canonical order; takes a pass over them the first time."""
        return self._sorted[1]

    def all_labels(self) -> Iterator[Tensor]:
        """All labels, in any order."""
        if self._labels is not None:
            yield self._labels()

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through the examples in batches of at most ``batch_size``."""
        for first in range(0, self.examples, batch_size):
            yield replace(self.read(self.order[first : first + batch_size]), start=first)


class ArrayData(CanonicalData):
    """Examples in memory: tensors whose first axis numbers the examples, as the user numbers them."""

    def __init__(self, inputs: dict[str, Any], labels: Tensor | None = None) -> None:
        self.inputs, self.labels = inputs, labels
        super().__init__(self._rows, len(first_tensor(inputs)), None if labels is None else lambda: labels)

    def _rows(self, places: Places) -> Batch:
        return Batch(self.inputs, self.labels).rows(torch.from_numpy(places))


class UnjoinedData:
    """Batches that are not joined since their shapes differ; each is cut as needed.

    They are taken in order of the digests of their examples, and those of a batch in canonical order. The largest goes
    first, since models are surveyed on the first examples and tables sized for them.
    """

    def __init__(self, parts: Sequence[Batch]) -> None:
        self._parts = parts
        self.examples, self.labelled = sum(part.size for part in parts), parts[0].labels is not None

    @cached_property
    def _sorted(self) -> tuple[list[int], list[Places], Contents]:
        found = [part.contents() for part in self._parts]
        places = [each.order() for each in found]
        contents = [each.take(order) for each, order in zip(found, places, strict=True)]
        parts = sorted(range(len(found)), key=lambda index: contents[index].fingerprint())
        largest = max(parts, key=lambda index: self._parts[index].bytes / self._parts[index].size)
        parts = [largest, *(index for index in parts if index != largest)]
        return parts, [places[index] for index in parts], Contents.join([contents[index] for index in parts])

    @property
    def order(self) -> Places:
        """Place in the user's data of every example that is taken, (examples,)."""
        starts = np.cumsum([0, *(part.size for part in self._parts)])
        parts, places, _ = self._sorted
        return np.concatenate([starts[index] + each for index, each in zip(parts, places, strict=True)])

    def contents(self) -> Contents:
        """Digests of the examples in the order in which they are taken."""
        return self._sorted[2]

    def all_labels(self) -> Iterator[Tensor]:
        """All labels, part by part."""
        return (part.labels for part in self._parts if part.labels is not None)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through the examples in batches of at most ``batch_size``."""
        start = 0
        for index, places in zip(*self._sorted[:2], strict=True):
            for first in range(0, len(places), batch_size):
                some = torch.from_numpy(places[first : first + batch_size])
                yield self._parts[index].rows(some, start + first)
            start += len(places)


def as_data(data: object) -> Data:
    """Bring what a user passes into one form.

    Results do not depend on the order of the examples: they are taken in canonical order, sorted by digests of their
    contents, whatever order and batches they are given in.

    Parameters
    ----------
    data
        A `Data`; a mapping of arrays by the forward's parameter names (labels under ``y`` or ``labels``); a pair
        (inputs, labels) of arrays; or an iterable of such batches, for example a ``DataLoader``. Inputs may be nested.
        Iterables are gone through once and kept, shuffled or not, in memory and beyond `keeping.KEPT_BYTES` (1 GiB) in
        temporary files; so is a `Data` of the user's own. Batches of unlike shapes are not joined, and only examples of
        one batch are run together.

    Raises
    ------
    DataError
        If it is none of these, holds no examples, differs in length, or is not finite.
    """
    if isinstance(data, Recognised):
        return data
    if isinstance(data, Data):
        return _from_batches(keep(data.batches(_AT_ONCE)))
    if isinstance(data, Mapping | Tensor | np.ndarray) or _is_pair_of_arrays(data):
        whole = read_batch(data)
        return ArrayData(whole.inputs, whole.labels)
    if isinstance(data, Iterable):
        parts = _read_parts(data)
        return _from_batches(list(parts) if isinstance(data, list | tuple) else keep(parts))  # a list is in memory
    raise DataError(
        f"Data of type {type(data).__name__} cannot be read. Pass arrays by name, a pair (inputs, labels), or batches."
    )


def _is_pair_of_arrays(data: object) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in data)


def _read_parts(batches: Iterable[object]) -> Iterator[Batch]:
    return (read_batch(batch, f"batch {index}") for index, batch in enumerate(batches))


def _from_batches(parts: list[Batch]) -> Data:
    if not parts:
        raise DataError("The data iterable yielded no batch. Give at least one.")
    if len({part.labels is not None for part in parts}) > 1:
        raise DataError("Some batches carry labels and some do not. Give all of them labels, or none.")
    if not all(map(parts[0].joins, parts)):
        return UnjoinedData(parts)
    if sum(part.bytes for part in parts) > keeping.KEPT_BYTES:
        return _from_rows(parts)
    whole = join(parts)
    return ArrayData(whole.inputs, whole.labels)


def _from_rows(parts: Sequence[Batch]) -> CanonicalData:
    """Batches that are too large to be joined at once, row by row."""
    starts = np.cumsum([0, *(part.size for part in parts)])

    def read(places: Places) -> Batch:
        which = np.searchsorted(starts, places, side="right") - 1
        found = zip(which.tolist(), (places - starts[which]).tolist(), strict=True)
        return join([parts[index].rows(slice(row, row + 1)) for index, row in found])

    def labels() -> Tensor:
        return torch.cat([part.labels for part in parts if part.labels is not None])

    return CanonicalData(read, int(starts[-1]), None if parts[0].labels is None else labels)


def canonical_order(data: object) -> Places:
    """Say where the examples are that the rows of tables by example belong to, such as those of `MarginTable`.

    Parameters
    ----------
    data
        As for `as_data`; what that returns for an iterable, which can be gone through but once.

    Returns
    -------
    array (examples,)
        Place in the data of every example in the order in which they are taken.
    """
    source = as_data(data)
    return source.order if isinstance(source, CanonicalData | UnjoinedData) else np.arange(source.examples)


def contents_of(data: Data) -> Contents:
    """Digests of the examples in the order in which they are taken; read only where the data does not know them."""
    if isinstance(data, Recognised):
        return data.contents()
    return Contents.join([batch.contents() for batch in data.batches(_AT_ONCE)])


def data_hash(data: Data) -> str:
    """Fingerprint of the examples and labels, for provenance and to keep selection and reporting data apart.

    The order in which the examples are taken counts, since results go with it; in canonical order it is that of the
    examples alone, whatever form they were given in.
    """
    return contents_of(data).fingerprint()


def labels_of(data: Data) -> Iterator[Tensor]:
    """All labels, in parts and in any order; without reading the inputs where they can be had alone."""
    if isinstance(data, CanonicalData | UnjoinedData):
        return data.all_labels()
    return (batch.labels for batch in data.batches(_AT_ONCE) if batch.labels is not None)


def sample(data: Data, count: int) -> Batch:
    """Give some examples to try a model on, without a pass over files to find those that are taken first."""
    if isinstance(data, CanonicalData) and not isinstance(data, ArrayData):
        return data.read(np.arange(min(count, data.examples)))
    return next(data.batches(count))
