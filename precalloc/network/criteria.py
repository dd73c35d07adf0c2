"""What a network's output is held against: loss, curvature draws and score of every kind of task.

`sampled_loss` of every criterion is a scalar L with E[(dL/dy)^2] = sum over examples of the generalised Gauss-Newton
diagonal J^T H J, with H the Hessian of an example's loss in the network's output and J the output's derivative in y: it
is a sum over examples of <v_n, output_n> (or of a loss with that gradient) with E[v_n v_n^T] = H_n, the v_n of
different examples being independent with mean zero (Martens 2020, "New insights and perspectives on the natural
gradient method", sections 8 and 9).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from precalloc.errors import DataError, ModelError
from precalloc.network.batches import Batch
from precalloc.network.draws import ExampleDraws

IGNORED = -100  # label of what does not count, as in torch and transformers
_LARGEST_HESSIAN = 512  # outputs an example; its Hessian is decomposed whole

LossFn = Callable[[Tensor, Any], Tensor]
MetricFn = Callable[[Tensor, Any], Tensor]


class Criterion(Protocol):
    """Loss, curvature draws and score of one kind of task; all per example, (examples,)."""

    @property
    def name(self) -> str:
        """What the task is called."""
        ...

    @property
    def score_name(self) -> str:
        """What the score is called; empty where there is none."""
        ...

    def reference(self, output: Tensor, batch: Batch) -> Any:
        """Labels of the batch or, unlabelled, the network's own predictions."""
        ...

    def weight(self, output: Tensor, reference: Any) -> Tensor:
        """How much every example counts in means: its number of tokens, or one."""
        ...

    def loss(self, output: Tensor, reference: Any) -> Tensor:
        """Loss, mean over the parts of an example, in nats for cross-entropy; differentiable."""
        ...

    def sampled_loss(self, output: Tensor, reference: Any, draws: ExampleDraws) -> Tensor:
        """Scalar whose squared gradient is unbiased for the curvature of sum_n weight_n loss_n."""
        ...

    def score(self, output: Tensor, reference: Any) -> Tensor | None:
        """Share of an example that is right; None where the task has no such thing."""
        ...


@dataclass(frozen=True)
class Classification:
    """One class an example: logits (examples, classes), labels (examples,); cross-entropy and accuracy."""

    name: str = "classification"
    score_name: str = "accuracy"

    def reference(self, output: Tensor, batch: Batch) -> Tensor:
        """Labels, or the strongest class.

        Raises
        ------
        DataError
            If a label is no class of the model.
        """
        if batch.labels is None:
            return output.argmax(1)
        return check_classes(batch.labels.to(output.device), output.shape[:1], output.shape[1])

    def weight(self, output: Tensor, reference: Tensor) -> Tensor:  # noqa: ARG002
        """One for every example."""
        return output.new_ones(len(output))

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(output, reference, reduction="none")

    def sampled_loss(self, output: Tensor, reference: Tensor, draws: ExampleDraws) -> Tensor:  # noqa: ARG002
        """Sum of +-cross-entropy against a drawn label, weighted, with a random sign an example."""
        labels, scale = draw_classes(output, draws.uniform())
        return (F.cross_entropy(output, labels, reduction="none") * (draws.signs() * scale).to(output.dtype)).sum()

    def score(self, output: Tensor, reference: Tensor) -> Tensor:
        """Whether the strongest class is the reference."""
        return (output.argmax(1) == reference).to(output.dtype)


@dataclass(frozen=True)
class TokenClassification:
    """One class a position: logits (examples, ..., classes) or (examples, classes, ...), labels (examples, ...).

    Positions labelled -100 do not count. With ``shift`` the logits at a position predict the label of the next one, as
    those of causal language models do; the labels are then the ``input_ids`` themselves where the data has none (padded
    positions, attention mask 0, left out).
    """

    shift: bool = False
    score_name: str = "token accuracy"

    @property
    def name(self) -> str:
        """Language model where the next token is predicted."""
        return "language-model" if self.shift else "token-classification"

    def reference(self, output: Tensor, batch: Batch) -> Tensor:
        """Labels by position, shifted where the next token is predicted; without labels the strongest classes.

        Raises
        ------
        DataError
            If labels do not fit the output, or all positions of an example are left out.
        """
        labels = batch.labels
        if labels is None and self.shift:
            labels = _own_tokens(batch)
        if labels is None:
            return output.argmax(-1)
        labels = labels.to(output.device)
        if self.shift:
            labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], 1)
        logits = _classes_last(output, labels)
        return check_classes(labels, logits.shape[:-1], logits.shape[-1], IGNORED)

    def weight(self, output: Tensor, reference: Tensor) -> Tensor:
        """Number of positions that count."""
        return (reference != IGNORED).flatten(1).sum(1).to(output.dtype)

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """Mean cross-entropy of the positions that count."""
        losses = _cross_entropy(_classes_last(output, reference), reference)
        return losses.flatten(1).sum(1) / self.weight(output, reference).clamp(min=1)

    def sampled_loss(self, output: Tensor, reference: Tensor, draws: ExampleDraws) -> Tensor:
        """Sum of +-cross-entropy against a label drawn at every position, weighted, with a random sign a position."""
        logits, positions = _classes_last(output, reference), reference.shape[1:]
        drawn, scale = draw_classes(logits, draws.uniform(positions))
        losses = _cross_entropy(logits, drawn.masked_fill(reference == IGNORED, IGNORED))
        return (losses * (draws.signs(positions) * scale).to(losses.dtype)).sum()

    def score(self, output: Tensor, reference: Tensor) -> Tensor:
        """Share of the positions that count at which the strongest class is the reference."""
        right = (_classes_last(output, reference).argmax(-1) == reference).flatten(1).sum(1)
        return right / self.weight(output, reference).clamp(min=1)


