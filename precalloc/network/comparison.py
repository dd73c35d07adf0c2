"""Loss and score of several K maps under the same noise, and by how much one is better than another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from precalloc.accuracy import paired_difference
from precalloc.calibration import DEVICE_EXAMPLES
from precalloc.hardware import NoiseKind
from precalloc.kmaps import KMap
from precalloc.network.data import Data
from precalloc.network.forward import model_device
from precalloc.network.noise import NoiseInjector
from precalloc.network.operating_point import Judged, References, noisy_values
from precalloc.network.preparation import Prepared
from precalloc.profiles import FloatArray
from precalloc.progress import Progress, silent

# Devices at least, where there are few examples to share their weight errors.
_DEVICES = 4

# Mean, and the ends of its 95 % interval.
Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Comparison:
    """What K maps were seen to do on some examples.

    Parameters
    ----------
    loss, score : (K maps, draws, examples)
        Under noise that is the same for all K maps; a score that the task has not is NaN.
    weight : (examples,)
        How much every example counts in means.
    starts
        Where the examples of every device start, which share its errors of weights; None where nothing is shared.
    """

    loss: FloatArray
    score: FloatArray
    weight: FloatArray
    starts: NDArray[np.int64] | None

    @classmethod
    def of(
        cls,
        ready: Prepared,
        data: Data,
        kmaps: Sequence[KMap],
        seeds: Sequence[int],
        batch_size: int,
        progress: Progress = silent,
    ) -> Comparison:
        """Simulate K maps on all of some data, with one noise draw a seed; progress is told in examples."""
        device, references = model_device(ready.model), References(ready.model, ready.task)
        shared = NoiseKind.WEIGHT in kmaps[0].hardware.kinds
        size = min(DEVICE_EXAMPLES, -(-data.examples // _DEVICES)) if shared else batch_size
        found, weights, keeps = [], dict[int, FloatArray](), ready.keeps_noise(min(size, batch_size))
        for draw, seed in enumerate(seeds):
            injectors = [NoiseInjector.of(kmap, seed, device, layouts=ready.layouts, keeps=keeps) for kmap in kmaps]
            values = []
            for block in data.batches(size):  # smaller than asked for where data cannot be joined
                judged = [references.of(part) for part in block.split(batch_size)]
                weights[block.start] = torch.cat([part.weight for part in judged]).double().cpu().numpy()
                values.append(_values(ready, judged, injectors))
                done = draw * data.examples + block.start + block.size
                progress(done, len(seeds) * data.examples, f"comparing {len(kmaps)} K maps")
            found.append(np.concatenate(values, axis=2))
        loss, score = np.stack(found, axis=2).swapaxes(0, 1)
        weight = list(weights.values())
        starts = np.cumsum([0, *map(len, weight[:-1])])
        return cls(loss, score, np.concatenate(weight), starts if shared else None)

    def gain(self, one: int, over: int) -> Interval:
        """By how much the mean loss of one K map is lower than another's."""
        return self._difference(self.loss[over], self.loss[one])

    def score_gain(self, one: int, over: int) -> Interval:
        """By how much the mean score of one K map is higher than another's."""
        return self._difference(self.score[one], self.score[over])

    def mean_loss(self, kmap: int) -> float:
        """Mean over examples and draws."""
        return float(np.average(self.loss[kmap].mean(0), weights=self.weight))

    def _difference(self, first: FloatArray, second: FloatArray) -> Interval:
        """Mean of ``first`` - ``second``, (draws, examples), and its interval; a device's examples count as one."""
        if self.starts is None:
            return paired_difference(first, second, self.weight)
        of_group = np.add.reduceat(self.weight, self.starts)
        sums = np.add.reduceat((first - second) * self.weight, self.starts, axis=1)
        mean = np.divide(sums, of_group, out=np.zeros_like(sums), where=of_group > 0.0)
        return paired_difference(mean, np.zeros_like(mean), of_group)


def _values(ready: Prepared, block: Sequence[Judged], injectors: Sequence[NoiseInjector]) -> FloatArray:
    """Loss and score of a block's examples, which share a device, (K maps, 2, examples); one draw serves all K maps."""
    found, first = [], injectors[0]
    for injector in injectors:
        injector.reprogram()
    for judged in block:
        values = [noisy_values(ready.model, ready.task, judged, first)]
        values += [noisy_values(ready.model, ready.task, judged, each, like=first) for each in injectors[1:]]
        found.append(values)
    return np.concatenate(found, axis=2)
