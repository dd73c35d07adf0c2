"""Data from files and folders: ``.npz``, ``.safetensors``, image folders, saved Hugging Face data sets, factories."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from precalloc.errors import DataError
from precalloc.network.batches import read_batch
from precalloc.network.data import ArrayData, Data, as_data


def load_data(spec: str) -> Data:
    """Read the data that ``spec`` names.

    Parameters
    ----------
    spec
        A ``.npz`` or ``.safetensors`` file; a folder that `datasets` saved; a folder of images, one subfolder a class,
        with options as in ``photos?size=224``; or ``module:factory`` (``file.py:factory``), which returns data.

    Raises
    ------
    DataError
        If it is missing, is of another type, or its arrays do not fit together.
    """
    path = Path(spec)
    if path.suffix == ".npz":
        return _from_arrays(_read_npz(_existing(path)), spec)
    if path.suffix == ".safetensors":
        return _from_arrays(_read_safetensors(_existing(path)), spec)
    folder, _, options = spec.partition("?")
    if Path(folder).is_dir():
        return _from_folder(Path(folder), options)
    if ":" in spec:
        from precalloc.network.models import call_factory

        return as_data(call_factory(spec, DataError))
    raise DataError(f"Data '{spec}' is no .npz or .safetensors file, no folder that exists, nor module:factory.")


def _from_arrays(arrays: dict[str, Any], origin: str) -> ArrayData:
    whole = read_batch(arrays, origin)
    return ArrayData(whole.inputs, whole.labels)


def _from_folder(folder: Path, options: str) -> Data:
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/dataset_info.json"))
        raise DataError(
            f"{folder} holds several splits. Name one of them: {', '.join(str(folder / s) for s in splits)}."
        )
    if (folder / "dataset_info.json").is_file():
        from precalloc.network.saved_datasets import load_dataset

        return load_dataset(folder)
    from precalloc.network.images import ImageOptions, image_folder

    return image_folder(folder, ImageOptions.parse(options))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"Data file {path} does not exist. Check the path.")
    return path


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as .npz without pickles ({error}). Save plain arrays with numpy.savez."
        ) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as .safetensors ({error}). Save it anew.") from error
