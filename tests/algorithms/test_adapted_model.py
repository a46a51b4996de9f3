"""The adapted network as a module of its own: exported, hooked, trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import metalearn as ml
from metalearn.episodes import Examples, unstack
from metalearn.models import Conv4
from tests.helpers import FAMILY, made_up_tasks, smooth_network

ADAPTING = [name for name in FAMILY if not name.startswith(("NIL", "ProtoNet", "R2D2"))]


# These make a head for the classes of the task.
OWN_HEAD = [name for name in ADAPTING if name.startswith(("ProtoMAML", "Baseline"))]


@pytest.mark.parametrize(
    ("name", "ways"), [*[(name, 3) for name in ADAPTING], *[(name, 5) for name in OWN_HEAD]]
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
@pytest.mark.parametrize("algorithm", [ml.MAML, ml.ANIL, ml.ProtoMAML])
def test_it_is_exported_and_loaded(
    algorithm: Callable[..., ml.Learner], shape: tuple[int, ...], tmp_path: Path
) -> None:
    task = unstack(made_up_tasks(shape=shape))[0]
    learner = algorithm(smooth_network() if shape[1] == 5 else conv4(), 0.1, 2)
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


def test_a_model_that_does_not_adapt_is_refused() -> None:
    task = unstack(made_up_tasks())[0]
    for learner in (ml.ProtoNet(smooth_network()), ml.NIL(smooth_network())):
        with pytest.raises(ValueError, match=r"predicts from support features.*predict\(\)"):
            learner.adapted_model(task.support)
