"""Data sets that Hugging Face ``datasets`` saved to disk; the only file that imports it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from precalloc.errors import DataError, DependencyError
from precalloc.network.batches import LABEL_NAMES, Batch, read_batch
from precalloc.network.data import CanonicalData, Places


def load_dataset(folder: Path) -> CanonicalData:
    """Open a data set that ``Dataset.save_to_disk`` wrote; rows are read from disk as they are needed.

    Columns are the forward's inputs by name, and labels under ``labels``, ``label`` or ``y``.

    Raises
    ------
    DataError
        If it cannot be read, or a column holds anything but numbers of one shape.
    DependencyError
        If ``datasets`` is missing.
    """
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise DependencyError(
            "Saved data sets need datasets. Install it: pip install 'precalloc[huggingface]'."
        ) from error
    try:
        rows = load_from_disk(str(folder)).with_format("numpy")
        count = len(rows)
    except Exception as error:  # Arrow's, JSON's and the library's own errors alike
        raise DataError(
            f"{folder} is no saved data set ({' '.join(str(error).split())[:200]}). Save it anew."
        ) from error

    def read(places: Places) -> Batch:
        return read_batch(_numbers(rows[places.tolist()], folder), f"{folder}, rows {places.min()} to {places.max()}")

    named = next((name for name in LABEL_NAMES if name in rows.column_names), None)
    return CanonicalData(read, count, None if named is None else lambda: torch.as_tensor(rows[named][:]))


def _numbers(columns: dict[str, Any], folder: Path) -> dict[str, Any]:
    for name, values in columns.items():
        if values.dtype.kind not in "biuf":
            kind = "rows of several lengths" if values.dtype.kind == "O" else "text"
            raise DataError(
                f"Column '{name}' of {folder} holds {kind}. Pad it or turn it into numbers, or leave it out: "
                f"remove_columns(['{name}'])."
            )
    return columns
