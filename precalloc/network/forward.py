"""Running a model on a batch: how its forward takes the inputs, and which of its outputs counts."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_leaves, tree_map

from precalloc.errors import DataError, ModelError
from precalloc.network.batches import Batch

ForwardFn = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Forward:
    """How a model is run.

    Parameters
    ----------
    function
        ``function(model, inputs)`` in the place of the model's own call; ``inputs`` are those of a batch, by name.
    output
        Name or index of the output that counts, where the model has several.
    """

    function: ForwardFn | None = None
    output: str | int | None = None

    def run(self, model: nn.Module, batch: Batch) -> Any:
        """Run the model on a batch, on the model's device, and return whatever it returns.

        Raises
        ------
        DataError
            If the model does not take the inputs.
        """
        device = model_device(model)
        inputs = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch.inputs)
        try:
            if self.function is not None:
                return self.function(model, inputs)
            args, kwargs = _arguments(model, inputs)
            return model(*args, **kwargs)
        except (TypeError, RuntimeError, IndexError, ValueError, AssertionError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError(
                f"The model does not take inputs {_describe(inputs)}: {reason.rstrip('.')}. "
                "Name arrays as the forward's parameters, and labels 'y'."
            ) from error

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the model on a batch and return the output that counts, in single precision at least.

        Raises
        ------
        DataError, ModelError
            If the model does not take the inputs, or has no such output.
        """
        return self.chosen(self.run(model, batch))

    def chosen(self, output: object) -> Tensor:
        """Of what the model returned, the output that counts, in single precision at least."""
        found = select_output(output, self.output)
        return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found


def select_output(output: object, which: str | int | None = None) -> Tensor:
    """Find the output that counts.

    Without ``which`` that is the tensor itself, ``.logits``, ``["logits"]``, or the only tensor that there is.

    Raises
    ------
    ModelError
        If it is not there, or ``which`` is needed to tell.
    """
    outputs = _outputs(output)
    names = ", ".join(f"{name} {tuple(value.shape)}" for name, value in outputs.items()) or type(output).__name__
    if which is not None:
        key = list(outputs)[int(which)] if str(which).lstrip("-").isdigit() and _has(outputs, int(which)) else which
        if key not in outputs:
            raise ModelError(f"The model has no output '{which}'. It has: {names}.")
        return outputs[str(key)]
    if not outputs:
        raise ModelError(f"The model's output ({names}) holds no tensor. Give forward_fn, or wrap its forward.")
    if "logits" in outputs:
        return outputs["logits"]
    if len(outputs) > 1:
        raise ModelError(f"The model has several outputs: {names}. Choose one with --output (output=...).")
    return next(iter(outputs.values()))


def _has(outputs: Mapping[str, Tensor], index: int) -> bool:
    return -len(outputs) <= index < len(outputs)


def _outputs(output: object) -> dict[str, Tensor]:
    """All outputs that are tensors, by name or index."""
    if isinstance(output, Tensor):
        return {"0": output}
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items() if isinstance(value, Tensor)}
    if isinstance(output, tuple | list):
        return {str(index): value for index, value in enumerate(output) if isinstance(value, Tensor)}
    fields = vars(output) if hasattr(output, "__dict__") else {}
    return {name: value for name, value in fields.items() if isinstance(value, Tensor)}


def _describe(inputs: Mapping[str, Any]) -> dict[str, object]:
    """Shapes of the inputs, for messages."""

    def shapes(value: object) -> object:
        found = [tuple(leaf.shape) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        return found[0] if isinstance(value, Tensor) else found

    return {name: shapes(value) for name, value in inputs.items()}


def _arguments(model: nn.Module, inputs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Inputs by name where the forward has the names, else in order."""
    parameters = _forward_parameters(model)
    if not set(inputs) <= parameters:
        return list(inputs.values()), {}
    if "use_cache" in parameters:  # transformers' decoders would return all keys and values as well
        inputs = {"use_cache": False, **inputs}
    spec = getattr(model, "_in_spec", None)
    if not isinstance(spec, TreeSpec):
        return [], inputs
    # An exported program takes by keyword only what was a keyword when it was exported.
    keywords = set(spec.child(1).context)
    positional = [name for name in _signature(model).parameters if name in inputs.keys() - keywords]
    return [inputs[name] for name in positional], {name: inputs[name] for name in inputs if name in keywords}


def model_device(model: nn.Module) -> torch.device:
    """Device of the model's first parameter or buffer."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _forward_parameters(model: nn.Module) -> set[str]:
    """Names that the forward takes by keyword."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name for name, parameter in _signature(model).parameters.items() if parameter.kind in kinds}


def _signature(model: nn.Module) -> inspect.Signature:
    """Signature of the forward; a replayed program carries that of its origin."""
    own = getattr(model, "signature", None)
    return own if isinstance(own, inspect.Signature) else inspect.signature(model.forward)