@dataclass(frozen=True)
class Regression:
    """Numbers, (examples, ...), against labels of the same shape; the loss is the mean squared error of an example."""

    name: str = "regression"
    score_name: str = ""

    def reference(self, output: Tensor, batch: Batch) -> Tensor:
        """Labels, or the output itself.

        Raises
        ------
        DataError
            If the labels are not shaped as the output.
        """
        if batch.labels is None:
            return output.detach()
        if batch.labels[0].numel() != output[0].numel():
            raise DataError(
                f"Labels have shape {tuple(batch.labels.shape)}, the model's output {tuple(output.shape)}. "
                "Regression needs as many labels as outputs."
            )
        return batch.labels.to(output.device, output.dtype).reshape(output.shape)

    def weight(self, output: Tensor, reference: Tensor) -> Tensor:  # noqa: ARG002
        """One for every example."""
        return output.new_ones(len(output))

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """Mean over an example's m outputs of (output - label)^2."""
        return (output - reference).square().flatten(1).mean(1) if output.dim() > 1 else (output - reference).square()

    def sampled_loss(self, output: Tensor, reference: Tensor, draws: ExampleDraws) -> Tensor:  # noqa: ARG002
        """Sum of sqrt(2 / m) <e, output> with random signs e, the loss having the Hessian 2 / m times identity."""
        scale = math.sqrt(2.0 / output[0].numel())
        return (draws.signs(output.shape[1:]).to(output.dtype) * output).sum() * scale

    def score(self, output: Tensor, reference: Tensor) -> None:  # noqa: ARG002
        """None: nothing is right or wrong."""
        return


