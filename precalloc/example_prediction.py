"""`predict`: the accuracy of an allocation on given examples, from their own noiseless margins.

`precalloc.allocate` predicts for all examples like those of the calibration data, of which any others are another
sample: for some hundreds that is most of the error. Where it is known on which examples accuracy will be measured, such
as a test set, one noiseless pass over them (`precalloc.profile`) gives their margins, and no sample stands for another.
How margins respond to noise beyond first order is still what the calibration data showed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from precalloc.allocation import Allocation
from precalloc.errors import ProfileError
from precalloc.hardware import NoiseKind
from precalloc.objective import Granularity
from precalloc.prediction import Prediction, Predictor
from precalloc.profiles import FloatArray, Profile


def predict(allocation: Allocation, examples: Profile, *, uniform: bool = False) -> Prediction:
    """Predict the accuracy on the very examples of a profile, with the labels that they have.

    They are those whose margins the profile holds: a thousand at most, unless `precalloc.profile` was called with more
    ``prediction_examples``. Intervals are for the mean over all noise; they cover the error of method and calibration.

    Parameters
    ----------
    allocation
        With the calibration that its profile carried, if any.
    examples
        Profile of other data than the allocation was chosen on, with the same model and the noise kinds of its
        hardware.
    uniform
        Predict for the uniform K map beside the allocation.

    Raises
    ------
    ProfileError
        If the profile is of another model, or lacks margins, a noise kind or sites of the allocation.
    """
    if examples.provenance.model_hash != allocation.provenance.model_hash:
        raise ProfileError(
            "The examples were profiled with another model than the allocation's: its weights differ. "
            "Profile them with the model that was allocated for."
        )
    profile = examples.select(allocation.choices.analog(examples.sites))
    if [site.name for site in profile.sites] != [entry.site.name for entry in allocation]:
        raise ProfileError("The examples' profile has other sites than the allocation. Profile them with its model.")
    if profile.margins is None:
        raise ProfileError("The examples' profile holds no margins, so nothing can be predicted. Profile them again.")
    predictor = Predictor.of(
        _at_ranges_of(allocation, profile), allocation.hardware, allocation.granularity, allocation.seed
    )
    calibration = allocation.calibration
    response = None if calibration is None else calibration.responses["uniform" if uniform else "allocated"]
    return predictor.predict_these(_uniform_k(allocation) if uniform else allocation.repetitions, response)


def _uniform_k(allocation: Allocation) -> FloatArray:
    """K of every unit of the uniform K map, (units,)."""
    by_site = allocation.uniform_kmap().repetitions
    return np.concatenate([np.broadcast_to(by_site[entry.site.name], entry.repetitions.shape) for entry in allocation])


def _at_ranges_of(allocation: Allocation, profile: Profile) -> Profile:
    """Covariances as with the allocation's calibrated ranges, which the hardware works with whatever the examples."""
    assert profile.margins is not None
    pairs = list(zip((entry.site for entry in allocation), profile.sites, strict=True))
    x = np.array([_squared_ratio(own.input_range, other.input_range) for own, other in pairs])
    w = np.array([_squared_ratio(own.operand_range, other.operand_range) for own, other in pairs])
    factors = {NoiseKind.THERMAL: x * w, NoiseKind.WEIGHT: w, NoiseKind.SHOT: np.ones_like(w)}
    table, of_channel = profile.margins, profile.site_of_channel
    if allocation.granularity is Granularity.LAYER:
        table = replace(table, site_covariance=_scaled(table.site_covariance, factors))
    elif table.channel_covariance is not None:
        per_channel = {kind: factor[of_channel] for kind, factor in factors.items()}
        table = replace(table, channel_covariance=_scaled(table.channel_covariance, per_channel))
    return replace(profile, margins=table)


def _squared_ratio(of_allocation: float, of_examples: float) -> float:
    """1 where a site has no such range: weights have their own."""
    return (of_allocation / of_examples) ** 2 if of_examples > 0.0 else 1.0


def _scaled(
    covariance: Mapping[NoiseKind, FloatArray], factors: Mapping[NoiseKind, FloatArray]
) -> dict[NoiseKind, FloatArray]:
    return {kind: values * factors[kind][:, None] for kind, values in covariance.items()}
