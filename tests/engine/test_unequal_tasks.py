"""A padded stack gives every task the numbers that it gives alone, however tasks run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalearn as ml
from metalearn.algorithms.base import Learner
from metalearn.engine import unequal_tasks
from metalearn.engine.unequal_tasks import by_size, groups, takes_padding, trimmed
from metalearn.episodes import Episode, Examples, is_padded, stack, unstack
from metalearn.models import MLP
from metalearn.padding import PADDING
from metalearn.tasks import FewShot, MetaDatasetSizes, Mixture

CLASSES, FEATURES = 12, 6


def data() -> torch.utils.data.TensorDataset:
    """Twelve classes of points with 14 to 25 examples each."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(CLASSES).repeat_interleave(14 + torch.arange(CLASSES))
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    noise = torch.randn(len(labels), FEATURES, generator=generator)
    return torch.utils.data.TensorDataset(centres[labels] + 0.5 * noise, labels)


def varied(**options: Any) -> FewShot:
    return FewShot(data(), (2, 6), (1, 4), (2, 5), 24, seed=1, **options)


RULES = {
    "ranges": varied,
    "ways alone": lambda: FewShot(data(), (2, 6), 1, 3, 24),
    "shots alone": lambda: FewShot(data(), 4, (1, 5), 3, 24),
    "queries alone": lambda: FewShot(data(), 4, 2, (1, 5), 24),
    "meta-dataset": lambda: FewShot(data(), sizes=MetaDatasetSizes(ways=(3, 7)), tasks=24),
}


def network(norm: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(FEATURES, 10), norm or nn.LayerNorm(10), nn.Tanh(), nn.Linear(10, 7)]
    return nn.Sequential(*layers).double()


