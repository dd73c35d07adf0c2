"""Calibrations of predictions kept in files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from precalloc import workflow
from precalloc.calibration import Calibration
from precalloc.progress import Progress, one_of
from precalloc.result_cache import ResultCache

if TYPE_CHECKING:
    from torch import nn

    from precalloc.allocator import Allocator
    from precalloc.hardware import Hardware
    from precalloc.profiles import Profile


class CalibrationCache:
    """Calibrations of one profile's predictions, with a file for each hardware and granularity.

    Parameters
    ----------
    folder
        Where the files are kept.
    model, data, profile
        What was profiled, and the profile of all its sites.
    effort
        Seed and batch size; whoever is told of progress.
    compensates
        Whether K maps for a hardware carry bias corrections.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        data: object,
        profile: Profile,
        effort: workflow.Effort,
        compensates: Callable[[Hardware], bool],
    ) -> None:
        self._model, self._data, self._profile, self._effort = model, data, profile, effort
        self._compensates = compensates
        identity = f"{workflow.identity_of(model, data, effort)} {profile.provenance}"
        self._kept = ResultCache(folder, "calibration", identity)

    def calibrate_all(self, allocators: Sequence[Allocator]) -> list[Allocator]:
        """Give allocators whose predictions fit simulated points, where they predict at all: once for all budgets.

        Raises
        ------
        DataError
            If model or data are not those of the profile.
        """
        count = sum(each.predictor is not None for each in allocators)
        if count:
            self._effort.announce(f"Calibrating predictions of {count} curves by a few simulated K maps each.")
        return [
            self._calibrate(each, one_of(self._effort.progress, index, len(allocators), "curves"))
            for index, each in enumerate(allocators)
        ]

    def _calibrate(self, allocator: Allocator, progress: Progress) -> Allocator:
        if allocator.predictor is None:
            return allocator
        compensates = self._compensates(allocator.hardware)
        key = _key(allocator, compensates)
        known = self._kept.find(key, lambda record: Calibration.from_record(record, "of the calibration"))
        if known is not None:
            return replace(allocator, calibration=known)
        calibrated = workflow.calibrate(
            self._model,
            self._data,
            self._profile,
            self._effort.telling(progress),
            workflow.checkpoint_of(self._kept.path(key)),
            (allocator.hardware, str(allocator.objective.granularity), compensates, allocator.choices),
        )
        assert calibrated.calibration is not None
        self._kept.keep(key, calibrated.calibration.to_record())
        return replace(allocator, calibration=calibrated.calibration)


def _key(allocator: Allocator, compensates: bool) -> str:
    """Everything that the simulated points of an allocator depend on beside model, data and options."""
    objective = allocator.objective
    damage = hashlib.sha256(
        objective.damage.tobytes()
    ).hexdigest()  # profiles of one provenance may have learned others
    return f"{allocator.hardware.to_dict()} {objective.granularity} {compensates} {allocator.choices} {damage}"
