"""Checkpoints of additive work: an interrupted run goes on where it stopped, with the result it would have had."""

from __future__ import annotations

import json
import logging
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from precalloc.errors import ProfileError
from precalloc.profiles import write_npz

Arrays = Mapping[str, npt.NDArray[Any]]

_SECONDS_BETWEEN = 20.0

_log = logging.getLogger(__name__)


class Checkpoint:
    """Keeps the state of one run in a file; does nothing where there is no file.

    Parameters
    ----------
    path
        The file, or None.
    fingerprint
        Identifies model, data and options: a state of another run must not be gone on from.
    """

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint
        self._saved_at = time.monotonic()

    @contextmanager
    def running(self, state: Callable[[], Arrays], restore: Callable[[Arrays], None]) -> Iterator[None]:
        """Restore before the block; save when it is interrupted or fails; remove the file when it is finished."""
        if self._path is None:
            yield
            return
        saved = self._load(self._path)
        if saved is not None:
            _log.info("going on from %s", self._path)
            restore(saved)
        try:
            yield
        except BaseException:
            self._save(state())
            raise
        self._path.unlink(missing_ok=True)

    def offer(self, state: Callable[[], Arrays]) -> None:
        """Save if it has been a while."""
        if self._path is not None and time.monotonic() - self._saved_at > _SECONDS_BETWEEN:
            self._save(state())

    def _save(self, arrays: Arrays) -> None:
        assert self._path is not None
        write_npz(self._path, {"fingerprint": self._fingerprint}, arrays)
        self._saved_at = time.monotonic()

    def _load(self, path: Path) -> dict[str, npt.NDArray[Any]] | None:
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            header = json.loads(arrays.pop("header").tobytes())
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ProfileError(f"Checkpoint {path} cannot be read ({error}). Delete it to start anew.") from error
        if header.get("fingerprint") != self._fingerprint:
            raise ProfileError(f"Checkpoint {path} is of another model, data or option. Delete it to start anew.")
        return arrays
