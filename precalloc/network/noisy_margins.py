"""Class margins under simulated noise, of the classes that are nearest without it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from precalloc.kmaps import KMap
from precalloc.network.batches import Batch
from precalloc.network.data import Data
from precalloc.network.forward import model_device
from precalloc.network.interception import intercept
from precalloc.network.noise import NoiseInjector
from precalloc.network.operators import widened
from precalloc.network.preparation import Prepared
from precalloc.profiles import FloatArray


@dataclass(frozen=True)
class _Followed:
    """A batch with the class that is right (examples, 1), and the others whose margins are followed (examples, m)."""

    batch: Batch
    reference: Tensor
    others: Tensor

    def margins(self, output: Tensor) -> FloatArray:
        found: FloatArray = (
            widened(output.gather(1, self.reference) - output.gather(1, self.others)).double().cpu().numpy()
        )
        return found


class NoisyMargins:
    """Simulates K maps on the same examples; what the noiseless network says of them is asked once.

    Parameters
    ----------
    ready
        The model, as `precalloc.network.preparation.prepared` gives it.
    count
        Margins of an example.
    """

    def __init__(self, ready: Prepared, data: Data, batch_size: int, count: int) -> None:
        self._model, self._task, self._layouts = ready.model, ready.task, ready.layouts
        self._followed = [self._follow(batch, count) for batch in data.batches(batch_size)]

    def _follow(self, batch: Batch, count: int) -> _Followed:
        with torch.no_grad():
            output = self._task.output(self._model, batch)
        reference = self._task.reference(output, batch)[:, None]
        others = output.scatter(1, reference, -torch.inf).topk(count, dim=1).indices
        return _Followed(batch, reference, others)

    def under(self, kmap: KMap, draws: int, seed: int) -> FloatArray:
        """Margins (draws, examples, m), nearest without noise first; every draw has one device's weight errors."""
        found = []
        for draw in range(draws):
            injector = NoiseInjector.of(kmap, seed + draw, model_device(self._model), layouts=self._layouts)
            found.append([self._noisy(each, injector) for each in self._followed])
        return np.stack([np.concatenate(parts) for parts in found])

    def _noisy(self, followed: _Followed, injector: NoiseInjector) -> FloatArray:
        with torch.no_grad(), intercept(self._model, injector.at(followed.batch)):
            return followed.margins(self._task.output(self._model, followed.batch))
