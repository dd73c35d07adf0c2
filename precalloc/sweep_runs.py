"""What ``precalloc sweep`` does beside allocating: a few simulated points, tables and pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from precalloc.errors import DependencyError
from precalloc.output_files import write_files

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from precalloc.allocation import Allocation
    from precalloc.compensation_cache import CompensationCache
    from precalloc.hardware import Hardware
    from precalloc.workflow import Effort

SIMULATED_FOLDER = ".simulated"
COMPENSATED_FOLDER = ".compensated"
CALIBRATED_FOLDER = ".calibrated"


def simulate_some(
    model: nn.Module,
    data: object,
    allocations: list[Allocation],
    points: int,
    effort: Effort,
    out: Path,
    compensation: CompensationCache | None = None,
) -> list[Allocation]:
    """Simulate the allocations of ``points`` budgets, compensated first where there is something to compensate with.

    What an earlier run into ``out`` simulated is not done again.

    Raises
    ------
    DataError, ProfileError
        If the data is what K was chosen on, or the model is not the one that was profiled.
    """
    from precalloc.simulation_cache import SimulationCache
    from precalloc.workflow import require_fresh

    require_fresh(model, data, allocations[0])
    chosen = spread(allocations, points)
    planned = [allocations[i] for i in chosen]
    if compensation is not None:
        planned = compensation.compensate_all(planned)
    simulated = SimulationCache(out / SIMULATED_FOLDER, model, data, effort).simulate_all(planned)
    found = dict(zip(chosen, simulated, strict=True))
    return [found.get(index, each) for index, each in enumerate(allocations)]


def spread(allocations: Sequence[Allocation], points: int) -> list[int]:
    """Indices of the allocations of ``points`` budgets, spread evenly from the first budget to the last."""
    budgets = list(dict.fromkeys(each.request for each in allocations))
    count = min(points, len(budgets))
    steps = [round(i * (len(budgets) - 1) / max(count - 1, 1)) for i in range(count)]
    chosen = {budgets[step] for step in steps}
    return [index for index, each in enumerate(allocations) if each.request in chosen]


def notes(allocations: Sequence[Allocation], compensates: Callable[[Hardware], bool]) -> list[str]:
    """Say where the curves, or their simulated points, are without calibration or bias corrections."""
    found = []
    if any(each.predicted is not None and each.calibration is None for each in allocations):
        found.append(
            "The predicted accuracies rest on linearised noise alone. With MODEL and --data they are calibrated by "
            "simulated points."
        )
    due = [each for each in allocations if each.simulated is not None and compensates(each.hardware)]
    kmaps = {kmap.digest: kmap for each in due for kmap in (each.kmap(), each.uniform_kmap())}
    bare = sum(not kmap.bias_corrections for kmap in kmaps.values())
    if bare:
        found.append(
            f"{bare} of {len(kmaps)} simulated K maps are not compensated: that takes MODEL and --data, and "
            "corrections that do not raise the loss on them."
        )
    return found


def write_sweep(
    out: Path, frame: pd.DataFrame, marks: pd.DataFrame, *, pictures: bool = True, parquet: bool = False
) -> tuple[Path, ...]:
    """Write ``curve.csv``, ``landmarks.csv`` and, where wanted, ``curve.parquet`` and pictures: all or none."""
    contents: dict[str, str | bytes] = {
        "curve.csv": frame.to_csv(index=False),
        "landmarks.csv": marks.to_csv(index=False),
    }
    if parquet:
        contents["curve.parquet"] = _parquet(frame)
    if pictures and frame["accuracy"].notna().any():
        from precalloc import plots

        contents |= plots.pictures("curve", lambda ax: plots.plot_curve(frame, ax, landmarks=marks))
        if frame["simulated_drop"].notna().any():
            contents |= plots.pictures("calibration", lambda ax: plots.plot_calibration(frame, ax))
    return write_files(out, contents)


def require_writers(pictures: bool, parquet: bool) -> None:
    """Refuse to start what could not be written.

    Raises
    ------
    DependencyError
        If matplotlib or pyarrow is wanted and not installed.
    """
    if pictures and find_spec("matplotlib") is None:
        raise DependencyError(
            "Pictures need matplotlib. Install it with: pip install 'precalloc[plots]', or give --no-pictures."
        )
    if parquet and find_spec("pyarrow") is None:
        raise DependencyError("Parquet needs pyarrow. Install it with: pip install 'precalloc[parquet]'")


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()
