"""What noise simulation says about score and loss, with intervals that cover examples and noise draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from precalloc.intervals import NORMAL_QUANTILE, paired, wilson
from precalloc.records import plain

Values = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class SimulatedLoss:
    """Loss under simulated noise, with 95 % intervals; per token for language models, nats for cross-entropy.

    Parameters
    ----------
    loss, loss_low, loss_high
        Mean over examples and noise seeds.
    clean_loss
        Without noise, on the same examples.
    increase, increase_low, increase_high
        Noisy minus clean, paired per example: the damage.
    per_seed
        Loss of each noise seed.
    """

    loss: float
    loss_low: float
    loss_high: float
    clean_loss: float
    increase: float
    increase_low: float
    increase_high: float
    per_seed: tuple[float, ...]

    @classmethod
    def from_losses(cls, losses: Values, clean: Values, weight: Values | None = None) -> SimulatedLoss:
        """Summarise losses (seeds, n), those without noise (n,), and how much every example counts (n,)."""
        noisy, increase = _linearised(losses, weight), _linearised(losses - clean, weight)
        return cls(
            *_mean_interval(noisy),
            float(_linearised(np.asarray(clean)[None], weight).mean()),
            *_mean_interval(increase),
            tuple(noisy.mean(axis=1).tolist()),
        )


@dataclass(frozen=True)
class SimulatedAccuracy:
    """Score under simulated noise; ``low`` and ``high`` are the ends of 95 % intervals.

    The score is the share of the examples (or tokens) that is right, or a user's metric. Where the task has none, as in
    regression, the figures are NaN, and ``loss`` tells.

    Parameters
    ----------
    accuracy, accuracy_low, accuracy_high
        Mean over examples and noise seeds.
    clean_accuracy
        Without noise, on the same examples.
    drop, drop_low, drop_high
        Clean minus noisy, paired per example; its interval is much narrower than that of the accuracy.
    per_seed
        Accuracy of each noise seed.
    examples, seeds
        How many of each.
    loss
        Loss of the same runs.
    task, score
        What the network is for, and what the score is called: "accuracy", "agreement" without labels, ...
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    clean_accuracy: float
    drop: float
    drop_low: float
    drop_high: float
    per_seed: tuple[float, ...]
    examples: int
    seeds: int
    loss: SimulatedLoss | None = None
    task: str = "classification"
    score: str = "accuracy"

    def to_record(self) -> dict[str, Any]:
        """Describe it in JSON-able values; what is no finite number is None."""
        return {name: plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> SimulatedAccuracy:
        """Read what ``to_record`` gave; entries that this release does not know are ignored.

        Raises
        ------
        KeyError, TypeError
            If the record is not of that form.
        """
        loss = record.get("loss")
        found = _fields(cls, record) | {"loss": None if loss is None else SimulatedLoss(**_fields(SimulatedLoss, loss))}
        return cls(**found)

    @classmethod
    def from_outcomes(
        cls,
        correct: npt.NDArray[Any],
        clean_correct: npt.NDArray[Any],
        weight: Values | None = None,
        *,
        loss: SimulatedLoss | None = None,
        task: str = "classification",
        score: str = "accuracy",
        is_share: bool = True,
    ) -> SimulatedAccuracy:
        """Summarise which examples came out right.

        Parameters
        ----------
        correct : (seeds, n)
            Whether example n is right under noise seed s, or its score.
        clean_correct : (n,)
            The same without noise.
        weight : (n,)
            How much every example counts; all the same by default.
        is_share
            Whether scores lie between 0 and 1.
        """
        outcomes, clean = np.asarray(correct, dtype=float), np.asarray(clean_correct, dtype=float)
        assert outcomes.ndim == 2
        assert outcomes.size > 0
        assert outcomes.shape[1:] == clean.shape
        right, lost = _linearised(outcomes, weight), _linearised(clean - outcomes, weight)
        return cls(
            *(_share_interval(right, wilson) if is_share else _mean_interval(right)),
            float(_linearised(clean[None], weight).mean()),
            *(_share_interval(lost, paired) if is_share else _mean_interval(lost)),
            per_seed=tuple(right.mean(axis=1).tolist()),
            examples=outcomes.shape[1],
            seeds=outcomes.shape[0],
            loss=loss,
            task=task,
            score=score,
        )


def perplexity(loss: float) -> float:
    """exp(loss), of a loss per token in nats; infinite where that is beyond what a float holds."""
    return math.exp(loss) if loss < 700.0 else math.inf


def paired_difference(first: Values, second: Values, weight: Values | None = None) -> tuple[float, float, float]:
    """Mean of ``first`` - ``second``, (seeds, n) under the same noise seeds, and its 95 % interval."""
    return _mean_interval(_linearised(first - second, weight))


def _linearised(values: Values, weight: Values | None) -> Values:
    """Values (seeds, n) whose plain mean is the weighted mean R of ``values``, and its variance that of the ratio.

    R + w_n (x_n - R) / mean(w): the first-order expansion of sum w x / sum w (Cochran, "Sampling Techniques", 1977,
    section 6.4).
    """
    values = np.asarray(values, dtype=float)
    if weight is None or np.all(weight == weight[0]):
        return values
    share = weight / weight.mean()
    ratio = float((values * share).mean())
    linearised: Values = ratio + share * (values - ratio)
    return linearised


def _share_interval(
    values: Values, interval: Callable[[float, float, int, float], tuple[float, float]]
) -> tuple[float, float, float]:
    mean = float(values.mean())
    return mean, *interval(mean, *_variance_size_quantile(values))


def _mean_interval(values: Values) -> tuple[float, float, float]:
    """Mean of (seeds, n) with Student's interval over both."""
    mean = float(values.mean())
    if math.isnan(mean):
        return math.nan, math.nan, math.nan
    variance, _, quantile = _variance_size_quantile(values)
    half = quantile * math.sqrt(variance)
    return mean, mean - half, mean + half


def _variance_size_quantile(values: Values) -> tuple[float, int, float]:
    """Variance of the grand mean of a two-way table (seeds, n), its number of examples and its Student quantile.

    Examples and seeds are both random effects: a seed's noise may be common to all examples (weight noise), an
    example is as hard for every seed. With x = a_n + b_s + e_sn,

        var(mean) = var(example means) / n + var(seed means) / S - var(residuals) / (n S),

    where the last term is in both of the others and is taken out once. Degrees of freedom by Satterthwaite
    (Biometrics Bulletin 2, 1946). One seed alone tells nothing about the spread between seeds.
    """
    seeds, examples = values.shape
    example_means, seed_means = values.mean(axis=0), values.mean(axis=1)
    of_examples = example_means.var(ddof=1) / examples if examples > 1 else 0.0
    of_seeds = seed_means.var(ddof=1) / seeds if seeds > 1 else 0.0
    of_residuals = 0.0
    if seeds > 1 and examples > 1:
        residuals = values - example_means - seed_means[:, None] + values.mean()
        of_residuals = np.square(residuals).sum() / ((seeds - 1) * (examples - 1) * values.size)
    variance = max(of_examples + of_seeds - of_residuals, of_examples, of_seeds)
    # What the seeds add beyond the residuals that the examples show as well rests on few degrees of freedom.
    own_seeds = max(of_seeds - of_residuals, 0.0)
    denominator = of_examples**2 / max(examples - 1, 1) + own_seeds**2 / max(seeds - 1, 1)
    freedom = variance**2 / denominator if denominator > 0.0 else math.inf
    return float(variance), examples, _student_quantile(freedom)


def _student_quantile(freedom: float) -> float:
    if math.isinf(freedom):
        return NORMAL_QUANTILE
    from scipy.special import stdtrit  # kept out of cold starts

    return float(stdtrit(freedom, 0.975))


def _fields(cls: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a value in a record, with None as NaN and lists as tuples."""
    found = {}
    for field in fields(cls):
        value = record.get(field.name, field.default)
        if value is MISSING:
            raise KeyError(field.name)
        is_number = field.type == "float"
        found[field.name] = math.nan if value is None and is_number else _tuple(value)
    return found


def _tuple(value: object) -> object:
    return tuple(math.nan if entry is None else entry for entry in value) if isinstance(value, list) else value
