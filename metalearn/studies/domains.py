"""Learners tested on another data set than the one they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from metalearn.evaluation import Evaluation, evaluate_together
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.regimes import at_test
from metalearn.experiments.runs import Run


def another_domain(run: Run, dataset: str, **changes: Any) -> Experiment:
    """The experiment of a run with the test tasks of another data set.

    The images are brought to the model's channels and size: grey images are repeated in three
    channels, colour becomes grey (ITU-R 601 luma), and the size is changed with an antialiased
    bilinear filter. The data set's description records which.

    Args:
        run: a trained run.
        dataset: what to test on, by name or path.
        changes: other settings of the test (root, test_tasks, queries).
    """
    channels, size = run.experiment.shape()
    if dataset != run.experiment.dataset:
        # Settings of Omniglot, which other data sets refuse.
        changes = {"protocol": None, "test_rotations": None, **changes}
    return replace(
        run.experiment, dataset=dataset, preset="quick", channels=channels, size=size, **changes
    )


def cross_domain(
    runs: Mapping[str, Run], dataset: str, *, progress: bool = False, **changes: Any
) -> dict[str, Evaluation]:
    """Test learners on a data set that none was trained on (BOIL: Oh et al. 2021, section 4.2).

    Each adapts as on its own data set, with its own rate and test steps; a body trained without an
    inner loop is tested by NIL.

    Args:
        runs: trained runs by name.
        dataset: what to test on, by name or path.
        progress: whether to show progress.
        changes: other settings of the test: root, test_tasks, queries.

    Returns:
        The accuracy of each, on the same tasks.

    Raises:
        ValueError: if the runs take images of different shapes, since their tasks would then
            differ.
    """
    shapes = {name: run.experiment.shape() for name, run in runs.items()}
    if len(set(shapes.values())) != 1:
        listed = [f"{name} {channels} x {s} x {s}" for name, (channels, s) in shapes.items()]
        raise ValueError(
            "cross_domain compares runs on the same images, but they take"
            f" ({', '.join(listed) or 'there are none'}); call it for each shape"
        )
    # Any run will do: the tasks depend on the shape of the images alone.
    tasks = another_domain(next(iter(runs.values())), dataset, **changes).testing_tasks()
    return evaluate_together(
        {name: at_test(run) for name, run in runs.items()}, tasks, progress=progress
    )
