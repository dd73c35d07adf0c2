"""Random numbers that belong to examples: the same for an example in whichever batch it comes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class ExampleDraws:
    """Random numbers of consecutive examples, from one stream an example.

    Example n draws from ``numpy.random.default_rng((*seed, n))``, so neither batch size nor what other examples draw
    changes its numbers. They go with the place at which an example is taken, which is that in canonical order whatever
    order the data has (`precalloc.network.data`).

    Parameters
    ----------
    seed
        Of the whole run, and of what the numbers are for.
    first, count
        Index of the first example in the data, and how many there are.
    device
        Where the numbers are needed; they are drawn on the host and are the same on every device.
    """

    def __init__(self, seed: Sequence[int], first: int, count: int, device: torch.device) -> None:
        self._streams = [np.random.default_rng((*seed, index)) for index in range(first, first + count)]
        self._device = device

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        """Numbers uniform in [0, 1) in double precision, (examples, *shape)."""
        return self._stack([stream.random(tuple(shape)) for stream in self._streams])

    def normal(self, shape: Sequence[int] = (), dtype: type[np.float32 | np.float64] = np.float64) -> Tensor:
        """Standard normal numbers, (examples, *shape)."""
        return self._stack([stream.standard_normal(tuple(shape), dtype) for stream in self._streams])

    def signs(self, shape: Sequence[int] = ()) -> Tensor:
        """Random signs in double precision, (examples, *shape)."""
        return (self.uniform(shape) < 0.5) * 2.0 - 1.0

    def _stack(self, rows: list[object]) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(row) for row in rows])).to(self._device)
