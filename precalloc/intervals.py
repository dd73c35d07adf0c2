"""95 % intervals of proportions that stay sensible near 0 and 1."""

from __future__ import annotations

import math

NORMAL_QUANTILE = 1.959963984540054  # 97.5 % point of the standard normal


def wilson(mean: float, variance: float, examples: int, quantile: float = NORMAL_QUANTILE) -> tuple[float, float]:
    """Score interval of a mean of ``examples`` values in [0, 1] whose mean has the given variance.

    The interval of Wilson (JASA 22, 1927) for an effective number of examples N, the one whose binomial variance
    mean (1 - mean) / N is ``variance``. It does not shrink to a point where every example is right.
    """
    spread = mean * (1.0 - mean)
    size = spread / variance if variance > 0.0 and spread > 0.0 else float(examples)
    shrink = 1.0 / (1.0 + quantile**2 / size)
    centre = shrink * (mean + quantile**2 / (2.0 * size))
    half = shrink * quantile * math.sqrt(spread / size + (quantile / (2.0 * size)) ** 2)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def paired(mean: float, variance: float, examples: int, quantile: float = NORMAL_QUANTILE) -> tuple[float, float]:
    """Interval of a mean paired difference in [-1, 1] whose mean has the given variance.

    Half a loss and half a gain among two more examples are added to what was seen (Agresti and Min, Stat. Med. 24,
    2005): that no example turned out differently does not show that none ever will.
    """
    size = examples + 2.0
    centre = mean * examples / size
    half = quantile * math.sqrt(variance * (examples / size) ** 2 + 1.0 / size**2)
    return max(centre - half, -1.0), min(centre + half, 1.0)
