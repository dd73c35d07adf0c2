"""Compensation: digital bias corrections that take away the mean shift which noise causes behind nonlinearities.

Zero-mean noise before a ReLU, GELU or softmax changes the mean of what follows, E[f(y + e)] = f(y) + f''(y) E[e^2] / 2
to second order. The change has one sign at all positions, so pooling does not average it away; a constant per channel
at the next product, which hardware adds digitally anyway, does. The corrections are those of

    c_l = -E[ mean over examples and positions of (noisy y_l - clean y_l) ],   with c_1 ... c_{l-1} at work,

layer by layer in order of execution: to correct every layer at once for the shift that it has without corrections
counts an early shift again at every later layer, and diverges on deep networks. It is the bias correction of quantised
networks (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019,
arXiv:1906.04721, section 4.2) with noise in the place of rounding.

One sweep does all layers: within a noisy pass every site takes its own correction before the pass goes on. The running
averages converge whatever the depth, since each depends on those of earlier sites only. Passes come in pairs of
opposite noise, which cancels the part of the measured means that is linear in the noise. What remains averages away
over examples and positions where noise is each one's own; errors of weights are common to all that a device computes,
so that devices change every few examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from precalloc.allocation import Allocation
from precalloc.errors import DataError, HardwareError, ModelError
from precalloc.hardware import NoiseKind
from precalloc.kmaps import KMap
from precalloc.network.checkpoints import Arrays, Checkpoint
from precalloc.network.criteria import LossFn, MetricFn
from precalloc.network.data import Data, as_data, data_hash
from precalloc.network.data_parts import first
from precalloc.network.forward import ForwardFn, model_device
from precalloc.network.interception import intercept
from precalloc.network.models import model_hash
from precalloc.network.noise import NoiseInjector
from precalloc.network.operating_point import References
from precalloc.network.preparation import Prepared, TaskChoices, prepared
from precalloc.network.shifts import ShiftAverages
from precalloc.network.state import derived_seed
from precalloc.network.tasks import Task
from precalloc.profiles import FloatArray
from precalloc.progress import Progress, silent

# Passes of random numbers that no simulation of the same seed sees again: corrections must not know its devices.
_ESTIMATION, _CHECK = 101, 102
# Averages move on from step to step, and so do devices, so that steps are shorter where weights have errors. The check
# runs without and with corrections on the same devices, so that few will do. A step has so many examples, or fewer
# where a product of theirs would have more values: that bounds the memory whatever batch size is asked for, and does
# not change with it.
_STEP, _DEVICE_STEP, _STEP_VALUES = 32, 8, 2**26
# By default, here and where predictions are calibrated for compensated K maps.
DRAWS, EXAMPLES = 2, 128
# Where refinement comes next, which scales each site's corrections by what they are worth. Errors of weights take all:
# half as many examples have half as many devices, which is too few.
_SCALED_EXAMPLES = 64

Plan = TypeVar("Plan", KMap, Allocation)


@dataclass(frozen=True)
class Compensation:
    """Bias corrections and what they were seen to do on the data that they were estimated on, under other noise.

    Parameters
    ----------
    corrections : site name -> (channels,)
        To add to every product with a static weight, in its units.
    losses
        Mean loss under noise without and with them, the same noise in both; None where nobody looked.
    """

    corrections: Mapping[str, FloatArray]
    losses: tuple[float, float] | None

    @property
    def kept(self) -> Mapping[str, FloatArray]:
        """The corrections, or none where they were seen to raise the mean loss under noise."""
        return self.corrections if self.losses is None or self.losses[1] <= self.losses[0] else {}  # none for NaN


@dataclass(frozen=True)
class Effort:
    """How much is measured: noise draws an example, their seed, examples, and on how many the model is tried first."""

    draws: int
    seed: int
    examples: int
    batch_size: int


def compensate(
    model: nn.Module,
    data: object,
    plan: Plan,
    *,
    task: Task | str | None = None,
    forward_fn: ForwardFn | None = None,
    loss_fn: LossFn | None = None,
    metric_fn: MetricFn | None = None,
    output: str | int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    examples: int | None = None,
    batch_size: int = 32,
    check: bool = True,
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> Plan:
    """Add bias corrections to a K map, or to an allocation and to the uniform one beside it.

    Where corrections would raise the loss under noise on the same data they are left out: a K map comes back without,
    an allocation with a note that says so.

    Parameters
    ----------
    model
        The network that was profiled; left as it was.
    data
        Calibration data; labels are used only to check that the corrections help.
    plan
        K map or allocation. Corrections are for its K: another K needs others.
    task, forward_fn, loss_fn, metric_fn, output
        As for `precalloc.profile`.
    draws
        Noise draws an example, in pairs of opposite sign. Weight noise has another device for every eight examples and
        pair, and one correction for all devices.
    seed
        Of the noise.
    examples
        How many of them are used; by default 128, and 64 for corrections that refinement scales next (``check`` is
        False) if no noise is of weights.
    batch_size
        Examples on which the model is tried before. How many a pass takes depends on the model alone.
    check
        Whether to look at the loss with and without the corrections of the K map or allocation. `precalloc.refine`
        does so on held-out examples: where it comes next, once is enough. Those of the uniform map are always checked.
    progress
        Called as ``progress(done, total, what)`` in examples.
    checkpoint
        File from which an interrupted run goes on.

    Raises
    ------
    HardwareError
        If the hardware has no digital biases.
    ModelError, DataError
        If model or data are not those that the allocation's profile was measured on.
    KMapError
        If the K map is of another network.
    """
    source, choices = as_data(data), TaskChoices(task, forward_fn, loss_fn, metric_fn, output)
    whole = Effort(max(2, draws + draws % 2), seed, EXAMPLES if examples is None else examples, batch_size)
    scaled = examples is None and not check and NoiseKind.WEIGHT not in plan.hardware.kinds
    effort = replace(whole, examples=_SCALED_EXAMPLES) if scaled else whole
    if isinstance(plan, KMap):
        return plan.compensated(estimate(model, source, plan, choices, effort, check, progress, checkpoint).kept)
    require_calibration(model, source, plan)
    found = dict[str, Compensation]()
    for name, kmap, wanted, looks in (
        ("allocated", plan.kmap(), effort, check),
        ("uniform", plan.uniform_kmap(), whole, True),
    ):
        kept = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}.{name}")
        found[name] = estimate(model, source, kmap, choices, wanted, looks, progress, kept)
    notes = [left_out(name, *each.losses) for name, each in found.items() if each.losses and not each.kept]
    return plan.with_bias_corrections(found["allocated"].kept, found["uniform"].kept).with_notes(*notes)


def require_calibration(model: nn.Module, data: object, allocation: Allocation) -> None:
    """Refuse a model or data other than those of an allocation's profile.

    Raises
    ------
    ModelError, DataError
        As named.
    """
    if model_hash(model) != allocation.provenance.model_hash:
        raise ModelError("The model is not the one that was profiled: its weights differ. Profile it again.")
    if data_hash(as_data(data)) != allocation.provenance.data_hash:
        raise DataError(
            "The data is not the calibration data of the profile. Compensate on the data that was profiled: "
            "validation must not meet what the corrections were estimated on."
        )


def left_out(name: str, before: float, after: float) -> str:
    """Say why a K map has no corrections: the loss under noise without and with them."""
    return (
        f"The mean shift of the {name} K map is not compensated: bias corrections raised the loss under noise on "
        f"calibration data from {before:.4g} to {after:.4g}."
    )


def estimate(
    model: nn.Module,
    data: object,
    kmap: KMap,
    choices: TaskChoices,
    effort: Effort,
    check: bool = True,
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> Compensation:
    """Estimate a K map's bias corrections and, to check them, the loss without and with them, as `compensate` does."""
    _require_digital_biases(kmap)
    source, bare = first(as_data(data), effort.examples), kmap.compensated({})
    with prepared(model, source, bare, choices, effort.batch_size) as ready:
        sweep = _Sweep(ready, source, bare, effort)
        identity = f"compensation {model_hash(model)} {data_hash(source)} {ready.task.name} {bare.digest} {effort}"
        keeper = Checkpoint(checkpoint, identity)
        with keeper.running(sweep.state, sweep.restore):
            sweep.go(progress, keeper)
        corrections = sweep.corrections()
        return Compensation(corrections, sweep.losses((bare, bare.compensated(corrections))) if check else None)


