"""`refine`: from the curvature's optimum to that of the true noisy objective, kept only where it is seen to win.

The K map that minimises E[L(K)] within an energy budget satisfies s_u(K) = lambda c_u K_u^2 with the local
sensitivities s_u(K) = -K_u^2 dE[L]/dK_u of `precalloc.network.operating_point`: it is the answer of the convex
allocation to its own local sensitivities. Stochastic primal-dual steps towards that fixed point: each measures s(K) on
one batch, joins it to what earlier steps saw with weights that decay, solves the convex problem (whose multiplier is
the dual), and goes half of the way there in log K. Where damage is s_u / K_u the first step is the last; where noise is
strong it is not.

Where the start is compensated (`precalloc.network.compensation`) so is every K on the way: corrections are estimated
anew after every step, and sensitivities are those that compensation leaves. Corrections of another K would do harm:
with less noise than they are for they overcorrect, and more K would seem to be worse.

What a few hundred examples say is uncertain, so estimates are drawn towards what is known before: a site's towards its
curvature, times the factor that sites have in common (second-order damage misses much the same everywhere); a channel's
towards its share of its site's curvature.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from precalloc.accuracy import paired_difference
from precalloc.allocation import Allocation
from precalloc.allocator import Allocator
from precalloc.budgets import Budget, BudgetKind
from precalloc.errors import DataError, ProfileError
from precalloc.kmaps import KMap
from precalloc.network.checkpoints import Arrays, Checkpoint
from precalloc.network.compensation import Effort as CorrectionEffort
from precalloc.network.compensation import compensate, estimate
from precalloc.network.criteria import LossFn, MetricFn
from precalloc.network.curvature import ChannelSlots
from precalloc.network.data import Data, as_data, data_hash
from precalloc.network.folding import fold_batch_norm
from precalloc.network.forward import ForwardFn, model_device
from precalloc.network.models import check_model, model_hash
from precalloc.network.noise import NoiseInjector
from precalloc.network.operating_point import Judged, References, batch_sensitivity, noisy_values
from precalloc.network.preparation import TaskChoices
from precalloc.network.splitting import hold_out
from precalloc.network.state import derived_seed, untouched
from precalloc.network.tasks import Task, resolve_task
from precalloc.objective import Granularity, Objective, with_damage
from precalloc.profiles import FloatArray, Profile
from precalloc.progress import Progress, silent
from precalloc.refinements import Refinement
from solvers import Problem, solve

_DESCENT, _CHECK = 201, 202
# Steps before K first moves: an error needs several batches.
_SETTLING = 4
# Windows in which a step's weight falls to 1 / e of the newest's: what was seen far from here is forgotten.
_WINDOWS = 4.0
# Single channels are told apart by more noise than whole layers.
_STEPS = {Granularity.LAYER: 24, Granularity.CHANNEL: 96}
_DAMPING = 0.5
# Of the prior: an estimate may be negative by chance, a sensitivity hardly.
_LEAST = 0.02
_CHECK_EXAMPLES = 600
# What the corrections of each step are estimated from.
_CORRECTION_DRAWS, _CORRECTION_EXAMPLES = 2, 64


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
    batch_size: int = 32,
    draws: int = 4,
    seed: int = 0,
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> Allocation:
    """Refine an allocation at the noise that it has, within the same energy.

    Two thirds of the calibration data serve the steps, one third (at most 600 examples) the comparison of the result
    with the start under the same noise.

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
    steps, batch_size
        Stochastic steps (24 at layer granularity and 96 at channel granularity unless given), and examples of each;
        every example takes two noisy passes with gradients.
    draws
        Noise draws of the comparison.
    seed
        Of the noise.
    progress
        Called as ``progress(done, total, what)`` in steps.
    checkpoint
        File from which an interrupted run goes on.

    Returns
    -------
    Allocation
        The refined one where the interval of what it wins is above zero, else the start; ``refinement`` says what was
        seen. Objective, bound and multiplier of a refined one count local sensitivities, mean shifts included.

    Raises
    ------
    DataError, ProfileError
        If data, model or allocation are not those of the profile.
    """
    steps = _STEPS[allocation.granularity] if steps is None else steps
    if steps < _SETTLING:
        raise DataError(f"{steps} steps are too few to estimate anything. Take at least {_SETTLING}.")
    source = as_data(data)
    _require_same(model, source, profile, allocation)
    profile = profile.select(allocation.choices.analog(profile.sites))
    check_model(model)
    with untouched(model):
        first = next(source.batches(batch_size))
        judged = resolve_task(task, model, first, forward_fn, loss_fn, metric_fn, output)
        ready, _ = fold_batch_norm(model, lambda m: judged.forward.run(m, first))
        chosen_on, held_out = hold_out(source)
        descent = _Descent(ready, judged, chosen_on, profile, allocation, _Effort(steps, batch_size, seed))
        identity = f"refinement {profile.provenance} {judged.name} {allocation.by_site} {descent.effort}"
        keeper = Checkpoint(checkpoint, identity)
        with keeper.running(descent.state, descent.restore):
            descent.go(progress, keeper)
        refined = descent.allocation()
        if allocation.bias_corrections:
            corrected = compensate(model, source, refined.kmap(), task=judged, seed=seed, batch_size=batch_size)
            refined = refined.with_bias_corrections(corrected.bias_corrections, allocation.uniform.bias_corrections)
        seen = _compare(ready, judged, held_out, [allocation.kmap(), refined.kmap()], draws, seed, steps)
    return replace(refined if seen.kept else allocation, refinement=seen)


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
    steps: int
    batch_size: int
    seed: int


class _Descent:
    """Steps towards the fixed point, each on one batch."""

    def __init__(
        self, model: nn.Module, task: Task, data: Data, profile: Profile, start: Allocation, effort: _Effort
    ) -> None:
        self._model, self._task, self._data, self._profile, self._start = model, task, data, profile, start
        self.effort, self._references = effort, References(model, task)
        self._slots = ChannelSlots.of_sites({site.name: site.channels for site in profile.sites})
        choices = start.choices.of_analog()
        self._allocator = Allocator.of(profile, start.hardware, start.granularity, choices=choices)
        self._curvature = Objective.of(profile, start.hardware, Granularity.CHANNEL).damage
        self._k = start.repetitions
        self._seen: list[FloatArray] = []
        self._corrections = dict(start.bias_corrections)

    def go(self, progress: Progress, keeper: Checkpoint) -> None:
        """Take the steps that are not done yet."""
        passes = itertools.chain.from_iterable(
            self._data.batches(self.effort.batch_size) for _ in itertools.repeat(None)
        )
        for batch in itertools.islice(passes, len(self._seen), self.effort.steps):
            judged = self._references.of(batch)
            seed = derived_seed(self.effort.seed, _DESCENT, len(self._seen))
            total = batch_sensitivity(self._model, self._task, judged, self._kmap(), self._slots, seed)
            self._seen.append(total / float(judged.weight.sum()))
            if len(self._seen) >= _SETTLING:
                self._step()
                if self._corrections:
                    self._correct()
            keeper.offer(self.state)
            progress(len(self._seen), self.effort.steps, "refining")

    def _step(self) -> None:
        problem, sensitivity = self._allocator.problem, self._sensitivity()
        damage = self._profile.sum_channels(sensitivity) if self._is_layer else sensitivity
        budget, bounds = self._start.budget_joule, (problem.k_min, problem.k_max)
        relaxed = Problem(damage, problem.cost, budget, *bounds, "continuous", ties=problem.ties)
        self._k = self._k ** (1.0 - _DAMPING) * solve(relaxed).k ** _DAMPING

    def _correct(self) -> None:
        effort = CorrectionEffort(_CORRECTION_DRAWS, self.effort.seed, _CORRECTION_EXAMPLES, self.effort.batch_size)
        found = estimate(self._model, self._data, self._kmap(), TaskChoices(self._task), effort)
        self._corrections = dict(found.corrections)

    @property
    def _is_layer(self) -> bool:
        return self._start.granularity is Granularity.LAYER

    def _kmap(self) -> KMap:
        units = self._allocator.objective.site_of_unit
        by_site = {site.name: self._k[units == index] for index, site in enumerate(self._profile.sites)}
        return replace(self._start.kmap(), repetitions=by_site, bias_corrections=self._corrections)

    def _sensitivity(self) -> FloatArray:
        """Local sensitivities (channels,) from all batches so far and from the curvature."""
        seen, curvature = np.stack(self._seen), self._curvature
        site_curvature, decay = self._slots.sum_sites(curvature), math.exp(-_WINDOWS / self.effort.steps)
        sites = settle_sites(*decayed_mean(self._slots.sum_sites(seen, axis=1), decay), site_curvature)
        factor = np.divide(sites, site_curvature, out=np.ones_like(sites), where=site_curvature > 0.0)
        prior: FloatArray = curvature * self._slots.repeat_sites(factor)
        if self._is_layer:
            return prior
        return draw_towards(*decayed_mean(seen, decay), prior, prior)

    def allocation(self) -> Allocation:
        """Allocate the start's energy by the local sensitivities."""
        estimator = f"{self._profile.provenance.estimator}, refined"
        local = with_damage(self._profile, self._start.hardware, self._sensitivity(), estimator)
        start = self._start
        choices = start.choices.of_analog()
        allocator = Allocator.of(local, start.hardware, start.granularity, seed=start.seed, choices=choices)
        found = allocator.within(Budget(BudgetKind.ENERGY, start.budget_joule))
        return replace(
            found, request=start.request, max_drop=start.max_drop, choices=start.choices, digital=start.digital
        )

    def state(self) -> Arrays:
        """What was seen so far, and where it led."""
        corrections = {f"correction/{site}": values for site, values in self._corrections.items()}
        return {"seen": np.array(self._seen).reshape(-1, self._slots.total), "k": self._k, **corrections}

    def restore(self, arrays: Arrays) -> None:
        """Go on after the finished steps."""
        self._seen, self._k = list(arrays["seen"]), arrays["k"]
        self._corrections = {site: arrays[f"correction/{site}"] for site in self._corrections}


