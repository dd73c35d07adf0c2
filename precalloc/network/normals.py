"""Standard normal numbers for noise on activations: from streams of their own for every example, and kept for twins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from precalloc.network.batches import Batch
from precalloc.network.layouts import OUTERMOST, Layout
from precalloc.network.state import seeded_generator

_EXAMPLE_STREAM = 2


class Normals:
    """Source of standard normal numbers: one stream for all, or one for each of the examples at some places.

    Parameters
    ----------
    shared
        Stream for all examples together.
    seed
        Of the streams of single examples.
    places
        Of the examples; empty where all share one stream.
    keeps
        Whether numbers are kept, so that `again` gives them without drawing.
    """

    def __init__(self, shared: torch.Generator, seed: int = 0, places: Sequence[int] = (), keeps: bool = False) -> None:
        self._shared, self._seed, self._places = shared, seed, places
        self._streams: list[torch.Generator] = []
        self._kept: list[Tensor] | None = [] if keeps else None
        self._place = 0

    @property
    def keeps(self) -> bool:
        """Whether numbers are kept."""
        return self._kept is not None

    def at(self, seed: int, batch: Batch) -> Normals:
        """Source for the examples of a batch, from streams of their own."""
        return Normals(self._shared, seed, range(batch.start, batch.start + batch.size), self.keeps)

    def again(self) -> Normals:
        """Source of the numbers that this one keeps, from the first on; what goes beyond is drawn anew."""
        assert self._kept is not None
        other = Normals(self._shared, self._seed, self._places)
        other._kept, other._streams = self._kept, self._streams
        return other

    def like(self, t: Tensor, layout: Layout | None) -> Tensor:
        """Give as many numbers as a tensor has values, in its shape; not to be changed where numbers are kept."""
        if self._kept is None:
            return self._draw(t, layout)
        place, self._place = self._place, self._place + 1
        if place < len(self._kept) and (self._kept[place].shape, self._kept[place].dtype) == (t.shape, t.dtype):
            return self._kept[place]
        drawn = self._draw(t, layout)  # also where noise has led the model along another way than before
        if place == len(self._kept):
            self._kept.append(drawn)
        return drawn

    def _draw(self, t: Tensor, layout: Layout | None) -> Tensor:
        """Draw numbers, laid out in memory as a tensor is where its examples are outermost there.

        Numbers are drawn into flat memory; drawing into a channels-last tensor is far slower.
        """
        flat = torch.empty(t.numel(), dtype=t.dtype, device=t.device)
        order = sorted(range(t.dim()), key=t.stride, reverse=True)
        if layout is None or not self._places or not layout.fits(t.shape, len(self._places)):
            flat.normal_(generator=self._shared)
            return flat.view([t.shape[axis] for axis in order]).permute([order.index(axis) for axis in range(t.dim())])
        if not self._streams:  # made when they are first needed: weight noise draws for no example
            of_place = (seeded_generator(self._shared.device, self._seed, _EXAMPLE_STREAM, at) for at in self._places)
            self._streams.extend(of_place)
        rows = flat.view(len(self._places), -1)
        for row, generator in zip(rows.unbind(), self._streams, strict=True):
            row.normal_(generator=generator)
        return layout.laid_out(rows, t.shape, order)


def add_normal(
    t: Tensor, deviation: list[Tensor], normals: Normals, layout: Layout | None = OUTERMOST, sign: float = 1.0
) -> Tensor:
    """Add normal noise, times ``sign``, whose standard deviation is the product of the given factors."""
    noise, mine = normals.like(t, layout), not normals.keeps
    for factor in deviation:
        noise = noise.mul_(factor) if mine and not factor.requires_grad else noise * factor
        mine = True
    noise = noise.to(t.dtype)
    return noise.add_(t) if sign == 1.0 else torch.add(t, noise, alpha=sign)
