"""Parts of data, as data again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from precalloc.network.batches import Batch
from precalloc.network.contents import Contents
from precalloc.network.data import Data, contents_of


@dataclass(frozen=True)
class First:
    """The first ``examples`` of some data that has more."""

    whole: Data
    examples: int

    @property
    def labelled(self) -> bool:
        """Whether the examples carry labels."""
        return self.whole.labelled

    def contents(self) -> Contents:
        """Digests of the examples."""
        return contents_of(self.whole).take(slice(self.examples))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through the examples in batches of at most ``batch_size``."""
        left = self.examples
        for batch in self.whole.batches(batch_size):
            yield batch.take(left)
            left -= batch.size
            if left <= 0:
                return


def first(data: Data, count: int) -> Data:
    """The first ``count`` examples; the data itself where it has no more."""
    return data if data.examples <= count else First(data, count)
