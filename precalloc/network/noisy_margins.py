"""Class margins under simulated noise, of the classes that are nearest without it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from precalloc.calibration import DEVICE_EXAMPLES
from precalloc.kmaps import KMap
from precalloc.network.batches import Batch
from precalloc.network.data import Data
from precalloc.network.forward import model_device
from precalloc.network.interception import intercept
from precalloc.network.margins import strongest_margins
from precalloc.network.noise import NoiseInjector
from precalloc.network.operators import widened
from precalloc.network.preparation import Prepared
from precalloc.network.state import derived_seed
from precalloc.profiles import FloatArray


@dataclass(frozen=True)
class _Followed:
    """Examples of one device with the class that is right (n, 1), and the others whose margins are followed (n, m)."""

    device: int
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
        self._followed = [
            self._follow(device, batch, count)
            for device, block in enumerate(data.batches(DEVICE_EXAMPLES))
            for batch in block.split(batch_size)
        ]

    def _follow(self, device: int, batch: Batch, count: int) -> _Followed:
        with torch.no_grad():
            output = self._task.output(self._model, batch)
        classes = strongest_margins(output, self._task.reference(output, batch), count)[1]
        return _Followed(device, batch, classes[:, :1], classes[:, 1:])

    def under(self, kmap: KMap, draws: int, seed: int) -> FloatArray:
        """Margins (draws, examples, m), nearest without noise first; `DEVICE_EXAMPLES` share a device in every draw.

        Draws come in pairs of opposite noise, which cancels in the means what is linear in it.
        """
        found = []
        for draw in range(draws):
            parts = []
            for device, followed in itertools.groupby(self._followed, lambda each: each.device):
                own, sign = derived_seed(seed, draw // 2, device), 1.0 - 2.0 * (draw % 2)
                injector = NoiseInjector.of(kmap, own, model_device(self._model), sign, layouts=self._layouts)
                parts += [self._noisy(each, injector) for each in followed]
            found.append(np.concatenate(parts))
        return np.stack(found)

    def _noisy(self, followed: _Followed, injector: NoiseInjector) -> FloatArray:
        with torch.no_grad(), intercept(self._model, injector.at(followed.batch)):
            return followed.margins(self._task.output(self._model, followed.batch))
