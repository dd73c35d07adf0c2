"""A model made ready for noise: what every simulation does before its first noisy pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from precalloc.errors import KMapError
from precalloc.kmaps import KMap
from precalloc.network.batches import Batch
from precalloc.network.criteria import LossFn, MetricFn
from precalloc.network.data import Data
from precalloc.network.folding import fold_batch_norm
from precalloc.network.forward import Forward, ForwardFn
from precalloc.network.layouts import SiteLayouts
from precalloc.network.models import as_model
from precalloc.network.observation import layouts_of
from precalloc.network.sites import SiteCounts, count_sites
from precalloc.network.state import untouched
from precalloc.network.tasks import Task, resolve_forward, resolve_task


@dataclass(frozen=True)
class TaskChoices:
    """What the user says of the task; the rest is told from a batch."""

    task: Task | str | None = None
    forward_fn: ForwardFn | None = None
    loss_fn: LossFn | None = None
    metric_fn: MetricFn | None = None
    output: str | int | None = None

    @property
    def forward(self) -> Forward:
        """How the model is run."""
        return resolve_forward(self.task, self.forward_fn, self.output)

    def resolve(self, model: nn.Module, batch: Batch, clean: Tensor) -> Task:
        """Complete the choices by the output for a batch; raises as `precalloc.network.tasks.resolve_task` does."""
        return resolve_task(self.task, model, batch, self.forward_fn, self.loss_fn, self.metric_fn, self.output, clean)


@dataclass(frozen=True)
class Prepared:
    """A model that is ready for noise.

    Parameters
    ----------
    model
        With batch norms folded.
    task
        What it is for.
    layouts
        How its sites number the examples.
    values
        Of an example's outputs at the site where they are most.
    """

    model: nn.Module
    task: Task
    layouts: SiteLayouts
    values: int


@contextmanager
def prepared(model: nn.Module, data: Data, kmap: KMap, choices: TaskChoices, batch_size: int) -> Iterator[Prepared]:
    """Make a model ready, checked against a K map; the model is left as it was.

    Raises
    ------
    KMapError
        If the K map is of another network.
    ModelError, DataError
        If the model cannot be run on the data, or its task cannot be told.
    """
    model = as_model(model)
    with untouched(model), torch.no_grad():
        first, forward = next(data.batches(batch_size)), choices.forward
        ready, _ = fold_batch_norm(model, lambda m: forward.run(m, first))
        output, counts = count_sites(ready, first, forward)
        task = choices.resolve(model, first, forward.chosen(output))
        require_fit(kmap, counts)
        layouts = layouts_of(ready, data, first, forward, counts)
        yield Prepared(ready, task, layouts, max(count.outputs for count in counts.values()) // first.size)


def require_fit(kmap: KMap, counts: Mapping[str, SiteCounts]) -> None:
    """Refuse a K map whose sites, channels or bias corrections are not those of the network.

    Raises
    ------
    KMapError
        If they differ.
    """
    named = set(kmap.repetitions) | kmap.digital
    missing, unknown = sorted(set(counts) - named), sorted(named - set(counts))
    if missing or unknown:
        raise KMapError(
            f"The K map is of another network: it lacks sites {missing[:3]} and has unknown sites {unknown[:3]}. "
            "Allocate for this model."
        )
    for name, count in counts.items():
        found = 1 if name in kmap.digital else kmap.repetitions[name].size
        if found not in (1, count.channels):
            raise KMapError(f"Site '{name}' has {count.channels} channels, but {found} repetitions. Allocate anew.")
        correction = kmap.bias_corrections.get(name)
        if correction is None:
            continue
        if not count.static:
            raise KMapError(f"Site '{name}' multiplies two activations and has no bias to correct. Compensate anew.")
        if correction.size != count.channels:
            raise KMapError(
                f"Site '{name}' has {count.channels} channels, but {correction.size} bias corrections. Compensate anew."
            )
