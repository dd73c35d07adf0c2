"""Bias corrections kept in files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from precalloc import workflow
from precalloc.progress import Progress, one_of
from precalloc.result_cache import ResultCache

if TYPE_CHECKING:
    from torch import nn

    from precalloc.allocation import Allocation
    from precalloc.hardware import Hardware
    from precalloc.kmaps import KMap
    from precalloc.profiles import FloatArray


class CompensationCache:
    """Bias corrections estimated with one model on its calibration data, with a file for each K map.

    Parameters
    ----------
    folder
        Where the files are kept.
    model, data
        Those of the profile.
    effort
        Seed and batch size; whoever is told of progress.
    wanted
        Whether K maps for a hardware are to be compensated.
    """

    def __init__(
        self, folder: Path, model: nn.Module, data: object, effort: workflow.Effort, wanted: Callable[[Hardware], bool]
    ) -> None:
        self._model, self._data, self._effort, self._wanted = model, data, effort, wanted
        self._kept = ResultCache(folder, "bias corrections", workflow.identity_of(model, data, effort))

    def compensate_all(self, allocations: Iterable[Allocation]) -> list[Allocation]:
        """Compensate allocations and the uniform ones beside them where that is wanted; each K map once.

        K maps whose loss under noise corrections would raise stay without.

        Raises
        ------
        ModelError, DataError
            If model or data are not those of the profile.
        """
        allocations = list(allocations)
        chosen = [each for each in allocations if self._wanted(each.hardware)]
        kmaps = {kmap.digest: kmap for each in chosen for kmap in (each.kmap(), each.uniform_kmap())}
        if not kmaps:
            return allocations
        self._require_calibration(chosen[0])
        self._effort.announce(f"Compensating {len(kmaps)} K maps.")
        found = {}
        for index, (digest, kmap) in enumerate(kmaps.items()):
            found[digest] = self._corrections(kmap, digest, one_of(self._effort.progress, index, len(kmaps), "K maps"))
        return [
            each.with_bias_corrections(found[each.kmap().digest], found[each.uniform_kmap().digest])
            if self._wanted(each.hardware)
            else each
            for each in allocations
        ]

    def _require_calibration(self, allocation: Allocation) -> None:
        from precalloc.network.compensation import require_calibration

        require_calibration(self._model, self._data, allocation)

    def _corrections(self, kmap: KMap, digest: str, progress: Progress) -> Mapping[str, FloatArray]:
        known = self._kept.find(digest, _read)
        if known is not None:
            return known
        from precalloc.network.compensation import compensate

        corrected: KMap = compensate(
            self._model,
            self._data,
            kmap,
            task=self._effort.task,
            output=self._effort.output,
            seed=self._effort.seed,
            batch_size=self._effort.batch_size,
            progress=progress,
            checkpoint=workflow.checkpoint_of(self._kept.path(digest)),
        )
        self._kept.keep(digest, {site: values.tolist() for site, values in corrected.bias_corrections.items()})
        return corrected.bias_corrections


def _read(record: Mapping[str, list[float]]) -> dict[str, FloatArray]:
    return {site: np.array(values, dtype=float) for site, values in record.items()}
