"""Probability that Gaussian vectors are positive in all components, of many examples at once."""

from __future__ import annotations

import math
from functools import cache, lru_cache

import numpy as np

from precalloc.profiles import FloatArray

_DIRECTIONS = 24  # orthonormal frames of directions are cut or filled to about so many; each counts in both senses
_CHI_STEPS = 20_000  # of the table of the chi distribution


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
def random_directions(examples: int, m: int, seed: int) -> FloatArray:
    """Random orthonormal frames, several an example: within a frame directions spread out, which lowers the error."""
    if m == 1:
        return np.ones((examples, 1, 1))
    frames = max(2, math.ceil(_DIRECTIONS / m))
    normals = np.random.default_rng(seed).standard_normal((examples * frames, m, m))
    directions = np.linalg.qr(normals)[0].swapaxes(1, 2).reshape(examples, frames * m, m)
    directions.setflags(write=False)
    return directions
