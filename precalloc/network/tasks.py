"""The task: everything that is particular to what a network is for, behind one type.

Measurement, estimators and simulation know a network only through it: how it is run, what its output is held against,
its loss, its curvature and its score.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from precalloc.errors import DataError, ModelError
from precalloc.network.batches import Batch
from precalloc.network.criteria import (
    Classification,
    Criterion,
    CustomLoss,
    LossFn,
    MetricFn,
    Regression,
    TokenClassification,
    per_example_value,
)
from precalloc.network.draws import ExampleDraws
from precalloc.network.forward import Forward, ForwardFn

TASKS = ("classification", "token-classification", "language-model", "regression")


@dataclass(frozen=True)
class Task:
    """How a network is run and judged.

    Parameters
    ----------
    criterion
        Loss, curvature and score.
    forward
        How the network is run, and which of its outputs counts.
    metric_fn
        ``metric_fn(output, labels)``, one score an example, in the place of the criterion's; larger is better.
    """

    criterion: Criterion = field(default_factory=Classification)
    forward: Forward = field(default_factory=Forward)
    metric_fn: MetricFn | None = None

    @property
    def name(self) -> str:
        """What the task is called in files: "classification", "language-model", ..."""
        return self.criterion.name

    @property
    def has_margins(self) -> bool:
        """Whether an example is right where the logit of one class is above all others."""
        return isinstance(self.criterion, Classification) and self.metric_fn is None

    @property
    def is_share(self) -> bool:
        """Whether the score is a share of what is right, between 0 and 1."""
        return self.metric_fn is None and bool(self.criterion.score_name)

    def score_name(self, labelled: bool) -> str:
        """What the score is called; empty where there is none."""
        if self.metric_fn is not None:
            return getattr(self.metric_fn, "__name__", "metric")
        if not self.criterion.score_name or labelled or self.name == "language-model":
            return self.criterion.score_name
        return self.criterion.score_name.replace("accuracy", "agreement")

    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the model; the output that counts, (examples, ...), in single precision at least.

        Raises
        ------
        DataError, ModelError
            If the model does not take the inputs, or has no such output.
        """
        return self.forward(model, batch)

    def reference(self, output: Tensor, batch: Batch) -> Any:
        """What the output is held against: the labels or, without, the network's own predictions.

        Raises
        ------
        DataError
            If the labels do not fit the output.
        """
        return self.criterion.reference(output, batch)

    def weight(self, output: Tensor, reference: Any) -> Tensor:
        """How much every example counts in means over examples, (examples,): its number of tokens, or one."""
        return self.criterion.weight(output, reference)

    def loss(self, output: Tensor, reference: Any) -> Tensor:
        """Loss of every example, (examples,), differentiable; for tokens their mean."""
        return self.criterion.loss(output, reference)

    def sampled_loss(self, output: Tensor, reference: Any, draws: ExampleDraws) -> Tensor:
        """Scalar whose squared gradient is unbiased for the Gauss-Newton curvature of sum_n weight_n loss_n."""
        return self.criterion.sampled_loss(output, reference, draws)

    def require_sound(self, output: Tensor, batch: Batch) -> None:
        """Try loss, curvature and score on one batch before any long work.

        Raises
        ------
        ModelError, DataError
            If the labels, ``loss_fn`` or ``metric_fn`` do not fit the output, or the loss has no curvature in it.
        """
        reference = self.reference(output, batch)
        self.score(output, reference)
        if not bool(self.loss(output, reference).isfinite().all()):
            raise ModelError("The loss has NaN or infinite values on the data. Check labels and loss_fn.")
        if isinstance(self.criterion, CustomLoss):
            self.criterion.require_curvature(output, reference)

    def score(self, output: Tensor, reference: Any) -> Tensor | None:
        """Score of every example, (examples,): accuracy, token accuracy, the user's metric; None where there is none.

        Raises
        ------
        ModelError
            If the user's metric is not one number an example.
        """
        if self.metric_fn is not None:
            return per_example_value(self.metric_fn(output, reference), len(output), "metric_fn")
        return self.criterion.score(output, reference)


def resolve_forward(task: Task | str | None, forward_fn: ForwardFn | None, output: str | int | None) -> Forward:
    """How the model is run, which is known before its task is; parameters as of `resolve_task`."""
    return task.forward if isinstance(task, Task) else Forward(forward_fn, output)


def resolve_task(
    task: Task | str | None,
    model: nn.Module,
    batch: Batch,
    forward_fn: ForwardFn | None = None,
    loss_fn: LossFn | None = None,
    metric_fn: MetricFn | None = None,
    output: str | int | None = None,
    clean: Tensor | None = None,
) -> Task:
    """Complete what the user says of the task by what one batch tells.

    Parameters
    ----------
    task
        A task, one of ``TASKS``, or None: integer labels and logits (examples, classes) are classification, labels by
        position token classification, other labels regression; without labels, logits (examples, classes) are a
        classification by agreement. A causal language model of transformers is a language model.
    model, batch
        The model runs once on the batch where shapes must tell and ``clean`` is not given.
    forward_fn, loss_fn, metric_fn, output
        See `Task`, `CustomLoss` and `Forward`.
    clean
        The output for the batch.

    Raises
    ------
    ModelError, DataError
        If it cannot be told.
    """
    if isinstance(task, Task):
        if any(choice is not None for choice in (forward_fn, loss_fn, metric_fn, output)):
            raise ModelError(
                "A Task already says how to run and judge. Leave out forward_fn, loss_fn, metric_fn, output."
            )
        return task
    forward = resolve_forward(task, forward_fn, output)
    if loss_fn is not None:
        return Task(CustomLoss(loss_fn), forward, metric_fn)
    if task is not None and task not in TASKS:
        raise ModelError(f"Task {task!r} is unknown. Choose {', '.join(TASKS)}, or give loss_fn.")
    if task == "language-model" or (task is None and _is_causal_language_model(model)):
        return Task(TokenClassification(shift=True), forward, metric_fn)
    if task == "token-classification":
        return Task(TokenClassification(), forward, metric_fn)
    if task == "regression":
        return Task(Regression(), forward, metric_fn)
    clean = forward(model, batch) if clean is None else clean
    return Task(_infer(clean, batch.labels, task is not None), forward, metric_fn)


def _infer(output: Tensor, labels: Tensor | None, must_classify: bool) -> Criterion:
    shape = tuple(output.shape)
    if labels is not None and labels.is_floating_point():
        if not must_classify and labels[0].numel() == output[0].numel():
            return Regression()
    elif output.dim() == 2 and output.shape[1] > 1 and (labels is None or labels.dim() == 1):
        return Classification()
    elif output.dim() > 2 and labels is not None and labels.dim() == output.dim() - 1:
        return TokenClassification()
    if output.dim() == 2 and output.shape[1] > 1 and labels is not None:
        raise DataError(
            f"Labels have shape {tuple(labels.shape)}, type {labels.dtype}. Give one class index an example."
        )
    told = "no labels" if labels is None else f"labels of shape {tuple(labels.shape)}, type {labels.dtype}"
    raise ModelError(
        f"The model's output {shape} with {told} does not tell the task: logits of shape (examples, classes) would. "
        f"Say which it is (--task, task=...): {', '.join(TASKS)}; or give loss_fn."
    )


def _is_causal_language_model(model: nn.Module) -> bool:
    names = getattr(getattr(model, "config", None), "architectures", None) or [type(model).__name__]
    return hasattr(model, "config") and any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names)
