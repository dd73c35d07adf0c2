"""`safeguard`: an allocation that loses to uniform K of the same energy in simulation gives way to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from precalloc.accuracy import paired_difference
from precalloc.allocation import Allocation
from precalloc.allocator import Allocator
from precalloc.errors import DataError
from precalloc.kmaps import KMap
from precalloc.network.checkpoints import Arrays, Checkpoint
from precalloc.network.criteria import LossFn, MetricFn
from precalloc.network.data import Data, as_data, data_hash
from precalloc.network.data_parts import first
from precalloc.network.forward import ForwardFn, model_device
from precalloc.network.models import model_hash
from precalloc.network.noise import NoiseInjector
from precalloc.network.operating_point import Judged, References, clean_values, noisy_values
from precalloc.network.preparation import Prepared, TaskChoices, prepared
from precalloc.network.splitting import hold_out
from precalloc.network.state import derived_seed
from precalloc.network.tasks import Task
from precalloc.profiles import FloatArray, Profile
from precalloc.progress import Progress, silent

# Allocation takes damage to be a sum over sites; a sum that is off by more than this factor is worth a note.
LARGEST_FACTOR = 2.0
# Noise that neither corrections nor calibration nor any simulation of the same seed sees.
_STREAM = 401


def safeguard(
    model: nn.Module,
    data: object,
    profile: Profile,
    allocation: Allocation,
    *,
    task: Task | str | None = None,
    forward_fn: ForwardFn | None = None,
    loss_fn: LossFn | None = None,
    metric_fn: MetricFn | None = None,
    output: str | int | None = None,
    draws: int = 4,
    examples: int = 512,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> Allocation:
    """Simulate an allocation and the uniform one beside it under the same noise, and keep the allocation if it holds.

    It is judged on the third of the calibration data that refinement holds out, and does not hold where its mean loss
    is higher than that of uniform K, or the whole 95 % interval of the difference in score over examples and noise
    draws is on the side of uniform K. (Of two K maps that the held-out data had no part in, it may choose the better.)
    The allocation that comes back then has uniform K, the
    corrections of uniform K, and a note that says so. The same simulation tells how far the damage of all noise
    together is from the sum over sites that K was chosen by: where its whole interval is off by more than a factor
    ``LARGEST_FACTOR``, another note says so.

    Parameters
    ----------
    model, data
        Those of the profile: what decides about K must be known to later checks.
    profile, allocation
        The profile, and what was allocated from it, compensated or not.
    task, forward_fn, loss_fn, metric_fn, output
        As for `precalloc.profile`.
    draws, examples, seed, batch_size
        Noise draws of an example, how many of the held-out examples, and of the noise and passes.
    progress
        Called as ``progress(done, total, what)`` in examples.
    checkpoint
        File from which an interrupted run goes on.

    Raises
    ------
    DataError
        If model or data are not those of the profile, or too few to hold some out.
    """
    source = as_data(data)
    if data_hash(source) != profile.provenance.data_hash or model_hash(model) != profile.provenance.model_hash:
        raise DataError("Model or data are not those of the profile. Check the allocation on what was profiled.")
    choices = TaskChoices(task, forward_fn, loss_fn, metric_fn, output)
    kmaps, used = (allocation.kmap(), allocation.uniform_kmap()), first(hold_out(source)[1], examples)
    with prepared(model, used, kmaps[0], choices, batch_size) as ready:
        duel = _Duel(ready, used, kmaps, _Effort(draws, seed, batch_size))
        identity = f"safeguard {profile.provenance} {kmaps[0].digest} {kmaps[1].digest} {used.examples} {duel.effort}"
        keeper = Checkpoint(checkpoint, identity)
        with keeper.running(duel.state, duel.restore):
            duel.go(progress, keeper)
    seen = f"simulated on {used.examples} held-out calibration examples with {draws} noise draws"
    lost = duel.lost_to_uniform()
    remedy = "a larger budget" if allocation.refinement else "a larger budget, or refinement (--refine),"
    if lost is None:
        return allocation.with_notes(*_interaction_notes(duel.increase(0), allocation.objective, seen, remedy))
    return _uniform_instead(profile, allocation).with_notes(
        f"Uniform K is kept: {seen}, the allocation was worse in {lost}.",
        *_interaction_notes(duel.increase(1), allocation.uniform.damage, seen, remedy),
    )


def _interaction_notes(increase: tuple[float, float, float], damage: float, seen: str, remedy: str) -> list[str]:
    """Say so where the simulated increase of the loss is far from the sum of the sites' damages."""
    mean, low, high = increase
    if low > LARGEST_FACTOR * damage:
        consequence = f"noise is too strong for the sum: {remedy} brings K closer to the best"
    elif high < damage / LARGEST_FACTOR:
        consequence = "the sum exaggerates what noise does here"
    else:
        return []
    return [
        f"The separable model is off by more than a factor {LARGEST_FACTOR:g}: the damages of the sites add up to "
        f"{damage:.3g}, all noise together raises the loss by {mean:.3g} [{low:.3g}, {high:.3g}], "
        f"{seen}; {consequence}."
    ]


