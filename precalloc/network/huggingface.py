"""Hugging Face model directories; the only file that imports transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from precalloc.errors import DependencyError, ModelError


def load_directory(folder: Path) -> nn.Module:
    """Build the model that ``config.json`` names and load the ``.safetensors`` beside it.

    Nothing is fetched from a network, no code of the directory is run and no pickle is read. The class is the one of
    transformers that ``architectures`` names, the one that ``AutoModelFor...`` would choose. Caching of keys and values
    is switched off: it serves generation, and every position is profiled at once.

    Raises
    ------
    ModelError
        If the directory is no such model, needs code of its own, or lacks weights.
    DependencyError
        If transformers is missing.
    """
    config = _read_config(folder)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} holds no .safetensors weights, and pickled ones are not read. "
            "Save it anew with model.save_pretrained(folder)."
        )
    transformers = _transformers()
    name = _architecture(folder, config)
    model_class = getattr(transformers, name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise ModelError(
            f"{folder} is a '{name}', which transformers {transformers.__version__} does not have. Update transformers."
        )
    return _load(model_class, folder)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no config.json. Give a directory that save_pretrained wrote.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not JSON ({error}). Save the model anew.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no model's configuration. Give a directory that save_pretrained wrote.")
    return config


def _architecture(folder: Path, config: dict[str, Any]) -> str:
    if "auto_map" in config:
        raise ModelError(
            f"{folder} needs Python code of its own (auto_map), which is not run. "
            "Write a factory that builds the model: file.py:factory."
        )
    architectures = config.get("architectures") or []
    if len(architectures) != 1:
        raise ModelError(
            f"{folder}/config.json names {len(architectures)} architectures; it must name one, "
            "for example BertForSequenceClassification. save_pretrained writes it."
        )
    return str(architectures[0])


def _load(model_class: Any, folder: Path) -> nn.Module:
    try:
        with _quiet(_transformers()):
            model, told = model_class.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # whatever configuration, tokenizers and safetensors raise
        raise ModelError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    missing = sorted(str(key) for key in told["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder} lacks weights of {model_class.__name__}: {', '.join(missing[:3])}. They would be random. "
            "Load a trained model, or correct 'architectures' in config.json."
        )
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    network: nn.Module = model
    return network


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Without progress bars and reports of transformers' own; its settings are as before afterwards."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise DependencyError(
            "Hugging Face models need transformers. Install it: pip install 'precalloc[huggingface]'."
        ) from error
    module: ModuleType = transformers
    return module