def _require_digital_biases(kmap: KMap) -> None:
    if not kmap.hardware.digital_biases:
        raise HardwareError(
            f"Hardware {kmap.hardware.name!r} has no digital biases to fold corrections into. "
            "If it adds biases digitally, say so in its file: [digital] biases = true."
        )


class _Sweep:
    """Running averages of every site's correction over batches and noise draws."""

    def __init__(self, ready: Prepared, data: Data, kmap: KMap, effort: Effort) -> None:
        self._model, self._task, self._data, self._kmap, self._effort = ready.model, ready.task, data, kmap, effort
        self._checked = min(_STEP, max(1, _STEP_VALUES // ready.values))
        self._step = min(_DEVICE_STEP, self._checked) if NoiseKind.WEIGHT in kmap.hardware.kinds else self._checked
        self._keeps = ready.keeps_noise(self._checked)
        self._shifts = ShiftAverages()
        self._settled: Arrays = {"done": np.array(0), "weight": np.array(0.0)}

    def go(self, progress: Progress, keeper: Checkpoint) -> None:
        """Take the pairs of draws that are not done yet."""
        forward, total = self._task.forward, self._effort.draws * self._data.examples
        for pair in range(int(self._settled["done"]), self._effort.draws // 2):
            done = 2 * pair * self._data.examples
            for index, batch in enumerate(self._data.batches(self._step)):
                self._shifts.expect(self._model, batch, forward)
                noise = self._injector(self._kmap, 1.0, None, _ESTIMATION, pair, index)
                opposite = self._injector(self._kmap, -1.0, noise, _ESTIMATION, pair, index)
                self._shifts.measure(self._model, batch, forward, (noise, opposite))
                done += 2 * batch.size
                progress(done, total, "compensating")
            self._settle(pair + 1)
            keeper.offer(self.state)

    def _settle(self, pairs: int) -> None:
        """Note the averages after whole pairs of draws: an interrupted pair is taken again."""
        shifts = {f"shift/{site}": value.cpu().numpy() for site, value in self._shifts.average.items()}
        self._settled = shifts | {"done": np.array(pairs), "weight": np.array(self._shifts.weight)}

    def losses(self, kmaps: tuple[KMap, KMap]) -> tuple[float, float]:
        """Mean loss under one draw of noise, the same for both K maps, which differ in bias corrections alone."""
        totals, weight, references = [0.0, 0.0], 0.0, References(self._model, self._task)
        for index, batch in enumerate(self._data.batches(self._checked)):
            judged = references.of(batch)
            injector = None
            for place, kmap in enumerate(kmaps):
                injector = self._injector(kmap, (-1.0) ** index, injector, _CHECK, index)
                with intercept(self._model, injector):
                    noisy = self._task.output(self._model, batch)
                totals[place] += float((self._task.loss(noisy, judged.reference) * judged.weight).sum())
            weight += float(judged.weight.sum())
        return totals[0] / weight, totals[1] / weight

    def _injector(self, kmap: KMap, sign: float, twin: NoiseInjector | None, *purpose: int) -> NoiseInjector:
        seed, device = derived_seed(self._effort.seed, *purpose), model_device(self._model)
        return NoiseInjector.of(kmap, seed, device, sign, twin=twin, keeps=self._keeps)

    def corrections(self) -> dict[str, FloatArray]:
        """Corrections by site name, in order of execution."""
        return {site: -shift.cpu().double().numpy() for site, shift in self._shifts.average.items()}

    def state(self) -> Arrays:
        """Averages after the finished pairs of draws."""
        return self._settled

    def restore(self, arrays: Arrays) -> None:
        """Go on after the finished pairs of draws."""
        self._settled, device = arrays, model_device(self._model)
        average = {
            name.removeprefix("shift/"): torch.from_numpy(values).to(device)
            for name, values in arrays.items()
            if name.startswith("shift/")
        }
        self._shifts = ShiftAverages(average, float(arrays["weight"]))
