"""What noise simulation says about accuracy, with intervals that cover examples and noise draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from precalloc.intervals import NORMAL_QUANTILE, paired, wilson


@dataclass(frozen=True)
class SimulatedAccuracy:
    """Accuracy under simulated noise; shares of the examples, ``low`` and ``high`` ends of 95 % intervals.

    Parameters
    ----------
    accuracy, accuracy_low, accuracy_high
        Mean over examples and noise seeds.
    clean_accuracy
        Without noise, on the same examples.
    drop, drop_low, drop_high
        Clean minus noisy, paired per example; its interval is much narrower than that of the accuracy.
    per_seed
        Accuracy of each noise seed.
    examples, seeds
        How many of each.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    clean_accuracy: float
    drop: float
    drop_low: float
    drop_high: float
    per_seed: tuple[float, ...]
    examples: int
    seeds: int

    @classmethod
    def from_outcomes(cls, correct: npt.NDArray[np.bool_], clean_correct: npt.NDArray[np.bool_]) -> SimulatedAccuracy:
        """Summarise which examples came out right.

        Parameters
        ----------
        correct : (seeds, n)
            Whether example n is right under noise seed s.
        clean_correct : (n,)
            Whether it is right without noise.
        """
        outcomes = np.asarray(correct, dtype=float)
        assert outcomes.ndim == 2
        assert outcomes.size > 0
        assert outcomes.shape[1:] == np.shape(clean_correct)
        seeds, examples = outcomes.shape
        lost = np.asarray(clean_correct, dtype=float) - outcomes
        accuracy, drop = float(outcomes.mean()), float(lost.mean())
        accuracy_interval = wilson(accuracy, *_variance_size_quantile(outcomes))
        drop_interval = paired(drop, *_variance_size_quantile(lost))
        return cls(
            accuracy,
            *accuracy_interval,
            clean_accuracy=float(np.mean(clean_correct)),
            drop=drop,
            drop_low=drop_interval[0],
            drop_high=drop_interval[1],
            per_seed=tuple(outcomes.mean(axis=1).tolist()),
            examples=examples,
            seeds=seeds,
        )


def _variance_size_quantile(values: npt.NDArray[np.floating[Any]]) -> tuple[float, int, float]:
    """Variance of the grand mean of a two-way table (seeds, n), its number of examples and its Student quantile.

    Examples and seeds are both random effects: a seed's noise may be common to all examples (weight noise), an
    example is as hard for every seed. With x = a_n + b_s + e_sn,

        var(mean) = var(example means) / n + var(seed means) / S - var(residuals) / (n S),

    where the last term is in both of the others and is taken out once. Degrees of freedom by Satterthwaite
    (Biometrics Bulletin 2, 1946). One seed alone tells nothing about the spread between seeds.
    """
    seeds, examples = values.shape
    example_means, seed_means = values.mean(axis=0), values.mean(axis=1)
    of_examples = example_means.var(ddof=1) / examples if examples > 1 else 0.0
    of_seeds = seed_means.var(ddof=1) / seeds if seeds > 1 else 0.0
    of_residuals = 0.0
    if seeds > 1 and examples > 1:
        residuals = values - example_means - seed_means[:, None] + values.mean()
        of_residuals = np.square(residuals).sum() / ((seeds - 1) * (examples - 1) * values.size)
    variance = max(of_examples + of_seeds - of_residuals, of_examples, of_seeds)
    # What the seeds add beyond the residuals that the examples show as well rests on few degrees of freedom.
    own_seeds = max(of_seeds - of_residuals, 0.0)
    denominator = of_examples**2 / max(examples - 1, 1) + own_seeds**2 / max(seeds - 1, 1)
    freedom = variance**2 / denominator if denominator > 0.0 else math.inf
    return float(variance), examples, _student_quantile(freedom)


def _student_quantile(freedom: float) -> float:
    if math.isinf(freedom):
        return NORMAL_QUANTILE
    from scipy.special import stdtrit  # kept out of cold starts

    return float(stdtrit(freedom, 0.975))
