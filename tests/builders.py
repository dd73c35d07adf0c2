"""Small synthetic profiles and hardware with known numbers."""

import numpy as np

from precalloc.hardware import AVERAGED_BY, Hardware, NoiseKind, NoiseTerm, Redundancy, Repetition
from precalloc.profiles import MarginTable, Profile, Provenance, Site

CHANNELS = (4, 6, 1, 3)
MACS = (1000.0, 8000.0, 4000.0, 300.0)
KINDS = (NoiseKind.THERMAL, NoiseKind.WEIGHT, NoiseKind.SHOT)


def make_sites():
    return tuple(
        Site(f"block{i}.conv", "conv2d", macs, macs / 10.0, 10.0, channels, 2.0, 4.0, 0.0)
        for i, (macs, channels) in enumerate(zip(MACS, CHANNELS, strict=True))
    )


def make_margins(examples=300, m=3, seed=1):
    """Margins around 3 +- 2, nearest first; channel covariances of rank one that sum to the sites'."""
    rng = np.random.default_rng(seed)
    channels = sum(CHANNELS)
    margins = np.sort(rng.normal(3.0, 2.0, (examples, 1)) + rng.exponential(1.0, (examples, m)), axis=1)
    upper = np.triu_indices(m)
    per_channel, per_site = {}, {}
    for kind in KINDS:
        reach = rng.normal(0.0, 1.0, (examples, channels, m)) * rng.uniform(0.2, 2.0, (1, channels, 1))
        per_channel[kind] = reach[:, :, upper[0]] * reach[:, :, upper[1]]
        starts = np.concatenate([[0], np.cumsum(CHANNELS)[:-1]])
        per_site[kind] = np.add.reduceat(per_channel[kind], starts, axis=1)
    return MarginTable(margins, per_site, per_channel)


def make_profile(kinds=KINDS, margins=True, examples=300, m=3, **changes):
    rng = np.random.default_rng(0)
    channels = sum(CHANNELS)
    damage = {kind: rng.lognormal(0.0, 1.5, channels) for kind in KINDS}
    variance = {kind: rng.uniform(0.5, 2.0, channels) for kind in KINDS}
    table = make_margins(examples, m) if margins else None
    if table is not None:
        table = MarginTable(
            table.margins,
            {kind: table.site_covariance[kind] for kind in kinds},
            {kind: table.channel_covariance[kind] for kind in kinds},
        )
    fields = {
        "sites": make_sites(),
        "damage": {kind: damage[kind] for kind in kinds},
        "damage_error": {kind: 0.1 * damage[kind] for kind in kinds},
        "site_damage_error": {kind: np.full(len(CHANNELS), 0.1) for kind in kinds},
        "noise_variance": {kind: variance[kind] for kind in kinds},
        "clean_accuracy": 0.9 if table is None else float(np.all(table.margins > 0, axis=1).mean()),
        "clean_loss": 0.2,
        "clean_loss_error": 0.01,
        "hardware": make_hardware(),
        "provenance": Provenance(
            "net.py:build", "abc", "def", examples, True, "curvature", 0, 99.99, {"torch": "2.13"}
        ),
        "margins": table,
    }
    return Profile(**(fields | changes))


def make_hardware(
    noise=((NoiseKind.SHOT, 1.0),),
    redundancy=Redundancy.TIME,
    levels="integer",
    k_min=1.0,
    k_max=float("inf"),
    per_mac=1e-18,
    per_conversion=0.0,
    name="test-chip",
):
    terms = tuple(NoiseTerm(kind, level, AVERAGED_BY[kind], "a test") for kind, level in noise)
    return Hardware(name, terms, Repetition(redundancy, levels, k_min, k_max), per_mac, per_conversion)
