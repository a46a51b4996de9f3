"""The settings of the outer loop, and the checks of what `meta_train` is given."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from metalearn.algorithms.base import Learner
from metalearn.engine.solver import device_of
from metalearn.episodes import Episode
from metalearn.evaluation import Tasks, check_tasks, describe
from metalearn.runtime.checks import positive_number
from metalearn.runtime.files import Record

from .penalty import Penalty, reads_outputs
from .precision import check_precision

FilePath = str | os.PathLike[str]


@dataclass(frozen=True)
class Plan:
    """The settings of the outer loop (see `meta_train`), checked."""

    episodes: Tasks
    steps: int
    meta_batch: int
    clip_value: float | None
    clip_norm: float | None
    validation: Tasks | None
    validate_every: int
    checkpoint: FilePath | None
    checkpoint_every: int
    precision: str | None
    shown: bool  # report progress on standard error
    penalty: Penalty | None = None
    callbacks: tuple[Any, ...] = ()
    keep_best: bool = False

    def decisive(self) -> Record:
        """The settings that must be the same on resume."""
        settings: Record = {
            "meta_batch": self.meta_batch,
            "clip_value": self.clip_value,
            "clip_norm": self.clip_norm,
            "precision": self.precision,
        }
        if self.penalty is not None:
            settings["penalty"] = repr(self.penalty)
        return settings

    def schedule(self) -> Record:
        """The settings that a resume may change, and that ranks must agree on."""
        settings: Record = {
            "steps": self.steps,
            "checkpoint_every": self.checkpoint_every if self.checkpoint else None,
        }
        if self.validation is not None:
            settings["validate_every"] = self.validate_every
            settings["validation"] = describe(self.validation)
        return settings


def clipping_bound(name: str, value: float | None) -> float | None:
    """A bound on gradients, if it is a finite number above 0; None for no clipping."""
    if value is None:
        return None
    return positive_number(name, value, "leave it out to train without clipping")


def check_arguments(learner: Learner, plan: Plan, settings: Record | None) -> None:
    """Check the arguments of `meta_train` that are neither numbers nor paths."""
    check_tasks("training tasks", plan.episodes)
    if plan.validation is not None:
        check_tasks("validation tasks", plan.validation)
    if isinstance(plan.episodes, DataLoader | Episode):
        raise TypeError(
            f"meta_train indexes tasks (`episodes[i]`), which {type(plan.episodes).__name__} does"
            " not support; pass the data set itself, such as FewShot(...)"
        )
    if settings is not None and not isinstance(settings, dict):
        raise TypeError(
            f"settings={settings!r} is a {type(settings).__name__}; give a dictionary of what else"
            " decides the run"
        )
    if plan.penalty is not None and reads_outputs(plan.penalty):
        raise ValueError(
            f"penalty={plan.penalty!r} reads outputs of the network, and meta_train takes penalties"
            " of weights alone, such as pulled()"
        )
    if plan.keep_best and plan.validation is None:
        raise ValueError("keep_best=True needs validations: pass validation=, or leave it out")
    check_precision(plan.precision, device_of(learner))


def check_paths(**paths: FilePath | None) -> None:
    """Raise an error for an argument that is no path."""
    for name, path in paths.items():
        if path is not None and not isinstance(path, str | os.PathLike):
            raise TypeError(f"{name}={path!r} is a {type(path).__name__}; give a path, or omit it")
        if path == "":
            raise ValueError(f"{name}='' names no file; give a path, or omit it")
