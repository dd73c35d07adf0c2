"""Calibration of predictions: how much more than the linearised noise a network was seen to suffer.

Predictions rest on noise that is propagated to first order. What that leaves out, noise met by gradients that are noisy
themselves and means that shift, is put into one factor on the covariance of the margins, fitted to simulated points:

    log factor = a + b log level,

with the level of a K map the geometric mean over examples of the variance of the nearest margin. The spread of the
points about the line beyond their own error is the model error that intervals carry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from precalloc.hardware import Hardware
from precalloc.objective import Granularity
from precalloc.prediction import Predictor
from precalloc.profiles import FloatArray

# Uniform K maps and allocated ones do not miss the linearisation alike: each kind has a line of its own.
FAMILIES = ("allocated", "uniform")

# Weak priors (normal) of intercept and slope, which tell where the points are few; and what the spread about the line
# is taken to be before any point is seen, with the weight of that in points.
_PRIOR_DEVIATION = (2.0, 0.5)
_SPREAD, _SPREAD_WEIGHT = 0.15, 4.0
_LOG_FACTORS = np.linspace(-3.0, 6.0, 55)
_MOST_VARIANCE = 4.0


@dataclass(frozen=True)
class SimulatedPoint:
    """One simulated K map.

    Parameters
    ----------
    log_level
        Logarithm of its noise level.
    log_factor, variance
        Logarithm of the factor with which the simulated drop is predicted, and its variance over noise draws.
    linearised, simulated
        Drop as predicted without the factor, and as simulated on the same examples.
    """

    log_level: float
    log_factor: float
    variance: float
    linearised: float
    simulated: float

    @classmethod
    def of(
        cls, predictor: Predictor, k: FloatArray | float, per_seed: Sequence[float], clean: float, examples: int
    ) -> SimulatedPoint:
        """Find the factor for accuracies (by noise seed) that were simulated on the first ``examples``."""
        right = np.array([predictor.right(k, math.exp(step))[:examples] for step in _LOG_FACTORS])
        drops = np.maximum.accumulate(clean - right.mean(axis=1))
        simulated = clean - float(np.mean(per_seed))
        at = float(np.interp(simulated, drops, _LOG_FACTORS))
        slope = float(np.interp(at, _LOG_FACTORS, np.gradient(drops, _LOG_FACTORS)))
        index = int(np.abs(_LOG_FACTORS - at).argmin())
        of_draws = float((right[index] * (1.0 - right[index])).sum()) / examples**2 / len(per_seed)
        if len(per_seed) > 1:  # devices may differ more than independent examples do
            of_draws = max(of_draws, float(np.var(per_seed, ddof=1)) / len(per_seed))
        variance = min(of_draws / max(slope, 1e-6) ** 2, _MOST_VARIANCE)
        linearised = float(clean - predictor.right(k)[:examples].mean())
        return cls(predictor.log_level(k), at, variance, linearised, simulated)


@dataclass(frozen=True)
class NoiseScale:
    """The fitted line: factor on the margins' covariance as a function of the noise level.

    Parameters
    ----------
    intercept, slope
        Of log factor over log level.
    covariance
        Of the two: variance of the intercept, covariance, variance of the slope.
    spread
        Standard deviation of log factors about the line.
    points
        What it was fitted to.
    """

    intercept: float
    slope: float
    covariance: tuple[float, float, float]
    spread: float
    points: tuple[SimulatedPoint, ...]

    @classmethod
    def fit(cls, points: Sequence[SimulatedPoint]) -> NoiseScale:
        """Fit by weighted least squares with weak priors; the spread is found in turn with the line."""
        design = np.array([[1.0, point.log_level] for point in points])
        value = np.array([point.log_factor for point in points])
        variance = np.array([point.variance for point in points])
        # The prior's intercept is that at the middle of the points.
        centre = float(design[:, 1].mean())
        design[:, 1] -= centre
        prior = np.diag(1.0 / np.square(_PRIOR_DEVIATION))
        spread = _SPREAD**2
        for _ in range(20):
            weight = 1.0 / (variance + spread)
            covariance = np.linalg.inv(design.T @ (weight[:, None] * design) + prior)
            line = covariance @ design.T @ (weight * value)
            excess = np.maximum((value - design @ line) ** 2 - variance, 0.0)
            spread = float((_SPREAD_WEIGHT * _SPREAD**2 + excess.sum()) / (_SPREAD_WEIGHT + len(points)))
        shift = np.array([[1.0, -centre], [0.0, 1.0]])  # back from the centre to log level 0
        intercept, slope = shift @ line
        moved = shift @ covariance @ shift.T
        terms = (float(moved[0, 0]), float(moved[0, 1]), float(moved[1, 1]))
        return cls(float(intercept), float(slope), terms, math.sqrt(spread), tuple(points))

    def at(self, log_level: float) -> tuple[float, float]:
        """Logarithm of the factor at a noise level, and its standard error."""
        first, mixed, second = self.covariance
        variance = first + 2.0 * log_level * mixed + log_level**2 * second + self.spread**2
        return self.intercept + self.slope * log_level, math.sqrt(max(variance, 0.0))


@dataclass(frozen=True)
class Calibration:
    """Noise scales of a profile on one hardware, by family of K maps.

    Parameters
    ----------
    hardware, granularity, compensated
        What the simulated K maps were for, and whether they carried bias corrections.
    scales
        Of allocated and of uniform K maps.
    examples, draws
        Simulated examples, and noise draws of each.
    """

    hardware: Hardware
    granularity: Granularity
    compensated: bool
    scales: Mapping[str, NoiseScale]
    examples: int
    draws: int

    def serves(self, hardware: Hardware, granularity: Granularity) -> bool:
        """Whether predictions for a hardware and granularity may be scaled by it."""
        return hardware == self.hardware and granularity is self.granularity

    def to_record(self) -> dict[str, Any]:
        """Describe it in JSON-able values."""
        return {
            "hardware": self.hardware.to_dict(),
            "granularity": str(self.granularity),
            "compensated": self.compensated,
            "scales": {family: asdict(scale) for family, scale in self.scales.items()},
            "examples": self.examples,
            "draws": self.draws,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str) -> Calibration:
        """Read what ``to_record`` gave."""
        return cls(
            Hardware.from_dict(record["hardware"], where),
            Granularity(record["granularity"]),
            bool(record["compensated"]),
            {str(family): _scale(scale) for family, scale in record["scales"].items()},
            int(record["examples"]),
            int(record["draws"]),
        )


def _scale(record: Mapping[str, Any]) -> NoiseScale:
    points = tuple(SimulatedPoint(**point) for point in record["points"])
    first, mixed, second = record["covariance"]
    return NoiseScale(record["intercept"], record["slope"], (first, mixed, second), record["spread"], points)
