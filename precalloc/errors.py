"""Errors that a user's mistake raises; each message names the thing, its value and the remedy."""


class PrecallocError(Exception):
    """Base of every error that precalloc raises on purpose; the command line prints it and exits with 2."""


class HardwareError(PrecallocError):
    """A hardware file or preset is unknown, malformed or contradictory."""


class UnitError(PrecallocError):
    """A quantity cannot be read: unknown unit, wrong dimension or malformed number."""


class ModelError(PrecallocError):
    """A model cannot be loaded, run or intercepted."""


class CoverageError(ModelError):
    """The model does multiply-accumulates that precalloc cannot attribute to a site."""


class NondeterministicModelError(ModelError):
    """The model gives different outputs on the same input, so damage cannot be told from its own noise."""


class DataError(PrecallocError):
    """Calibration or evaluation data is missing, malformed or does not fit the model."""


class ProfileError(PrecallocError):
    """A profile file is malformed, of another version, or does not serve the request."""


class BudgetError(PrecallocError):
    """A budget is malformed or infeasible; the message names the least feasible one."""


class ChoiceError(PrecallocError):
    """What the user decided about sites matches nothing, or contradicts itself or the hardware."""


class KMapError(PrecallocError):
    """A K map file is malformed or does not fit the model."""


class DependencyError(PrecallocError):
    """An optional package is missing; the message names the extra that installs it."""