@dataclass(frozen=True)
class CustomLoss:
    """A user's ``function(output, labels)`` that gives one loss an example.

    Its curvature is the positive part of the Hessian H_n of every example's loss in that example's outputs, decomposed
    whole: v_n = sum_k sqrt(max(lambda_k, 0)) e_k u_k with eigenpairs (lambda_k, u_k) and random signs e_k.
    """

    function: LossFn
    name: str = "custom-loss"
    score_name: str = ""

    def reference(self, output: Tensor, batch: Batch) -> Any:
        """Labels as the data gives them.

        Raises
        ------
        DataError
            If there are none.
        """
        if batch.labels is None:
            raise DataError("The data has no labels, which loss_fn needs. Add them under 'y' or 'labels'.")
        return batch.labels.to(output.device)

    def weight(self, output: Tensor, reference: Any) -> Tensor:  # noqa: ARG002
        """One for every example."""
        return output.new_ones(len(output))

    def loss(self, output: Tensor, reference: Any) -> Tensor:
        """The user's loss.

        Raises
        ------
        ModelError
            If it is not one number an example.
        """
        return per_example_value(self.function(output, reference), len(output), "loss_fn")

    def sampled_loss(self, output: Tensor, reference: Any, draws: ExampleDraws) -> Tensor:
        """Sum of <v_n, output_n> with E[v_n v_n^T] the positive part of the Hessian.

        Raises
        ------
        ModelError
            If an example has too many outputs for a Hessian.
        """
        with torch.enable_grad():
            hessian = self.hessian(output.detach(), reference)
        values, vectors = torch.linalg.eigh(hessian)
        signs = draws.signs(values.shape[1:])
        v = torch.einsum("nik,nk->ni", vectors, values.clamp(min=0).sqrt() * signs)
        return (v.to(output.dtype) * output.flatten(1)).sum() if output.dim() > 1 else (v[:, 0] * output).sum()

    def require_curvature(self, output: Tensor, reference: Any) -> None:
        """Refuse a loss whose Hessian has no positive part.

        Raises
        ------
        ModelError
            If the loss is not differentiable, or bends upwards nowhere, such as an absolute error.
        """
        with torch.enable_grad():
            largest = float(torch.linalg.eigvalsh(self.hessian(output, reference)).amax())
        if largest <= 0.0:
            raise ModelError(
                "loss_fn has no positive second derivative in the model's outputs, so noise is not seen to cost "
                "anything. Use a smooth loss, such as Huber's instead of the absolute error."
            )

    def hessian(self, output: Tensor, reference: Any) -> Tensor:
        """Second derivatives of every example's loss in its outputs, (examples, m, m), in double precision."""
        leaf = output.double().requires_grad_()
        size = leaf[0].numel()
        if size > _LARGEST_HESSIAN:
            raise ModelError(
                f"loss_fn has {size} outputs an example; its curvature is decomposed up to {_LARGEST_HESSIAN}. "
                "Use a task with a known curvature (classification, language-model, regression), or reduce the output."
            )
        loss = self.loss(leaf, reference).sum()
        if not loss.requires_grad:
            raise ModelError(
                "loss_fn does not depend on the model's output differentiably. Use torch operations on it."
            )
        (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
        columns = slope.reshape(len(leaf), size).sum(0)
        if not columns.requires_grad:
            return leaf.new_zeros(len(leaf), size, size)
        rows = [torch.autograd.grad(column, leaf, retain_graph=True)[0] for column in columns]
        return torch.stack([row.reshape(len(leaf), size) for row in rows], 1)

    def score(self, output: Tensor, reference: Any) -> None:  # noqa: ARG002
        """None, unless a metric is given."""
        return


def draw_classes(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw labels by how much they tell of the curvature; return them and what to scale gradients by, both (...).

    With p = softmax(logits) (..., classes) the Hessian is sum_c p_c g_c g_c^T, g_c = p - e_c. Drawn with p, a label is
    nearly always that of a sure network, whose gradient is next to nothing, and all curvature is that of a few
    surprises. Drawn with r_c in proportion to p_c (1 - p_c)^2, p_c |g_c|^2 of two classes, and g_c scaled by
    sqrt(p_c / r_c), the mean is the same and every draw tells of it; of two classes, without any chance.

    Parameters
    ----------
    logits : (..., classes)
    uniform : (...)
        Where r's distribution is inverted, in [0, 1).
    """
    p = logits.detach().softmax(-1)
    rest = 1.0 - p
    cumulative = p.mul_(rest.square()).cumsum(-1, dtype=torch.float64)  # in place: vocabularies are large
    total = cumulative[..., -1:]
    drawn = torch.searchsorted(cumulative, uniform.unsqueeze(-1) * total, right=True).clamp(max=logits.shape[-1] - 1)
    least = torch.finfo(rest.dtype).tiny  # a sure label is not drawn, but where nothing else is left
    return drawn.squeeze(-1), (total.sqrt() / rest.gather(-1, drawn).clamp_min(least)).squeeze(-1)


def per_example_value(value: object, examples: int, function: str) -> Tensor:
    """Refuse what is not one number an example.

    Raises
    ------
    ModelError
        If ``value`` has another shape than (examples,).
    """
    if isinstance(value, Tensor) and value.shape == (examples,):
        return value
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ModelError(
        f"{function} gave {shape} for {examples} examples. Return one value per example, shape ({examples},): "
        "reduction='none', and the mean over the rest of an example."
    )


def check_classes(labels: Tensor, shape: torch.Size, classes: int, ignored: int | None = None) -> Tensor:
    """Refuse labels that are no classes of the model; return them as indices.

    Raises
    ------
    DataError
        If shape, type or values do not fit.
    """
    if labels.shape != shape or labels.is_floating_point():
        raise DataError(
            f"Labels have shape {tuple(labels.shape)}, type {labels.dtype}. Give one class index "
            f"{'an example' if len(shape) == 1 else f'a position, shape {tuple(shape)}'}."
        )
    counted = labels if ignored is None else labels[labels != ignored]
    if counted.numel():
        low, high = int(counted.min()), int(counted.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"Labels run from {low} to {high}, but the model has classes 0 to {classes - 1}. Check the data."
            )
    return labels.long()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy by position, zero where the label does not count."""
    flat = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORED)
    return flat.view(labels.shape)


def _classes_last(output: Tensor, labels: Tensor) -> Tensor:
    """Logits with the classes on the last axis, wherever the shape of the labels says that they are."""
    if output.shape[:-1] == labels.shape:
        return output
    if output.shape[:1] + output.shape[2:] == labels.shape:
        return output.movedim(1, -1)
    raise DataError(
        f"Labels have shape {tuple(labels.shape)}, the model's output {tuple(output.shape)}. "
        "Give one class index a position."
    )


def _own_tokens(batch: Batch) -> Tensor | None:
    """Tokens of the input as labels, padding left out."""
    tokens = batch.inputs.get("input_ids")
    if tokens is None and len(batch.inputs) == 1:
        (tokens,) = batch.inputs.values()
    if not isinstance(tokens, Tensor) or tokens.is_floating_point():
        return None
    mask = batch.inputs.get("attention_mask")
    return tokens.masked_fill(mask == 0, IGNORED) if isinstance(mask, Tensor) else tokens
