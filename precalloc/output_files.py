"""Several files at once: all of them are written whole before the first appears under its name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from precalloc.errors import PrecallocError


def write_files(directory: str | os.PathLike[str], contents: Mapping[str, str | bytes]) -> tuple[Path, ...]:
    """Write files into a directory, which is made if need be; nothing half-written is left behind.

    Raises
    ------
    PrecallocError
        If the directory cannot be written.
    """
    folder = Path(directory)
    temporary: dict[str, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            temporary[name] = _write_temporary(folder, name, content)
        return tuple(path.replace(folder / name) for name, path in temporary.items())
    except OSError as error:
        raise PrecallocError(f"Cannot write to {folder}: {error.strerror}. Give another directory.") from error
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _write_temporary(folder: Path, name: str, content: str | bytes) -> Path:
    with temporary_file(folder, name) as (file, path):
        file.write(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def temporary_file(folder: Path, name: str) -> Iterator[tuple[IO[bytes], Path]]:
    """Open a new file beside its later name, to be renamed when it is whole; it is gone if the block fails."""
    handle, path = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, Path(path)
        mask = os.umask(0)
        os.umask(mask)
        Path(path).chmod(0o666 & ~mask)  # mkstemp's files are private; results are as readable as any other file
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise
