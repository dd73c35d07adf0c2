"""Batches that come but once, kept: in memory up to a limit, and in temporary files beyond it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable

import torch
from torch import Tensor

from precalloc.errors import DataError
from precalloc.network.batches import Batch, join

# Held in memory, in bytes.
KEPT_BYTES = 2**30
# Written at a time: a loader of single examples must not take a file each.
_WRITTEN_BYTES = 2**26


def keep(parts: Iterable[Batch]) -> list[Batch]:
    """Go through batches and keep them all.

    What exceeds `KEPT_BYTES` is written to temporary files, and read from there as from memory. They are in ``TMPDIR``,
    have no name any more, and are gone when the batches are. Batches in files may be joined to larger ones.

    Raises
    ------
    DataError
        If there is no room for the files.
    """
    kept: list[Batch] = []
    held: list[Batch] = []
    total = 0
    for part in parts:
        total += part.bytes
        if total <= KEPT_BYTES:
            kept.append(part)
            continue
        held.append(part)
        if sum(one.bytes for one in held) >= _WRITTEN_BYTES:
            kept += _written(held)
            held = []
    return kept + _written(held)


def _written(parts: list[Batch]) -> list[Batch]:
    joins = len(parts) > 1 and all(map(parts[0].joins, parts))
    return [part.map(_in_file) for part in ([join(parts)] if joins else parts)]


def _in_file(t: Tensor) -> Tensor:
    """The same values, mapped from a file; on the host."""
    if t.numel() == 0:
        return t
    raw = t.detach().cpu().contiguous().view(-1).view(torch.uint8)
    try:
        with tempfile.NamedTemporaryFile(prefix="precalloc-") as file:
            file.write(raw.numpy().data)
            file.flush()
            mapped = torch.from_file(file.name, shared=False, size=raw.numel(), dtype=torch.uint8)
    except OSError as error:
        raise DataError(
            f"There is no room in {tempfile.gettempdir()} for the examples beyond {KEPT_BYTES / 2**30:g} GiB "
            f"({error.strerror}). Set TMPDIR to a folder with more, give fewer examples, or a folder of images or a "
            "saved data set, which are read where they are."
        ) from error
    return mapped.view(t.dtype).view(t.shape)
