"""Meta-Curvature: a learned transform of every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import metalearn as ml
from metalearn.episodes import Episode, stack, unstack
from metalearn.models import MLP
from tests.helpers import WAYS_TO_RUN, gradients, made_up_tasks, point_task, smooth_network

pytestmark = pytest.mark.usefixtures("two_threads")


def meta_gradient(learner: ml.Learner, episodes: Episode) -> torch.Tensor:
    learner.zero_grad()
    ml.meta_backward(learner, episodes)
    return gradients(learner).clone()


def shaken(learner: ml.MetaCurvature) -> ml.MetaCurvature:
    """The learner with matrices that are no identities."""
    torch.manual_seed(3)
    with torch.no_grad():
        for matrix in learner.curvature.values():
            matrix.add_(0.1 * torch.randn_like(matrix))
    return learner


@pytest.mark.parametrize("way", WAYS_TO_RUN)
@pytest.mark.parametrize("first_order", [False, True])
def test_at_its_start_it_is_maml(way: str, *, first_order: bool) -> None:
    model, episodes = smooth_network(), made_up_tasks()
    turned = ml.MetaCurvature(model, 0.3, 2, first_order=first_order, execution=way)
    plain = ml.MAML(model, 0.3, 2, first_order=first_order, execution=way)
    torch.testing.assert_close(turned(episodes), plain(episodes), rtol=1e-13, atol=1e-14)
    shared = meta_gradient(plain, episodes)
    found = meta_gradient(turned, episodes)[: len(shared)]
    torch.testing.assert_close(found, shared, rtol=1e-10, atol=1e-13)


def test_a_step_by_hand() -> None:
    model, task = smooth_network(), unstack(made_up_tasks())[0]
    learner = shaken(ml.MetaCurvature(model, 0.3))
    loss = nn.functional.cross_entropy(model(task.support.inputs), task.support.targets)
    parameters = dict(model.named_parameters())
    found = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    adapted = learner.adapt(task.support).weights
    # A convolution (outputs, inputs, 3, 3): its kernel is flattened.
    outputs, inputs, kernel = learner.matrices("0.weight")
    flat = found["0.weight"].flatten(2)
    turned = torch.einsum("oif,po,qi,gf->pqg", flat, outputs, inputs, kernel)
    expected = parameters["0.weight"] - 0.3 * turned.view_as(parameters["0.weight"])
    torch.testing.assert_close(adapted["0.weight"], expected, rtol=1e-11, atol=1e-13)
    # A matrix, and a vector.
    outputs, inputs = learner.matrices("4.weight")
    expected = parameters["4.weight"] - 0.3 * outputs @ found["4.weight"] @ inputs.T
    torch.testing.assert_close(adapted["4.weight"], expected, rtol=1e-11, atol=1e-13)
    (outputs,) = learner.matrices("4.bias")
    expected = parameters["4.bias"] - 0.3 * outputs @ found["4.bias"]
    torch.testing.assert_close(adapted["4.bias"], expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("way", ["threads", "vectorized"])
@pytest.mark.parametrize("update", ["sgd", "adam"])
def test_every_way_agrees_away_from_the_identity(way: str, update: str) -> None:
    model, episodes = smooth_network(), made_up_tasks()
    learners = [
        shaken(ml.MetaCurvature(model, 0.05, 2, update=update, execution=execution))
        for execution in (way, "loop")
    ]
    found, expected = (meta_gradient(learner, episodes) for learner in learners)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


def test_matrices_of_frozen_layers_are_not_trained() -> None:
    learner = ml.MetaCurvature(smooth_network(), 0.3).frozen(["0"])
    names = learner.meta_parameters()
    assert "curvature.4/weight/0" in names and "curvature.0/weight/0" not in names
    ml.meta_backward(learner, made_up_tasks())


def test_a_layer_that_gets_a_rate_later_is_refused() -> None:
    learner = ml.MetaCurvature(MLP(2, 2), {"head": 0.1})
    learner.lr = {"head.bias": 0.2}
    with pytest.raises(ValueError, match=r"had no rate when .*build a new learner"):
        learner.lr = 0.1
    assert list(learner.rates) == ["head.bias"]


class InContext(nn.Module):
    """A model that reads a parameter of the task, as in CAVIA."""

    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        context = self.context.expand(len(x), -1)  # (examples, 2)
        return self.head(torch.tanh(self.body(torch.cat([x, context], 1))))


def test_cavia_is_maml_with_a_context() -> None:
    """As the docstring says: the context alone moves, and the outer loop trains all the rest."""
    learner = ml.MAML(InContext(), lr={"context": 1.0})
    adapted = learner.adapt(point_task(0).support).weights
    moved = [n for n, p in learner.model.named_parameters() if not torch.equal(adapted[n], p)]
    assert moved == ["context"]
    assert "model.context" not in learner.meta_parameters()
    ml.meta_backward(learner, stack([point_task(seed) for seed in range(3)]))
    assert all(bool(p.grad.any()) for p in learner.meta_parameters().values())
