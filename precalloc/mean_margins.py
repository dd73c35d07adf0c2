"""How noise was seen to move the mean margins of a simulated K map: by a factor, by class, and to the label's side.

The mean margin z_a - z_b of an example under noise is taken to be

    (1 + gain) (z_a - z_b) + t_a - t_b + u,    a the label.

The signal behind nonlinearities weakens; some classes win by noise what others lose, since a class that is next to
everything takes over examples of all others; and the label wins a little, whichever class it is, as with any ensemble,
which the mean over noisy networks is. Fitted by ridge regression over the margins that noise can reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precalloc.class_terms import ClassArray, ClassTerms, design, told_classes
from precalloc.profiles import FloatArray

# Examples whose margin is so many standard deviations of its noise or less, and so many of the nearest at least.
_REACH, _FEWEST = 3.0, 32
# Standard deviations of normal priors: of the gain, and of class terms and advantage in deviations of margins' noise.
_GAIN_PRIOR, _TERM_PRIOR, _ADVANTAGE_PRIOR = 0.5, 0.4, 0.03
# Rounds in which coefficients and the variance of the rows are found in turn.
_FITS = 3
# Of the rows about their fit, in squared deviations: keeps terms of which only differences are seen determined.
_LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class MeanMargins:
    """What noise did to mean margins at one K map.

    Parameters
    ----------
    gain, gain_variance
        Relative change of the mean margins, and its variance over examples and draws.
    shift
        Change of the logits of single classes.
    advantage, advantage_variance
        What the reference class wins over all others, whichever it is.
    factor, factor_variance
        Of the linearised variance, about these means.
    """

    gain: float
    gain_variance: float
    shift: ClassTerms
    advantage: float
    advantage_variance: float
    factor: float
    factor_variance: float

    @classmethod
    def fit(
        cls,
        clean: FloatArray,
        noisy: FloatArray,
        variance: FloatArray,
        classes: ClassArray | None,
        device: npt.NDArray[np.int64],
    ) -> MeanMargins:
        """Fit the mean margins.

        Parameters
        ----------
        clean : (n, m)
            Margins without noise, nearest first.
        noisy : (draws, n, m)
        variance : (n, m)
            Linearised.
        classes : (n, 1 + m)
            Reference class, and those of the margins; None takes all classes to be alike.
        device : (n,)
            Which examples share the weight errors of a device.
        """
        row, column = np.nonzero(_reached(clean, variance))
        d, moved, expected = clean[row, column], noisy[:, row, column] - clean[row, column], variance[row, column]
        pairs = None if classes is None else np.stack([classes[row, 0], classes[row, 1 + column]], axis=1)
        told = np.zeros(0, np.int64) if pairs is None else told_classes(pairs)
        columns = np.stack([d, np.ones_like(d)], axis=1)
        if pairs is not None:
            columns = np.concatenate([columns, design(pairs, told)], axis=1)
        deviation = math.exp(float(np.log(variance[:, 0] + np.finfo(float).tiny).mean()) / 2.0)
        found, covariance, influence = _ridge(columns, moved.mean(axis=0), deviation)
        rest = moved - columns @ found
        factor = float(np.square(rest).mean(axis=0).sum() / expected.sum())
        of_factor = (np.square(rest).mean(axis=0) - factor * expected) / expected.sum()
        return cls(
            float(found[0]),
            _variance_of_sum(influence[0] * rest.mean(axis=0), row, device),
            ClassTerms(tuple(told.tolist()), tuple(found[2:].tolist()), _variance_of_differences(covariance[2:, 2:])),
            float(found[1]),
            float(covariance[1, 1]),
            factor,
            _variance_of_sum(of_factor, row, device),
        )


def _reached(margin: FloatArray, variance: FloatArray) -> npt.NDArray[np.bool_]:
    """Which margins (n, m) noise can reach."""
    distance = np.abs(margin) / np.sqrt(variance + np.finfo(float).tiny)
    fewest = min(_FEWEST, len(distance)) - 1
    reached: npt.NDArray[np.bool_] = distance <= max(_REACH, float(np.partition(distance[:, 0], fewest)[fewest]))
    return reached


def _ridge(columns: FloatArray, value: FloatArray, deviation: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Most likely coefficients (2 + c,), their covariance, and what each row adds to each (2 + c, r).

    The variance of the rows is found in turn with the coefficients.
    """
    prior = np.full(columns.shape[1], (_TERM_PRIOR * deviation) ** 2)
    prior[:2] = _GAIN_PRIOR**2, (_ADVANTAGE_PRIOR * deviation) ** 2
    least = _LEAST_SPREAD * deviation**2
    spread = max(float(np.square(value).mean()), least)
    for _ in range(_FITS):
        inverse = np.linalg.inv(columns.T @ columns + np.diag(spread / prior))
        influence = inverse @ columns.T
        found = influence @ value
        spread = max(float(np.square(value - columns @ found).mean()), least)
    return found, spread * inverse, influence


def _variance_of_differences(covariance: FloatArray) -> tuple[float, ...]:
    """Variances of terms (c,) without that of their mean, which no margin sees."""
    if not len(covariance):
        return ()
    centred = covariance - covariance.mean(axis=0)
    return tuple(np.diag(centred - centred.mean(axis=1, keepdims=True)).tolist())


def _variance_of_sum(values: FloatArray, row: npt.NDArray[np.int64], device: npt.NDArray[np.int64]) -> float:
    """Variance of the sum of values (r,) of examples ``row``, whose expectation is zero.

    The larger of what differences between examples and between devices show: weight noise is common to those of one.
    """
    found = []
    for group in (row, device[row]):
        sums = np.bincount(np.unique(group, return_inverse=True)[1], values)
        found.append(float(np.square(sums).sum()) * len(sums) / max(len(sums) - 1, 1))
    return max(found)


def proportional(log_levels: FloatArray, values: FloatArray, variances: FloatArray) -> tuple[float, float]:
    """Value at a noise level of 1, and its variance, of what grows with the level and was seen at several of them.

    Points weigh in proportion to their level l: values grow with l and their error with its root. They see the same
    examples, so that the error of all is no smaller than that of one.
    """
    level = np.exp(log_levels)
    weight = level / level.sum()
    return float(weight @ (values / level)), float(weight @ (variances / level**2))


def pooled(points: Sequence[tuple[float, ClassTerms]], log_level: float) -> ClassTerms:
    """Class terms at a noise level from those at several log levels, to which they are taken to be proportional."""
    found: dict[int, list[tuple[float, float, float]]] = {}
    for level, terms in points:
        for name, value, variance in zip(terms.classes, terms.value, terms.variance, strict=True):
            found.setdefault(name, []).append((level - log_level, value, variance))
    classes = sorted(found)
    each = [proportional(*np.array(found[name]).T) for name in classes]
    return ClassTerms(tuple(classes), tuple(value for value, _ in each), tuple(variance for _, variance in each))
