"""Predictors over training: the training is the same as one without measurements."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metalearn import ANIL, meta_train
from metalearn.data.glyphs import glyphs
from metalearn.models import Conv4
from metalearn.studies.predictor_course import Course, course_figures, predictor_course
from metalearn.tasks import FewShot
from metalearn.training.regularisers import spectral


def learner() -> ANIL:
    torch.manual_seed(0)
    return ANIL(Conv4(3, hidden=4, size=16), lr=0.1)


def tasks(split: str) -> FewShot:
    return FewShot(glyphs(split, size=16), ways=3, shots=1, queries=2, tasks=20)


def test_the_weights_are_those_of_one_run(tmp_path: Path) -> None:
    measured = learner()
    options = {"penalty": spectral(), "meta_batch": 2, "progress": False}
    course = predictor_course(measured, tasks("train"), tasks("test"), (0, 1, 3), **options)
    alone = learner()
    meta_train(alone, tasks("train"), steps=3, **options)
    for left, right in zip(measured.parameters(), alone.parameters(), strict=True):
        assert torch.equal(left, right)
    assert course.steps == (0, 1, 3) and course.predictors[0] != course.predictors[-1]
    assert len(course.records()) == 3 and "condition number" in str(course)
    course.report(tmp_path / "page.html")
    assert "stay bounded" in (tmp_path / "page.html").read_text()
    figures = course_figures({"with": course, "without": course})
    assert [len(figure.axes[0].lines) for figure in figures.values()] == [2, 2]


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    def course(name: str, steps: tuple[int, ...]) -> Course:
        return predictor_course(
            learner(), tasks("train"), tasks("test"), steps, checkpoint=tmp_path / name,
            meta_batch=2, progress=False,
        )  # fmt: skip

    whole = course("whole.safetensors", (0, 1, 2))
    course("parts.safetensors", (0, 1))
    assert course("parts.safetensors", (0, 1, 2)) == whole
    assert course("parts.safetensors", (0, 1, 2)) == whole
    with pytest.raises(ValueError, match="measures on other tasks"):
        predictor_course(
            learner(), tasks("train"), tasks("train"), (0, 1, 2), meta_batch=2, progress=False,
            checkpoint=tmp_path / "parts.safetensors",
        )  # fmt: skip


@pytest.mark.parametrize("steps", [(), (3, 1), (2, 2)])
def test_steps_that_do_not_rise(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="steps that rise"):
        predictor_course(learner(), tasks("train"), tasks("test"), steps)


def test_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="constant rate"):
        predictor_course(
            learner(), tasks("train"), tasks("test"), (0, 1), schedule="cosine", progress=False
        )
