"""The adapted network as a module of its own: exported, hooked, trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import metalearn as ml
from metalearn.engine.solver import Adapted
from metalearn.episodes import Examples, unstack
from metalearn.models import Conv4
from metalearn.network.functional import Functional
from tests.helpers import FAMILY, made_up_tasks, smooth_network

# These take any number of classes.
ANY_WAYS = [
    name for name in FAMILY if name.startswith(("ProtoMAML", "Baseline", "NIL", "ProtoNet", "R2D2"))
]


@pytest.mark.parametrize(
    ("name", "ways"), [*[(name, 3) for name in FAMILY], *[(name, 5) for name in ANY_WAYS]]
)
def test_it_predicts_as_the_learner_does_and_shares_nothing(name: str, ways: int) -> None:
    learner = FAMILY[name](smooth_network())
    task = unstack(made_up_tasks(ways=ways))[0]
    expected = learner.predict(learner.adapt(task.support), task.query.inputs).detach()
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    adapted = learner.adapted_model(task.support)
    torch.testing.assert_close(adapted(task.query.inputs), expected, rtol=1e-12, atol=1e-13)
    memory = {tensor.data_ptr() for tensor in learner.state_dict().values()}
    assert not memory & {parameter.data_ptr() for parameter in adapted.parameters()}
    assert all(parameter.is_leaf for parameter in adapted.parameters())
    nn.functional.cross_entropy(adapted(task.query.inputs), task.query.targets).backward()
    torch.optim.SGD(adapted.parameters(), lr=0.1).step()
    for key, tensor in learner.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_hooks_see_the_adapted_layers() -> None:
    learner = ml.MAML(smooth_network(), 0.4)
    task = unstack(made_up_tasks())[0]
    adapted, seen = learner.adapted_model(task.support), []
    adapted[0].register_forward_hook(lambda *call: seen.append(call[2].detach()))
    adapted(task.query.inputs)
    learner.model(task.query.inputs)
    assert len(seen) == 1
    assert not torch.equal(seen[0], learner.model[0](task.query.inputs))


def conv4() -> nn.Module:
    torch.manual_seed(0)
    return Conv4(ways=3, hidden=4, size=16).double()


@pytest.mark.parametrize("shape", [(1, 5, 5), (1, 16, 16)])
@pytest.mark.parametrize(
    "build",
    [
        lambda model: ml.MAML(model, 0.1, 2),
        lambda model: ml.ANIL(model, 0.1, 2),
        lambda model: ml.ProtoMAML(model, 0.1, 2),
        ml.NIL,
        lambda model: ml.NIL(model, "class_mean"),
        ml.ProtoNet,
        ml.R2D2,
    ],
    ids=["MAML", "ANIL", "ProtoMAML", "NIL", "NIL class_mean", "ProtoNet", "R2D2"],
)
def test_it_is_exported_and_loaded(
    build: Callable[[nn.Module], ml.Learner], shape: tuple[int, ...], tmp_path: Path
) -> None:
    task = unstack(made_up_tasks(shape=shape))[0]
    learner = build(smooth_network() if shape[1] == 5 else conv4())
    adapted = learner.adapted_model(task.support)
    program = torch.export.export(adapted.eval(), (task.query.inputs,))
    torch.export.save(program, tmp_path / "adapted.pt2")
    loaded = torch.export.load(tmp_path / "adapted.pt2").module()
    torch.testing.assert_close(
        loaded(task.query.inputs), adapted(task.query.inputs), rtol=1e-10, atol=1e-12
    )


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    support = Examples(torch.rand(6, 4), torch.tensor([0, 1, 2] * 2))
    adapted = ml.MAML(model, 0.4).adapted_model(support)
    assert adapted[0].weight is adapted[2].weight
    assert adapted[0].weight is not model[0].weight


class Distances(ml.Learner):
    """A learner of a user's own that predicts from the support set's features."""

    def solve(self, network: Functional, support: Examples) -> Adapted:
        return Adapted(network.weights(), support)


def test_a_learner_that_keeps_features_without_a_module_of_its_own_is_refused() -> None:
    task = unstack(made_up_tasks())[0]
    with pytest.raises(ValueError, match=r"Distances predicts from support features.*predict\(\)"):
        Distances(smooth_network()).adapted_model(task.support)


def test_the_features_of_any_ending_are_read() -> None:
    """A head whose output is pooled, a model without a head, and one of two inputs."""
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Flatten())
    bare = nn.Sequential(nn.Flatten(), nn.Linear(25, 4), nn.Tanh())
    task = unstack(made_up_tasks())[0]
    for model, head in ((pooled.double(), "1"), (bare.double(), "")):
        learner = ml.ProtoNet(model, head=head)
        expected = learner.predict(learner.adapt(task.support), task.query.inputs)
        torch.testing.assert_close(learner.adapted_model(task.support)(task.query.inputs), expected)


def test_several_inputs() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.head(torch.tanh(self.body(a) + b))

    learner = ml.ProtoNet(Sum())
    support = Examples({"a": torch.rand(6, 4), "b": torch.rand(6, 4)}, torch.arange(3).repeat(2))
    expected = learner.predict(learner.adapt(support), support.inputs)
    adapted = learner.adapted_model(support)
    torch.testing.assert_close(adapted(**support.inputs), expected)
    torch.testing.assert_close(adapted(support.inputs["a"], b=support.inputs["b"]), expected)


def test_a_class_without_an_example_is_refused() -> None:
    support = Examples(torch.rand(2, 1, 5, 5).double(), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="no example of class 1"):
        ml.ProtoNet(smooth_network()).adapted_model(support)
