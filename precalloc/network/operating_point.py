"""What a network loses at a K map's own noise, and how that changes with every K.

Curvature looks at vanishing noise. At the noise that a K map has, the loss E[L(K)] over noise and examples answers to
log K_u by

    s_u(K) = -K_u^2 dE[L] / dK_u = -K_u dE[L] / d log K_u,

the local sensitivity: where damage is exactly s_u / K_u it is the same s_u at every K, and elsewhere it takes in what
curvature cannot see, above all the shift of means behind nonlinearities. With re-parametrised noise e_i = sigma_i z_i /
sqrt(K_u) the derivative is an expectation of gradients (Kingma and Welling 2014, arXiv:1312.6114),

    s_u(K) = K_u / 2 E[ sum_{i in u} e_i dL / dy_i ],

here over pairs of opposite noise z and -z, which cancels the part that is linear in the noise. Of the same backward
pass are the slopes dL / dc in the bias corrections that are at work.
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
from precalloc.network.noise import NoiseInjector, SiteNoise, strengths
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


@dataclass(frozen=True)
class Slopes:
    """How the loss of a batch under noise answers to K and to bias corrections, weighted as its examples count.

    Parameters
    ----------
    sensitivity : (channels,)
        Sum over the examples of the local sensitivities s_u.
    corrections : site name -> (channels,)
        Sum over the examples of dL / dc, of every site that has corrections.
    """

    sensitivity: FloatArray
    corrections: dict[str, FloatArray]

    @classmethod
    def mean(cls, parts: Sequence[Slopes], weight: float) -> Slopes:
        """Sum of several over their weight."""
        return cls(
            np.sum([part.sensitivity for part in parts], axis=0) / weight,
            {
                site: np.sum([part.corrections[site] for part in parts], axis=0) / weight
                for site in parts[0].corrections
            },
        )


class OperatingPoint:
    """A K map whose K and bias corrections are variables of autograd.

    Parameters
    ----------
    kmap
        Bias corrections included. Sites with one K for all channels are told apart by channel all the same.
    slots
        Where each site's channels stand.
    """

    def __init__(self, kmap: KMap, slots: ChannelSlots, device: torch.device) -> None:
        self._kmap, self._slots, self._device = kmap, slots, device
        of_sites = {
            name: np.broadcast_to(kmap.repetitions[name], (channels,)) for name, channels in slots.channels.items()
        }
        self.k: FloatArray = np.concatenate(list(of_sites.values()), dtype=np.float64)
        self._log_k = torch.from_numpy(self.k).log().to(device).requires_grad_()
        self._biases = {
            name: torch.tensor(correction, device=device).requires_grad_()
            for name, correction in kmap.bias_corrections.items()
        }

    @property
    def leaves(self) -> list[Tensor]:
        """The variables: log K of all channels, then the corrections."""
        return [self._log_k, *self._biases.values()]

    def injector(self, seed: int, sign: float, layouts: SiteLayouts | None, batch: Batch) -> NoiseInjector:
        """Injector for one batch, which comes next; with ``layouts`` every example has noise of its own."""
        sites, channels = SiteNoise.digital(self._kmap.digital, self._biases), self._slots.channels
        of_all = strengths(self._kmap.hardware, self._log_k.exp())  # site by site, small operators take the time
        of_sites = {kind: values.split(list(channels.values())) for kind, values in of_all.items()}
        for place, name in enumerate(channels):
            strength = {kind: values[place] for kind, values in of_sites.items()}
            sites[name] = SiteNoise(strength, self._kmap.ranges[name], self._biases.get(name))
        injector = NoiseInjector(sites, seed, self._device, sign, layouts or {})
        return injector if layouts is None else injector.at(batch)

    def slopes(self, gradients: Sequence[Tensor | None]) -> Slopes:
        """Slopes from gradients of the loss at `leaves`; None where it does not depend on one."""
        uphill, *of_biases = (
            np.zeros(len(leaf)) if gradient is None else gradient.cpu().numpy()
            for leaf, gradient in zip(self.leaves, gradients, strict=True)
        )
        return Slopes(self.k * -uphill, dict(zip(self._biases, of_biases, strict=True)))


def batch_slopes(
    model: nn.Module,
    task: Task,
    judged: Judged,
    kmap: KMap,
    slots: ChannelSlots,
    seed: int,
    signs: Sequence[float] = (1.0, -1.0),
    layouts: SiteLayouts | None = None,
) -> Slopes:
    """Slopes of a batch's loss under noise at a K map.

    Parameters
    ----------
    kmap, slots
        As of `OperatingPoint`.
    seed
        Of one noise draw, weight errors included.
    signs
        Of the draw, averaged over; by default both.
    layouts
        How sites number the examples; with them every example has noise of its own, whatever batch it comes in.
    """
    point, found = OperatingPoint(kmap, slots, model_device(model)), []
    for sign in signs:
        with torch.enable_grad():
            with intercept(model, point.injector(seed, sign, layouts, judged.batch)):
                output = task.output(model, judged.batch)
            loss = (task.loss(output, judged.reference) * judged.weight).sum()
            found.append(point.slopes(torch.autograd.grad(loss, point.leaves, allow_unused=True)))
    return Slopes.mean(found, len(signs))
