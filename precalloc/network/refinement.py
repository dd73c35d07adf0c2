"""`refine`: from the curvature's optimum towards that of the true noisy objective, kept only where it is seen to win.

A few steps of `precalloc.network.descent` on E[L(K)] within the budget, each on one batch under one draw of noise, with
gradients through re-parametrised noise (`precalloc.network.operating_point`). Where noise is strong the loss is no sum
of s_u / K_u: channels act together on the mean of what follows, so only short steps from K to K are to be trusted.

Where the start is compensated (`precalloc.network.compensation`) its corrections stay as they are, and K moves to what
suits them. To estimate corrections anew at every K on the way would be dear, and gains nothing. The comparison at the
end sees the start without them as well, so that `compensate` need not look whether they help.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from precalloc.allocation import Allocation
from precalloc.allocator import Allocator
from precalloc.budgets import Budget, BudgetKind
from precalloc.errors import DataError, ProfileError
from precalloc.kmaps import KMap
from precalloc.network.batches import Batch
from precalloc.network.checkpoints import Arrays, Checkpoint
from precalloc.network.comparison import Comparison
from precalloc.network.compensation import left_out
from precalloc.network.criteria import LossFn, MetricFn
from precalloc.network.curvature import ChannelSlots
from precalloc.network.data import Data, as_data, data_hash
from precalloc.network.data_parts import first
from precalloc.network.descent import LogDescent, Schedule
from precalloc.network.forward import ForwardFn
from precalloc.network.models import model_hash
from precalloc.network.operating_point import References, batch_sensitivity
from precalloc.network.preparation import Prepared, TaskChoices, prepared
from precalloc.network.splitting import hold_out
from precalloc.network.state import derived_seed
from precalloc.network.tasks import Task
from precalloc.objective import Granularity, Objective, with_damage
from precalloc.profiles import FloatArray, Profile
from precalloc.progress import Progress, silent
from precalloc.refinements import REFINED, Refinement

_DESCENT, _CHECK = 201, 202
# Fewer cannot tell a gradient from its noise.
_LEAST_STEPS = 4
# Steps, and the length of the first in log K, by whether corrections are at work: ever shorter, they reach a factor of
# four with them and of 26 without, where K alone bears the shift of means and has farther to go.
_SCHEDULES = {True: Schedule(24, 0.12), False: Schedule(40, 0.16)}
_CHECK_EXAMPLES = 256


def refine(
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
    steps: int | None = None,
    step_examples: int = 6,
    batch_size: int = 32,
    draws: int = 1,
    seed: int = 0,
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> Allocation:
    """Refine an allocation at the noise that it has, within the same energy.

    Two thirds of the calibration data serve the steps, one third (at most 256 examples) the comparison of the result
    with the start under the same noise and, where that is compensated, with the start without its corrections.

    Parameters
    ----------
    model
        The network that was profiled; left as it was.
    data
        The calibration data of the profile, and no other: what K is chosen on must be known to later checks.
    profile, allocation
        The profile, and what was allocated from it.
    task, forward_fn, loss_fn, metric_fn, output
        As for `precalloc.profile`.
    steps, step_examples
        Stochastic steps, by default 24 from a compensated start and 40 from any other, and examples of each; every
        example takes one noisy pass with gradients.
    batch_size
        Examples at a time at most; bounds the memory, and changes results by rounding alone.
    draws
        Noise draws of the comparison. In each, every example has noise of its own, and few share a device's weight
        errors.
    seed
        Of the noise.
    progress
        Called as ``progress(done, total, what)`` in steps.
    checkpoint
        File from which an interrupted run goes on.

    Returns
    -------
    Allocation
        The refined one where its loss is lower and its score not surely worse, else the start, without corrections
        where these raise its loss, and a note that says so; ``refinement`` says what was seen, with intervals.
        Objective, bound and multiplier of a refined one are of the damages for which its K are optimal.

    Raises
    ------
    DataError, ProfileError
        If data, model or allocation are not those of the profile, or steps or draws are too few.
    """
    schedule = _SCHEDULES[bool(allocation.bias_corrections)]
    schedule = schedule if steps is None else replace(schedule, steps=steps)
    if schedule.steps < _LEAST_STEPS:
        raise DataError(f"{schedule.steps} steps are too few to tell anything. Take at least {_LEAST_STEPS}.")
    if draws < 1:
        raise DataError(f"{draws} noise draws show no difference. Take at least 1.")
    source = as_data(data)
    _require_same(model, source, profile, allocation)
    profile = profile.select(allocation.choices.analog(profile.sites))
    choices = TaskChoices(task, forward_fn, loss_fn, metric_fn, output)
    with prepared(model, source, allocation.kmap(), choices, batch_size) as ready:
        chosen_on, held_out = hold_out(source)
        effort = _Effort(schedule, step_examples, seed)
        descent = _Descent(ready, chosen_on, profile, allocation, effort, batch_size)
        identity = f"refinement {profile.provenance} {ready.task.name} {allocation.kmap().digest} {effort}"
        keeper = Checkpoint(checkpoint, identity)
        with keeper.running(descent.state, descent.restore):
            descent.go(progress, keeper)
        refined = descent.allocation()
        plans, checked = [allocation, refined], first(held_out, _CHECK_EXAMPLES)
        if allocation.bias_corrections:
            plans.append(allocation.with_bias_corrections({}, allocation.uniform.bias_corrections))
        seeds = [derived_seed(seed, _CHECK, draw) for draw in range(draws)]
        seen = Comparison.of(ready, checked, [plan.kmap() for plan in plans], seeds, batch_size)
    return _best(plans, seen, schedule.steps)


def _best(plans: Sequence[Allocation], seen: Comparison, steps: int) -> Allocation:
    """Choose among a start, what was refined from it and, if there is a third, the start without its corrections."""
    start, refined = 0, 1
    if len(plans) > 2 and not seen.gain(start, over=2)[0] >= 0.0:  # nor for NaN
        start = 2
    gain, score_gain = seen.gain(refined, over=start), seen.score_gain(refined, over=start)
    kept = gain[0] > 0.0 and not score_gain[2] < 0.0
    draws, examples = seen.loss.shape[1:]
    found = Refinement(kept, *gain, *score_gain, steps=steps, examples=examples, draws=draws)
    best = plans[refined if kept else start]
    if start == 2 and not kept:
        best = best.with_notes(left_out("allocated", seen.mean_loss(2), seen.mean_loss(0)))
    return replace(best, refinement=found)


def _require_same(model: nn.Module, data: Data, profile: Profile, allocation: Allocation) -> None:
    if data_hash(data) != profile.provenance.data_hash:
        raise DataError(
            "The data is not what the profile was measured on. Refine on the same calibration data: "
            "later checks must be able to tell what K was chosen on."
        )
    if model_hash(model) != profile.provenance.model_hash:
        raise ProfileError("The model is not the one that was profiled: its weights differ. Profile it again.")
    if allocation.provenance.data_hash != profile.provenance.data_hash or len(
        (*allocation, *allocation.digital)
    ) != len(profile.sites):
        raise ProfileError("The allocation was not made from this profile. Allocate again.")


@dataclass(frozen=True)
class _Effort:
    schedule: Schedule
    step_examples: int
    seed: int


class _Descent:
    """Steps down the noisy loss, each on some examples."""

    def __init__(
        self, ready: Prepared, data: Data, profile: Profile, start: Allocation, effort: _Effort, batch_size: int
    ) -> None:
        self._ready, self._data, self._profile, self._start = ready, data, profile, start
        self._effort, self._batch_size, self._references = effort, batch_size, References(ready.model, ready.task)
        self._slots = ChannelSlots.of_sites({site.name: site.channels for site in profile.sites})
        choices = start.choices.of_analog()
        allocator = Allocator.of(profile, start.hardware, start.granularity, choices=choices)
        self._objective = allocator.objective
        self._place = LogDescent(allocator.problem, start.budget_joule, start.repetitions, effort.schedule)

    def go(self, progress: Progress, keeper: Checkpoint) -> None:
        """Take the steps that are not done yet."""
        passes = itertools.chain.from_iterable(
            self._data.batches(self._effort.step_examples) for _ in itertools.repeat(None)
        )
        for batch in itertools.islice(passes, self._place.done, self._effort.schedule.steps):
            mean = self._mean_sensitivity(batch, derived_seed(self._effort.seed, _DESCENT, self._place.done))
            self._place.step(self._slots.sum_sites(mean) if self._is_layer else mean)
            keeper.offer(self._place.state)
            progress(self._place.done, self._effort.schedule.steps, "refining")

    def _mean_sensitivity(self, batch: Batch, seed: int) -> FloatArray:
        """Mean over a step's examples of the local sensitivities under one draw of noise, (channels,)."""
        ready, total, weight = self._ready, np.zeros(self._slots.total), 0.0
        for part in batch.split(self._batch_size):
            judged = self._references.of(part)
            total += batch_sensitivity(
                ready.model, ready.task, judged, self._kmap(), self._slots, seed, (1.0,), ready.layouts
            )
            weight += float(judged.weight.sum())
        return total / weight

    @property
    def _is_layer(self) -> bool:
        return self._start.granularity is Granularity.LAYER

    def _kmap(self) -> KMap:
        units, k = self._objective.site_of_unit, self._place.k
        by_site = {site.name: k[units == index] for index, site in enumerate(self._profile.sites)}
        return replace(self._start.kmap(), repetitions=by_site)

    def allocation(self) -> Allocation:
        """Allocate the start's energy by the damages for which the K that was reached is optimal."""
        start, k = self._start, self._place.k
        damage = self._place.optimal_damage(least=float(np.sum(self._objective.damage / k)))
        if self._is_layer:
            curvature = Objective.of(self._profile, start.hardware, Granularity.CHANNEL).damage
            damage = self._slots.repeat_sites(damage) * self._slots.shares(curvature)
        local = with_damage(self._profile, start.hardware, damage, self._profile.provenance.estimator + REFINED)
        choices = start.choices.of_analog()
        allocator = Allocator.of(local, start.hardware, start.granularity, seed=start.seed, choices=choices)
        found = allocator.within(Budget(BudgetKind.ENERGY, start.budget_joule))
        found = replace(
            found, request=start.request, max_drop=start.max_drop, choices=start.choices, digital=start.digital
        )
        return found.with_bias_corrections(start.bias_corrections, start.uniform.bias_corrections)

    def state(self) -> Arrays:
        """Where the steps have led."""
        return self._place.state()

    def restore(self, arrays: Arrays) -> None:
        """Go on after the finished steps."""
        self._place.restore(arrays)
