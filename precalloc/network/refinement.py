"""`refine`: from the curvature's optimum towards that of the true noisy objective, kept only where it is seen to win.

A few steps of `precalloc.network.descent` on E[L(K)] within the budget, each on one batch under one draw of noise, with
gradients through re-parametrised noise (`precalloc.network.operating_point`). Where noise is strong the loss is no sum
of s_u / K_u: channels act together on the mean of what follows, so only short steps from K to K are to be trusted.

Noise that goes straight into a rectifier is integrated out of the gradients (`precalloc.network.rectifiers`), but for
layers without corrections: their gradients are sums over channels, of which less is chance, so that it would win
nothing.

Where the start is compensated (`precalloc.network.compensation`) K moves to what suits its corrections, and they to
what they are worth: each site's are scaled as a whole, by the gradients of the same steps, since a mean over all
examples and positions is not the shift where the loss sees it. Scales are few, so that a few steps can tell; single
channels' corrections are too many for them. To estimate corrections anew at every K on the way would be dear, and gains
nothing. The comparison at the end sees the start with its corrections scaled, and without them, as well, so that
`compensate` need not look whether they help.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from precalloc.network.descent import LogDescent, ScaleDescent, Schedule, Stateful, joined_state, restore_parts
from precalloc.network.forward import ForwardFn
from precalloc.network.models import model_hash
from precalloc.network.operating_point import References, Slopes, batch_slopes
from precalloc.network.preparation import Prepared, TaskChoices, prepared
from precalloc.network.rectifiers import Blend, integrated_slopes
from precalloc.network.splitting import hold_out
from precalloc.network.state import derived_seed
from precalloc.network.tasks import Task
from precalloc.objective import Granularity, Objective, with_damage
from precalloc.profiles import Profile
from precalloc.progress import Progress, silent
from precalloc.refinements import REFINED, Refinement

_DESCENT, _CHECK = 201, 202
# Fewer cannot tell a gradient from its noise.
_LEAST_STEPS = 4
# Steps, and the length of the first in log K: ever shorter, they reach a factor of 2.6 with corrections at work and of
# fifteen and more without, where K alone bears the shift of means and has farther to go; longer steps serve channels
# there.
_COMPENSATED, _LAYERS, _CHANNELS = Schedule(12, 0.15), Schedule(20, 0.26), Schedule(20, 0.38)
# Length of the first step of the scales of corrections: 12 reach 1.3 to either side of one.
_SCALE_LENGTH = 0.2
# Examples of a step by default, and of the comparison at most.
STEP_EXAMPLES, CHECK_EXAMPLES = 12, 256
# Places of what is compared; the last two where the start has corrections.
_START, _REFINED, _SCALED, _BARE = range(4)


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
    step_examples: int = STEP_EXAMPLES,
    batch_size: int = 32,
    draws: int = 1,
    seed: int = 0,
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> Allocation:
    """Refine an allocation at the noise that it has, within the same energy: its K and the scales of its corrections.

    Two thirds of the calibration data serve the steps, one third (at most 256 examples) the comparison of the result
    with the start under the same noise and, where that is compensated, with the start with its corrections scaled and
    with none.

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
        Stochastic steps, by default 12 from a compensated start and 20 from any other, and examples of each; every
        example takes one noisy pass with gradients.
    batch_size
        Examples at a time at most; bounds the memory, and changes results by rounding alone.
    draws
        Noise draws of the comparison. In each, every example has noise of its own, and few share a device's weight
        errors.
    seed
        Of the noise.
    progress
        Called as ``progress(done, total, what)`` in steps, then in examples of the comparison.
    checkpoint
        File from which an interrupted run goes on.

    Returns
    -------
    Allocation
        The refined one where its loss is lower and its score not surely worse, else the start, with its corrections
        scaled or left out where that lowers its loss, and a note that says so; ``refinement`` says what was seen, with
        intervals.
        Objective, bound and multiplier of a refined one are of the damages for which its K are optimal.

    Raises
    ------
    DataError, ProfileError
        If data, model or allocation are not those of the profile, or steps or draws are too few.
    """
    schedule = schedule_of(allocation) if steps is None else replace(schedule_of(allocation), steps=steps)
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
        identity = f"refinement, damped {profile.provenance} {ready.task.name} {allocation.kmap().digest} {effort}"
        keeper = Checkpoint(checkpoint, identity)
        with keeper.running(descent.state, descent.restore):
            descent.go(progress, keeper)
            plans, checked = descent.plans(), first(held_out, CHECK_EXAMPLES)
            seeds = [derived_seed(seed, _CHECK, draw) for draw in range(draws)]
            seen = Comparison.of(ready, checked, [plan.kmap() for plan in plans], seeds, batch_size, progress)
    return _best(plans, seen, schedule.steps)


def schedule_of(allocation: Allocation) -> Schedule:
    """Steps in log K that are taken from an allocation by default."""
    if allocation.bias_corrections:
        return _COMPENSATED
    return _LAYERS if allocation.granularity is Granularity.LAYER else _CHANNELS


def _best(plans: Sequence[Allocation], seen: Comparison, steps: int) -> Allocation:
    """Choose among the plans of `_Descent.plans`: the best start, or what was refined where it is better."""
    losses = [seen.mean_loss(place) for place in range(len(plans))]
    starts = [place for place in range(len(plans)) if place != _REFINED and not np.isnan(losses[place])]
    start = min(starts, key=losses.__getitem__, default=_BARE if len(plans) > _BARE else _START)
    gain, score_gain = seen.gain(_REFINED, over=start), seen.score_gain(_REFINED, over=start)
    kept = gain[0] > 0.0 and not score_gain[2] < 0.0
    draws, examples = seen.loss.shape[1:]
    found = Refinement(kept, *gain, *score_gain, steps=steps, examples=examples, draws=draws)
    best = plans[_REFINED if kept else start]
    if start != _START and not kept:
        note = _scaled if start == _SCALED else partial(left_out, "allocated")
        best = best.with_notes(note(losses[start], losses[_START]))
    return replace(best, refinement=found)


def _scaled(after: float, before: float) -> str:
    """Say that corrections alone were refined: the loss under noise with them scaled and before."""
    return (
        "The bias corrections of the allocated K map are scaled, each site's by what they were seen to be worth: the "
        f"loss under noise on held-out calibration data fell from {before:.4g} to {after:.4g}."
    )


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
        sites = self._objective.site_of_unit
        self._place = LogDescent(allocator.problem, start.budget_joule, start.repetitions, effort.schedule, sites)
        self._blend = Blend(self._slots.total)
        self._scales = ScaleDescent(start.bias_corrections, replace(effort.schedule, length=_SCALE_LENGTH))

    def go(self, progress: Progress, keeper: Checkpoint) -> None:
        """Take the steps that are not done yet."""
        passes = itertools.chain.from_iterable(
            self._data.batches(self._effort.step_examples) for _ in itertools.repeat(None)
        )
        for batch in itertools.islice(passes, self._place.done, self._effort.schedule.steps):
            mean = self._mean_slopes(batch, derived_seed(self._effort.seed, _DESCENT, self._place.done))
            self._place.step(self._slots.sum_sites(mean.sensitivity) if self._is_layer else mean.sensitivity)
            self._scales.step(mean.corrections)
            keeper.offer(self.state)
            progress(self._place.done, self._effort.schedule.steps, "refining")

    def _mean_slopes(self, batch: Batch, seed: int) -> Slopes:
        """Means over a step's examples under one draw of noise, integrated where that serves."""
        judged = [self._references.of(part) for part in batch.split(self._batch_size)]
        weight = sum(float(each.weight.sum()) for each in judged)
        ready, kmap = self._ready, self._kmap()
        if self._is_layer and not kmap.bias_corrections:
            parts = [
                batch_slopes(ready.model, ready.task, each, kmap, self._slots, seed, (1.0,), ready.layouts)
                for each in judged
            ]
            return Slopes.mean(parts, weight)
        bends = Blend.bends(self._place.done)
        found = [
            integrated_slopes(ready.model, ready.task, each, kmap, self._slots, seed, ready.layouts, bends)
            for each in judged
        ]
        k = self._slots.repeat_sites(self._place.k) if self._is_layer else self._place.k
        return self._blend.slopes(found, weight, k)

    @property
    def _is_layer(self) -> bool:
        return self._start.granularity is Granularity.LAYER

    def _kmap(self) -> KMap:
        units, k = self._objective.site_of_unit, self._place.k
        by_site = {site.name: k[units == index] for index, site in enumerate(self._profile.sites)}
        return replace(self._start.kmap().compensated(self._scales.corrections), repetitions=by_site)

    def plans(self) -> list[Allocation]:
        """What is to be compared: the start and what was refined from it.

        Where the start is compensated, also the start with its corrections scaled, and without any.
        """
        start, beside = self._start, self._start.uniform.bias_corrections
        found = [start, self._refined()]
        if start.bias_corrections:
            found += [start.with_bias_corrections(each, beside) for each in (self._scales.corrections, {})]
        return found

    def _refined(self) -> Allocation:
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
        return found.with_bias_corrections(self._scales.corrections, start.uniform.bias_corrections)

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {"k": self._place, "scales": self._scales, "blend": self._blend}

    def state(self) -> Arrays:
        """Where the steps have led."""
        return joined_state(self._parts)

    def restore(self, arrays: Arrays) -> None:
        """Go on after the finished steps."""
        restore_parts(self._parts, arrays)
