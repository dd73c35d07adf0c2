"""Calibration and evaluation data: arrays by name, or any iterable of batches, as batches of one type.

Random numbers, blocks of examples and parts such as "the first 128" go with an example's place in the data. So that
nothing depends on how a user happens to have sorted it (by class, in a folder), examples are taken in canonical order:
sorted by digests of their inputs, equal inputs by their labels. To all purposes that is a random order, and it is the
same for the same examples. Only streams that cannot be kept or read at any place are taken as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from precalloc.errors import DataError
from precalloc.network.batches import Batch, join, read_batch, rechunk
from precalloc.network.contents import Contents, first_tensor

# A loader's examples are kept up to here, in bytes; more of them are read anew on every pass, as they come.
KEPT_BYTES = 2**30
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
class Recognised(Protocol):
    """Data that keeps the digests of its examples."""

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


@dataclass(eq=False)
class StreamedData:
    """Examples that are read anew on every pass as they come, a few batches in memory at a time.

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
    _contents: Contents | None = field(default=None, init=False)

    def as_they_come(self) -> Iterator[Batch]:
        """Go through the parts.

        Raises
        ------
        DataError
            If a pass gives other examples than the first did.
        """
        seen: list[Contents] = []
        count = 0
        for part in self.parts():
            seen.append(part.contents())
            self._require_known(seen[-1].digests, slice(count, count + part.size))
            count += part.size
            yield part
        self._require_known(np.concatenate([part.digests for part in seen]), slice(None))
        self._contents = self._contents or Contents.join(seen)

    def _require_known(self, found: NDArray[np.uint64], places: slice) -> None:
        if self._contents is not None and not np.array_equal(self._contents.digests[places], found):
            raise DataError(
                f"{self.origin} gives other examples on every pass (shuffling or random augmentation?). "
                "Switch that off, or pass a list of its batches."
            )

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through the examples in batches of at most ``batch_size``; raises as `as_they_come` does."""
        return rechunk(self.as_they_come(), batch_size)

    def contents(self) -> Contents:
        """Digests of the examples; a whole pass where none was made before."""
        if self._contents is None:
            for _ in self.as_they_come():
                pass
        assert self._contents is not None
        return self._contents

    def all_labels(self) -> Iterator[Tensor]:
        """All labels, part by part."""
        return (part.labels for part in self.as_they_come() if part.labels is not None)


def as_data(data: object) -> Data:
    """Bring what a user passes into one form.

    Results do not depend on the order of the examples: they are taken in canonical order, sorted by digests of their
    contents, whatever order and batches they are given in.

    Parameters
    ----------
    data
        A `Data`; a mapping of arrays by the forward's parameter names (labels under ``y`` or ``labels``); a pair
        (inputs, labels) of arrays; or an iterable of such batches, for example a ``DataLoader``. Inputs may be nested.
        Iterables are gone through once and kept, shuffled or not. Two kinds are taken as they come instead, so that
        results depend on the order of their examples: a loader that does not shuffle and whose examples take more
        than `KEPT_BYTES` (1 GiB), which is read anew on every pass and must give the same each time; and batches of
        unlike shapes, which cannot be joined. So is a `Data` of the user's own.

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
    if isinstance(data, DataLoader) and _is_repeatable(data):
        return _from_loader(data)
    if isinstance(data, Iterable):
        return _from_batches(list(_read_parts(data)))
    raise DataError(
        f"Data of type {type(data).__name__} cannot be read. Pass arrays by name, a pair (inputs, labels), or batches."
    )


def _is_pair_of_arrays(data: object) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in data)


def _read_parts(batches: Iterable[object]) -> Iterator[Batch]:
    return (read_batch(batch, f"batch {index}") for index, batch in enumerate(batches))


def _is_repeatable(loader: DataLoader[Any]) -> bool:
    """Whether every pass gives all items of a data set in its own order."""
    drawn = loader.batch_sampler
    return isinstance(drawn, BatchSampler) and isinstance(drawn.sampler, SequentialSampler) and not drawn.drop_last


def _from_loader(loader: DataLoader[Any]) -> Data:
    """Keep what a loader gives if it is not too large and can be joined; else read it anew on every pass."""
    examples = len(loader.sampler)  # type: ignore[arg-type]  # a SequentialSampler has a length
    kept: list[Batch] = []
    for part in _read_parts(loader):
        kept.append(part)
        if kept[0].bytes * examples > KEPT_BYTES * kept[0].size or not kept[0].joins(part):
            labelled = kept[0].labels is not None
            return StreamedData(lambda: _read_parts(loader), examples, labelled, "The data loader")
    return _from_batches(kept)


def _from_batches(parts: list[Batch]) -> Data:
    """Join batches, or keep them as they come: every pass must see the same examples in the same order."""
    if not parts:
        raise DataError("The data iterable yielded no batch. Give at least one.")
    labelled = {part.labels is not None for part in parts}
    if len(labelled) > 1:
        raise DataError("Some batches carry labels and some do not. Give all of them labels, or none.")
    if all(map(parts[0].joins, parts)):
        whole = join(parts)
        return ArrayData(whole.inputs, whole.labels)
    return StreamedData(lambda: parts, sum(part.size for part in parts), labelled.pop())


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
    return source.order if isinstance(source, CanonicalData) else np.arange(source.examples)


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
    if isinstance(data, CanonicalData | StreamedData):
        return data.all_labels()
    return (batch.labels for batch in data.batches(_AT_ONCE) if batch.labels is not None)


def sample(data: Data, count: int) -> Batch:
    """Give some examples to try a model on, without a pass over files to find those that are taken first."""
    if isinstance(data, CanonicalData) and not isinstance(data, ArrayData):
        return data.read(np.arange(min(count, data.examples)))
    return next(data.batches(count))
