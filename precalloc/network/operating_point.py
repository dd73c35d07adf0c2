"""What a network loses at a K map's own noise, and how that changes with every K.

Curvature looks at vanishing noise. At the noise that a K map has, the loss E[L(K)] over noise and examples answers to
log K_u by

    s_u(K) = -K_u^2 dE[L] / dK_u = -K_u dE[L] / d log K_u,

the local sensitivity: where damage is exactly s_u / K_u it is the same s_u at every K, and elsewhere it takes in what
curvature cannot see, above all the shift of means behind nonlinearities. With re-parametrised noise e_i = sigma_i z_i /
sqrt(K_u) the derivative is an expectation of gradients (Kingma and Welling 2014, arXiv:1312.6114),

    s_u(K) = K_u / 2 E[ sum_{i in u} e_i dL / dy_i ],

here over pairs of opposite noise z and -z, which cancels the part that is linear in the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from precalloc.kmaps import KMap
from precalloc.network.batches import Batch
from precalloc.network.criteria import Classification
from precalloc.network.curvature import ChannelSlots
from precalloc.network.forward import model_device
from precalloc.network.interception import intercept
from precalloc.network.layouts import SiteLayouts
from precalloc.network.noise import NoiseInjector, SiteNoise
from precalloc.network.tasks import Task
from precalloc.profiles import FloatArray


class References:
    """What the noiseless network says of every batch of some data, asked once however often that is gone through."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        self._model, self._task = model, task
        self._known: dict[int, tuple[object, Tensor]] = {}
        self._longest: Tensor | None = None

    def of(self, batch: Batch) -> Judged:
        """Judge a batch; batches are told apart by where they start."""
        if batch.start not in self._known:
            judged = Judged.by(self._task, batch, self._output(batch))
            self._known[batch.start] = judged.reference, judged.weight
        return Judged(batch, *self._known[batch.start])

    def _output(self, batch: Batch) -> Tensor:
        """The output for a batch; any other's where class labels are what it is held against, and only shapes count."""
        only_shapes = batch.labels is not None and isinstance(self._task.criterion, Classification)
        if self._longest is None or not only_shapes or len(self._longest) < batch.size:
            with torch.no_grad():
                self._longest = self._task.output(self._model, batch)
        return self._longest[: batch.size]


@dataclass(frozen=True)
class Judged:
    """A batch with what the noiseless network says of it.

    Parameters
    ----------
    batch
        The examples.
    reference
        Their labels or, unlabelled, the noiseless network's own predictions.
    weight : (examples,)
        How much every example counts in means.
    """

    batch: Batch
    reference: object
    weight: Tensor

    @classmethod
    def of(cls, model: nn.Module, task: Task, batch: Batch) -> Judged:
        """Run the noiseless network on a batch."""
        with torch.no_grad():
            return cls.by(task, batch, task.output(model, batch))

    @classmethod
    def by(cls, task: Task, batch: Batch, output: Tensor) -> Judged:
        """Judge a batch by the noiseless network's output."""
        reference = task.reference(output, batch)
        return cls(batch, reference, task.weight(output, reference))


def noisy_values(
    model: nn.Module, task: Task, judged: Judged, injector: NoiseInjector, like: NoiseInjector | None = None
) -> FloatArray:
    """Loss and score of every example under one draw of noise, (2, examples); a score that is not there is NaN.

    ``like`` as of `NoiseInjector.at`.
    """
    with intercept(model, injector.at(judged.batch, like)):
        return clean_values(model, task, judged)


def clean_values(model: nn.Module, task: Task, judged: Judged) -> FloatArray:
    """Loss and score of every example as the model is, (2, examples); a score that is not there is NaN."""
    with torch.no_grad():
        output = task.output(model, judged.batch)
        loss, score = task.loss(output, judged.reference), task.score(output, judged.reference)
    values = torch.stack([loss, torch.full_like(loss, torch.nan) if score is None else score.to(loss.dtype)])
    found: FloatArray = values.double().cpu().numpy()
    return found


def batch_sensitivity(
    model: nn.Module,
    task: Task,
    judged: Judged,
    kmap: KMap,
    slots: ChannelSlots,
    seed: int,
    signs: Sequence[float] = (1.0, -1.0),
    layouts: SiteLayouts | None = None,
) -> FloatArray:
    """Sum over a batch of the local sensitivities, weighted as its examples count, (channels,).

    Parameters
    ----------
    kmap
        The operating point, bias corrections included. Sites with one K for all channels are told apart by channel
        all the same.
    slots
        Where each site's channels stand.
    seed
        Of one noise draw, weight errors included.
    signs
        Of the draw, averaged over; by default both.
    layouts
        How sites number the examples; with them every example has noise of its own, whatever batch it comes in.
    """
    repetitions = {
        name: torch.from_numpy(np.broadcast_to(kmap.repetitions[name], (channels,)).astype(np.float64))
        for name, channels in slots.channels.items()
    }
    log_k = {name: k.log().to(model_device(model)).requires_grad_() for name, k in repetitions.items()}
    total = np.zeros(slots.total)
    for sign in signs:
        with torch.enable_grad():
            sites = SiteNoise.digital(kmap)
            for name, log in log_k.items():
                bias = kmap.bias_corrections.get(name)
                sites[name] = SiteNoise.of(kmap.hardware, log.exp(), kmap.ranges[name], bias)
            injector = NoiseInjector(sites, seed, model_device(model), sign, layouts or {})
            with intercept(model, injector if layouts is None else injector.at(judged.batch)):
                output = task.output(model, judged.batch)
            loss = (task.loss(output, judged.reference) * judged.weight).sum()
            gradients = torch.autograd.grad(loss, list(log_k.values()), allow_unused=True)
        for name, gradient in zip(log_k, gradients, strict=True):
            if gradient is not None:
                total[slots.of(name)] -= (repetitions[name] * gradient.cpu()).numpy() / len(signs)
    return total
