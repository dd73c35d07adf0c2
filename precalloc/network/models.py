"""Models from a MODEL spec: a factory with optional weights, an exported program or a Hugging Face directory."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from precalloc.errors import ModelError, PrecallocError
from precalloc.network.replay import is_exported, replayed
from precalloc.network.state import set_evaluation


def load_model(spec: str, weights: str | None = None) -> nn.Module:
    """Build the model that ``spec`` names.

    Parameters
    ----------
    spec
        ``path/file.py:factory`` or ``package.module:factory``, a ``.pt2`` file, or a Hugging Face model directory.
    weights
        ``.safetensors`` or a tensors-only ``.pt``, to load into what a factory builds.

    Raises
    ------
    ModelError
        If the file, module, factory or weights are missing, or the factory returns no ``nn.Module``.
    """
    if weights is not None and (spec.endswith(".pt2") or Path(spec).is_dir()):
        raise ModelError(f"'{spec}' holds its weights already. Leave out --weights {weights}.")
    model = _build(spec)
    if weights is not None:
        _load_weights(model, Path(weights))
    set_evaluation(model)
    return model


def _build(spec: str) -> nn.Module:
    if spec.endswith(".pt2"):
        from precalloc.network.exported import load_exported

        return load_exported(Path(spec))
    if Path(spec).is_dir():
        from precalloc.network.huggingface import load_directory

        return load_directory(Path(spec))
    model = call_factory(spec, ModelError)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"'{spec}' returned {type(model).__name__}, not an nn.Module. Name a callable that builds the model."
        )
    return model


def call_factory(spec: str, error_type: type[PrecallocError]) -> object:
    """Import ``module:name`` or ``file.py:name`` and call it without arguments."""
    target, _, name = spec.rpartition(":")
    if not target or not name:
        raise error_type(f"'{spec}' names no factory. Write path/file.py:factory or package.module:factory.")
    module = _import(target, error_type)
    factory: Callable[[], object] | None = getattr(module, name, None)
    if not callable(factory):
        names = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise error_type(f"'{target}' has no callable '{name}'. It has: {', '.join(names) or 'none'}.")
    return factory()


def _import(target: str, error_type: type[PrecallocError]) -> ModuleType:
    if not target.endswith(".py"):
        try:
            return importlib.import_module(target)
        except ModuleNotFoundError as error:
            raise error_type(
                f"Module '{target}' cannot be imported ({error}). Check its name and PYTHONPATH."
            ) from error
    path = Path(target).resolve()
    if not path.is_file():
        raise error_type(f"File {target} does not exist. Check the path.")
    name = f"precalloc_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickled references look their module up by name
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise error_type(f"{target} needs a package that is missing ({error}). Install it.") from error
    return module


def _load_weights(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"Weights file {path} does not exist. Check the path.")
    try:
        model.load_state_dict(_read_weights(path))
    except RuntimeError as error:
        raise ModelError(f"Weights {path} do not fit the model: {' '.join(str(error).split())[:300]}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors', pickle, zip and runtime errors alike
        raise ModelError(
            f"{path} is no tensors-only weights file ({type(error).__name__}). Save model.state_dict()."
        ) from error
    return state


# Modules whose kernels take packed weights, unseen by the interception.
_PACKED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")


def as_model(model: nn.Module) -> nn.Module:
    """Bring what a user passes into the form that is run, and refuse what cannot be intercepted or measured.

    Returns
    -------
    nn.Module
        The model itself; of `ExportedProgram.module()` what its ``.pt2`` file would give.

    Raises
    ------
    ModelError
        If the model is compiled, scripted or quantised, or a weight is NaN or infinite.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{type(model).__name__} is no model that can be run. Pass an nn.Module; of an exported program, module()."
        )
    model = replayed(model)
    for name, module in model.named_modules():
        if is_exported(module):
            raise ModelError(
                f"Module '{name}' is an exported program within another module, which hides its structure. "
                "Pass the program's module() by itself, or put the module that it was exported from there."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"Module '{name}' is scripted, which hides its products. Pass the module it was scripted from."
            )
        if type(module).__module__.startswith(_PACKED):
            raise ModelError(
                f"Module '{name}' ({type(module).__name__}) is quantised with packed weights, which hides its "
                "products. Pass the network before its conversion, in floating point or with fake quantisation."
            )
        if hasattr(module, "_orig_mod"):
            raise ModelError(f"Module '{name}' is compiled, which hides its products. Pass its '_orig_mod'.")
    # Buffers may rightly hold infinities (attention masks); parameters never.
    for name, parameter in model.named_parameters():
        if parameter.sum().isfinite():  # cheaper than looking at each value
            continue
        bad = int((~parameter.isfinite()).sum())
        if bad:
            raise ModelError(f"Weight '{name}' has {bad} NaN or infinite values. Load sound weights.")
    return model


def model_hash(model: nn.Module) -> str:
    """Fingerprint of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(replayed(model).state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
