"""`profile`: one pass over the calibration data gives every sensitivity, range and prediction table."""

from __future__ import annotations

import logging
import platform
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from precalloc import __version__
from precalloc.errors import ModelError
from precalloc.hardware import Hardware
from precalloc.network.batches import Batch
from precalloc.network.checkpoints import Checkpoint
from precalloc.network.criteria import Classification, LossFn, MetricFn, check_classes
from precalloc.network.data import Data, as_data, data_hash, labels_of
from precalloc.network.estimators import Estimator, resolve_estimator
from precalloc.network.folding import fold_batch_norm
from precalloc.network.forward import Forward, ForwardFn
from precalloc.network.layouts import SiteLayout
from precalloc.network.measurement import Measurement, Options
from precalloc.network.models import as_model, model_hash
from precalloc.network.observation import layouts_of
from precalloc.network.sites import (
    require_coverage,
    require_deterministic,
    require_finite,
    runs_channels_last,
    survey,
)
from precalloc.network.state import untouched
from precalloc.network.tasks import Task, resolve_forward, resolve_task
from precalloc.profiles import Profile, Provenance
from precalloc.progress import Progress, silent

_log = logging.getLogger(__name__)

# Examples on which the model is tried once more; whole batches would add to its time.
_TRIED = 3


def profile(
    model: nn.Module,
    data: object,
    hardware: Hardware,
    *,
    task: Task | str | None = None,
    forward_fn: ForwardFn | None = None,
    loss_fn: LossFn | None = None,
    metric_fn: MetricFn | None = None,
    output: str | int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    estimator: Estimator = "curvature",
    margins: int = 3,
    prediction_examples: int = 1000,
    range_percentile: float = 99.99,
    allow_uncovered: bool = False,
    name: str = "",
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> Profile:
    """Measure how much noise on each site's products costs the network, in one pass over the calibration data.

    Parameters
    ----------
    model
        Any trained ``nn.Module``. It is run in evaluation mode and left as it was.
    data
        Calibration data, as `precalloc.network.data.as_data` takes it. Without labels the model's own predictions are
        the reference.
    hardware
        Says which noise kinds to measure, and is what allocations are for by default. Strengths are applied on use, so
        the profile serves other hardware of these kinds as well.
    task, forward_fn, loss_fn, metric_fn, output
        What the network is for, as `precalloc.network.tasks.resolve_task` takes it; told from output and labels where
        nothing is said.
    seed
        Of the drawn labels and signs; the same seed gives the same profile bit for bit on one machine.
    batch_size
        Examples at a time at most; bounds the memory. Results do not depend on it beyond rounding, and under weight
        noise never more than `precalloc.network.measurement.BLOCK` are taken at a time.
    estimator
        "curvature" (one pass), or after it also "forward" (noise at one site at a time, slow, the reference) or
        `Learned` (the paper's, for one budget); `Forward` and `Learned` hold their options. All give ranges,
        prediction tables and noise bits from the one pass.
    margins
        Class margins an example to follow for prediction; 0 leaves prediction out, as do tasks without classes an
        example: for them the loss is predicted.
    prediction_examples
        Examples in the prediction tables at most; the first so many in canonical order, which is as good as chance.
    range_percentile
        p of the calibrated ranges.
    allow_uncovered
        Go on where MACs belong to no site; they count as digital.
    name
        What to call the model in the provenance.
    progress
        Called as ``progress(done, total, what)`` in examples.
    checkpoint
        File from which an interrupted run goes on, and which is gone after a finished one.

    Raises
    ------
    ModelError, CoverageError, NondeterministicModelError, DataError
        If the model or the data does not serve; see there.
    """
    source = as_data(data)
    model = as_model(model)
    resolve_estimator(estimator)
    with untouched(model):
        first = next(source.batches(batch_size))
        forward = resolve_forward(task, forward_fn, output)
        ready, _ = fold_batch_norm(model, lambda m: forward.run(m, first))
        found = survey(ready, first, forward)
        clean = forward.chosen(found.output)
        judged = resolve_task(task, model, first, forward_fn, loss_fn, metric_fn, output, clean)
        _log.info("%s: %d sites, %d uncovered operators", judged.name, len(found.counts), len(found.uncovered))
        require_coverage(found.counts, found.uncovered, allow_uncovered)
        require_finite(clean)
        judged.require_sound(clean, first)
        tried = first.take(_TRIED)
        channels_last = runs_channels_last(
            ready, tried, judged.forward, require_deterministic(ready, tried, judged.forward)
        )
        _check_labels(source, judged, clean)
        margins = min(margins, clean.shape[1] - 1) if judged.has_margins else 0
        options = Options(hardware.kinds, seed, batch_size, margins, prediction_examples, range_percentile)
        layouts = _layouts(ready, source, first, judged.forward, found.counts)
        measurement = Measurement(options, judged, found.counts, first.size, layouts, source.examples)
        keeper = Checkpoint(checkpoint, f"{model_hash(model)} {data_hash(source)} {judged.name} {options}")
        with keeper.running(measurement.state, measurement.restore):
            _run(ready, source, measurement, keeper, progress, channels_last)
        provenance = Provenance(
            model=name or type(model).__name__,
            model_hash=model_hash(model),
            data_hash=data_hash(source),
            examples=source.examples,
            labelled=source.labelled,
            task=judged.name,
            score=judged.score_name(source.labelled),
            estimator="curvature",
            seed=seed,
            range_percentile=range_percentile,
            versions={"python": platform.python_version(), "torch": torch.__version__, "precalloc": __version__},
        )
        return _estimate(
            ready, judged, source, measurement.profile(hardware, provenance), estimator, progress, checkpoint
        )


def _estimate(
    model: nn.Module,
    task: Task,
    data: Data,
    measured: Profile,
    estimator: Estimator,
    progress: Progress,
    checkpoint: Path | None,
) -> Profile:
    """Put the estimator's damages in the place of the curvature's."""
    chosen = resolve_estimator(estimator)
    if chosen is None:
        return measured
    path = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}.{chosen.name}")
    keeper = Checkpoint(path, f"{measured.provenance} {chosen}")
    return chosen.estimate(model, task, data, measured, measured.provenance.seed, progress, keeper)


def _run(
    model: nn.Module, data: Data, measurement: Measurement, keeper: Checkpoint, progress: Progress, channels_last: bool
) -> None:
    """Measure the examples that are not done yet, block by block."""
    for block in data.batches(measurement.block_size):
        for batch in block.split(measurement.options.batch_size):
            if batch.start < measurement.totals["examples"]:
                continue
            ends_block = batch.start + batch.size == block.start + block.size
            measurement.take(model, batch.channels_last() if channels_last else batch, ends_block)
            _log.debug("examples from %d measured", batch.start)
            if ends_block:
                keeper.offer(measurement.state)
            progress(int(measurement.totals["examples"]), data.examples, "profiling")


def _check_labels(data: Data, task: Task, output: Tensor) -> None:
    """Find labels that are no classes before the work and not amidst it."""
    if not data.labelled or not isinstance(task.criterion, Classification):
        return
    for labels in labels_of(data):
        check_classes(labels, labels.shape[:1], output.shape[1])


def _layouts(
    model: nn.Module, data: Data, first: Batch, forward: Forward, sites: Collection[str]
) -> dict[str, SiteLayout]:
    layouts = layouts_of(model, data, first, forward, sites)
    if any(layout.output is None for layout in layouts.values()):
        raise ModelError(
            "The model mixes the examples of a batch: one example's input changes another's output. "
            "Profile it with batch_size=1, or take out what couples them."
        )
    return layouts
