"""What `allocate` and `demo` do between their arguments and their result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from precalloc.objective import Granularity

if TYPE_CHECKING:
    from precalloc.allocation import Allocation
    from precalloc.choices import Choices
    from precalloc.cli.sources import Source
    from precalloc.profiles import Profile
    from precalloc.workflow import Effort


@dataclass(frozen=True)
class Wanted:
    """What K is chosen for: a budget or a greatest drop, at a granularity, under choices."""

    budget: str | None = None
    max_drop: float | None = None
    granularity: Granularity = Granularity.LAYER
    choices: Choices | None = None


def plan(source: Source, wanted: Wanted, effort: Effort, out: Path) -> tuple[Allocation, Profile]:
    """Profile, calibrate, choose K, compensate or refine, compare with uniform K, validate: as far as there is data.

    Gives the allocation and the profile that it was made from. Every step that simulates keeps a checkpoint in ``out``
    and goes on from it.
    """
    from precalloc import workflow
    from precalloc.allocator import allocate

    named = source.load_hardware()
    network, calibration = source.load_network(), source.load_calibration()
    profile = source.load_profile(network, named, effort, out)
    hardware = named[0] if named else profile.hardware
    compensates = source.compensates(hardware)
    if network is not None and calibration is not None and source.calibrate is not False:
        request = hardware, wanted.granularity, compensates, wanted.choices
        checkpoint = workflow.checkpoint_of(out / "calibration")
        profile = workflow.calibrate(network, calibration, profile, effort, checkpoint, request)
    allocation = allocate(
        profile,
        wanted.budget,
        max_drop=wanted.max_drop,
        hardware=hardware,
        granularity=wanted.granularity,
        choices=wanted.choices,
        seed=effort.seed,
    )
    refines = network is not None and calibration is not None and source.refines(hardware, calibration)
    if compensates:
        allocation = workflow.compensate(network, calibration, allocation, effort, out, check=not refines)
    if network is not None and calibration is not None:
        if refines:
            allocation = workflow.refine(network, calibration, profile, allocation, effort, out)
        allocation = workflow.safeguard(network, calibration, profile, allocation, effort, out)
    if network is not None and source.validate is not None:
        examples = workflow.load_examples(source.validate)
        allocation = workflow.validate_both(network, examples, allocation, effort, out, calibration)
    return allocation, profile
