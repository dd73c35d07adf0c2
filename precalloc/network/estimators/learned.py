"""Sensitivities from learning: the paper's method, Adam on log K under re-parametrised noise with a penalty on energy.

Garg et al., "Dynamic Precision Analog Computing for Neural Networks", IEEE JSTQE 29(2), 2023 (arXiv:2102.06365), learn
the energy of every layer or channel of a trained network, whose weights stay as they are, by

    minimise over theta = log K   E[ L(K) ] + p max(0, log(E(K) / E_budget)),

with E the energy, the loss L under re-parametrised noise on one batch a step, and Adam (Kingma and Ba 2015). The
``penalty`` variant is that. The ``primal-dual`` variant meets the budget exactly: it follows the Lagrangian
E[L(K)] + lambda (E(K) - E_budget) with the multiplier that stationarity in the total energy asks for,

    lambda = sum_u s_u / K_u / E(K),   s_u / K_u = -dE[L] / d log K_u,

averaged over steps, and scales K back to the budget after every step.

Learning yields one K map for one budget. As a profile it is the sensitivities for which that K map is optimal,

    s_u := lambda c_u K_u^2        (units,)

so that allocation at that budget gives the learned K; at other budgets it keeps their ratios.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from precalloc.allocator import Allocator
from precalloc.budgets import Budget
from precalloc.errors import BudgetError, ProfileError
from precalloc.kmaps import KMap
from precalloc.network.checkpoints import Arrays, Checkpoint
from precalloc.network.curvature import ChannelSlots
from precalloc.network.data import Data
from precalloc.network.descent import on_budget
from precalloc.network.operating_point import References, batch_slopes
from precalloc.network.state import derived_seed
from precalloc.network.tasks import Task
from precalloc.objective import Granularity, Objective, parse_granularity, with_damage
from precalloc.profiles import FloatArray, Profile
from precalloc.progress import Progress

_LEARNING = 301
METHODS = ("penalty", "primal-dual")
# Steps over which the multiplier is averaged.
_MULTIPLIER_MEMORY = 100


@dataclass(frozen=True)
class Learned:
    """How to learn.

    Parameters
    ----------
    budget
        That K is learned for, as `precalloc.allocate` takes it.
    granularity
        "layer" or "channel".
    method
        "penalty", the paper's, or "primal-dual".
    steps, batch_size, learning_rate
        Of Adam; batches are gone through in turn.
    penalty
        p, in units of the loss per e-fold of excess energy. It must exceed what such an e-fold would win.
    """

    budget: str | Budget
    granularity: str = "layer"
    method: str = "penalty"
    steps: int = 1500
    batch_size: int = 32
    learning_rate: float = 0.02
    penalty: float = 4.0

    name = "learned"

    def work(self, profile: Profile) -> str:
        """Say beforehand how much there is to do."""
        return (
            f"{self.steps} steps of {self.batch_size} examples forward and backward, "
            f"{self.steps * self.batch_size / profile.provenance.examples:.1f} times the data"
        )

    def estimate(
        self,
        model: nn.Module,
        task: Task,
        data: Data,
        profile: Profile,
        seed: int,
        progress: Progress,
        kept: Checkpoint,
    ) -> Profile:
        """Learn K from the curvature's profile, which gives ranges, and how channels and noise kinds share damage.

        Raises
        ------
        BudgetError, ProfileError
            If the budget cannot be met, or an option is unknown.
        """
        if self.method not in METHODS:
            raise ProfileError(f"Method {self.method!r} is unknown. Choose {' or '.join(METHODS)}.")
        learning = _Learning(model, task, data, profile, self, seed)
        with kept.running(learning.state, learning.restore):
            learning.go(progress, kept)
        return with_damage(profile, profile.hardware, learning.damage(), f"learned ({self.method}, {self.budget})")


class _Learning:
    """Adam's steps on the logarithm of every unit's K."""

    def __init__(self, model: nn.Module, task: Task, data: Data, profile: Profile, options: Learned, seed: int) -> None:
        self._model, self._task, self._data, self._profile = model, task, data, profile
        self._options, self._seed, self._references = options, seed, References(model, task)
        self._slots = ChannelSlots.of_sites({site.name: site.channels for site in profile.sites})
        granularity = parse_granularity(options.granularity)
        allocator = Allocator.of(profile, profile.hardware, granularity)
        budget = options.budget if isinstance(options.budget, Budget) else Budget.parse(options.budget)
        start = allocator.within(budget)
        self._start, self._objective = start, allocator.objective
        if not allocator.least_joule < start.budget_joule:
            raise BudgetError(f"Budget {budget} leaves nothing to learn: it is the least that the hardware can use.")
        self._cost = self._objective.cost_joule / start.budget_joule
        uniform = np.full(len(self._cost), 1.0 / self._cost.sum())
        self._limits = allocator.problem.k_min, allocator.problem.k_max
        self._log_k = torch.from_numpy(np.log(on_budget(uniform, self._cost, self._limits))).requires_grad_()
        self._adam = torch.optim.Adam([self._log_k], lr=options.learning_rate)
        self._multiplier, self.done = 0.0, 0

    @property
    def k(self) -> FloatArray:
        """Repetitions of every unit."""
        k: FloatArray = self._log_k.detach().exp().numpy()
        return k

    def go(self, progress: Progress, keeper: Checkpoint) -> None:
        """Take the steps that are not done yet."""
        passes = itertools.chain.from_iterable(
            self._data.batches(self._options.batch_size) for _ in itertools.repeat(None)
        )
        for batch in itertools.islice(passes, self.done, self._options.steps):
            judged = self._references.of(batch)
            seed = derived_seed(self._seed, _LEARNING, self.done)
            total = batch_slopes(self._model, self._task, judged, self._kmap(), self._slots, seed, (1.0,)).sensitivity
            self._step(total / float(judged.weight.sum()))
            self.done += 1
            keeper.offer(self.state)
            progress(self.done, self._options.steps, "learning")

    def _step(self, sensitivity: FloatArray) -> None:
        is_layer = self._objective.granularity is Granularity.LAYER
        k, units = self.k, self._slots.sum_sites(sensitivity) if is_layer else sensitivity
        share = self._cost * k  # of the budget
        energy = float(share.sum())
        weight = max(1.0 / (self.done + 1), 1.0 / _MULTIPLIER_MEMORY)
        self._multiplier += weight * (float((units / k).sum()) / energy - self._multiplier)
        if self._options.method == "penalty":
            slope = self._options.penalty * share / energy * float(energy > 1.0)
        else:
            slope = self._multiplier * share
        self._log_k.grad = torch.from_numpy(-units / k + slope)
        self._adam.step()
        moved = np.clip(self.k, *self._limits)
        if self._options.method == "primal-dual":
            moved = on_budget(moved, self._cost, self._limits)
        with torch.no_grad():
            self._log_k.copy_(torch.from_numpy(np.log(moved)))

    def _kmap(self) -> KMap:
        units, k = self._objective.site_of_unit, self.k
        by_site = {site.name: k[units == index] for index, site in enumerate(self._profile.sites)}
        return replace(self._start.kmap(), repetitions=by_site)

    def damage(self) -> FloatArray:
        """S = lambda c K^2 of every channel, (channels,); channels of one K share it as their curvature says."""
        k = on_budget(self.k, self._cost, self._limits)
        found: FloatArray = max(self._multiplier, np.finfo(float).tiny) * self._cost * k**2
        if self._objective.granularity is Granularity.CHANNEL:
            return found
        curvature = Objective.of(self._profile, self._profile.hardware, Granularity.CHANNEL).damage
        return self._slots.repeat_sites(found) * self._slots.shares(curvature)

    def state(self) -> Arrays:
        """Everything that the next step depends on."""
        adam = self._adam.state.get(self._log_k, {})
        moments = {name: value.numpy() for name, value in adam.items()}
        return {"log_k": self._log_k.detach().numpy(), "scalars": np.array([self.done, self._multiplier])} | moments

    def restore(self, arrays: Arrays) -> None:
        """Go on after the finished steps."""
        with torch.no_grad():
            self._log_k.copy_(torch.from_numpy(arrays["log_k"]))
        self.done, self._multiplier = int(arrays["scalars"][0]), float(arrays["scalars"][1])
        names = ("step", "exp_avg", "exp_avg_sq")
        if all(name in arrays for name in names):
            self._adam.state[self._log_k] = {name: torch.from_numpy(arrays[name].copy()) for name in names}
