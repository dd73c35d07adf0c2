"""Noise levels from device measurements: repeated outputs of a known product, fitted by the noise kinds' variances.

The sample variance s^2 of an output over repeated draws estimates

    sigma_t^2 D dW_i^2 dx^2  +  sigma_w^2 dW_i^2 ||x||^2  +  ||W_i||^2 ||x||^2 / (D n_0),

which is linear in the strengths sigma_t^2, sigma_w^2 and 1 / n_0. Its standard deviation is proportional to itself, so
relative residuals are what least squares minimises; strengths are not negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precalloc.errors import HardwareError
from precalloc.hardware import AVERAGED_BY, NoiseKind, NoiseTerm
from precalloc.profiles import FloatArray

_GROUPS = 20  # of draws, left out in turn for the standard errors
_ROUNDS = 50
_TOLERANCE = 1e-10
_MOST_ALIKE = 1e4  # condition number from which two kinds' variances no longer differ in the data


@dataclass(frozen=True)
class FittedNoise:
    """A noise term for a hardware, and the standard error of its level."""

    term: NoiseTerm
    error: float


def unit_variances(
    weights: npt.ArrayLike, inputs: npt.ArrayLike, input_range: float | None = None
) -> dict[NoiseKind, FloatArray]:
    """Variance of every output of ``inputs @ weights.T`` at unit noise and K = 1 (Garg et al. 2023, section III).

    Parameters
    ----------
    weights : (channels, fan_in)
    inputs : (vectors, fan_in)
    input_range
        dx, the range that is mapped to full scale; by default that of ``inputs``.

    Returns
    -------
    kind -> (vectors, channels)
    """
    w, x = np.asarray(weights, dtype=float), np.asarray(inputs, dtype=float)
    if w.ndim != 2 or x.ndim != 2 or w.shape[1] != x.shape[1]:
        raise HardwareError(
            f"Weights {w.shape} and inputs {x.shape} do not fit. Give (channels, fan_in) and (vectors, fan_in)."
        )
    fan_in = w.shape[1]
    full_scale = float(np.ptp(x)) if input_range is None else input_range
    weight_range_squared, input_energy = np.ptp(w, axis=1) ** 2, np.square(x).sum(axis=1)
    ones = np.ones(len(x))
    return {
        NoiseKind.THERMAL: np.outer(ones, fan_in * full_scale**2 * weight_range_squared),
        NoiseKind.WEIGHT: np.outer(input_energy, weight_range_squared),
        NoiseKind.SHOT: np.outer(input_energy, np.square(w).sum(axis=1) / fan_in),
    }


def fit_noise(
    outputs: npt.ArrayLike,
    weights: npt.ArrayLike,
    inputs: npt.ArrayLike,
    kinds: Iterable[str],
    *,
    input_range: float | None = None,
    source: str = "",
) -> tuple[FittedNoise, ...]:
    """Estimate the levels of a hardware's noise from repeated measurements of a product.

    Measure what is drawn anew each time: repeated reads of one array show its read-out and shot noise; the same weights
    programmed again and again, each time averaged over many reads, show the programming error.

    Parameters
    ----------
    outputs : (draws, vectors, channels)
        Measured outputs, in the units of ``inputs @ weights.T``.
    weights : (channels, fan_in)
        Programmed weights.
    inputs : (vectors, fan_in)
        Applied inputs. Kinds are told apart by inputs of different norms and channels of different ranges.
    kinds
        Noise kinds to fit together: "thermal", "weight", "shot".
    input_range
        dx, the range that is mapped to full scale; by default that of ``inputs``.
    source
        What to note as the origin of the numbers.

    Returns
    -------
    tuple of FittedNoise
        One a kind. Standard errors are those of the delete-a-group jackknife over draws (Kott, J. Official Statistics
        17(4), 2001), so outputs of one draw may depend on each other, as they do under weight noise.

    Raises
    ------
    HardwareError
        If shapes do not fit, values are not finite, the data cannot tell the kinds apart, or shows none of a kind.
    """
    wanted = _kinds(kinds)
    measured, units = np.asarray(outputs, dtype=float), unit_variances(weights, inputs, input_range)
    _check(measured, units, wanted)
    design = np.stack([units[kind].ravel() for kind in wanted], axis=1)
    samples = measured.reshape(len(measured), -1)
    strengths = _fit(design, samples.var(axis=0, ddof=1))
    for kind, strength in zip(wanted, strengths, strict=True):
        if strength <= 0.0:
            raise HardwareError(f"The measurements show no {kind} noise beside the other kinds. Fit without it.")
    errors = _jackknife(design, samples)
    return tuple(
        _fitted(kind, float(strength), float(error), source)
        for kind, strength, error in zip(wanted, strengths, errors, strict=True)
    )


def _kinds(names: Iterable[str]) -> tuple[NoiseKind, ...]:
    wanted = tuple(names)
    unknown = [name for name in wanted if name not in list(NoiseKind)]
    if unknown or not wanted:
        what = f"Noise kind {unknown[0]!r} is unknown" if unknown else "No noise kind is given"
        raise HardwareError(f"{what}. Name at least one of {', '.join(NoiseKind)}.")
    return tuple(NoiseKind(name) for name in wanted)


def _check(measured: FloatArray, units: Mapping[NoiseKind, FloatArray], kinds: tuple[NoiseKind, ...]) -> None:
    expected = units[NoiseKind.THERMAL].shape
    if measured.ndim != 3 or measured.shape[1:] != expected or len(measured) < _GROUPS:
        raise HardwareError(
            f"Outputs have shape {measured.shape}. Give (draws, vectors, channels) with at least {_GROUPS} draws and "
            f"{expected[0]} vectors of {expected[1]} channels, as inputs and weights have."
        )
    if not np.all(np.isfinite(measured)) or not all(np.all(np.isfinite(units[kind])) for kind in kinds):
        raise HardwareError("Measurements, weights or inputs have NaN or infinite values. Leave those draws out.")
    if np.any(np.ptp(measured, axis=0) == 0.0):
        raise HardwareError("Some outputs are the same in all draws. Leave out what is not connected or saturates.")
    absent = [kind for kind in kinds if not units[kind].any()]
    if absent:
        raise HardwareError(
            f"These weights and inputs cause no {absent[0]} noise: their range or norm is 0. Vary them."
        )
    columns = np.stack([units[kind].ravel() / np.linalg.norm(units[kind]) for kind in kinds], axis=1)
    if not np.linalg.cond(columns) < _MOST_ALIKE:
        raise HardwareError(
            f"The measurements cannot tell {' from '.join(kinds)} noise apart. Vary the norm of the inputs and the "
            "range of the channels' weights, or fit fewer kinds."
        )


def _fit(design: FloatArray, variance: FloatArray) -> FloatArray:
    """Strengths (kinds,) that minimise the relative residuals of sample variances, reweighted until they agree."""
    from scipy.optimize import nnls  # slow to start

    fitted = np.full_like(variance, variance.mean())
    strengths: FloatArray = np.zeros(design.shape[1])
    for _ in range(_ROUNDS):
        before, scale = strengths, 1.0 / np.maximum(fitted, np.finfo(float).tiny)
        # Columns of like size: strengths of different kinds differ by many orders of magnitude.
        weighted = design * scale[:, None]
        sizes = np.linalg.norm(weighted, axis=0)
        strengths = nnls(weighted / sizes, variance * scale)[0] / sizes
        fitted = design @ strengths
        if np.allclose(strengths, before, rtol=_TOLERANCE, atol=0.0):
            break
    return strengths


def _jackknife(design: FloatArray, samples: FloatArray) -> FloatArray:
    """Standard errors of the strengths (kinds,), from fits that leave a group of draws out in turn."""
    group = np.arange(len(samples)) % _GROUPS
    fits = np.array([_fit(design, samples[group != g].var(axis=0, ddof=1)) for g in range(_GROUPS)])
    errors: FloatArray = np.sqrt((_GROUPS - 1) / _GROUPS * np.square(fits - fits.mean(axis=0)).sum(axis=0))
    return errors


def _fitted(kind: NoiseKind, strength: float, error: float, source: str) -> FittedNoise:
    """Turn a strength into the level that hardware files give: sigma = sqrt(strength), or n_0 = 1 / strength."""
    if kind is NoiseKind.SHOT:
        level, level_error = 1.0 / strength, error / strength**2
    else:
        level, level_error = strength**0.5, error / (2.0 * strength**0.5)
    return FittedNoise(NoiseTerm(kind, level, AVERAGED_BY[kind], source), level_error)
