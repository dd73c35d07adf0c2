"""Where the commands that allocate get their profile from: a file, or a model and calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from precalloc.errors import HardwareError, ModelError

if TYPE_CHECKING:
    from torch import nn

    from precalloc.hardware import Hardware
    from precalloc.profiles import Profile
    from precalloc.workflow import Effort


# Examples below which refinement, which holds a third of them out, is left to those who ask for it.
_LEAST_TO_REFINE = 30


@dataclass(frozen=True)
class Source:
    """The arguments of a command that say what to profile, or which profile to read, and what to simulate on.

    ``compensate`` is None where the hardware decides, ``calibrate`` where what is given decides, ``refine`` where both
    do.
    """

    model: str | None
    data: str | None
    profile: Path | None
    weights: str | None
    hardware: tuple[str, ...]
    validate: str | None
    compensate: bool | None = False
    calibrate: bool | None = False
    refine: bool | None = False

    def check(self) -> None:
        """Refuse arguments that do not fit together.

        Raises
        ------
        ModelError, HardwareError
            As the message says.
        """
        if self.profile is None and (self.model is None or self.data is None):
            raise ModelError("Give MODEL and --data to profile a model, or --profile with a saved profile.")
        if self.profile is None and not self.hardware:
            raise HardwareError("Give --hardware, a preset name or TOML file: 'precalloc hardware' lists the presets.")
        if self.compensate and (self.model is None or self.data is None):
            raise ModelError("--compensate simulates the model on its calibration data: give MODEL and --data as well.")
        if self.calibrate and (self.model is None or self.data is None):
            raise ModelError("--calibrate simulates the model on its calibration data: give MODEL and --data as well.")
        if self.refine and (self.model is None or self.data is None):
            raise ModelError("--refine runs the model on its calibration data: give MODEL and --data as well.")
        simulates = not (self.compensate is False and self.calibrate is False and self.refine is False)
        if self.profile is not None and self.data is not None and not (self.model is not None and simulates):
            raise ModelError("Give either --profile or --data: the profile already holds what calibration data tells.")
        if self.validate is not None and self.model is None:
            raise ModelError("--validate simulates the model: give MODEL as well.")

    def load_hardware(self) -> tuple[Hardware, ...]:
        """Read the hardware that are named; none where the profile's own is to be used."""
        from precalloc.hardware import Hardware

        return tuple(Hardware.load(name) for name in self.hardware)

    def load_network(self) -> nn.Module | None:
        """Load the model where it is needed, to profile or to simulate it."""
        from precalloc import workflow

        return workflow.load(self.model, self.weights) if self.model and (self.validate or self.data) else None

    def compensates(self, hardware: Hardware) -> bool:
        """Whether bias corrections are wanted."""
        return hardware.digital_biases if self.compensate is None else self.compensate

    def refines(self, hardware: Hardware, calibration: object | None) -> bool:
        """Whether K, and corrections with it, are to be improved under their own noise.

        Where nobody asked for it, not on a handful of examples, and not where weight errors are all the noise.
        """
        if self.refine is not None or calibration is None:
            return bool(self.refine)
        from precalloc.network.data import as_data
        from precalloc.refinements import is_promising

        return is_promising(hardware) and as_data(calibration).examples >= _LEAST_TO_REFINE

    def load_calibration(self) -> object | None:
        """Load the calibration data, where it is given."""
        from precalloc import workflow

        return workflow.load_examples(self.data) if self.data else None

    def load_profile(
        self, network: nn.Module | None, hardware: Sequence[Hardware], effort: Effort, out: Path, reuse: bool = False
    ) -> Profile:
        """Read the profile, or measure it once for all hardware and keep it in ``out``.

        With ``reuse``, one that an earlier run kept there serves, if it was measured with the same options.
        """
        from precalloc import workflow
        from precalloc.profiles import Profile

        if self.profile is not None:
            return Profile.load(self.profile)
        assert network is not None
        calibration, kept = self.load_calibration(), out / workflow.PROFILE_FILE
        joint, checkpoint = joint_hardware(hardware), workflow.checkpoint_of(kept)
        before = workflow.measured_before(kept, network, calibration, joint, effort) if reuse else None
        measured = before or workflow.measure(network, str(self.model), calibration, joint, effort, checkpoint)
        measured = replace(measured, hardware=hardware[0])
        workflow.keep_profile(measured, kept, effort)
        return measured


def joint_hardware(hardware: Sequence[Hardware]) -> Hardware:
    """Give the first hardware the noise kinds of all others too: one profile of it serves them all."""
    terms = {term.kind: term for each in reversed(hardware) for term in each.noise}
    return replace(hardware[0], noise=tuple(terms.values()))
