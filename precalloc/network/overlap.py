"""Examples that two data sets have in common: what K was chosen on must not report what it reaches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from precalloc.errors import DataError
from precalloc.network.batches import Batch
from precalloc.network.contents import Contents
from precalloc.network.data import Data, contents_of


@dataclass(frozen=True)
class Unseen:
    """The examples of some data that other data does not hold.

    Parameters
    ----------
    whole
        All of it.
    fresh : (examples of the whole,)
        Which of them these are.
    """

    whole: Data
    fresh: Tensor

    @property
    def examples(self) -> int:
        """Number of examples."""
        return int(self.fresh.sum())

    @property
    def left_out(self) -> int:
        """How many of the whole are not among them."""
        return len(self.fresh) - self.examples

    @property
    def labelled(self) -> bool:
        """Whether the examples carry labels."""
        return self.whole.labelled

    def contents(self) -> Contents:
        """Digests of the examples."""
        return contents_of(self.whole).take(self.fresh.numpy())

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through the examples in batches of at most ``batch_size``."""
        before = 0
        for batch in self.whole.batches(batch_size):
            chosen = self.fresh[batch.start : batch.start + batch.size].nonzero().squeeze(1)
            if len(chosen):
                yield batch.rows(chosen, before)
                before += len(chosen)


def unseen(data: Data, known: Data) -> Data:
    """Leave out the examples whose inputs are those of a known example, to the last bit; labels do not matter.

    Returns
    -------
    Data
        An `Unseen`; the data itself where all of it is new.

    Raises
    ------
    DataError
        If nothing is left.
    """
    before = set(contents_of(known).of_inputs())
    fresh = torch.tensor([digest not in before for digest in contents_of(data).of_inputs()], dtype=torch.bool)
    if not fresh.any():
        raise DataError(
            "All validation examples are in the calibration data that K was chosen on. Give other data to --validate."
        )
    return data if fresh.all() else Unseen(data, fresh)
