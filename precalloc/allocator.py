"""Choosing K: the best map within an energy budget, and the least energy for a wanted accuracy."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from precalloc.allocation import Allocation, DigitalSite, UniformAllocation, site_allocations, split_digital
from precalloc.budgets import Budget
from precalloc.calibration import Calibration
from precalloc.choices import Choices
from precalloc.errors import BudgetError, ProfileError
from precalloc.hardware import Hardware
from precalloc.objective import (
    ROUNDING,
    Granularity,
    Objective,
    parse_granularity,
    smallest_k,
    smallest_uniform,
    split_terms,
)
from precalloc.prediction import Prediction, Predictor
from precalloc.profiles import FloatArray, Profile
from precalloc.search import descend, least
from precalloc.uniform import affordable_uniform, within_bounds
from precalloc.units import format_energy
from solvers import Problem, Solution, solve

_log = logging.getLogger(__name__)


def allocate(
    profile: Profile,
    budget: str | Budget | None = None,
    *,
    max_drop: float | None = None,
    hardware: Hardware | None = None,
    granularity: str = "layer",
    choices: Choices | None = None,
    method: str = "auto",
    seed: int = 0,
) -> Allocation:
    """Choose the repetitions that lose least within a budget, or cost least for a wanted accuracy.

    Minimises sum_u s_u / K_u subject to sum_u c_u K_u <= B over the K that the hardware can realise.

    Parameters
    ----------
    profile
        What was measured of the model.
    budget
        "3 nJ" (per inference), "20 aJ/MAC", "15x" (mean repetitions) or "40% of 15x".
    max_drop
        Instead of a budget: how much accuracy may drop, as a share (0.02 is two points). The upper 95 % limit of the
        predicted drop is kept below it at the least energy.
    hardware
        Noise, energy and realisable K; by default that for which the profile was measured.
    granularity
        "layer" or "channel".
    choices
        Which sites are analog, and what their K may be; uniform K beside the allocation obeys them as well. Budgets are
        those of the analog sites, and mean values refer to their MACs.
    method
        Of ``solvers.solve``.
    seed
        Of the prediction's integration over noise.

    Raises
    ------
    ChoiceError
        If a choice matches no site, or contradicts others or the hardware.
    BudgetError
        If the budget is malformed or below the least feasible one, or no K reaches the wanted accuracy.
    ProfileError
        If the profile lacks what the hardware or the request needs.
    """
    if (budget is None) == (max_drop is None):
        raise BudgetError("Give either a budget, such as '15x', or a greatest accuracy drop, such as 0.02.")
    allocator = Allocator.of(
        profile, hardware or profile.hardware, parse_granularity(granularity), method, seed, choices=choices
    )
    if max_drop is not None:
        return allocator.reaching(max_drop)
    return allocator.within(budget if isinstance(budget, Budget) else Budget.parse(str(budget)))


@dataclass(frozen=True, eq=False)
class Allocator:
    """A profile on a hardware at one granularity, prepared for many budgets.

    Parameters
    ----------
    profile
        Of the analog sites.
    predictor
        None where the profile holds no margins for the granularity.
    calibration
        None where no simulated points of this hardware and granularity say how far predictions hold.
    lower, upper : (units,)
        Realisable bounds of K that choices and hardware leave.
    digital
        Sites that stay digital.
    """

    profile: Profile
    hardware: Hardware
    objective: Objective
    predictor: Predictor | None
    calibration: Calibration | None
    problem: Problem
    least_joule: float
    method: str
    seed: int
    lower: FloatArray
    upper: FloatArray
    choices: Choices
    digital: tuple[DigitalSite, ...]

    @classmethod
    def of(
        cls,
        profile: Profile,
        hardware: Hardware,
        granularity: Granularity = Granularity.LAYER,
        method: str = "auto",
        seed: int = 0,
        *,
        choices: Choices | None = None,
    ) -> Allocator:
        """Prepare allocations.

        Raises
        ------
        ChoiceError
            If a choice matches no site, or contradicts others or the hardware.
        ProfileError
            If the profile lacks a noise kind of the hardware.
        """
        choices = choices or Choices()
        profile, digital = split_digital(profile, choices)
        objective = Objective.of(profile, hardware, granularity)
        bounds = choices.bounds(profile.sites, hardware)
        lower, upper = bounds.lower[objective.site_of_unit], bounds.upper[objective.site_of_unit]
        table = profile.margins
        predictable = table is not None and (granularity is Granularity.LAYER or table.channel_covariance is not None)
        predictor = Predictor.of(profile, hardware, granularity, seed) if predictable else None
        repetition = hardware.repetition
        problem = Problem(
            objective.damage,
            objective.cost_joule,
            0.0,
            _one_if_equal(lower),
            _one_if_equal(upper),
            repetition.levels if isinstance(repetition.levels, str) else np.array(repetition.levels),
            objective.floor,
            ties=None if bounds.ties is None else bounds.ties[objective.site_of_unit],
        )
        least_joule = float(solve(problem).least_budget)  # of a budget of nothing: infeasible by what K cost at least
        known = profile.calibration
        return cls(
            profile=profile,
            hardware=hardware,
            objective=objective,
            predictor=predictor,
            calibration=known if known is not None and known.serves(hardware, granularity) else None,
            problem=problem,
            least_joule=least_joule,
            method=method,
            seed=seed,
            lower=lower,
            upper=upper,
            choices=choices,
            digital=digital,
        )

    def within(self, budget: Budget) -> Allocation:
        """Choose the K of least damage within a budget.

        Raises
        ------
        BudgetError
            If it is below the least feasible one.
        """
        cost, macs = self.objective.cost_at_k1, self.objective.macs
        energy = budget.energy_joule(cost, macs)
        if energy < self.least_joule * (1.0 - ROUNDING):
            raise BudgetError(
                f"Budget {budget} is {format_energy(self.least_joule - energy)} per inference short: the least K of "
                f"{self.hardware.name!r}{self._least_text()}, takes "
                f"{format_energy(self.least_joule)}. Give at least {budget.express(self.least_joule, cost, macs)}."
            )
        k, solution = self.solve(energy)
        predicted = self.predict(k)
        matching = None
        if predicted is not None:
            matching = self._least_uniform(lambda other: predicted.accuracy - other.accuracy)
        return self._result(k, solution, energy, predicted, matching, str(budget), None)

    def reaching(self, max_drop: float) -> Allocation:
        """Choose K at the least energy that keeps the upper 95 % limit of the predicted drop within ``max_drop``.

        Raises
        ------
        BudgetError
            If no K that the hardware can realise reaches it.
        ProfileError
            If the profile holds no margins for the granularity.
        """
        task = self.profile.provenance.task
        if task != "classification":
            raise BudgetError(
                f"An accuracy drop can be promised for classification only; this profile is of {task}. "
                "Give a budget, and read the predicted loss."
            )
        if not 0.0 < max_drop < 1.0:
            raise BudgetError(f"Accuracy drop {max_drop!r} must lie between 0 and 1: two points are 0.02.")
        if self.predictor is None:
            raise ProfileError(
                f"The profile holds no margins per {self.objective.granularity}. Profile the model again."
            )
        repetition, cost = self.hardware.repetition, self.objective.cost_at_k1
        best, least_multiple = self._expect(self.upper), self.least_joule / cost

        def excess(x: float) -> float:
            return self._expect(self.solve(x * cost, quick=True)[0]).drop_high - max_drop

        multiple = least(excess, least_multiple, repetition.k_max) if best.drop_high <= max_drop else None
        if multiple is None:
            raise BudgetError(self._explain_unreachable(max_drop, best))
        if repetition.levels != "continuous":
            multiple = descend(lambda x: excess(x) <= 0.0, multiple, least_multiple)
        energy = max(multiple * cost, self.least_joule)
        k, solution = self.solve(energy)
        predicted = self._expect(k)
        if predicted.drop_high > max_drop:  # less damage need not be a smaller drop
            k, solution = self.solve(energy, quick=True)
            predicted = self._expect(k)
        matching = self._least_uniform(lambda other: other.drop_high - max_drop)
        request = f"accuracy drop of at most {100.0 * max_drop:g} points"
        return self._result(k, solution, energy, predicted, matching, request, max_drop)

    def uniform_instead(self, allocation: Allocation) -> Allocation:
        """Give an allocation of the same request whose K are uniform, as far as the bounds allow."""
        energy = allocation.budget_joule
        k, solution = self.uniform_k(energy), self.solve(energy)[1]
        predicted = self.predict(k, "uniform")
        return self._result(k, solution, energy, predicted, None, allocation.request, allocation.max_drop)

    def uniform(self, k: float) -> UniformAllocation:
        """Give the figures of one K for the whole network, as far as the bounds of its sites allow."""
        each = within_bounds(k, self.lower, self.upper)
        held = {
            self.profile.sites[site].name: float(own)
            for site, own in zip(self.objective.site_of_unit.tolist(), each.tolist(), strict=True)
            if own != k
        }
        return UniformAllocation(
            k,
            self.objective.energy_joule(each),
            self.objective.damage_at(each),
            self.predict(each, "uniform"),
            clean_loss=self.profile.clean_loss,
            loss_error=self._loss_error(each),
            held=held,
        )

    def uniform_within(self, energy: float) -> UniformAllocation:
        """Give the figures of the largest uniform K within an energy, as far as the bounds allow."""
        return self.uniform(self._affordable_uniform(energy))

    def solve(self, energy: float, quick: bool = False) -> tuple[FloatArray, Solution]:
        """K of least damage within an energy, and the solver's certificate; never worse than uniform K.

        ``quick``, for searches over many energies, leaves the last gap of discrete K open unless a method was asked
        for: ten-thousandths of the damage as a rule, hundredths where K are one or two.
        """
        energy = max(energy, self.least_joule)
        most = self.objective.energy_joule(self.upper)
        if energy >= most * (1.0 - ROUNDING):  # "64x" is K = 64 everywhere, however its energy was rounded
            energy = most * (1.0 + ROUNDING)
        method = "lagrangian" if quick and self.method == "auto" else self.method
        solution = solve(self.problem.with_budget(energy), method)
        if not solution.status.is_usable:
            raise BudgetError(
                f"Method {self.method!r} found no allocation within {format_energy(energy)}: {solution.message}"
            )
        return min(solution.k, self.uniform_k(energy), key=self.objective.damage_at), solution

    def uniform_k(self, energy: float) -> FloatArray:
        """K of every unit of the largest uniform K within an energy, as far as the bounds allow, (units,)."""
        return within_bounds(self._affordable_uniform(energy), self.lower, self.upper)

    def _affordable_uniform(self, energy: float) -> float:
        repetition = self.hardware.repetition
        return affordable_uniform(energy, self.objective.cost_joule, self.lower, self.upper, repetition)

    def _least_text(self) -> str:
        """Least K, where it is one for all."""
        same = self.lower.min() == self.lower.max()
        return f", {self.lower.min():g} everywhere" if same else " and of the choices"

    def predict(self, k: FloatArray | float, family: str = "allocated") -> Prediction | None:
        """Predict the accuracy of an allocated or a uniform K map; None without margins."""
        return None if self.predictor is None else self._expect(k, family)

    def _expect(self, k: FloatArray | float, family: str = "allocated") -> Prediction:
        assert self.predictor is not None
        response = None if self.calibration is None else self.calibration.responses[family]
        return self.predictor.predict(k, response)

    def _loss_error(self, k: FloatArray) -> float:
        """Standard error of the predicted loss: those of clean loss and damage, which rest on one sample, added."""
        return self.profile.clean_loss_error + self.objective.damage_error(k)

    def _least_uniform(self, excess: Callable[[Prediction], float]) -> UniformAllocation | None:
        """Least uniform K whose prediction has no excess, which falls as K grows."""
        repetition = self.hardware.repetition

        @cache
        def at(k: float) -> float:
            return excess(self._expect(within_bounds(k, self.lower, self.upper), "uniform"))

        def realisable(x: float) -> float:
            k = smallest_uniform(repetition, x)
            assert k is not None, "no bound of K is above what the hardware can realise"
            return k

        most = float(self.upper.max())
        if self.predictor is None or at(most) > 0.0:
            return None
        found = least(lambda x: at(realisable(x)), smallest_k(repetition), most)
        return None if found is None else self.uniform(realisable(found))

    def _explain_unreachable(self, max_drop: float, best: Prediction) -> str:
        static = [term.kind.value for term in split_terms(self.hardware)[1]]
        where = "any K"
        if self.upper.max() < math.inf:
            bounded = self.upper.min() < self.upper.max()
            where = "the largest K that is allowed" if bounded else f"K = {self.upper.max():g} everywhere"
        cause = f" ({' and '.join(static)} noise is not averaged by this hardware's repetitions)" if static else ""
        return (
            f"A drop of at most {100.0 * max_drop:g} points cannot be promised on {self.hardware.name!r}: at {where} "
            f"the predicted drop is {100.0 * best.drop:.2f} points, up to {100.0 * best.drop_high:.2f} at 95 % "
            f"confidence{cause}. Allow more, or profile more examples for a narrower interval."
        )

    def _result(
        self,
        k: FloatArray,
        solution: Solution,
        energy: float,
        predicted: Prediction | None,
        matching: UniformAllocation | None,
        request: str,
        max_drop: float | None,
    ) -> Allocation:
        objective = self.objective
        damage = objective.damage_at(k)
        lower_bound = min(solution.lower_bound, damage)
        _log.info("%s: damage %.6g, lower bound %.6g, %s", request, damage, lower_bound, solution.status)
        return Allocation(
            granularity=objective.granularity,
            hardware=self.hardware,
            sites=site_allocations(self.profile, self.hardware, objective, k),
            request=request,
            budget_joule=energy,
            max_drop=max_drop,
            energy_joule=objective.energy_joule(k),
            objective=damage,
            floor=objective.floor,
            lower_bound=lower_bound,
            gap=damage - lower_bound,
            multiplier=float(solution.multiplier),
            status=str(solution.status),
            predicted=predicted,
            uniform=self.uniform_within(energy),
            matching_uniform=matching,
            provenance=self.profile.provenance,
            seed=self.seed,
            clean_loss=self.profile.clean_loss,
            loss_error=self._loss_error(k),
            choices=self.choices,
            digital=self.digital,
            calibration=self.calibration,
        )


def _one_if_equal(values: FloatArray) -> FloatArray | float:
    """One number for equal bounds: the solvers then need not look at each."""
    return float(values[0]) if values.min() == values.max() else values
