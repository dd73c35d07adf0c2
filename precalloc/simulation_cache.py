"""Simulated accuracies kept in files, so that a sweep that was interrupted or asks for more simulates nothing twice."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precalloc import workflow
from precalloc.accuracy import SimulatedAccuracy
from precalloc.errors import DataError
from precalloc.output_files import write_files
from precalloc.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from precalloc.allocation import Allocation
    from precalloc.kmaps import KMap

SCHEMA = "precalloc/simulated"

_log = logging.getLogger(__name__)


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
        from precalloc.network.data import as_data, data_hash
        from precalloc.network.models import model_hash

        self._folder, self._model, self._data, self._effort = folder, model, data, effort
        of_effort = f"{effort.measurement_options} {effort.noise_seeds}"
        self._identity = f"{model_hash(model)} {data_hash(as_data(data))} {of_effort}"

    def simulate_all(self, allocations: Iterable[Allocation]) -> list[Allocation]:
        """Simulate allocations and the uniform ones beside them; each K map once."""
        allocations = list(allocations)
        kmaps = {kmap.digest: kmap for each in allocations for kmap in (each.kmap(), each.uniform_kmap())}
        workflow.announce_simulations(len(kmaps), self._data, self._effort)
        found = {}
        for index, (digest, kmap) in enumerate(kmaps.items()):
            found[digest] = self._simulate(kmap, digest, _part(self._effort.progress, index, len(kmaps)))
        return [
            each.with_simulation(found[each.kmap().digest], found[each.uniform_kmap().digest]) for each in allocations
        ]

    def _simulate(self, kmap: KMap, digest: str, progress: Progress) -> SimulatedAccuracy:
        name = hashlib.sha256(f"{self._identity} {digest}".encode()).hexdigest()[:32] + ".json"
        target = self._folder / name
        if target.is_file():
            _log.info("simulated before: %s", target)
            return _read(target)
        effort = self._effort.telling(progress)
        simulated = workflow.simulate(self._model, self._data, kmap, effort, workflow.checkpoint_of(target))
        write_files(self._folder, {name: json.dumps({"schema": SCHEMA, "simulated": simulated.to_record()})})
        return simulated


def _read(path: Path) -> SimulatedAccuracy:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return SimulatedAccuracy.from_record(record["simulated"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no simulated accuracy ({error}). Delete it to simulate anew.") from error


def _part(progress: Progress, index: int, count: int) -> Progress:
    """Tell of one of several equal pieces of work as of the whole."""

    def tell(done: int, total: int, what: str) -> None:
        progress(index * total + done, count * total, f"{what} {count} K maps")

    return tell
