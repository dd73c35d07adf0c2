"""Model and data to profile, allocation, validation and files: what the commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from precalloc import __version__
from precalloc.allocation import Allocation
from precalloc.errors import DataError, ProfileError
from precalloc.hardware import Hardware
from precalloc.output_files import write_files
from precalloc.profiles import Profile
from precalloc.progress import Progress, silent

if TYPE_CHECKING:
    from torch import nn

    from precalloc.accuracy import SimulatedAccuracy
    from precalloc.choices import Choices
    from precalloc.kmaps import KMap

PROFILE_FILE = "profile.npz"


def _tell_nobody(_: str) -> None:
    """Announce nothing."""


@dataclass(frozen=True)
class Effort:
    """How measurement and simulation run: seeds, batch size, what the network is for, and who is told of progress.

    ``announce`` is told of work before it begins.
    """

    seed: int = 0
    batch_size: int = 32
    noise_seeds: int = 8
    allow_uncovered: bool = False
    task: str | None = None
    output: str | None = None
    progress: Progress = silent
    announce: Callable[[str], None] = _tell_nobody
    estimator: str = "curvature"
    learn_budget: str | None = None
    learn_granularity: str = "layer"
    prediction_examples: int = 1000

    @property
    def measurement_options(self) -> str:
        """What a profile depends on beside model, data and hardware."""
        options = self.seed, self.batch_size, self.allow_uncovered, self.task, self.output, self.prediction_examples
        return " ".join(map(str, (__version__, *options))) + (
            "" if self.estimator == "curvature" else f" {self.estimator} {self.learn_budget} {self.learn_granularity}"
        )

    def telling(self, progress: Progress) -> Effort:
        """The same effort, with another one told of progress, and work that is announced as a whole."""
        return replace(self, progress=progress, announce=_tell_nobody)


def measure(
    model: nn.Module, name: str, data: object, hardware: Hardware, effort: Effort, checkpoint: Path | None = None
) -> Profile:
    """Profile a model; an interrupted run goes on from ``checkpoint``."""
    from precalloc.network.estimators import choose_estimator
    from precalloc.network.profiling import profile

    kinds = ", ".join(hardware.kinds)
    effort.announce(f"Profiling for {kinds} noise: one pass over {_examples(data)} examples.")
    measured: Profile = profile(
        model,
        data,
        hardware,
        task=effort.task,
        output=effort.output,
        seed=effort.seed,
        batch_size=effort.batch_size,
        prediction_examples=effort.prediction_examples,
        allow_uncovered=effort.allow_uncovered,
        estimator=choose_estimator(effort.estimator, effort.learn_budget, effort.learn_granularity),
        name=name,
        progress=effort.progress,
        checkpoint=checkpoint,
    )
    return measured


def keep_profile(profile: Profile, kept: Path, effort: Effort) -> None:
    """Save a profile, and beside it with which options it was measured."""
    profile.save(kept)
    write_files(kept.parent, {_options_of(kept).name: effort.measurement_options})


def measured_before(kept: Path, model: nn.Module, data: object, hardware: Hardware, effort: Effort) -> Profile | None:
    """Give the profile that an earlier run kept, if it is of this model, data and options and serves the hardware."""
    from precalloc.network.data import as_data, data_hash
    from precalloc.network.models import model_hash

    options = _options_of(kept)
    if not (kept.is_file() and options.is_file() and options.read_text() == effort.measurement_options):
        return None
    found = Profile.load(kept)
    known = found.provenance.model_hash, found.provenance.data_hash
    same = known == (model_hash(model), data_hash(as_data(data)))
    return found if same and set(hardware.kinds) <= set(found.kinds) else None


def _options_of(kept: Path) -> Path:
    return kept.with_name(f".{kept.name}.options")


def calibrate(
    model: nn.Module,
    data: object,
    profile: Profile,
    effort: Effort,
    checkpoint: Path,
    wanted: tuple[Hardware, str, bool, Choices | None],
) -> Profile:
    """Simulate a few K maps on the calibration data so that predictions hold, where the profile can predict at all.

    An interrupted run goes on from ``checkpoint``. ``wanted`` says for which hardware, granularity, with or without
    bias corrections, and for which choices.
    """
    hardware, granularity, compensates, choices = wanted
    table = profile.margins
    if table is None or (granularity == "channel" and table.channel_covariance is None):
        return profile
    from precalloc.network.calibrating import calibrate as simulate_points

    effort.announce("Calibrating predictions by a few simulated K maps.")
    calibrated: Profile = simulate_points(
        model,
        data,
        profile,
        hardware=hardware,
        granularity=granularity,
        compensate=compensates,
        choices=choices,
        task=effort.task,
        output=effort.output,
        seed=effort.seed,
        batch_size=effort.batch_size,
        progress=effort.progress,
        checkpoint=checkpoint,
    )
    return calibrated


def compensate(
    model: nn.Module | None,
    data: object | None,
    allocation: Allocation,
    effort: Effort,
    directory: Path,
    check: bool = True,
) -> Allocation:
    """Add bias corrections to an allocation and to the uniform one beside it; an interrupted run goes on.

    Without a model or its calibration data there is nothing to estimate them from, which the allocation then says.
    Where refinement comes next, which looks whether those of the allocation help, ``check`` is False.
    """
    if model is None or data is None:
        return allocation.with_notes(
            "The mean shift that noise causes is not compensated: that takes the model and its calibration data "
            "(MODEL and --data)."
        )
    from precalloc.network.compensation import compensate as correct

    effort.announce("Compensating the allocation and uniform K.")
    corrected: Allocation = correct(
        model,
        data,
        allocation,
        task=effort.task,
        output=effort.output,
        seed=effort.seed,
        batch_size=effort.batch_size,
        check=check,
        progress=effort.progress,
        checkpoint=checkpoint_of(directory / "compensation"),
    )
    return corrected


def refine(
    model: nn.Module, data: object, profile: Profile, allocation: Allocation, effort: Effort, directory: Path
) -> Allocation:
    """Refine an allocation under its own noise, and note what that won; an interrupted run goes on."""
    from precalloc.network.refinement import CHECK_EXAMPLES, STEP_EXAMPLES, schedule_of
    from precalloc.network.refinement import refine as improve

    effort.announce(
        f"Refining: {schedule_of(allocation).steps} noisy passes of {STEP_EXAMPLES} examples with gradients, "
        f"and a comparison on up to {CHECK_EXAMPLES} held-out ones."
    )
    refined: Allocation = improve(
        model,
        data,
        profile,
        allocation,
        task=effort.task,
        output=effort.output,
        seed=effort.seed,
        batch_size=effort.batch_size,
        progress=effort.progress,
        checkpoint=checkpoint_of(directory / "refinement"),
    )
    assert refined.refinement is not None
    return refined.with_notes(refined.refinement.describe())


def safeguard(
    model: nn.Module, data: object, profile: Profile, allocation: Allocation, effort: Effort, directory: Path
) -> Allocation:
    """Give uniform K instead where the allocation loses to it in simulation on the calibration data."""
    from precalloc.network.safeguard import safeguard as compare

    effort.announce("Comparing the allocation with uniform K on held-out calibration examples.")
    kept: Allocation = compare(
        model,
        data,
        profile,
        allocation,
        task=effort.task,
        output=effort.output,
        seed=effort.seed,
        batch_size=effort.batch_size,
        progress=effort.progress,
        checkpoint=checkpoint_of(directory / "safeguard"),
    )
    return kept


def validate_both(
    model: nn.Module,
    data: object,
    allocation: Allocation,
    effort: Effort,
    directory: Path,
    calibration: object | None = None,
) -> Allocation:
    """Simulate an allocation and the uniform one beside it, with the same noise seeds.

    Examples that are in the calibration data too, where that is given, are left out, and the allocation says so.

    Raises
    ------
    DataError
        If the data is what K was chosen on.
    ProfileError
        If the model is not the one that was profiled.
    """
    require_fresh(model, data, allocation)
    data, note = without_calibration(data, calibration)
    allocation = allocation.with_notes(*note)
    kept = checkpoint_of(directory / "allocated"), checkpoint_of(directory / "uniform")
    announce_simulations(2, data, effort)
    effort = effort.telling(effort.progress)
    allocated = simulate(model, data, allocation.kmap(), effort, kept[0])
    return allocation.with_simulation(allocated, simulate(model, data, allocation.uniform_kmap(), effort, kept[1]))


def simulate(
    model: nn.Module, data: object, kmap: KMap, effort: Effort, checkpoint: Path | None = None
) -> SimulatedAccuracy:
    """Simulate one K map; an interrupted run goes on from ``checkpoint``."""
    from precalloc.network.simulation import validate

    announce_simulations(1, data, effort)
    simulated: SimulatedAccuracy = validate(
        model,
        data,
        kmap,
        task=effort.task,
        output=effort.output,
        seeds=effort.noise_seeds,
        seed=effort.seed,
        batch_size=effort.batch_size,
        progress=effort.progress,
        checkpoint=checkpoint,
    )
    return simulated


def announce_simulations(kmaps: int, data: object, effort: Effort) -> None:
    """Say how much there is to simulate."""
    maps = "1 K map" if kmaps == 1 else f"{kmaps} K maps"
    effort.announce(f"Simulating {maps}: {_examples(data)} examples, {effort.noise_seeds} noise seeds each.")


def _examples(data: object) -> int:
    from precalloc.network.data import as_data

    examples: int = as_data(data).examples
    return examples


def checkpoint_of(target: Path) -> Path:
    """Where the interrupted making of ``target`` is kept."""
    return target.with_name(f".{target.name}.checkpoint")


def identity_of(model: nn.Module, data: object, effort: Effort) -> str:
    """Identify a model, data and the options of measurements, for what is kept of them."""
    from precalloc.network.data import as_data, data_hash
    from precalloc.network.models import model_hash

    return f"{model_hash(model)} {data_hash(as_data(data))} {effort.measurement_options}"


def require_fresh(model: nn.Module, data: object, allocation: Allocation) -> None:
    """Refuse data that K was chosen on, and a model that was not profiled.

    Raises
    ------
    DataError, ProfileError
        As named.
    """
    from precalloc.network.data import as_data, data_hash
    from precalloc.network.models import model_hash

    if data_hash(as_data(data)) == allocation.provenance.data_hash:
        raise DataError(
            "The validation data is the calibration data that K was chosen on. Give other data to --validate."
        )
    if model_hash(model) != allocation.provenance.model_hash:
        raise ProfileError(
            f"The model is not the one that was profiled ({allocation.provenance.model or 'unnamed'}): "
            "its weights differ. Profile it again, or give the profiled model."
        )


def doubts(kmap: KMap, model: nn.Module, data: object) -> tuple[str, ...]:
    """Say where a K map is simulated on other than what it was chosen for, or on the very data it was chosen on."""
    from precalloc.network.data import as_data, data_hash
    from precalloc.network.models import model_hash

    found = []
    if kmap.model_hash and model_hash(model) != kmap.model_hash:
        found.append(
            "This is not the model that the K map was chosen for: its weights differ. Was --weights forgotten?"
        )
    if kmap.data_hash and data_hash(as_data(data)) == kmap.data_hash:
        found.append("This is the data that K was chosen on. Give other data for an unbiased result.")
    return tuple(found)


def without_calibration(data: object, calibration: object | None) -> tuple[object, tuple[str, ...]]:
    """Leave out what is in the calibration data too, where that is given, and a note where that was any.

    Raises
    ------
    DataError
        If nothing is left.
    """
    if calibration is None:
        return data, ()
    from precalloc.network.data import as_data
    from precalloc.network.overlap import Unseen, unseen

    found = unseen(as_data(data), as_data(calibration))
    if not isinstance(found, Unseen):
        return data, ()
    return found, (
        f"{found.left_out} of {len(found.fresh)} validation examples are calibration examples too and are left out.",
    )


def load(model: str, weights: str | None) -> nn.Module:
    """Load a model from its specification."""
    from precalloc.network.models import load_model

    network: nn.Module = load_model(model, weights)
    return network


def load_examples(data: str) -> object:
    """Load data from its specification."""
    from precalloc.network.data_files import load_data

    examples: object = load_data(data)
    return examples
