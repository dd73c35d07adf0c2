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
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from typing import Protocol

import numpy as np

from precalloc.errors import ProfileError
from precalloc.hardware import Hardware, NoiseKind, NoiseTerm
from precalloc.intervals import paired, wilson
from precalloc.labels import LabelChances
from precalloc.objective import Granularity, require_kinds, split_terms
from precalloc.profiles import FloatArray, MarginTable, Profile

_DIRECTIONS = 24  # orthonormal frames of directions are cut or filled to about so many; each counts in both senses
_CHI_STEPS = 20_000  # of the table of the chi distribution


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
    """

    gain: float = 0.0
    log_factor: float = 0.0
    excess: float = 0.0

    def moved(self, name: str, step: float) -> Distortion:
        """Add a step to one of the numbers; neither mean margins nor the drop change sign."""
        value = getattr(self, name) + step
        return replace(self, **{name: value if name == "log_factor" else max(value, -1.0)})


_NONE = Distortion()


class Response(Protocol):
    """Distortion that simulated points call for."""

    def at(self, log_level: float) -> tuple[Distortion, Distortion]:
        """Distortion at a noise level, and the standard errors of its numbers."""
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
    """

    margins: FloatArray
    static: FloatArray
    averaged: FloatArray
    directions: FloatArray
    labels: LabelChances

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
        return cls(
            margins=margins,
            static=floor.reshape(-1),
            averaged=np.ascontiguousarray(per_unit.transpose(0, 2, 1)).reshape(-1, shape[1]),
            directions=_directions(len(margins), margins.shape[1], seed),
            labels=LabelChances.fit(margins),
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
        return float(np.all(self.margins > 0.0, axis=1).mean())

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
        return orthant_probability(*_distorted(*self.moments(k), distortion), self.directions)[0]

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
        mean, covariance = self.moments(k)
        right = np.all(self.margins > 0.0, axis=1).astype(float)
        if response is None:
            return _summarise(right, *self._lost(mean, covariance, _NONE))
        found, error = response.at(self._log_level(covariance))
        lost, of_model = self._lost(mean, covariance, found)
        for name, step in asdict(error).items():
            ends = [self._lost(mean, covariance, found.moved(name, sign * step))[0].mean() for sign in (-1.0, 1.0)]
            of_model += float((ends[1] - ends[0]) / 2.0) ** 2
        return _summarise(right, lost, of_model)

    def _lost(self, mean: FloatArray, covariance: FloatArray, distortion: Distortion) -> tuple[FloatArray, float]:
        """Expected loss of each example (n,), averaged over its label; and the variance of their mean by method."""
        mean, covariance = _distorted(mean, covariance, distortion)
        times = 1.0 + distortion.excess
        own, integration = orthant_probability(mean, covariance, self.directions)
        was_right = np.all(self.margins > 0.0, axis=1)
        if not len(self.labels.rows):
            lost = was_right - own
            return np.minimum(times * lost, 1.0), times**2 * float(integration.sum()) / len(own) ** 2
        other = orthant_probability(*self.labels.exchanged(mean, covariance), self.directions[self.labels.rows])[0]
        lost, of_labels = self.labels.average(was_right - own, (self.labels.margin < 0.0) - other)
        return np.minimum(times * lost, 1.0), times**2 * (float(integration.sum()) / len(own) ** 2 + of_labels)

    def lost(self, k: FloatArray | float, distortion: Distortion = _NONE) -> FloatArray:
        """Expected loss of each example (n,), averaged over the label that it may have."""
        return self._lost(*self.moments(k), distortion)[0]


def _distorted(mean: FloatArray, covariance: FloatArray, distortion: Distortion) -> tuple[FloatArray, FloatArray]:
    return (1.0 + distortion.gain) * mean, math.exp(distortion.log_factor) * covariance


def orthant_probability(
    mean: FloatArray, covariance: FloatArray, directions: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Probability that all components of Gaussian vectors are positive, with its integration variance.

    Directional simulation (Deak, Biometrika 67, 1980): along L d, with L L' the covariance and d a unit vector, the
    radius of the Gaussian is chi-distributed in either sense, and the positive orthant cuts an interval from the line
    of signed radii, whose probability is known. Only the direction is sampled; with one component this is the closed
    form.

    Parameters
    ----------
    mean : (n, m)
    covariance : (n, m, m), positive semi-definite
    directions : (n, s, m)

    Returns
    -------
    probability : (n,)
    variance : (n,)
        Of the probability, over the choice of directions; 0 with one component.
    """
    m = mean.shape[1]
    steps = np.moveaxis(directions @ _psd_cholesky(covariance).swapaxes(1, 2), 2, 0)
    first, last = _positive_radii(mean, np.ascontiguousarray(steps))
    share = np.where(last > first, _chi_distribution(m, last) - _chi_distribution(m, first), 0.0) / 2.0
    count = share.shape[1]
    variance = share.var(axis=1) / (count - 1) if m > 1 else np.zeros(len(share))
    return share.mean(axis=1), variance


def _positive_radii(mean: FloatArray, steps: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Signed radii (n, s) between which mean + r * steps, with steps (m, n, s), is positive in all components."""
    first, last = np.full(steps.shape[1:], -np.inf), np.full(steps.shape[1:], np.inf)
    for level, slope in zip(mean.T[:, :, None], steps, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = -level / slope
        np.maximum(first, np.where(slope > 0.0, crossing, -np.inf), out=first)
        np.minimum(last, np.where(slope < 0.0, crossing, np.inf), out=last)
        # A component without noise stays what it is; a margin of exactly 0 is wrong, as it is without noise.
        last[(slope == 0.0) & (level <= 0.0)] = -np.inf
    return first, last


def _psd_cholesky(covariance: FloatArray) -> FloatArray:
    """Lower factors (n, m, m) of positive semi-definite matrices; pivots that rounding made negative count as 0."""
    factor = np.zeros_like(covariance)
    for j in range(covariance.shape[1]):
        row = factor[:, j, :j]
        pivot = covariance[:, j, j] - np.square(row).sum(axis=1)
        pivot[pivot <= 1e-12 * covariance[:, j, j]] = 0.0
        root = np.sqrt(pivot)
        factor[:, j, j] = root
        below = covariance[:, j + 1 :, j] - (factor[:, j + 1 :, :j] @ row[:, :, None])[:, :, 0]
        factor[:, j + 1 :, j] = np.divide(below, root[:, None], out=np.zeros_like(below), where=root[:, None] > 0.0)
    return factor


def _chi_distribution(m: int, radius: FloatArray) -> FloatArray:
    """Chi distribution function of |r|, with the sign of r and m degrees of freedom, interpolated to about 1e-8."""
    table, farthest = _chi_table(m)
    # Radii of the table are equidistant, so that an entry's place is a product: many times faster than a search.
    place = np.minimum(np.abs(radius), farthest) * (_CHI_STEPS / farthest)
    below = np.minimum(place.astype(np.intp), _CHI_STEPS - 1)
    low = table[below]
    share: FloatArray = np.copysign(low + (place - below) * (table[below + 1] - low), radius)
    return share


@cache
def _chi_table(m: int) -> tuple[FloatArray, float]:
    """Chi distribution function at equidistant radii from 0 on, (steps + 1,), and the farthest of them."""
    farthest = math.sqrt(m) + 8.0
    radii = np.linspace(0.0, farthest, _CHI_STEPS + 1)
    log_density = (m - 1) * np.log(np.maximum(radii, 1e-300)) - radii**2 / 2.0
    density = np.exp(log_density - log_density.max())
    areas = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2.0)])
    table = areas / areas[-1]
    table.setflags(write=False)
    return table, farthest


@lru_cache(maxsize=2)  # an allocation and its report predict alike
def _directions(examples: int, m: int, seed: int) -> FloatArray:
    """Random orthonormal frames, several an example: within a frame directions spread out, which lowers the error."""
    if m == 1:
        return np.ones((examples, 1, 1))
    frames = max(2, math.ceil(_DIRECTIONS / m))
    normals = np.random.default_rng(seed).standard_normal((examples * frames, m, m))
    directions = np.linalg.qr(normals)[0].swapaxes(1, 2).reshape(examples, frames * m, m)
    directions.setflags(write=False)
    return directions


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
