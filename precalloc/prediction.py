"""Predicted accuracy of any K map, in milliseconds and without a noisy pass.

To first order the noise of all sites reaches the class margins of example n as a Gaussian whose covariance is linear
in 1/K,

    C_n(K) = sum_kinds strength_kind * sum_u C_{n,u,kind} / K_u,

and the example is right where all its margins stay positive. What the linearisation leaves out, margins that shrink
under noise and a variance that is not the first-order one, is a `Distortion`, found by `precalloc.calibrate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from precalloc.class_terms import ClassArray, ClassTerms
from precalloc.errors import ProfileError
from precalloc.hardware import Hardware, NoiseKind, NoiseTerm
from precalloc.intervals import NORMAL_QUANTILE, paired, wilson
from precalloc.labels import LabelChances
from precalloc.objective import Granularity, require_kinds, split_terms
from precalloc.orthants import orthant_probability, random_directions
from precalloc.profiles import FloatArray, MarginTable, Profile

_OUT_OF_REACH = 38.0  # deviations: the normal density at this distance is zero in floating point


@dataclass(frozen=True)
class Distortion:
    """What noise does to margins beyond adding the linearised covariance.

    Parameters
    ----------
    gain
        Relative change of the mean margins, m -> (1 + gain) m: the signal behind nonlinearities weakens.
    log_factor
        Of the factor on the covariance.
    excess
        Relative excess of the drop over that of Gaussian margins with these moments.
    advantage
        What is added to the mean margins of the label, whichever class it is.
    shift : (n, m)
        What is added to the mean margins of each example, or one number for all.
    """

    gain: float = 0.0
    log_factor: float = 0.0
    excess: float = 0.0
    advantage: float = 0.0
    shift: FloatArray | float = 0.0

    def moved(self, name: str, step: float) -> Distortion:
        """Add a step to one of the numbers; neither gain nor excess change the sign of mean margins or drop."""
        value = getattr(self, name) + step
        return replace(self, **{name: max(value, -1.0) if name in ("gain", "excess") else value})


_NONE = Distortion()


class Response(Protocol):
    """Distortion that simulated points call for."""

    def at(self, log_level: float) -> tuple[Distortion, Distortion]:
        """Distortion at a noise level but for the shift, and the standard errors of its numbers."""
        ...

    def shift_at(self, log_level: float) -> ClassTerms:
        """Shift of the logits of single classes at a noise level."""
        ...


@dataclass(frozen=True)
class Prediction:
    """Expected accuracy under noise; shares of the examples, ``low`` and ``high`` ends of 95 % intervals.

    The intervals are for the mean over all examples like the profiled ones and all noise: they cover that the profiled
    examples are a sample, the numerical integration over noise and, where the prediction is calibrated by simulated
    points, the error of the linearisation. ``drop`` is clean minus noisy, paired per example, so its interval is much
    narrower than that of ``accuracy``.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    clean_accuracy: float
    drop: float
    drop_low: float
    drop_high: float


