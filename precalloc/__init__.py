"""Precision allocation for analog neural-network accelerators."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precalloc.accuracy import SimulatedAccuracy
    from precalloc.allocation import Allocation
    from precalloc.allocator import allocate
    from precalloc.budgets import Budget
    from precalloc.choices import Choices
    from precalloc.errors import PrecallocError
    from precalloc.example_prediction import predict
    from precalloc.hardware import Hardware
    from precalloc.kmaps import KMap
    from precalloc.marking import landmarks
    from precalloc.network.calibrating import calibrate
    from precalloc.network.compensation import compensate
    from precalloc.network.profiling import profile
    from precalloc.network.refinement import refine
    from precalloc.network.safeguard import safeguard
    from precalloc.network.simulation import validate
    from precalloc.network.sites import discover as sites
    from precalloc.plots import plot_calibration, plot_curve, plot_kmap, plot_noise_bits, plot_sensitivity
    from precalloc.prediction import Prediction
    from precalloc.profiles import Profile, Site
    from precalloc.report import Report
    from precalloc.sweeping import sweep

__version__ = "0.1.0"

# Loaded on first use: torch, pandas and pint take longer to start than an allocation takes to compute.
_EXPORTS = {
    "Allocation": "precalloc.allocation",
    "Budget": "precalloc.budgets",
    "Choices": "precalloc.choices",
    "Hardware": "precalloc.hardware",
    "KMap": "precalloc.kmaps",
    "PrecallocError": "precalloc.errors",
    "Prediction": "precalloc.prediction",
    "Profile": "precalloc.profiles",
    "Report": "precalloc.report",
    "SimulatedAccuracy": "precalloc.accuracy",
    "Site": "precalloc.profiles",
    "allocate": "precalloc.allocator",
    "calibrate": "precalloc.network.calibrating",
    "compensate": "precalloc.network.compensation",
    "landmarks": "precalloc.marking",
    "plot_calibration": "precalloc.plots",
    "plot_curve": "precalloc.plots",
    "plot_kmap": "precalloc.plots",
    "plot_noise_bits": "precalloc.plots",
    "plot_sensitivity": "precalloc.plots",
    "predict": "precalloc.example_prediction",
    "profile": "precalloc.network.profiling",
    "refine": "precalloc.network.refinement",
    "safeguard": "precalloc.network.safeguard",
    "sites": "precalloc.network.sites:discover",
    "sweep": "precalloc.sweeping",
    "validate": "precalloc.network.simulation",
}

__all__ = [
    "Allocation",
    "Budget",
    "Choices",
    "Hardware",
    "KMap",
    "PrecallocError",
    "Prediction",
    "Profile",
    "Report",
    "SimulatedAccuracy",
    "Site",
    "__version__",
    "allocate",
    "calibrate",
    "compensate",
    "landmarks",
    "plot_calibration",
    "plot_curve",
    "plot_kmap",
    "plot_noise_bits",
    "plot_sensitivity",
    "predict",
    "profile",
    "refine",
    "safeguard",
    "sites",
    "sweep",
    "validate",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _EXPORTS[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return __all__
