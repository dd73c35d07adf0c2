"""What a refinement of a K map was seen to win."""

from __future__ import annotations

from dataclasses import dataclass

from precalloc.hardware import Hardware, NoiseKind

# Behind the estimator's name in the provenance of a refined allocation: its damages are no longer the profile's own.
REFINED = ", refined"


def is_promising(hardware: Hardware) -> bool:
    """Whether refinement can be expected to win under a hardware's noise.

    Not where all of it is errors of weights: a device's are common to all its examples, so that a step's gradient is
    mostly chance, and curvature's K are as good already (``benchmarks/bench_refinement.py``).
    """
    return any(kind is not NoiseKind.WEIGHT for kind in hardware.kinds)


@dataclass(frozen=True)
class Refinement:
    """A refined K map beside the one that it started from, under the same noise on held-out calibration data.

    Of a compensated start, the best of three: as it was, with its corrections scaled, and with none.

    Parameters
    ----------
    kept
        Whether the refined map was kept: only where ``gain`` is above zero, and ``score_gain`` not below it by its
        whole interval. The held-out data chooses the better of two maps that it had no part in: no margin is needed.
    gain, gain_low, gain_high
        By how much the mean loss under noise is lower, and its 95 % interval over examples and noise draws.
    score_gain, score_gain_low, score_gain_high
        By how much the score (accuracy) is higher; NaN where the task has none.
    steps
        Stochastic steps that were taken.
    examples, draws
        Held-out examples, and noise draws of each.
    """

    kept: bool
    gain: float
    gain_low: float
    gain_high: float
    score_gain: float
    score_gain_low: float
    score_gain_high: float
    steps: int
    examples: int
    draws: int

    def describe(self) -> str:
        """Say in one sentence what was won, or that the start was already as good."""
        draws = "1 noise draw" if self.draws == 1 else f"{self.draws} noise draws"
        found = (
            f"loss under noise {self.gain:.3g} [{self.gain_low:.3g}, {self.gain_high:.3g}] lower on "
            f"{self.examples} held-out calibration examples, {draws}"
        )
        if self.kept:
            return f"Refined in {self.steps} steps at the noise of this budget: {found}."
        return f"Not refined: the start was already as good ({found} after {self.steps} steps)."