def _uniform_instead(profile: Profile, allocation: Allocation) -> Allocation:
    allocator = Allocator.of(
        profile, allocation.hardware, allocation.granularity, seed=allocation.seed, choices=allocation.choices
    )
    found = allocator.uniform_instead(allocation)
    corrections = allocation.uniform.bias_corrections
    return replace(found.with_bias_corrections(corrections, corrections), notes=allocation.notes)


@dataclass(frozen=True)
class _Effort:
    draws: int
    seed: int
    batch_size: int


class _Duel:
    """Loss and score of every example under both K maps, draw by draw."""

    def __init__(self, ready: Prepared, data: Data, kmaps: tuple[KMap, KMap], effort: _Effort) -> None:
        self._model, self._task, self._layouts = ready.model, ready.task, ready.layouts
        self._keeps = ready.keeps_noise(effort.batch_size)
        self._data, self._kmaps, self.effort = data, kmaps, effort
        self._found: list[FloatArray] = []  # of each draw: (2 K maps, loss and score, examples)
        self._weight: FloatArray = np.zeros(0)
        self._clean: FloatArray = np.zeros(0)
        self._references = References(ready.model, ready.task)

    def _judged(self) -> Iterator[Judged]:
        return map(self._references.of, self._data.batches(self.effort.batch_size))

    def go(self, progress: Progress, keeper: Checkpoint) -> None:
        """Take the draws that are not done yet."""
        total = self.effort.draws * self._data.examples
        if not self._found:
            self._weight = torch.cat([judged.weight for judged in self._judged()]).double().cpu().numpy()
            clean = [clean_values(self._model, self._task, judged)[0] for judged in self._judged()]
            self._clean = np.concatenate(clean)
        for draw in range(len(self._found), self.effort.draws):
            seed, device = derived_seed(self.effort.seed, _STREAM, draw), model_device(self._model)
            one, other = (
                NoiseInjector.of(kmap, seed, device, layouts=self._layouts, keeps=self._keeps) for kmap in self._kmaps
            )
            parts, done = [], draw * self._data.examples
            for judged in self._judged():
                parts.append(
                    [
                        noisy_values(self._model, self._task, judged, one),
                        noisy_values(self._model, self._task, judged, other, like=one),
                    ]
                )
                done += judged.batch.size
                progress(done, total, "comparing with uniform K")
            self._found.append(np.concatenate(parts, axis=2))
            keeper.offer(self.state)

    def lost_to_uniform(self) -> str | None:
        """In what uniform K is better, by how much, and its 95 % interval; None where it is not."""
        found = np.stack(self._found)
        allocated, uniform = found[:, 0], found[:, 1]
        if not np.isnan(found[:, :, 1]).any():
            score, low, high = paired_difference(uniform[:, 1], allocated[:, 1], self._weight)
            if low > 0.0:
                return f"accuracy by {score:.4g} [{low:.4g}, {high:.4g}]"
        loss, low, high = paired_difference(allocated[:, 0], uniform[:, 0], self._weight)
        return f"loss by {loss:.4g} [{low:.4g}, {high:.4g}]" if loss > 0.0 else None

    def increase(self, kmap: int) -> tuple[float, float, float]:
        """By how much the noise of one of the K maps raises the loss, and its 95 % interval."""
        return paired_difference(np.stack(self._found)[:, kmap, 0], self._clean, self._weight)

    def state(self) -> Arrays:
        """The finished draws."""
        return {"found": np.array(self._found), "weight": self._weight, "clean": self._clean}

    def restore(self, arrays: Arrays) -> None:
        """Go on after the finished draws."""
        self._found, self._weight, self._clean = list(arrays["found"]), arrays["weight"], arrays["clean"]