LEARNERS: dict[str, Callable[..., Learner]] = {
    "maml": lambda model, **how: ml.MAML(model, 0.3, 2, **how),
    "fomaml": lambda model, **how: ml.MAML(model, 0.3, 2, first_order=True, **how),
    "anil": lambda model, **how: ml.ANIL(model, 0.3, 2, **how),
    "boil": lambda model, **how: ml.BOIL(model, 0.3, 2, **how),
    "meta-sgd": lambda model, **how: ml.MetaSGD(model, 0.3, 2, **how),
    "imaml": lambda model, **how: ml.ImplicitMAML(model, 0.05, 3, **how),
    "protonet": lambda model, **how: ml.ProtoNet(model, **how),
    "protonet, normalised": lambda model, **how: ml.ProtoNet(model, normalised=True, **how),
    "nil": lambda model, **how: ml.NIL(model, **how),
    "nil, sum": lambda model, **how: ml.NIL(model, "sum", **how),
    "nil, class means": lambda model, **how: ml.NIL(model, "class_mean", **how),
    "r2d2": lambda model, **how: ml.R2D2(model, **how),
    "protomaml": lambda model, **how: ml.ProtoMAML(model, 0.3, 2, **how),
    "baseline": lambda model, **how: ml.Baseline(model, 0.3, 2, **how),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*outputs, but the support set has")


def each_alone(learner: Learner, tasks: list[Episode]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Query logits, losses and the meta-gradient by the plain loop, one task at a time."""
    logits = []
    losses = []
    for task in tasks:
        scores = learner.predict(learner.adapt(task.support), task.query.inputs)
        logits.append(scores)
        losses.append(F.cross_entropy(scores, task.query.targets))
    together = torch.stack(losses)
    trained = list(learner.meta_parameters().values())
    gradients = torch.autograd.grad(together.mean(), trained, allow_unused=True)
    flat = [g.flatten() for g in gradients if g is not None]
    return [score.detach() for score in logits], together.detach(), torch.cat(flat)


@pytest.mark.parametrize("execution", ["auto", "loop", "threads", "vectorized"])
@pytest.mark.parametrize("name", LEARNERS)
def test_a_padded_stack_gives_what_each_task_gives_alone(
    name: str, execution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unequal_tasks, "OVERHEAD", 500)  # several groups
    learner = LEARNERS[name](network(), execution=execution)
    alone = [varied()[i].to(torch.float64) for i in range(9)]
    scores, losses, gradient = each_alone(learner, alone)
    stacked = stack(alone, pad=True)
    assert is_padded(stacked)
    together = learner(stacked)
    for task, (own, all_scores) in enumerate(zip(scores, together, strict=True)):
        queries, ways = own.shape
        torch.testing.assert_close(all_scores[:queries, :ways], own, msg=f"task {task}")
        assert (all_scores[:queries, ways:] == -torch.inf).all()
    result = ml.meta_backward(learner, stacked)
    torch.testing.assert_close(result.losses, losses)
    trained = learner.meta_parameters().values()
    gradients = [p.grad.flatten() for p in trained if p.grad is not None]
    torch.testing.assert_close(torch.cat(gradients), gradient)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["anil", "protonet"])
def test_any_rule_scores_and_trains_alike_stacked_or_alone(name: str, rule: str) -> None:
    tasks = RULES[rule]()
    learner = LEARNERS[name](network())
    together = ml.evaluate(learner, tasks, tasks_at_once=8, progress=False)
    alone = ml.evaluate(learner, tasks, tasks_at_once=1, progress=False)
    one_by_one = ml.evaluate(LEARNERS[name](network(), execution="loop"), tasks, progress=False)
    assert together.per_episode.tolist() == alone.per_episode.tolist()
    assert together.per_episode.tolist() == one_by_one.per_episode.tolist()
    assert together.fingerprints == alone.fingerprints
    assert f"{len(tasks)} tasks" in str(together)
    curves = []
    for execution in ("vectorized", "loop"):
        trained = LEARNERS[name](network(), execution=execution)
        curves.append(ml.meta_train(trained, tasks, steps=4, meta_batch=6, progress=False))
    assert curves[0].losses == pytest.approx(curves[1].losses, rel=1e-8)
    assert curves[0].accuracies == pytest.approx(curves[1].accuracies)


def test_what_mixes_examples_or_is_not_known_runs_without_its_padding() -> None:
    batch_norm = nn.BatchNorm1d(10, track_running_stats=False)
    mixing = ml.ProtoNet(network(batch_norm), execution="vectorized")
    assert not takes_padding(mixing)
    tasks = [varied()[i].to(torch.float64) for i in range(6)]
    scores, losses, _ = each_alone(mixing, tasks)
    torch.testing.assert_close(ml.meta_backward(mixing, stack(tasks, pad=True)).losses, losses)
    assert len(scores) == 6

    class Own(ml.ProtoNet):
        pass

    assert takes_padding(ml.ProtoNet(network()))
    assert not takes_padding(Own(network()))
    assert not takes_padding(ml.ProtoNet(network(), loss=lambda a, b: F.cross_entropy(a, b)))
    assert takes_padding(ml.ProtoNet(network(), loss=nn.CrossEntropyLoss()))
    # The smoothed label of a class that a task does not have would be infinitely unlikely.
    for loss in (nn.CrossEntropyLoss(ignore_index=3), nn.CrossEntropyLoss(label_smoothing=0.1)):
        learner = ml.ProtoNet(network(), loss=loss, execution="vectorized")
        assert not takes_padding(learner)
        assert ml.meta_backward(learner, stack(tasks, pad=True)).losses.isfinite().all()
    hooked = network()
    hooked[0].register_forward_hook(lambda *_: None)
    assert not takes_padding(ml.ProtoNet(hooked))


def test_groups_hold_every_task_once_and_little_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    stacked = stack([varied()[i] for i in range(24)], pad=True)
    order = by_size(stacked)
    assert sorted(order.tolist()) == list(range(24))
    in_order = Episode(*(Examples(*(t[order] for t in part)) for part in stacked))
    learner = ml.ProtoNet(network())
    assert list(groups(learner, in_order, most=30)) == [slice(0, 24)]  # the network is small
    monkeypatch.setattr(unequal_tasks, "OVERHEAD", 0)
    parts = list(groups(learner, in_order, most=5))
    assert [i for part in parts for i in range(24)[part]] == list(range(24))
    assert max(part.stop - part.start for part in parts) <= 5
    real = sum(len(part.targets) for task in unstack(stacked) for part in task)
    computed = 0
    for part in parts:
        chunk = trimmed(Episode(*(Examples(*(t[part] for t in side)) for side in in_order)))
        computed += chunk.support.targets.numel() + chunk.query.targets.numel()
    assert computed < 1.3 * real


def test_a_stack_that_differs_in_ways_alone_holds_padding() -> None:
    two = Examples(torch.rand(4, FEATURES), torch.tensor([0, 0, 1, 1]))
    four = Examples(torch.rand(4, FEATURES), torch.arange(4))
    stacked = stack([Episode(two, two), Episode(four, four)], pad=True)
    assert is_padded(stacked)
    learner = ml.ProtoNet(MLP(FEATURES, 2))
    logits = learner(stacked)
    assert (logits[0, :, 2:] == -torch.inf).all()
    assert logits[1].isfinite().all()
    assert not is_padded(stack([Episode(two, two), Episode(two, two)], pad=True))


def test_a_task_with_nothing_but_padding_is_named() -> None:
    pair = Examples(torch.rand(2, 2, FEATURES), torch.tensor([[0, 1], [0, 1]]))
    empty = Examples(pair.inputs, torch.tensor([[0, 1], [PADDING, PADDING]]))
    for execution in ("loop", "vectorized"):
        learner = ml.ProtoNet(MLP(FEATURES, 2), execution=execution)
        with pytest.raises(
            ValueError, match=r"task 1 of the stack has no query.* give it at least"
        ):
            learner(Episode(pair, empty))
        with pytest.raises(ValueError, match="task 1 of the stack has no support example"):
            ml.meta_backward(learner, Episode(empty, pair))


def test_a_query_of_a_class_that_its_task_does_not_have_is_named() -> None:
    tasks = [varied()[i] for i in range(4)]
    stacked = stack(tasks, pad=True)
    short = int(stacked.support.targets.amax(-1).argmin())
    label = int(stacked.support.targets[short].max()) + 1
    stacked.query.targets[short, 0] = label
    for execution in ("loop", "vectorized"):
        learner = ml.ProtoNet(MLP(FEATURES, 2), execution=execution)
        with pytest.raises(ValueError, match=f"task {short} of the stack has a query of class"):
            ml.meta_backward(learner, stacked)


def test_a_single_task_with_the_label_of_padding_is_refused() -> None:
    support = Examples(torch.rand(3, FEATURES), torch.tensor([0, 1, PADDING]))
    learner = ml.MAML(MLP(FEATURES, 2), 0.1)
    with pytest.raises(ValueError, match="the labels run from -100"):
        learner.adapt(support)


def test_real_targets_are_not_padded() -> None:
    tasks = [
        Episode(
            Examples(torch.rand(n, 1), torch.rand(n, 1)),
            Examples(torch.rand(n, 1), torch.rand(n, 1)),
        )
        for n in (2, 3)
    ]
    with pytest.raises(
        ValueError, match=r"unequal size cannot be stacked.*padding takes tasks with class labels"
    ):
        stack(tasks, pad=True)


def test_several_inputs_are_padded_alike() -> None:
    def task(shots: int) -> Episode:
        inputs = {"a": torch.rand(shots, 3), "b": torch.rand(shots, 2, 2)}
        part = Examples(inputs, torch.arange(shots))
        return Episode(part, part)

    stacked = stack([task(2), task(4)], pad=True)
    assert stacked.query.inputs["b"].shape == (2, 4, 2, 2)
    again = unstack(stacked)
    assert again[0].support.inputs["a"].equal(task(2).support.inputs["a"]) is False
    assert [len(each.support.targets) for each in again] == [2, 4]


def test_sources_of_other_sizes_mix_in_padded_stacks() -> None:
    sources = {"few": FewShot(data(), 3, 1, 2, 9), "many": FewShot(data(), 5, 2, 4, 9)}
    mixture = Mixture(sources, tasks=12)
    assert mixture.sizes_vary
    learner = ml.ProtoNet(network())
    curve = ml.meta_train(learner, mixture, steps=2, meta_batch=6, progress=False)
    assert len(curve.losses) == 2
    together = ml.evaluate(learner, mixture, progress=False)
    alone = ml.evaluate(learner, mixture, tasks_at_once=1, progress=False)
    assert together.per_episode.tolist() == alone.per_episode.tolist()
