"""Tasks of unequal size: one at a time they train and are scored; stacked they are refused with
sizes, task and cure.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from metalearn import ANIL, MAML, ProtoNet, Reptile, evaluate, meta_train
from metalearn.algorithms.base import Learner
from metalearn.episodes import Episode, Examples, stack
from metalearn.evaluation import paired
from tests.helpers import point_task

SHOTS, QUERIES = (2, 3, 2, 5), (4, 4, 6, 1)


def task(index: int, ways: int = 3) -> Episode:
    return point_task(index, SHOTS[index % 4], QUERIES[index % 4], ways)


TASKS = [task(i) for i in range(8)]


def build(algorithm: Any = MAML, **options: Any) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return algorithm(model, **({} if algorithm is ProtoNet else {"lr": 0.1}), **options)


def test_stack_names_sizes_task_and_cure() -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"support inputs are \(9, 4\) in task 1 and \(6, 4\) in task 0;"
            r" .*meta_batch=1.*tasks_at_once=1"
        ),
    ):
        stack(TASKS)
    with pytest.raises(
        ValueError, match=r"query inputs are \(18, 4\) in task 1 and \(12, 4\) in task 0"
    ):
        stack([TASKS[0], TASKS[2]])


def test_training_and_evaluation_name_the_task_by_its_own_index() -> None:
    with pytest.raises(
        ValueError, match=r"\(9, 4\) in task 1 and \(6, 4\) in task 0; .*meta_batch=1"
    ):
        meta_train(build(), TASKS, steps=2, progress=False)
    alike_at_first = [TASKS[0], TASKS[0], TASKS[0], TASKS[1]]
    with pytest.raises(ValueError, match=r"\(9, 4\) in task 3 and \(6, 4\) in task 2"):
        meta_train(build(), alike_at_first, steps=2, meta_batch=2, progress=False)
    with pytest.raises(
        ValueError, match=r"\(9, 4\) in task 3 and \(6, 4\) in task 2; .*tasks_at_once=1"
    ):
        evaluate(build(), alike_at_first, tasks_at_once=2)


def test_other_dimensions_and_images_of_unequal_size_are_named() -> None:
    images = [
        Episode(
            Examples(torch.rand(2, 1, s, s), torch.arange(2)),
            Examples(torch.rand(2, 1, s, s), torch.arange(2)),
        )
        for s in (8, 9)
    ]
    with pytest.raises(
        ValueError,
        match=r"support inputs are \(2, 1, 9, 9\) in task 1 and \(2, 1, 8, 8\) in task 0",
    ):
        stack(images)
    support, query = TASKS[0]
    one_hot = Episode(support, Examples(query.inputs, nn.functional.one_hot(query.targets)))
    with pytest.raises(
        ValueError, match=r"query targets are \(12, 3\) in task 1 and \(12,\) in task 0"
    ):
        stack([TASKS[0], one_hot])


def test_a_data_loader_of_unequal_tasks_names_its_cure() -> None:
    loader: Any = DataLoader(TASKS, batch_size=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"stacks tasks of unequal size.*batch_size=1"):
        evaluate(build(), loader)
    single: Any = DataLoader(TASKS, batch_size=1)  # type: ignore[arg-type]
    assert evaluate(build(), single).per_episode.equal(
        evaluate(build(), TASKS, tasks_at_once=1).per_episode
    )


@pytest.mark.parametrize("execution", ["auto", "loop", "threads", "vectorized"])
@pytest.mark.parametrize("algorithm", [MAML, ANIL, Reptile, ProtoNet])
def test_one_task_at_a_time_gives_what_each_task_gives_alone(
    algorithm: Any, execution: str
) -> None:
    learner = build(algorithm, execution=execution)
    together = evaluate(learner, TASKS, tasks_at_once=1)
    alone = [evaluate(learner, [single]).mean for single in TASKS]
    assert together.per_episode.tolist() == alone
    assert len(set(together.fingerprints)) == len(TASKS)
    assert paired(together, together).mean == 0


def test_one_task_a_step_trains_as_the_plain_loop() -> None:
    learner, plain = build(), build(execution="loop")
    curve = meta_train(
        learner,
        TASKS,
        steps=8,
        meta_batch=1,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        progress=False,
    )
    outer, losses = torch.optim.SGD(plain.parameters(), lr=0.1), []
    for single in TASKS:
        episode = single.to(torch.float64)
        logits = plain.predict(plain.adapt(episode.support), episode.query.inputs)
        loss = nn.functional.cross_entropy(logits, episode.query.targets)
        outer.zero_grad()
        loss.backward()
        outer.step()
        losses.append(loss.item())
    assert curve.losses == pytest.approx(losses, rel=1e-9)


@pytest.mark.filterwarnings("ignore:the head")
def test_tasks_of_other_ways_train_and_are_scored_one_at_a_time(tmp_path: Any) -> None:
    tasks = [task(0, 3), task(1, 2), task(2, 3)]
    with pytest.raises(ValueError, match="unequal size"):
        evaluate(build(), tasks)
    assert len(evaluate(build(), tasks, tasks_at_once=1).per_episode) == 3
    whole, resumed = build(), build()
    options: dict[str, Any] = {"meta_batch": 1, "progress": False}
    meta_train(whole, tasks, steps=6, validation=None, **options)
    meta_train(resumed, tasks, steps=4, checkpoint=tmp_path / "run", **options)
    meta_train(resumed, tasks, steps=6, checkpoint=tmp_path / "run", **options)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert a.equal(b)
