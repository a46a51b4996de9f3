"""How the predictors of tasks develop while a learner is trained.

Du et al. 2021 (arXiv:2002.09434) assume that their norms and condition number stay bounded; Bouniot
et al. 2022 (arXiv:2010.01992) ask which learners keep them so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from metalearn.algorithms.base import Learner
from metalearn.analysis.adaptation.predictors import Predictors, predictors
from metalearn.analysis.plotting.page import Section, write_page
from metalearn.evaluation import Tasks, describe
from metalearn.runtime.checks import sequence, whole_number
from metalearn.runtime.files import write_atomically
from metalearn.runtime.tables import Table, Tabular, plain
from metalearn.training.loop import meta_train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Do the predictors of tasks stay bounded and diverse?"


@dataclass(frozen=True)
class Course(Tabular):
    """The predictors at several steps of a training.

    Attributes:
        steps: outer steps at which they were measured.
        predictors: the measures at each of these steps.
    """

    steps: tuple[int, ...]
    predictors: tuple[Predictors, ...]

    def records(self) -> list[dict[str, Any]]:
        """A row for each step."""
        return [
            {"step": step, **measured.records()[0]}
            for step, measured in zip(self.steps, self.predictors, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The rows as JSON-able values; an infinite condition number is None."""
        return plain({"rows": self.records()})

    def table(self) -> Table:
        """Norm and condition number at each step."""
        rows = [
            (f"{row['step']:,}", f"{row['norm']:.3g}", f"{row['condition']:.3g}")
            for row in self.records()
        ]
        return Table(("step", "norm", "condition number"), rows)

    def __str__(self) -> str:
        return str(self.table())

    def figures(self) -> dict[str, Figure]:
        """Norm and condition number over steps, by caption."""
        return course_figures({self.predictors[0].kind: self})

    def report(self, path: str | PathLike[str]) -> None:
        """Write the page."""
        sections = [Section("Over training", tables=[self.table()], pictures=self.figures())]
        write_page(path, TITLE, self.answer(), sections)

    def answer(self) -> str:
        """One sentence: what norm and condition number were at first and are at the end."""
        first, last = (self.predictors[0], self.predictors[-1])
        return (
            f"From step {self.steps[0]:,} to {self.steps[-1]:,} the norm went from"
            f" {first.norm:.3g} to {last.norm:.3g}, and the condition number from"
            f" {first.condition:.3g} to {last.condition:.3g}, over {last.tasks} tasks."
        )


def predictor_course(
    learner: Learner,
    episodes: Tasks,
    measured_on: Tasks,
    steps: Sequence[int],
    *,
    checkpoint: str | PathLike[str] | None = None,
    **training: Any,
) -> Course:
    """Train a learner, and measure the predictors of the same tasks at several steps.

    The training is one run of `meta_train` that is stopped and resumed at each step: its weights
    are those of a run without measurements, to the last bit.

    Args:
        learner: trained in place.
        episodes: training tasks.
        measured_on: tasks whose predictors are measured, such as 100.
        steps: the outer steps at which to measure, rising; 0 is before training.
        checkpoint: the file of the run [a temporary one]. The measures are kept beside it, and a
            run that was stopped goes on from both.
        training: further arguments of `meta_train`, such as `penalty`; a schedule is not among
            them, because each part would end it.

    Returns:
        The course.

    Raises:
        ValueError: the steps do not rise, there are none, a schedule is given, or the run was
            measured on other tasks before.
        TypeError: the steps are not a list of whole numbers.

    Example:
        >>> from metalearn import ANIL
        >>> from metalearn.data.glyphs import glyphs
        >>> from metalearn.models import Conv4
        >>> from metalearn.tasks import FewShot
        >>> tasks = FewShot(glyphs("train", size=16), ways=3, shots=1, queries=2, tasks=20)
        >>> learner = ANIL(Conv4(3, hidden=4, size=16), lr=0.1)
        >>> course = predictor_course(learner, tasks, tasks, (0, 2), progress=False)
        >>> course.steps, len(course.predictors)
        ((0, 2), 2)
    """
    points = [whole_number("step", step, 0) for step in sequence("steps", steps, "(0, 100)")]
    if not points or sorted(set(points)) != points:
        raise ValueError(f"steps={tuple(points)}; give steps that rise, such as (0, 100, 200)")
    if training.get("schedule") is not None:
        raise ValueError(
            "a schedule ends with each part of the training, so predictor_course() takes none; use"
            " a constant rate"
        )
    with TemporaryDirectory() as folder:
        file = Path(folder) / "run.safetensors" if checkpoint is None else Path(fspath(checkpoint))
        store = file.with_suffix(".predictors.json")
        stored = _stored(store, measured_on) if file.exists() else {}
        for step in points:
            # A run that was stopped has the measures up to its checkpoint.
            if str(step) in stored and step != points[-1]:
                continue
            if step:
                meta_train(learner, episodes, steps=step, checkpoint=file, **training)
            stored[str(step)] = predictors(learner, measured_on).to_dict()
            record = {"tasks": plain(describe(measured_on)), "steps": stored}
            write_atomically(store, json.dumps(record).encode())
    measures = [Predictors.from_dict(stored[str(step)]) for step in points]
    return Course(tuple(points), tuple(measures))


def _stored(store: Path, measured_on: Tasks) -> dict[str, Any]:
    """The measures of a run that was stopped, by step."""
    if not store.exists():
        return {}
    record = json.loads(store.read_text())
    if record["tasks"] != plain(describe(measured_on)):
        raise ValueError(
            f"{store} holds measures on other tasks; give the run another checkpoint, or the tasks"
            " that it was measured on"
        )
    steps: dict[str, Any] = record["steps"]
    return steps


def course_figures(courses: Mapping[str, Course]) -> dict[str, Figure]:
    """Norm and condition number over steps, a line for each course, by caption.

    Args:
        courses: by what the lines are called.
    """
    from metalearn.analysis.plotting.predictors import predictor_lines

    lines = {}
    for name, course in courses.items():
        conditions = [
            measured.condition if math.isfinite(measured.condition) else math.nan
            for measured in course.predictors
        ]
        lines[name] = (course.steps, [measured.norm for measured in course.predictors], conditions)
    return predictor_lines(lines)
