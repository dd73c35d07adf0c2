"""Calibration data in two disjoint parts: what a choice is made on, and what shows whether it was a good one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from precalloc.errors import DataError
from precalloc.network.batches import Batch
from precalloc.network.data import Data

# Every third example is held out.
_CYCLE = 3


@dataclass(frozen=True)
class Part:
    """The examples n of some data for which n modulo 3 is among ``remainders``."""

    data: Data
    remainders: tuple[int, ...]

    @property
    def examples(self) -> int:
        """Number of examples."""
        return sum(len(range(remainder, self.data.examples, _CYCLE)) for remainder in self.remainders)

    @property
    def labelled(self) -> bool:
        """Whether the examples carry labels."""
        return self.data.labelled

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Go through the examples in batches of at most ``batch_size``."""
        for batch in self.data.batches(_CYCLE * batch_size // len(self.remainders)):
            numbers = torch.arange(batch.start, batch.start + batch.size) % _CYCLE
            chosen = torch.isin(numbers, torch.tensor(self.remainders)).nonzero().squeeze(1)
            if len(chosen):
                before = sum(len(range(remainder, batch.start, _CYCLE)) for remainder in self.remainders)
                yield batch.rows(chosen, before)


def hold_out(data: Data) -> tuple[Part, Part]:
    """Split data into two thirds to choose on and one third to check on.

    Raises
    ------
    DataError
        If there are too few examples for both.
    """
    if data.examples < 2 * _CYCLE:
        raise DataError(f"{data.examples} examples are too few to hold some out for a check. Give more of them.")
    return Part(data, (0, 1)), Part(data, (2,))
