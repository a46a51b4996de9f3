"""From names to runs: settings, presets, trained runs and sweeps."""

from .experiment import ALGORITHMS, Experiment, trained_by
from .presets import Preset, preset
from .runs import Compared, Run, compare, restored

__all__ = [
    "ALGORITHMS",
    "Compared",
    "Experiment",
    "Preset",
    "Run",
    "compare",
    "preset",
    "restored",
    "trained_by",
]
