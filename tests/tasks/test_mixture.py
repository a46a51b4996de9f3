"""Tasks of several sources: which one a task is from, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metalearn import ProtoNet, evaluate
from metalearn.data.images import LabelledImages
from metalearn.tasks import FewShot, Mixture


def tasks_of(value: int, **options: Any) -> FewShot:
    pixels = torch.full((20, 1, 2, 2), value, dtype=torch.uint8)
    return FewShot(LabelledImages(pixels, torch.arange(20) // 5), 2, 1, 2, tasks=30, **options)


SOURCES = {"dark": tasks_of(0), "light": tasks_of(255)}


def test_a_task_is_of_its_source_and_depends_on_seed_and_index_alone() -> None:
    mixture = Mixture(SOURCES, tasks=2000, weights={"dark": 3, "light": 1})
    again = Mixture(SOURCES, tasks=2000, weights={"dark": 3, "light": 1})
    for i in (1999, 3, 0, -1):
        assert mixture.source(i) == again.source(i)
        expected = SOURCES[mixture.source(i)][i % 2000 % 30]
        assert torch.equal(mixture[i].query.inputs, expected.query.inputs)
    share = sum(mixture.source(i) == "dark" for i in range(2000)) / 2000
    assert abs(share - 0.75) < 0.04
    other = Mixture(SOURCES, tasks=2000, seed=1)
    assert [other.source(i) for i in range(50)] != [mixture.source(i) for i in range(50)]


def test_settings_record_every_source() -> None:
    record = Mixture(SOURCES, tasks=5).settings()
    assert record["weights"] == {"dark": 1.0, "light": 1.0}
    assert record["sources"]["light"]["ways"] == 2


def test_an_evaluation_records_the_source_of_every_task() -> None:
    mixture = Mixture(SOURCES, tasks=6)
    result = evaluate(ProtoNet(torch.nn.Flatten()), mixture)
    assert [row["source"] for row in result.records()] == [mixture.source(i) for i in range(6)]


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(TypeError, match="give a dictionary from names to tasks"):
        Mixture([tasks_of(0)], tasks=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one source"):
        Mixture({}, tasks=5)
    with pytest.raises(ValueError, match=r"weights are for dark, but the sources are dark, light"):
        Mixture(SOURCES, tasks=5, weights={"dark": 1})
    with pytest.raises(ValueError, match=r"weights\['light'\]=-1"):
        Mixture(SOURCES, tasks=5, weights={"dark": 1, "light": -1})
