"""`validate`: score and loss under simulated noise, over several draws of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from precalloc.accuracy import SimulatedAccuracy, SimulatedLoss
from precalloc.allocation import Allocation
from precalloc.kmaps import KMap
from precalloc.network.checkpoints import Arrays, Checkpoint
from precalloc.network.criteria import LossFn, MetricFn
from precalloc.network.data import Data, as_data, data_hash
from precalloc.network.forward import ForwardFn, model_device
from precalloc.network.interception import intercept
from precalloc.network.models import model_hash
from precalloc.network.noise import NoiseInjector
from precalloc.network.preparation import Prepared, TaskChoices, prepared
from precalloc.network.tasks import Task
from precalloc.progress import Progress, silent

Values = npt.NDArray[np.float64]

_log = logging.getLogger(__name__)


def validate(
    model: nn.Module,
    data: object,
    plan: KMap | Allocation,
    *,
    task: Task | str | None = None,
    forward_fn: ForwardFn | None = None,
    loss_fn: LossFn | None = None,
    metric_fn: MetricFn | None = None,
    output: str | int | None = None,
    seeds: int = 8,
    seed: int = 0,
    batch_size: int = 128,
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> SimulatedAccuracy:
    """Simulate a K map's noise: what the network still gets right, and its loss.

    Every noise seed is one device: its weight errors are drawn once and stay for all examples; the other noises are
    drawn anew for every operation. Without labels the noiseless predictions are the reference.

    Parameters
    ----------
    model
        The network that was profiled; left as it was.
    data
        Evaluation data that K was not chosen on, as `precalloc.network.data.as_data` takes it.
    plan
        K map or allocation.
    task, forward_fn, loss_fn, metric_fn, output
        As for `precalloc.profile`.
    seeds
        Number of noise seeds; ``seed`` is where they start.
    progress
        Called as ``progress(done, total, what)`` in examples.
    checkpoint
        File from which an interrupted run goes on.

    Raises
    ------
    KMapError
        If the K map is of another network.
    """
    kmap = plan.kmap() if isinstance(plan, Allocation) else plan
    source = as_data(data)
    choices = TaskChoices(task, forward_fn, loss_fn, metric_fn, output)
    with prepared(model, source, kmap, choices, batch_size) as ready:
        run = _Simulation(ready, source, kmap, seed, batch_size, seeds)
        identity = f"{model_hash(model)} {data_hash(source)} {ready.task.name} {kmap.digest} {seed}"
        keeper = Checkpoint(checkpoint, identity)
        with keeper.running(run.state, run.restore):
            run.go(progress, keeper)
    return run.result()


def _ignore(_: int) -> None:
    """Tell nobody."""


class _Simulation:
    """Score and loss of every example, seed by seed; (examples, 2)."""

    def __init__(self, ready: Prepared, data: Data, kmap: KMap, seed: int, batch_size: int, seeds: int) -> None:
        self._model, self._task, self._layouts = ready.model, ready.task, ready.layouts
        self._data, self._kmap = data, kmap
        self._seed, self._batch_size, self._seeds = seed, batch_size, seeds
        self._references: list[Any] = []
        self._weights: list[Values] = []
        self._clean = self._judge(None)
        self._outcomes: list[Values] = []

    def go(self, progress: Progress, keeper: Checkpoint) -> None:
        """Simulate the seeds that are not done yet."""
        device, total = model_device(self._model), self._seeds * self._data.examples
        for index in range(len(self._outcomes), self._seeds):
            injector = NoiseInjector.of(self._kmap, self._seed + index, device, layouts=self._layouts)

            def report(done: int, before: int = index * self._data.examples) -> None:
                progress(before + done, total, "simulating")

            self._outcomes.append(self._judge(injector, report))
            keeper.offer(self.state)
            _log.debug("noise seed %d simulated", self._seed + index)

    def _judge(self, injector: NoiseInjector | None, report: Callable[[int], None] = _ignore) -> Values:
        """Run all examples; the first, noiseless time sets the references."""
        judged, done = [], 0
        for index, batch in enumerate(self._data.batches(self._batch_size)):
            with nullcontext() if injector is None else intercept(self._model, injector.at(batch)):
                output = self._task.output(self._model, batch)
            if index == len(self._references):
                reference = self._task.reference(output, batch)
                self._references.append(reference)
                self._weights.append(_array(self._task.weight(output, reference)))
            reference = self._references[index]
            score = self._task.score(output, reference)
            loss = _array(self._task.loss(output, reference))
            judged.append(np.stack([np.full_like(loss, np.nan) if score is None else _array(score), loss], 1))
            done += batch.size
            report(done)
        return np.concatenate(judged)

    def result(self) -> SimulatedAccuracy:
        """Means and intervals over examples and seeds."""
        weight, outcomes = np.concatenate(self._weights), np.stack(self._outcomes)
        loss = SimulatedLoss.from_losses(outcomes[..., 1], self._clean[:, 1], weight)
        return SimulatedAccuracy.from_outcomes(
            outcomes[..., 0],
            self._clean[:, 0],
            weight,
            loss=loss,
            task=self._task.name,
            score=self._task.score_name(self._data.labelled),
            is_share=self._task.is_share,
        )

    def state(self) -> Arrays:
        """Outcomes of the finished seeds."""
        return {"outcomes": np.array(self._outcomes, dtype=float).reshape(-1, self._data.examples, 2)}

    def restore(self, arrays: Arrays) -> None:
        """Go on after the finished seeds."""
        self._outcomes = list(arrays["outcomes"][: self._seeds])


def _array(values: Tensor) -> Values:
    return values.detach().cpu().numpy().astype(np.float64)
