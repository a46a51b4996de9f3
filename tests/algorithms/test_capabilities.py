"""What a class can do is what it declares, not where it was written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metalearn as ml
from metalearn.engine.execution import choose_execution, without_graphs
from metalearn.episodes import unstack
from metalearn.experiments.regimes import Minibatches
from metalearn.models import MLP
from metalearn.tasks import FewShot, OneShotRuns, Sinusoid
from tests.helpers import FAMILY, made_up_tasks, smooth_network


@pytest.mark.parametrize("kind", [FewShot, Sinusoid, OneShotRuns, Minibatches])
def test_tasks_that_depend_on_their_index_alone_say_so(kind: type) -> None:
    assert vars(kind)["draws_by_index"]


def test_a_subclass_says_so_for_itself() -> None:
    class Own(Sinusoid):
        pass

    assert "draws_by_index" not in vars(Own)


def test_the_adapters_of_learn2learn_do_not_say_so() -> None:
    from metalearn.compat import adapters

    for name, thing in vars(adapters).items():
        if isinstance(thing, type) and thing.__module__ == adapters.__name__:
            assert "draws_by_index" not in vars(thing), name


@pytest.mark.parametrize("name", FAMILY)
def test_the_learners_of_this_package_may_be_recorded(name: str) -> None:
    assert without_graphs(FAMILY[name](smooth_network())) == ""


@pytest.mark.parametrize("update", ["sgd", "momentum", "adam"])
def test_so_may_its_updates(update: str) -> None:
    assert without_graphs(ml.MAML(MLP(2, 2), 0.1, update=update)) == ""


def test_what_does_not_declare_it_may_not() -> None:
    class Own(ml.MAML):
        pass

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, targets)

    def update(weights: Any, gradients: Any, rates: Any, state: Any) -> Any:
        return {name: weights[name] - rates[name] * gradients[name] for name in rates}, state

    assert without_graphs(Own(MLP(2, 2), 0.1)).startswith("the learner Own may have side effects")
    assert without_graphs(ml.MAML(MLP(2, 2), 0.1, loss=loss)).startswith(
        "the loss loss may have side effects"
    )
    assert without_graphs(ml.MAML(MLP(2, 2), 0.1, update=update)).startswith(
        "the update update may have side effects"
    )
    loss.computes_only = True  # type: ignore[attr-defined]
    assert without_graphs(ml.MAML(MLP(2, 2), 0.1, loss=loss)) == ""


class Halved(ml.MAML):
    """A learner with an `adapt` of its own."""

    def adapt(self, support: ml.Examples) -> Any:
        adapted = super().adapt(support)
        return adapted._replace(
            weights={name: weight / 2 for name, weight in adapted.weights.items()}
        )


def test_a_learner_with_its_own_adapt_runs_one_task_at_a_time_and_is_called() -> None:
    torch.manual_seed(0)
    episodes = made_up_tasks(3, shape=(4,)).to(torch.float32)
    learner = Halved(MLP(4, 3), 0.1)
    assert choose_execution(learner) == "loop"
    expected = []
    for task in unstack(episodes):
        expected.append(learner.predict(learner.adapt(task.support), task.query.inputs))
    assert torch.allclose(learner(episodes), torch.stack(expected))
    assert ml.meta_backward(learner, episodes).losses.shape == (3,)


@pytest.mark.parametrize("execution", ["threads", "vectorized"])
def test_it_is_refused_elsewhere_with_the_cure(execution: str) -> None:
    learner = Halved(MLP(4, 3), 0.1, execution=execution)
    with pytest.raises(ValueError, match=r"override solve\(network, support\).*execution='loop'"):
        learner(made_up_tasks(3, shape=(4,)).to(torch.float32))
