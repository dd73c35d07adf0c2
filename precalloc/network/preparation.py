"""A model made ready for noise: what every simulation does before its first noisy pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

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

# Examples on which the model is tried; whole batches would add to the time.
_TRIED = 3
# 256 MiB in single precision.
_KEPT_VALUES = 2**26


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
    values, all_values
        Of an example's outputs at the site where they are most, and at all sites.
    find_layouts
        Gives `layouts`.
    """

    model: nn.Module
    task: Task
    values: int
    all_values: int
    find_layouts: Callable[[], SiteLayouts]

    def keeps_noise(self, examples: int) -> bool:
        """Whether the normal numbers of a pass over so many examples are few enough to be kept for other passes."""
        return examples * self.all_values <= _KEPT_VALUES

    @cached_property
    def layouts(self) -> SiteLayouts:
        """How the sites number the examples; found when first asked for, by running the model."""
        return self.find_layouts()


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
        tried = first.take(_TRIED)
        ready, output, counts = _tried(model, tried, forward)
        if not counts.keys() >= set(kmap.repetitions) | kmap.digital:  # what runs may depend on the examples
            tried = first
            ready, output, counts = _tried(model, tried, forward)
        task = choices.resolve(model, tried, forward.chosen(output))
        require_fit(kmap, counts)
        outputs = [count.outputs for count in counts.values()]
        layouts = partial(layouts_of, ready, data, first, forward, counts)
        yield Prepared(ready, task, max(outputs) // tried.size, sum(outputs) // tried.size, layouts)


def _tried(model: nn.Module, batch: Batch, forward: Forward) -> tuple[nn.Module, Any, dict[str, SiteCounts]]:
    """Fold a model's batch norms; that, its output for a batch, and its sites."""
    ready, _ = fold_batch_norm(model, lambda m: forward.run(m, batch))
    return ready, *count_sites(ready, batch, forward)


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
