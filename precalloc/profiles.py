"""The profile: what one measurement of a model says about every site, channel and noise kind, and its file format.

Everything is stored per channel and for *unit* noise (sigma = 1, n_0 = 1 photon/MAC, K = 1), so one profile serves
every strength of the kinds that it holds, every K map, and both granularities; a hardware scales it on use.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from precalloc.errors import HardwareError, ProfileError
from precalloc.hardware import Hardware, NoiseKind
from precalloc.output_files import temporary_file

if TYPE_CHECKING:
    from precalloc.calibration import Calibration

FloatArray = npt.NDArray[np.floating[Any]]

SCHEMA = "precalloc/profile"
VERSION = 1


@dataclass(frozen=True)
class Site:
    """One place where the accelerator does MACs; counts are per inference, summed over all calls.

    Parameters
    ----------
    name
        Dotted module path, or ``<module path>/<op>.<index>`` for a functional product.
    kind
        Operator: ``linear``, ``conv2d``, ``matmul``, ...
    macs
        Multiply-accumulates per inference (mean over the calibration data).
    outputs
        Output elements per inference: the conversions.
    fan_in
        MACs per output element, D.
    channels
        Output channels that can carry their own K; 1 for products of two activations, whose columns are positions.
    input_range
        dx: distance between the (100 - p)th and the pth percentile of all inputs.
    output_range
        The same of all outputs; full scale of the noise bits.
    operand_range
        The same of the programmed operand, where that is an activation; weights have their own range per channel.
        Ranges are NaN before calibration.
    """

    name: str
    kind: str
    macs: float
    outputs: float
    fan_in: float
    channels: int
    input_range: float = math.nan
    output_range: float = math.nan
    operand_range: float = math.nan


@dataclass(frozen=True)
class MarginTable:
    """First-order reach of every channel's noise into the class margins.

    Examples are in canonical order: row n is number ``precalloc.network.data.canonical_order(data)[n]`` of the data.

    Parameters
    ----------
    margins : (n, m)
        Clean logit of the reference class minus that of the m strongest other classes, nearest first. An example is
        right where all its margins are positive. The reference is the label, or without labels the model's prediction.
    site_covariance : kind -> (n, sites, m * (m + 1) / 2)
        Covariance of the margins per site at unit noise, upper triangle row by row.
    channel_covariance : kind -> (n, channels, m * (m + 1) / 2) or None
        The same per channel; its sum over a site's channels is ``site_covariance``. May hold only the first examples.
    classes : (n, 1 + m) or None
        The reference class, and those of the margins. None in profiles of releases that did not note it.
    """

    margins: FloatArray
    site_covariance: Mapping[NoiseKind, FloatArray]
    channel_covariance: Mapping[NoiseKind, FloatArray] | None = None
    classes: npt.NDArray[np.int64] | None = None

    def select(self, sites: npt.NDArray[np.bool_], channels: npt.NDArray[np.bool_]) -> MarginTable:
        """Keep some sites and channels only, given by masks."""
        per_channel = self.channel_covariance
        return MarginTable(
            self.margins,
            {kind: values[:, sites] for kind, values in self.site_covariance.items()},
            None if per_channel is None else _SelectedArrays(per_channel, channels),
            self.classes,
        )


class _SelectedArrays(Mapping[NoiseKind, FloatArray]):
    """Some channels of arrays that are read on use: they are large, and layer allocation never needs them."""

    def __init__(self, arrays: Mapping[NoiseKind, FloatArray], channels: npt.NDArray[np.bool_]) -> None:
        self._arrays, self._channels = arrays, channels

    def __getitem__(self, kind: NoiseKind) -> FloatArray:
        return self._arrays[kind][:, self._channels]

    def __iter__(self) -> Iterator[NoiseKind]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


@dataclass(frozen=True)
class Provenance:
    """Where a profile comes from: enough to repeat it and to notice that it belongs to something else.

    ``task`` is what the network is for, and ``score`` the name of its score; empty where it has none.
    """

    model: str
    model_hash: str
    data_hash: str
    examples: int
    labelled: bool
    estimator: str
    seed: int
    range_percentile: float
    versions: Mapping[str, str] = field(default_factory=dict)
    task: str = "classification"
    score: str = "accuracy"


@dataclass(frozen=True)
class Profile:
    """Sensitivity of a network to MAC noise, per channel and noise kind, at unit noise and K = 1.

    ``damage`` is s_u = 1/2 sum_i E_x[v_i(x) h_i(x)] with v_i the unit variance, in units of the loss
    (nats for cross-entropy; for language models per token). Channels of all sites stand one after the other in the
    order of ``sites``.

    Parameters
    ----------
    sites
        In order of first execution.
    damage : kind -> (channels,)
        Damage of each channel at unit noise and K = 1.
    damage_error : kind -> (channels,)
        Its standard error over examples.
    site_damage_error : kind -> (sites,)
        Standard error of the sum over a site's channels.
    noise_variance : kind -> (channels,)
        Mean variance of an output element at unit noise and K = 1, for the noise bits.
    clean_accuracy
        Mean score of the noiseless model: the share of the profiled examples (or tokens) that it has right, 1 without
        labels; NaN where the task has no score.
    clean_loss, clean_loss_error
        Mean loss of the noiseless model, and its standard error over examples; NaN where it is not known.
    hardware
        What it was measured for: the one that allocations are for unless another is named.
    margins
        First-order noise in the class margins, for prediction; None where it was not measured.
    calibration
        What simulated points say of predictions, where `precalloc.calibrate` was called.
    """

    sites: tuple[Site, ...]
    damage: Mapping[NoiseKind, FloatArray]
    damage_error: Mapping[NoiseKind, FloatArray]
    site_damage_error: Mapping[NoiseKind, FloatArray]
    noise_variance: Mapping[NoiseKind, FloatArray]
    clean_accuracy: float
    clean_loss: float
    hardware: Hardware
    provenance: Provenance
    margins: MarginTable | None = None
    calibration: Calibration | None = None
    clean_loss_error: float = math.nan

    @property
    def kinds(self) -> tuple[NoiseKind, ...]:
        """Noise kinds that were measured."""
        return tuple(self.damage)

    @cached_property
    def channel_offsets(self) -> npt.NDArray[np.int64]:
        """First channel of each site in the per-channel arrays, and their total at the end, shape (sites + 1,)."""
        return np.concatenate([[0], np.cumsum([site.channels for site in self.sites])]).astype(np.int64)

    @cached_property
    def site_of_channel(self) -> npt.NDArray[np.int64]:
        """Index of the site that each channel belongs to, shape (channels,)."""
        return np.repeat(np.arange(len(self.sites)), [site.channels for site in self.sites])

    @property
    def macs(self) -> float:
        """Multiply-accumulates per inference of all sites together."""
        return sum(site.macs for site in self.sites)

    def sum_channels(self, per_channel: FloatArray) -> FloatArray:
        """Sum per-channel values (channels,) to per-site values (sites,)."""
        return np.add.reduceat(per_channel, self.channel_offsets[:-1])

    def select(self, chosen: npt.NDArray[np.bool_]) -> Profile:
        """Keep some sites only, given by a mask (sites,): the others are without noise."""
        if chosen.all():
            return self
        channels = chosen[self.site_of_channel]
        table = self.margins
        return replace(
            self,
            sites=tuple(site for site, kept in zip(self.sites, chosen, strict=True) if kept),
            damage=_pick(self.damage, channels),
            damage_error=_pick(self.damage_error, channels),
            site_damage_error=_pick(self.site_damage_error, chosen),
            noise_variance=_pick(self.noise_variance, channels),
            margins=None if table is None else table.select(chosen, channels),
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the profile as an ``.npz`` without pickles; the file appears whole or not at all."""
        return write_npz(Path(path), _header(self), _arrays(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a profile.

        Raises
        ------
        ProfileError
            If the file is missing, is no profile, or has a version that this release does not read.
        """
        return _read(Path(path))

    def _repr_html_(self) -> str:
        from precalloc.notebook import profile_html

        return profile_html(self)


def _header(profile: Profile) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "kinds": list(profile.kinds),
        "sites": [asdict(site) for site in profile.sites],
        "clean_accuracy": None if math.isnan(profile.clean_accuracy) else profile.clean_accuracy,
        "clean_loss": profile.clean_loss,
        "clean_loss_error": None if math.isnan(profile.clean_loss_error) else profile.clean_loss_error,
        "hardware": profile.hardware.to_dict(),
        "provenance": asdict(profile.provenance),
        "calibration": None if profile.calibration is None else profile.calibration.to_record(),
        "has_margins": profile.margins is not None,
        "has_channel_covariance": profile.margins is not None and profile.margins.channel_covariance is not None,
    }


def _pick(values: Mapping[NoiseKind, FloatArray], chosen: npt.NDArray[np.bool_]) -> dict[NoiseKind, FloatArray]:
    return {kind: array[chosen] for kind, array in values.items()}


_PER_KIND = ("damage", "damage_error", "site_damage_error", "noise_variance")


def _arrays(profile: Profile) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {
        f"{name}/{kind}": getattr(profile, name)[kind] for name in _PER_KIND for kind in profile.kinds
    }
    table = profile.margins
    if table is None:
        return arrays
    arrays["margins"] = table.margins
    if table.classes is not None:
        arrays["margin_classes"] = table.classes
    arrays |= {f"site_covariance/{kind}": table.site_covariance[kind] for kind in profile.kinds}
    if table.channel_covariance is not None:
        arrays |= {f"channel_covariance/{kind}": table.channel_covariance[kind] for kind in profile.kinds}
    return arrays


def write_npz(path: Path, header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Path:
    """Write arrays and a JSON header to one ``.npz``; the file appears whole or not at all."""
    encoded = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(path.parent, path.name) as (file, temporary):
        # The stub knows only literal keyword names; savez takes any.
        np.savez(file, header=encoded, **dict(arrays))  # type: ignore[arg-type]
    temporary.replace(path)
    return path


class _LazyArrays(Mapping[NoiseKind, FloatArray]):
    """Arrays of a file, read on first use: the channel tables are large and layer allocation never needs them."""

    def __init__(self, path: Path, name: str, kinds: tuple[NoiseKind, ...]) -> None:
        self._path, self._name, self._kinds = path, name, kinds
        self._read: dict[NoiseKind, FloatArray] = {}

    def __getitem__(self, kind: NoiseKind) -> FloatArray:
        if kind not in self._kinds:
            raise KeyError(kind)
        if kind not in self._read:
            with np.load(self._path, allow_pickle=False) as file:
                self._read[kind] = file[f"{self._name}/{kind}"]
        return self._read[kind]

    def __iter__(self) -> Iterator[NoiseKind]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)


def _read(path: Path) -> Profile:
    if not path.is_file():
        raise ProfileError(f"Profile {path} does not exist. Make one with 'precalloc profile MODEL --data CALIB'.")
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            if header.get("schema") != SCHEMA or header.get("version") != VERSION:
                found = f"{header.get('schema')} version {header.get('version')}"
                raise ProfileError(
                    f"{path} holds {found}; this release reads {SCHEMA} version {VERSION}. Profile again."
                )
            return _profile(path, file, header)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, HardwareError) as error:
        raise ProfileError(f"{path} is not a precalloc profile ({error}). Profile the model again.") from error


def _profile(path: Path, file: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any]) -> Profile:
    kinds, loss_error = tuple(NoiseKind(kind) for kind in header["kinds"]), header.get("clean_loss_error")
    per_kind = {name: {kind: file[f"{name}/{kind}"] for kind in kinds} for name in _PER_KIND}
    return Profile(
        sites=tuple(Site(**site) for site in header["sites"]),
        clean_accuracy=math.nan if header["clean_accuracy"] is None else header["clean_accuracy"],
        clean_loss=header["clean_loss"],
        clean_loss_error=math.nan if loss_error is None else loss_error,
        hardware=Hardware.from_dict(header["hardware"], f"in {path}"),
        provenance=Provenance(**header["provenance"]),
        margins=_read_margins(path, file, header, kinds),
        calibration=_read_calibration(path, header),
        **per_kind,
    )


def _read_calibration(path: Path, header: Mapping[str, Any]) -> Calibration | None:
    record = header.get("calibration")
    if record is None:
        return None
    from precalloc.calibration import Calibration  # which knows profiles

    return Calibration.from_record(record, f"in {path}")


def _read_margins(
    path: Path, file: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any], kinds: tuple[NoiseKind, ...]
) -> MarginTable | None:
    if not header["has_margins"]:
        return None
    return MarginTable(
        margins=file["margins"],
        site_covariance={kind: file[f"site_covariance/{kind}"] for kind in kinds},
        channel_covariance=_LazyArrays(path, "channel_covariance", kinds) if header["has_channel_covariance"] else None,
        classes=file.get("margin_classes"),
    )
