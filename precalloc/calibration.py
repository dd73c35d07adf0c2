"""Calibration of predictions: what a network was seen to do with noise beyond its linearisation.

Predictions rest on noise that is propagated to first order. As noise vanishes that is exact; where it is not weak the
mean margins shrink, since what follows nonlinearities carries less of the signal, logits of some classes shift against
others, labels win a little, and the variance is met by gradients that are noisy themselves. All of it is measured at a
few simulated K maps: with d the margins, C their linearised variance and x what they are under noise, over those small
enough for noise to matter,

    E x = (1 + gain) d + t_a - t_b + u,    factor = sum (x - E x)^2 / sum C,

(`precalloc.mean_margins`) and are taken between the points as functions of the noise level l, the geometric mean over
examples of the variance of the nearest margin:

    gain = sqrt(l / l_0) (a + b log(l / l_0)),    t, u = (t_0, u_0) l / l_0,    log factor = c + e log(l / l_0).

Margins tell far more than right and wrong would: every example counts, not only those that noise turned over. What
Gaussian margins with these moments still miss, examples that noise moves unlike others, is a third line: the relative
excess of the simulated drop. Only few examples tell of it, so that it is kept near zero unless the points agree that it
is not. The spread of the points about the lines beyond their own error is the model error that intervals carry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from precalloc.class_terms import ClassTerms
from precalloc.hardware import Hardware
from precalloc.mean_margins import MeanMargins, pooled, proportional
from precalloc.objective import Granularity
from precalloc.prediction import Distortion, Predictor
from precalloc.profiles import FloatArray

# Uniform K maps and allocated ones do not miss the linearisation alike: each kind has lines of its own.
FAMILIES = ("allocated", "uniform")


@dataclass(frozen=True)
class Prior:
    """What is taken to be before any point is seen: it tells where the points are few.

    Parameters
    ----------
    intercept, slope
        Standard deviations of normal priors at the middle of the points.
    spread
        Standard deviation about the line, with the weight of ``_SPREAD_WEIGHT`` points.
    """

    intercept: float
    slope: float
    spread: float


_GAIN, _LOG_FACTOR = Prior(0.5, 0.1, 0.03), Prior(1.0, 0.3, 0.1)
_LEAST_EXCESS, _EXCESS_SPREAD = 0.1, 0.05
_SPREAD_WEIGHT = 4.0
# Examples that share the weight errors of one device in each draw: consecutive ones, from the first on. Many devices
# tell more of their mean than few.
DEVICE_EXAMPLES = 32
# Expected drops below this are taken to be it.
_LEAST_DROP = 1e-6
# Noise levels farther off than this, in e-folds, are taken to be at this distance: nothing is known of them.
_FARTHEST = 10.0


@dataclass(frozen=True)
class SimulatedPoint:
    """One simulated K map.

    Parameters
    ----------
    log_level
        Logarithm of its noise level.
    gain, gain_variance
        Relative change of the mean margins, and its variance over examples and draws.
    shift
        Change of the logits of single classes.
    advantage, advantage_variance
        What the reference class wins over all others, whichever it is.
    log_factor, log_factor_variance
        Logarithm of the factor on their covariance, and its variance.
    excess, excess_variance
        Relative excess of the simulated drop over that of Gaussian margins so changed, and its variance over draws.
    linearised, simulated
        Drop as predicted by linearisation, and as simulated on the same examples.
    """

    log_level: float
    gain: float
    gain_variance: float
    shift: ClassTerms
    advantage: float
    advantage_variance: float
    log_factor: float
    log_factor_variance: float
    excess: float
    excess_variance: float
    linearised: float
    simulated: float

    @classmethod
    def of(cls, predictor: Predictor, k: FloatArray | float, margins: FloatArray) -> SimulatedPoint:
        """Compare with the margins (draws, n, m) that noise gave to the first n examples, some of them to a device."""
        n = margins.shape[1]
        clean, covariance = predictor.margins[:n], predictor.moments(k)[1][:n]
        variance, device = np.diagonal(covariance, axis1=1, axis2=2), np.arange(n) // DEVICE_EXAMPLES
        classes = None if predictor.classes is None else predictor.classes[:n]
        seen = MeanMargins.fit(clean, margins, variance, classes, device)
        # Losses are averaged over labels, but the advantage is theirs that the simulated examples really have.
        log_factor, shift = math.log(seen.factor), seen.shift.of_margins(predictor.classes) + seen.advantage
        expected = float(predictor.lost(k, Distortion(seen.gain, log_factor, shift=shift))[:n].mean())
        lost = predictor.labels.first(n).lost(clean, margins)
        was_right = np.all(clean > 0.0, axis=1).astype(float)
        return cls(
            predictor.log_level(k),
            seen.gain,
            seen.gain_variance,
            seen.shift,
            seen.advantage,
            seen.advantage_variance,
            log_factor,
            seen.factor_variance / seen.factor**2,
            *_excess(lost, max(expected, _LEAST_DROP)),
            float((was_right - predictor.right(k)[:n]).mean()),
            float((was_right - np.all(margins > 0.0, axis=2)).mean()),
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> SimulatedPoint:
        """Read what ``dataclasses.asdict`` gave."""
        found = {"advantage": 0.0, "advantage_variance": 0.0, **record}
        return cls(**{**found, "shift": ClassTerms.from_record(record.get("shift"))})


def _excess(lost: FloatArray, expected: float) -> tuple[float, float]:
    """Relative excess of losses (draws, n) over the expected drop, and its variance over draws.

    Draws are pairs of opposite noise, which turn over other examples: pairs are independent, where there are two. The
    draws of a single pair spread by more than independent ones, so that the variance errs on the wide side.
    """
    if len(lost) % 2 == 0 and len(lost) > 2:
        lost = lost.reshape(-1, 2, lost.shape[1]).mean(axis=1)
    draws, n = lost.shape
    of_draws = 1.0 / (draws * n) ** 2  # as if one more example had turned over: none does not show that none ever will
    if draws > 1:
        of_devices = np.add.reduceat(lost, np.arange(0, n, DEVICE_EXAMPLES), axis=1)
        of_draws += float(max(each.var(axis=0, ddof=1).sum() for each in (lost, of_devices))) / n**2 / draws
    else:
        of_draws += float(lost.var()) / n
    return float(lost.mean()) / expected - 1.0, of_draws / expected**2


def _excess_prior(excess: FloatArray, variance: FloatArray) -> Prior:
    """As wide as the points show it to be beyond their own error (empirical Bayes)."""
    weight = 1.0 / (variance + _LEAST_EXCESS**2)
    seen = float((weight * (np.square(excess) - variance)).sum() / weight.sum())
    deviation = math.sqrt(max(seen, _LEAST_EXCESS**2))
    return Prior(deviation, deviation / 2.0, _EXCESS_SPREAD)


@dataclass(frozen=True)
class Line:
    """A number over log noise level: intercept + slope * (x - centre).

    Parameters
    ----------
    covariance
        Variance of the intercept, covariance, variance of the slope.
    spread
        Standard deviation of points about the line.
    """

    centre: float
    intercept: float
    slope: float
    covariance: tuple[float, float, float]
    spread: float

    @classmethod
    def fit(cls, x: FloatArray, value: FloatArray, variance: FloatArray, prior: Prior) -> Line:
        """Fit by weighted least squares with weak priors; the spread is found in turn with the line."""
        centre = float(x.mean())
        design = np.stack([np.ones_like(x), x - centre], axis=1)
        weak = np.diag([prior.intercept**-2, prior.slope**-2])
        spread = prior.spread**2
        for _ in range(20):
            weight = 1.0 / (variance + spread)
            covariance = np.linalg.inv(design.T @ (weight[:, None] * design) + weak)
            line = covariance @ design.T @ (weight * value)
            excess = np.maximum((value - design @ line) ** 2 - variance, 0.0)
            spread = float((_SPREAD_WEIGHT * prior.spread**2 + excess.sum()) / (_SPREAD_WEIGHT + len(x)))
        terms = (float(covariance[0, 0]), float(covariance[0, 1]), float(covariance[1, 1]))
        return cls(centre, float(line[0]), float(line[1]), terms, math.sqrt(spread))

    def at(self, x: float) -> tuple[float, float]:
        """Value at a log noise level, and its standard error, the spread included."""
        first, mixed, second = self.covariance
        step = x - self.centre
        variance = first + 2.0 * step * mixed + step**2 * second + self.spread**2
        return self.intercept + self.slope * step, math.sqrt(max(variance, 0.0))


@dataclass(frozen=True)
class NoiseResponse:
    """Distortion of the margins as a function of the noise level.

    Parameters
    ----------
    gain
        Line of the gain over sqrt(l / l_0), l_0 the line's centre: noise deviates a margin by sqrt(l).
    shift
        Of the logits of single classes at l_0; proportional to l, beyond the strongest point to sqrt(l) as the gain.
    advantage, advantage_variance
        Of the reference class at l_0; over the noise level as the shift.
    log_factor, excess
        Lines of the log factor and of the relative excess of the drop.
    points
        What the lines were fitted to.
    """

    gain: Line
    shift: ClassTerms
    advantage: float
    advantage_variance: float
    log_factor: Line
    excess: Line
    points: tuple[SimulatedPoint, ...]

    @classmethod
    def fit(cls, points: Sequence[SimulatedPoint]) -> NoiseResponse:
        """Fit the lines, and what grows with the noise level."""
        level = np.array([point.log_level for point in points])
        deviation = np.exp((level - level.mean()) / 2.0)
        gain, log_factor, excess, advantage = (
            np.array([(getattr(point, name), getattr(point, f"{name}_variance")) for point in points]).T
            for name in ("gain", "log_factor", "excess", "advantage")
        )
        return cls(
            Line.fit(level, gain[0] / deviation, gain[1] / deviation**2, _GAIN),
            pooled([(point.log_level, point.shift) for point in points], float(level.mean())),
            *proportional(level - level.mean(), *advantage),
            Line.fit(level, log_factor[0], log_factor[1], _LOG_FACTOR),
            Line.fit(level, excess[0], excess[1], _excess_prior(*excess)),
            tuple(points),
        )

    def at(self, log_level: float) -> tuple[Distortion, Distortion]:
        """Distortion at a noise level, and the standard errors of its numbers."""
        x = min(max(log_level, self.gain.centre - _FARTHEST), self.gain.centre + _FARTHEST)
        deviation = math.exp((x - self.gain.centre) / 2.0)
        gain, gain_error = self.gain.at(x)
        log_factor, log_factor_error = self.log_factor.at(x)
        excess, excess_error = self.excess.at(x)
        times = self._second_order(log_level)
        advantage, advantage_error = times * self.advantage, times * math.sqrt(self.advantage_variance)
        return (
            Distortion(max(deviation * gain, -1.0), log_factor, max(excess, -1.0), advantage),
            Distortion(deviation * gain_error, log_factor_error, excess_error, advantage_error),
        )

    def shift_at(self, log_level: float) -> ClassTerms:
        """Shift of the logits at a noise level."""
        return self.shift.times(self._second_order(log_level))

    def _second_order(self, log_level: float) -> float:
        """By how much what grows with the noise level exceeds what it is at l_0."""
        strongest = max(point.log_level for point in self.points)
        known = min(log_level, strongest)
        beyond = min(log_level - known, _FARTHEST)
        return math.exp(known - self.gain.centre + beyond / 2.0)


@dataclass(frozen=True)
class Calibration:
    """Responses to noise of a profile on one hardware, by family of K maps.

    Parameters
    ----------
    hardware, granularity, compensated
        What the simulated K maps were for, and whether they carried bias corrections.
    responses
        Of allocated and of uniform K maps.
    examples, draws
        Simulated examples, and noise draws of each.
    """

    hardware: Hardware
    granularity: Granularity
    compensated: bool
    responses: Mapping[str, NoiseResponse]
    examples: int
    draws: int

    def serves(self, hardware: Hardware, granularity: Granularity) -> bool:
        """Whether predictions for a hardware and granularity may be calibrated by it."""
        return hardware == self.hardware and granularity is self.granularity

    def to_record(self) -> dict[str, Any]:
        """Describe it in JSON-able values."""
        return {
            "hardware": self.hardware.to_dict(),
            "granularity": str(self.granularity),
            "compensated": self.compensated,
            "responses": {family: asdict(response) for family, response in self.responses.items()},
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
            {str(family): _response(response) for family, response in record["responses"].items()},
            int(record["examples"]),
            int(record["draws"]),
        )


def _response(record: Mapping[str, Any]) -> NoiseResponse:
    points = tuple(SimulatedPoint.from_record(point) for point in record["points"])
    gain, log_factor, excess = (_line(record[name]) for name in ("gain", "log_factor", "excess"))
    shift, advantage = ClassTerms.from_record(record.get("shift")), record.get("advantage", 0.0)
    return NoiseResponse(gain, shift, advantage, record.get("advantage_variance", 0.0), log_factor, excess, points)


def _line(record: Mapping[str, Any]) -> Line:
    first, mixed, second = record["covariance"]
    return Line(record["centre"], record["intercept"], record["slope"], (first, mixed, second), record["spread"])
