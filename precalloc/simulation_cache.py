"""Simulated accuracies kept in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from precalloc import workflow
from precalloc.accuracy import SimulatedAccuracy
from precalloc.progress import Progress, one_of
from precalloc.result_cache import ResultCache

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from precalloc.allocation import Allocation
    from precalloc.kmaps import KMap


class SimulationCache:
    """Simulations of one model on one data set, with a file for each K map.

    Parameters
    ----------
    folder
        Where the files are kept.
    model, data
        What is simulated.
    effort
        Seeds and batch size; whoever is told of progress.
    """

    def __init__(self, folder: Path, model: nn.Module, data: object, effort: workflow.Effort) -> None:
        self._model, self._data, self._effort = model, data, effort
        identity = f"{workflow.identity_of(model, data, effort)} {effort.noise_seeds}"
        self._kept = ResultCache(folder, "simulated accuracy", identity)

    def simulate_all(self, allocations: Iterable[Allocation]) -> list[Allocation]:
        """Simulate allocations and the uniform ones beside them; each K map once."""
        allocations = list(allocations)
        kmaps = {kmap.digest: kmap for each in allocations for kmap in (each.kmap(), each.uniform_kmap())}
        workflow.announce_simulations(len(kmaps), self._data, self._effort)
        found = {}
        for index, (digest, kmap) in enumerate(kmaps.items()):
            found[digest] = self._simulate(kmap, digest, one_of(self._effort.progress, index, len(kmaps), "K maps"))
        return [
            each.with_simulation(found[each.kmap().digest], found[each.uniform_kmap().digest]) for each in allocations
        ]

    def _simulate(self, kmap: KMap, digest: str, progress: Progress) -> SimulatedAccuracy:
        known = self._kept.find(digest, SimulatedAccuracy.from_record)
        if known is not None:
            return known
        effort, checkpoint = self._effort.telling(progress), workflow.checkpoint_of(self._kept.path(digest))
        simulated = workflow.simulate(self._model, self._data, kmap, effort, checkpoint)
        self._kept.keep(digest, simulated.to_record())
        return simulated
