"""What tells examples apart: digests of their inputs and labels, by which data is recognised and put in order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

Index = slice | NDArray[np.intp] | NDArray[np.bool_]

# Of the digest of an example's inputs, and as many more of its label's.
_BYTES = 16


@dataclass(frozen=True)
class Contents:
    """Digests of examples in the order in which they are taken.

    Parameters
    ----------
    names
        Of the arrays, sorted.
    digests : (examples, 4)
        Two words of the inputs of every example, and two of its label.
    """

    names: tuple[str, ...]
    digests: NDArray[np.uint64]

    @classmethod
    def of(cls, inputs: Mapping[str, Any], labels: Tensor | None) -> Contents:
        """Digests of a batch. Only values count, and labels of any integer type are the same labels."""
        tensors = [pair for pair in named_leaves(inputs) if isinstance(pair[1], Tensor)]
        named = sorted(tensors, key=lambda pair: pair[0])
        rows = [_rows_of_bytes(leaf) for _, leaf in named]
        targets = [] if labels is None else [_rows_of_bytes(_as_one_type(labels))]
        digests = b"".join(_digest(rows, index) + _digest(targets, index) for index in range(len(first_tensor(inputs))))
        names = [name for name, _ in named] + ["labels"] * len(targets)
        return cls(tuple(sorted(names)), np.frombuffer(digests, "<u8").reshape(-1, 4).astype(np.uint64))

    @classmethod
    def join(cls, parts: Sequence[Contents]) -> Contents:
        """Digests of parts after one another."""
        names = sorted({name for part in parts for name in part.names})
        return cls(tuple(names), np.concatenate([part.digests for part in parts]))

    def take(self, index: Index) -> Contents:
        """Digests of some of the examples."""
        return Contents(self.names, self.digests[index])

    def order(self) -> NDArray[np.intp]:
        """Indices that sort the examples by their inputs, and equal inputs by their labels, (examples,)."""
        return np.lexsort(self.digests.T[::-1])

    def of_inputs(self) -> list[bytes]:
        """Digest of every example's inputs, without its label."""
        return [row.tobytes() for row in self.digests[:, :2]]

    def fingerprint(self) -> str:
        """Fingerprint of all examples and of the order in which they are taken."""
        names = "\n".join(self.names).encode()
        return hashlib.sha256(names + b"\0" + self.digests.astype("<u8").tobytes()).hexdigest()[:16]


def named_leaves(inputs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Leaves by name: ``x``, or ``features['a'][0]`` where they are nested."""
    return [
        (f"{name}{keystr(path)}", leaf)
        for name, value in inputs.items()
        for path, leaf in tree_flatten_with_path(value)[0]
    ]


def first_tensor(inputs: Mapping[str, Any]) -> Tensor:
    """The first of the arrays."""
    return next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))


def _rows_of_bytes(leaf: Tensor) -> NDArray[np.uint8]:
    rows: NDArray[np.uint8] = leaf.detach().cpu().reshape(len(leaf), -1).contiguous().view(torch.uint8).numpy()
    return rows


def _as_one_type(labels: Tensor) -> Tensor:
    return labels if labels.is_floating_point() or labels.is_complex() else labels.long()


def _digest(arrays: Sequence[NDArray[np.uint8]], index: int) -> bytes:
    if len(arrays) == 1:
        return hashlib.sha256(arrays[0][index]).digest()[:_BYTES]
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(array[index])
    return whole.digest()[:_BYTES]
