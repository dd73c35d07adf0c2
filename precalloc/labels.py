"""Which of an example's two strongest classes is its label: chances in the place of what the sample happened to hold.

Noise that swaps the two strongest classes of an example loses a point where the label is the first of them and gains
one where it is the second. Which it is decides the sign of all that an example near the boundary has to say about the
drop, and next to the boundary it is a toss: the drop is a small difference of large numbers. Averaging over the label
(Rao-Blackwell) with the chance that it has given the margin d between the two, a and b,

    p = 1 / (1 + exp(-(steepness * d + t_a - t_b))),

leaves the mean as it is where p holds and takes that part of the variance away. The steepness, and terms t of classes
that the network names too often or too rarely, are fitted to the labels of the profile: temperature and bias
(Guo et al. 2017, arXiv:1706.04599, section 4.2) of the two classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from precalloc.class_terms import ClassArray, design, told_classes
from precalloc.profiles import FloatArray

# Examples whose other label has less chance than this are left as they are: they are far from the boundary.
_LEAST_CHANCE = 1e-3
# Standard deviation of the normal prior of class terms, in nats.
_PRIOR = 0.3
# Newton's method doubles the digits at each, from a start that is near already.
_NEWTON_STEPS = 8


@dataclass(frozen=True, eq=False)
class LabelChances:
    """Examples whose label may as well be the nearest other class.

    Parameters
    ----------
    rows : (r,)
        Which examples.
    margin, chance : (r,)
        Nearest margin d, and chance of the label that the example has.
    design : (r, p)
        Derivative of the log odds in what was fitted: the margin for the steepness, 1 and -1 for terms of classes.
    covariance : (p, p)
        Of what was fitted.
    """

    rows: npt.NDArray[np.int64]
    margin: FloatArray
    chance: FloatArray
    design: FloatArray
    covariance: FloatArray

    @classmethod
    def known(cls) -> LabelChances:
        """No example's label is in question: what is asked is of these examples, not of all that are like them."""
        return cls(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), np.zeros((0, 0)), np.zeros((0, 0)))

    @classmethod
    def fit(cls, margins: FloatArray, classes: ClassArray | None = None) -> LabelChances:
        """Fit the chance to margins (n, m), nearest first; no example is chosen where every label is the strongest.

        Only examples whose label is one of the two strongest classes tell: for them the other label has the same pair.
        Without the classes (n, 1 + m) all are taken to be alike.
        """
        paired = np.ones(len(margins), bool) if margins.shape[1] == 1 else margins[:, 1] > 0.0
        d = margins[paired, 0]
        if not (d < 0.0).any():  # without labels, or with none that the network misses, nothing tells of a chance
            return cls.known()
        steepness = _steepness(d)
        near = np.flatnonzero(paired & (_logistic(steepness * margins[:, 0]) < 1.0 - _LEAST_CHANCE))
        columns = [margins[near, :1]]
        if classes is not None:
            pairs = classes[near, :2]
            columns.append(design(pairs, told_classes(pairs)))
        derivative = np.concatenate(columns, axis=1)
        found, covariance = _fitted(derivative, steepness)
        return cls(near, margins[near, 0], _logistic(derivative @ found), derivative, covariance)

    def first(self, examples: int) -> LabelChances:
        """Those among the first so many examples."""
        kept = self.rows < examples
        rows = {name: getattr(self, name)[kept] for name in ("rows", "margin", "chance", "design")}
        return replace(self, **rows)

    def exchanged(self, mean: FloatArray, covariance: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Moments of the margins (n, m), (n, m, m) of these examples with the nearest other class as label.

        With margins z_a - z_b and z_a - z_c, those of b are z_b - z_a and z_b - z_c: a linear map.
        """
        turn = _turn(mean.shape[1])
        return mean[self.rows] @ turn.T, turn @ covariance[self.rows] @ turn.T

    def lost(self, margins: FloatArray, noisy: FloatArray) -> FloatArray:
        """Losses averaged over the label, (draws, n), of margins (n, m) that noise made (draws, n, m)."""
        own = np.all(margins > 0.0, axis=1) - np.all(noisy > 0.0, axis=2).astype(float)
        turned = noisy[:, self.rows] @ _turn(margins.shape[1]).T
        return self._average(own, (self.margin < 0.0) - np.all(turned > 0.0, axis=2).astype(float))

    def average(self, own: FloatArray, other: FloatArray) -> tuple[FloatArray, float]:
        """Average losses over the label.

        Parameters
        ----------
        own : (n,)
            Loss of every example with the label that it has.
        other : (r,)
            Of these examples with the other.

        Returns
        -------
        loss : (n,)
        variance
            Of its mean, from the fit of the chance.
        """
        weight = self.chance * (1.0 - self.chance) * (own[self.rows] - other)
        slope = self.design.T @ weight / len(own)
        return self._average(own, other), float(slope @ self.covariance @ slope)

    def certainty(self, examples: int) -> FloatArray:
        """By how much the label outweighs the other, (n,): 1 where it is known, 0 where both have the same chance."""
        weight = np.ones(examples)
        weight[self.rows] = 2.0 * self.chance - 1.0
        return weight

    def _average(self, own: FloatArray, other: FloatArray) -> FloatArray:
        average = own.copy()
        average[..., self.rows] -= (1.0 - self.chance) * (own[..., self.rows] - other)
        return average


def _turn(m: int) -> FloatArray:
    turn: FloatArray = np.eye(m)
    turn[:, 0] = -1.0
    return turn


def _logistic(x: FloatArray) -> FloatArray:
    value: FloatArray = 0.5 * (1.0 + np.tanh(0.5 * x))
    return value


def _fitted(derivative: FloatArray, steepness: float) -> tuple[FloatArray, FloatArray]:
    """Most likely steepness and class terms (p,) given that all labels are first of their pair; their covariance.

    Newton's method on a concave log likelihood, from the steepness without class terms, which stays positive.
    """
    precision = np.full(derivative.shape[1], _PRIOR**-2)
    precision[0] = 0.0
    found = np.zeros(len(precision))
    found[0] = steepness
    for _ in range(_NEWTON_STEPS):
        chance = _logistic(derivative @ found)
        hessian = derivative.T @ ((chance * (1.0 - chance))[:, None] * derivative) + np.diag(precision)
        hessian[0, 0] = max(hessian[0, 0], np.finfo(float).tiny)  # the steepness has no prior
        covariance = np.linalg.inv(hessian)
        found = found + covariance @ (derivative.T @ (1.0 - chance) - precision * found)
        found[0] = max(found[0], 0.0)
    return found, covariance


def _steepness(d: FloatArray) -> float:
    """Maximum-likelihood steepness for margins d of labels, 0 where larger margins are no more often right."""
    low, high = 0.0, 1.0 / float(np.abs(d).mean())

    def excess(steepness: float) -> float:  # rises with the steepness; zero at the maximum
        return float((d * (_logistic(steepness * d) - 1.0)).sum())

    if excess(0.0) >= 0.0:
        return 0.0
    while excess(high) < 0.0:
        high *= 2.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) < 0.0 else (low, middle)
    return high
