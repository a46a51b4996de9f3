"""Learners tested on another data set than the one they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from metalearn.evaluation import Evaluation, evaluate_together
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.regimes import at_test
from metalearn.experiments.runs import Run

if TYPE_CHECKING:
    pass


def another_domain(run: Run, dataset: str, **changes: Any) -> Experiment:
    """The experiment of `run` with the test tasks of another data set, its images brought to the
    model's channels and size.

    Grey images are repeated in three channels, colour turned to grey (ITU-R 601 luma), and the size
    changed with an antialiased bilinear filter; the data set's description says which. `changes`
    are other settings that hold at test (root, test_tasks, queries).
    """
    channels, size = run.experiment.shape()
    if dataset != run.experiment.dataset:
        changes = {"protocol": None, "test_rotations": None, **changes}  # which are Omniglot's own
    return replace(
        run.experiment, dataset=dataset, preset="quick", channels=channels, size=size, **changes
    )


def cross_domain(
    runs: Mapping[str, Run], dataset: str, *, progress: bool = False, **changes: Any
) -> dict[str, Evaluation]:
    """Test learners on a data set that none was trained on -> accuracy by name, on the same tasks
    (BOIL: Oh et al. 2021, section 4.2).

    Each adapts as it did at home, with its own rate and test steps; a body trained without an inner
    loop is tested by NIL.

    Args:
        runs: trained runs by name.
        dataset: what to test on, by name or path.
        progress: show progress.
        changes: other settings that hold at test: root, test_tasks, queries.

    Raises ValueError where the runs take images of different shapes, since their tasks would then
    differ.
    """
    shapes = {name: run.experiment.shape() for name, run in runs.items()}
    if len(set(shapes.values())) != 1:
        said = (
            ", ".join(
                f"{name} {channels} x {size} x {size}" for name, (channels, size) in shapes.items()
            )
            or "there are none"
        )
        raise ValueError(
            f"cross_domain compares runs on the same images, but they take ({said}); call it for"
            " each shape"
        )
    tasks = another_domain(next(iter(runs.values())), dataset, **changes).testing_tasks()
    return evaluate_together(
        {name: at_test(run) for name, run in runs.items()}, tasks, progress=progress
    )