def decayed_mean(values: FloatArray, decay: float) -> tuple[FloatArray, FloatArray]:
    """Mean of (steps, units) with weights that decay into the past, and its standard error."""
    weight = decay ** np.arange(len(values))[::-1]
    share = weight / weight.sum()
    mean: FloatArray = share @ values
    squares = share**2
    error: FloatArray = np.sqrt(squares @ (values - mean) ** 2 / (1.0 - squares.sum()))
    return mean, error


def settle_sites(value: FloatArray, error: FloatArray, curvature: FloatArray) -> FloatArray:
    """Sensitivities of sites from noisy estimates and curvature, (sites,).

    The prior is the curvature times the median ratio between the two; how far a site may be from it is as uncertain as
    the larger of prior and estimate, since strong noise makes single sites hundreds of times as sensitive.
    """
    known = curvature > 0.0
    if not known.any():
        return np.maximum(value, 0.0)
    common = max(float(np.median(value[known] / curvature[known])), _LEAST)
    prior = curvature * common
    return draw_towards(value, error, prior, np.maximum(value, prior))


def draw_towards(value: FloatArray, error: FloatArray, prior: FloatArray, spread: FloatArray) -> FloatArray:
    """Mean of estimates and priors, each weighted with its precision 1 / error^2 and 1 / spread^2; never negative."""
    precision = spread**2 + error**2
    trust = np.divide(spread**2, precision, out=np.zeros_like(prior), where=precision > 0.0)
    settled: FloatArray = np.maximum(trust * value + (1.0 - trust) * prior, _LEAST * prior)
    return settled


def _compare(
    model: nn.Module, task: Task, data: Data, kmaps: Sequence[KMap], draws: int, seed: int, steps: int
) -> Refinement:
    """Loss and score of two K maps under the same noise."""
    injectors = [
        [NoiseInjector.of(kmap, derived_seed(seed, _CHECK, draw), model_device(model)) for draw in range(draws)]
        for kmap in kmaps
    ]
    found, weights = [], []
    for batch in data.batches(128):
        judged = Judged.of(model, task, batch)
        weights.append(judged.weight.double().cpu().numpy())
        found.append([[noisy_values(model, task, judged, each) for each in row] for row in injectors])
        if sum(map(len, weights)) >= _CHECK_EXAMPLES:
            break
    loss, score = np.moveaxis(np.concatenate(found, axis=3), 2, 0)  # (map, draw, example) each
    weight = np.concatenate(weights)
    gain, score_gain = paired_difference(loss[0], loss[1], weight), paired_difference(score[1], score[0], weight)
    kept = gain[1] > 0.0 and not score_gain[2] < 0.0
    return Refinement(kept, *gain, *score_gain, steps=steps, examples=loss.shape[2], draws=draws)
