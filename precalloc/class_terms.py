"""Numbers of single classes that enter margins as differences: of the reference class, less that of each other class.

What noise does to logits, and what a network makes of its classes, differs from class to class. A margin z_a - z_b sees
the difference t_a - t_b of such terms. Few examples tell of one class, so that terms are held near zero by a normal
prior (ridge regression), and classes that hardly any example tells of have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from precalloc.profiles import FloatArray

ClassArray = npt.NDArray[np.int64]

# Classes that fewer examples than this tell of have no term of their own.
_FEWEST = 5


@dataclass(frozen=True)
class ClassTerms:
    """One number a class; classes that are not named have none.

    Parameters
    ----------
    classes : (c,)
        In ascending order.
    value, variance : (c,)
        Terms, and the variance of each.
    """

    classes: tuple[int, ...] = ()
    value: tuple[float, ...] = ()
    variance: tuple[float, ...] = ()

    def of_margins(self, classes: ClassArray | None) -> FloatArray | float:
        """Terms of margins (n, m) of classes (n, 1 + m): that of the first, less those of the others."""
        if classes is None or not self.classes:
            return 0.0
        term = np.append(self.value, 0.0)[self._places(classes)]
        difference: FloatArray = term[:, :1] - term[:, 1:]
        return difference

    def times(self, scale: float) -> ClassTerms:
        """Multiply all terms."""
        return ClassTerms(
            self.classes, tuple(scale * each for each in self.value), tuple(scale**2 * each for each in self.variance)
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any] | None) -> ClassTerms:
        """Read what ``dataclasses.asdict`` gave, from JSON too; records of releases without class terms have none."""
        if record is None:
            return cls()
        return cls(tuple(record["classes"]), tuple(record["value"]), tuple(record["variance"]))

    def variance_of_mean(self, slope: FloatArray, classes: ClassArray | None) -> float:
        """Variance, from the error of the terms, of the mean over n of what has slopes (n,) in the first margins.

        Errors of different classes are taken to be independent.
        """
        if classes is None or not self.classes:
            return 0.0
        first, second = self._places(classes[:, :2]).T
        count = len(self.classes) + 1
        of_class = np.bincount(first, slope, count) - np.bincount(second, slope, count)
        return float((np.square(of_class[:-1] / len(slope)) * np.array(self.variance)).sum())

    def _places(self, classes: ClassArray) -> ClassArray:
        """Where each class stands in ``classes``; one place behind the last for those that are not there."""
        known = np.array(self.classes)
        place = np.minimum(np.searchsorted(known, classes), len(known) - 1)
        return np.where(known[place] == classes, place, len(known))


def told_classes(pairs: ClassArray) -> ClassArray:
    """Classes that enough of the pairs (r, 2) tell of, in ascending order."""
    classes, counts = np.unique(pairs, return_counts=True)
    found: ClassArray = classes[counts >= _FEWEST]
    return found


def design(pairs: ClassArray, classes: ClassArray) -> FloatArray:
    """Columns (r, c) of a regression on terms of the classes: +1 where they are first of a pair, -1 where second."""
    columns: FloatArray = (pairs[:, :1] == classes).astype(float) - (pairs[:, 1:] == classes)
    return columns
