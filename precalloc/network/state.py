"""Leaves no trace: the user's model and the global random states are after every call as they were before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run the block with ``model`` in evaluation mode; restore mode, buffers and global random states afterwards."""
    training = {module: module.training for module in model.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with preserved_rng(), preserved_buffers(model):
        try:
            # The fused transformer kernel computes a whole layer in one call and would hide its products.
            torch.backends.mha.set_fastpath_enabled(False)
            set_evaluation(model)
            _stop_observers(model)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module, mode in training.items():
                module.training = mode


def set_evaluation(model: nn.Module) -> None:
    """Put every module in evaluation mode; ``eval()`` itself is refused by exported programs, and may be overridden."""
    for module in model.modules():
        module.training = False


def _stop_observers(model: nn.Module) -> None:
    """Fix the scales of fake quantisation, which observers otherwise move at every call, in evaluation mode as well."""
    for module in model.modules():
        enabled = module._buffers.get("observer_enabled")
        if enabled is not None:
            enabled.zero_()


@contextmanager
def preserved_buffers(model: nn.Module) -> Iterator[None]:
    """Restore every buffer that the block changes or replaces: observers, counters, caches."""
    kept = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, name, buffer, version, values in kept:
            module._buffers[name] = buffer
            if buffer.shape != values.shape:
                buffer.data = values
            elif buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(values)


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the global random states of torch, numpy and Python after the block."""
    # NumPy's legacy global state is the user's; it is only put back.
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def seeded_generator(device: torch.device, *entropy: int) -> torch.Generator:
    """Generator on a device from several integers, well mixed, so that neighbouring seeds share nothing."""
    return torch.Generator(device).manual_seed(derived_seed(*entropy))


def derived_seed(*entropy: int) -> int:
    """Seed from several integers, well mixed: one purpose's draws have nothing in common with another's."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