@dataclass(frozen=True, eq=False)
class Predictor:
    """Margin statistics of a profile under a hardware, ready for many K maps.

    Parameters
    ----------
    margins : (n, m)
        Clean margins.
    static : (n * m * (m + 1) / 2,)
        Covariance that no K reduces, upper triangles row by row.
    averaged : (n * m * (m + 1) / 2, units)
        Covariance of each unit at K = 1.
    directions : (n, s, m)
        Unit vectors, different ones for every example and the same for every K map: differences between K maps
        are then free of most of the integration error.
    labels
        Examples whose label is averaged over.
    classes : (n, 1 + m)
        Reference class of every example, and those of its margins, where they are known.
    """

    margins: FloatArray
    static: FloatArray
    averaged: FloatArray
    directions: FloatArray
    labels: LabelChances
    classes: ClassArray | None = None

    @classmethod
    def of(cls, profile: Profile, hardware: Hardware, granularity: Granularity, seed: int = 0) -> Predictor:
        """Prepare predictions for K maps of one granularity.

        Raises
        ------
        ProfileError
            If the profile has no margins, lacks them per channel, or lacks a noise kind of the hardware.
        """
        require_kinds(profile, hardware)
        tables = _tables(profile, granularity)
        assert profile.margins is not None
        averaged, static = split_terms(hardware)
        examples = min(len(tables[term.kind]) for term in hardware.noise)
        margins = np.asarray(profile.margins.margins[:examples], dtype=float)
        shape = (examples, *tables[hardware.noise[0].kind].shape[1:])
        per_unit = _scaled_sum(tables, averaged, shape)
        floor = _scaled_sum(tables, static, shape).sum(axis=1)
        classes = None if profile.margins.classes is None else profile.margins.classes[:examples]
        return cls(
            margins=margins,
            static=floor.reshape(-1),
            averaged=np.ascontiguousarray(per_unit.transpose(0, 2, 1)).reshape(-1, shape[1]),
            directions=random_directions(len(margins), margins.shape[1], seed),
            labels=LabelChances.fit(margins, classes),
            classes=classes,
        )

    @property
    def examples(self) -> int:
        """Number of examples that predictions rest on."""
        return len(self.margins)

    @property
    def units(self) -> int:
        """Number of units with a K of their own."""
        units: int = self.averaged.shape[1]
        return units

    @property
    def clean_accuracy(self) -> float:
        """Share of these examples that the noiseless model has right."""
        return float(self._right_without_noise.mean())

    def moments(self, k: FloatArray | float) -> tuple[FloatArray, FloatArray]:
        """Mean (n, m) and covariance (n, m, m) of the margins at the K of each unit (units,), or one K for all."""
        inverse = np.broadcast_to(1.0 / np.asarray(k, dtype=float), (self.units,))
        examples, m = self.margins.shape
        upper = np.triu_indices(m)
        covariance = np.empty((examples, m, m))
        covariance[:, upper[0], upper[1]] = (self.averaged @ inverse + self.static).reshape(examples, -1)
        covariance[:, upper[1], upper[0]] = covariance[:, upper[0], upper[1]]
        return self.margins, covariance

    def right(self, k: FloatArray | float, distortion: Distortion = _NONE) -> FloatArray:
        """Probability (n,) that each example is right, with the label that it has."""
        mean, covariance = _distorted(*self.moments(k), distortion)
        return orthant_probability(mean + distortion.advantage, covariance, self.directions)[0]

    def log_level(self, k: FloatArray | float) -> float:
        """Logarithm of the noise level: mean over examples of the log variance of the nearest margin."""
        return self._log_level(self.moments(k)[1])

    @staticmethod
    def _log_level(covariance: FloatArray) -> float:
        return float(np.log(covariance[:, 0, 0] + np.finfo(float).tiny).mean())

    def predict(self, k: FloatArray | float, response: Response | None = None) -> Prediction:
        """Predict the accuracy at the K of each unit (units,), or one K for all; infinite K is noiseless.

        Parameters
        ----------
        k
            K of the units.
        response
            Calibration by simulated points; its error widens the intervals.
        """
        return _summarise(self._right_without_noise, *self._expected(k, response))

    def predict_these(self, k: FloatArray | float, response: Response | None = None) -> Prediction:
        """Predict the accuracy on these very examples, with the labels that they have.

        Intervals are for the mean over all noise: they cover the error of method and calibration, and no sampling of
        examples. Parameters as of `predict`.
        """
        known = replace(self, labels=LabelChances.known())
        return _summarise_these(self._right_without_noise, *known._expected(k, response))

    @property
    def _right_without_noise(self) -> FloatArray:
        right: FloatArray = np.all(self.margins > 0.0, axis=1).astype(float)
        return right

    def _expected(self, k: FloatArray | float, response: Response | None) -> tuple[FloatArray, float]:
        """Expected loss of each example (n,), and the variance of their mean by method and calibration."""
        mean, covariance = self.moments(k)
        if response is None:
            return self._lost(mean, covariance, _NONE)
        log_level = self._log_level(covariance)
        (found, error), shift = response.at(log_level), response.shift_at(log_level)
        found = replace(found, shift=shift.of_margins(self.classes))
        lost, of_model = self._lost(mean, covariance, found)
        for name in ("gain", "log_factor", "excess", "advantage"):
            step = getattr(error, name)
            ends = [self._lost(mean, covariance, found.moved(name, sign * step))[0].mean() for sign in (-1.0, 1.0)]
            of_model += float((ends[1] - ends[0]) / 2.0) ** 2
        of_model += shift.variance_of_mean(self._slope(mean, covariance, found), self.classes)
        return lost, of_model

    def _slope(self, mean: FloatArray, covariance: FloatArray, distortion: Distortion) -> FloatArray:
        """Derivative of each example's expected loss (n,) in its nearest margin, as if that were the only one."""
        mean, covariance = _distorted(mean, covariance, distortion)
        deviation = np.sqrt(covariance[:, 0, 0] + np.finfo(float).tiny)
        distance = np.minimum(np.abs(mean[:, 0]) / deviation, _OUT_OF_REACH)
        density = np.exp(-np.square(distance) / 2.0) / (deviation * math.sqrt(2.0 * math.pi))
        slope: FloatArray = -(1.0 + distortion.excess) * self.labels.certainty(len(mean)) * density
        return slope

    def _lost(self, mean: FloatArray, covariance: FloatArray, distortion: Distortion) -> tuple[FloatArray, float]:
        """Expected loss of each example (n,), averaged over its label; and the variance of their mean by method."""
        mean, covariance = _distorted(mean, covariance, distortion)
        times = 1.0 + distortion.excess
        own, integration = orthant_probability(mean + distortion.advantage, covariance, self.directions)
        was_right = self._right_without_noise
        if not len(self.labels.rows):
            return np.minimum(times * (was_right - own), 1.0), times**2 * float(integration.sum()) / len(own) ** 2
        exchanged, turned = self.labels.exchanged(mean, covariance)
        directions = self.directions[self.labels.rows]
        other = orthant_probability(exchanged + distortion.advantage, turned, directions)[0]
        lost, of_labels = self.labels.average(was_right - own, (self.labels.margin < 0.0) - other)
        return np.minimum(times * lost, 1.0), times**2 * (float(integration.sum()) / len(own) ** 2 + of_labels)

    def lost(self, k: FloatArray | float, distortion: Distortion = _NONE) -> FloatArray:
        """Expected loss of each example (n,), averaged over the label that it may have."""
        return self._lost(*self.moments(k), distortion)[0]


