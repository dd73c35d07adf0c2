"""`validate`: accuracy under simulated noise, over several draws of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from precalloc.accuracy import SimulatedAccuracy
from precalloc.allocation import Allocation
from precalloc.errors import KMapError
from precalloc.kmaps import KMap
from precalloc.network.checkpoints import Arrays, Checkpoint
from precalloc.network.data import Data, as_data, call_model, data_hash, model_device
from precalloc.network.folding import fold_batch_norm
from precalloc.network.interception import ProductHandler, intercept
from precalloc.network.models import check_model, model_hash
from precalloc.network.noise import NoiseInjector
from precalloc.network.sites import SiteCounts, survey
from precalloc.network.state import untouched
from precalloc.progress import Progress, silent

Outcomes = npt.NDArray[np.bool_]


def validate(
    model: nn.Module,
    data: object,
    plan: KMap | Allocation,
    *,
    seeds: int = 8,
    seed: int = 0,
    batch_size: int = 128,
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> SimulatedAccuracy:
    """Simulate a K map's noise and count what the network still gets right.

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
    check_model(model)
    with untouched(model), torch.no_grad():
        first = next(source.batches(batch_size))
        ready, _ = fold_batch_norm(model, lambda m: call_model(m, first))
        counts, _, _ = survey(ready, first)
        _require_fit(kmap, counts)
        run = _Simulation(ready, source, kmap, seed, batch_size, seeds)
        identity = f"{model_hash(model)} {data_hash(source)} {_digest(kmap)} {seed} {batch_size}"
        keeper = Checkpoint(checkpoint, identity)
        with keeper.running(run.state, run.restore):
            run.go(progress, keeper)
    return SimulatedAccuracy.from_outcomes(np.stack(run.outcomes), run.clean)


def _digest(kmap: KMap) -> str:
    repetitions = {name: values.tolist() for name, values in kmap.repetitions.items()}
    return f"{kmap.hardware} {repetitions} {kmap.ranges}"


def _require_fit(kmap: KMap, counts: dict[str, SiteCounts]) -> None:
    missing, unknown = sorted(set(counts) - set(kmap.repetitions)), sorted(set(kmap.repetitions) - set(counts))
    if missing or unknown:
        raise KMapError(
            f"The K map is of another network: it lacks sites {missing[:3]} and has unknown sites {unknown[:3]}. "
            "Allocate for this model."
        )
    for name, count in counts.items():
        if kmap.repetitions[name].size not in (1, count.channels):
            found = kmap.repetitions[name].size
            raise KMapError(f"Site '{name}' has {count.channels} channels, but {found} repetitions. Allocate anew.")


def _ignore(_: int) -> None:
    """Tell nobody."""


class _Simulation:
    """Which examples come out right, seed by seed."""

    def __init__(self, model: nn.Module, data: Data, kmap: KMap, seed: int, batch_size: int, seeds: int) -> None:
        self._model, self._data, self._kmap = model, data, kmap
        self._seed, self._batch_size, self._seeds = seed, batch_size, seeds
        predictions, labels = self._predictions(None), self._labels()
        self._reference = predictions if labels is None else labels
        self.clean: Outcomes = predictions == self._reference
        self.outcomes: list[Outcomes] = []

    def go(self, progress: Progress, keeper: Checkpoint) -> None:
        """Simulate the seeds that are not done yet."""
        device, total = model_device(self._model), self._seeds * self._data.examples
        for index in range(len(self.outcomes), self._seeds):
            injector = NoiseInjector.of(self._kmap, self._seed + index, device)

            def report(done: int, before: int = index * self._data.examples) -> None:
                progress(before + done, total, "simulating")

            self.outcomes.append(self._predictions(injector, report) == self._reference)
            keeper.offer(self.state)

    def _predictions(
        self, handler: ProductHandler | None, report: Callable[[int], None] = _ignore
    ) -> npt.NDArray[np.int64]:
        predicted, done = [], 0
        for batch in self._data.batches(self._batch_size):
            if handler is None:
                logits = call_model(self._model, batch)
            else:
                with intercept(self._model, handler):
                    logits = call_model(self._model, batch)
            predicted.append(logits.argmax(1).cpu().numpy())
            done += batch.size
            report(done)
        return np.concatenate(predicted)

    def _labels(self) -> npt.NDArray[np.int64] | None:
        if not self._data.labelled:
            return None
        parts = [batch.labels for batch in self._data.batches(4096) if batch.labels is not None]
        return torch.cat(parts).cpu().numpy().astype(np.int64)

    def state(self) -> Arrays:
        """Outcomes of the finished seeds."""
        return {"outcomes": np.array(self.outcomes, dtype=bool).reshape(-1, self._data.examples)}

    def restore(self, arrays: Arrays) -> None:
        """Go on after the finished seeds."""
        self.outcomes = list(arrays["outcomes"][: self._seeds])
