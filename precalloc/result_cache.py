"""Results kept in files, so that a run that was interrupted or asks for more computes nothing twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from precalloc.errors import DataError
from precalloc.output_files import write_files

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResultCache:
    """Results of one kind in a folder, with a file for each.

    Parameters
    ----------
    folder
        Where the files are kept.
    kind
        What is kept, such as "simulated accuracy"; for the files' schema and for messages.
    identity
        What all results depend on: model, data and options.
    """

    folder: Path
    kind: str
    identity: str

    def path(self, key: str) -> Path:
        """File of what depends on ``key`` beside the identity."""
        return self.folder / (hashlib.sha256(f"{self.identity} {key}".encode()).hexdigest()[:32] + ".json")

    def find(self, key: str, read: Callable[[Any], Result]) -> Result | None:
        """Read a result back; None where it is not kept.

        Raises
        ------
        DataError
            If its file holds something else.
        """
        path = self.path(key)
        if not path.is_file():
            return None
        _log.info("%s of an earlier run: %s", self.kind, path)
        try:
            return read(json.loads(path.read_text(encoding="utf-8"))["result"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} holds no {self.kind} ({error}). Delete it to compute it anew.") from error

    def keep(self, key: str, record: object) -> None:
        """Keep a result as JSON."""
        schema = f"precalloc/{self.kind.replace(' ', '-')}"
        write_files(self.folder, {self.path(key).name: json.dumps({"schema": schema, "result": record})})