def _distorted(mean: FloatArray, covariance: FloatArray, distortion: Distortion) -> tuple[FloatArray, FloatArray]:
    return (1.0 + distortion.gain) * mean + distortion.shift, math.exp(distortion.log_factor) * covariance


def _summarise(clean: FloatArray, lost: FloatArray, of_method: float) -> Prediction:
    """Average over examples what they are worth without noise (n,), and what noise takes (n,).

    ``of_method`` is the variance of the mean loss that is not from sampling examples.
    """
    n = len(clean)
    of_accuracy, of_drop = (float(v.var(ddof=1)) / n if n > 1 else 0.0 for v in (clean - lost, lost))
    drop = float(lost.mean())
    # Distorted losses are extrapolated where noise is stronger than any simulated one, and may exceed what is there.
    accuracy = min(max(float((clean - lost).mean()), 0.0), 1.0)
    accuracy_interval = wilson(accuracy, of_accuracy + of_method, n)
    drop_interval = paired(drop, of_drop + of_method, n)
    return Prediction(accuracy, *accuracy_interval, float(clean.mean()), drop, *drop_interval)


def _summarise_these(clean: FloatArray, lost: FloatArray, of_method: float) -> Prediction:
    """Average over known examples what they are worth without noise (n,), and what noise takes (n,)."""
    drop, half, right = float(lost.mean()), NORMAL_QUANTILE * math.sqrt(of_method), float(clean.mean())
    low, high = max(drop - half, right - 1.0), min(drop + half, right)
    return Prediction(right - drop, right - high, right - low, right, drop, low, high)


def _tables(profile: Profile, granularity: Granularity) -> Mapping[NoiseKind, FloatArray]:
    table: MarginTable | None = profile.margins
    if table is None:
        raise ProfileError("The profile holds no margins, so accuracy cannot be predicted. Profile the model again.")
    if granularity is Granularity.LAYER:
        return table.site_covariance
    if table.channel_covariance is None:
        raise ProfileError(
            "The profile holds margins per layer only, so a K map per channel cannot be predicted. "
            "Choose granularity 'layer', or profile the model again with channel margins."
        )
    return table.channel_covariance


def _scaled_sum(
    tables: Mapping[NoiseKind, FloatArray], terms: tuple[NoiseTerm, ...], shape: tuple[int, ...]
) -> FloatArray:
    total: FloatArray = np.zeros(shape)
    for term in terms:
        total += term.strength * tables[term.kind][: shape[0]]
    return total
