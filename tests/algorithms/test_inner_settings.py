"""Settings of learners: what is frozen, what is set later, updates by name, and rates that make no
sense.
"""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

import metalearn as ml
from metalearn.engine.inner_loop import adam, inner_loop, momentum
from metalearn.episodes import unstack
from metalearn.models import MLP
from tests.helpers import FAMILY, WAYS_TO_RUN, made_up_tasks, smooth_network
from transfer import freeze


def moved(learner: ml.MAML) -> set[str]:
    """The layers that the inner loop moves."""
    adapted = learner.adapt(unstack(made_up_tasks())[0].support).weights
    return {
        name.split(".")[0]
        for name, weight in learner.model.named_parameters()
        if adapted[name] is not weight
    }


def test_frozen_means_frozen_unless_a_rate_names_it() -> None:
    model = smooth_network()
    freeze(model, "0")
    assert moved(ml.MAML(model, 0.5)) == {"1", "4", "6"}
    assert moved(ml.MAML(model, {"": 0.5})) == {"1", "4", "6"}
    assert moved(ml.MAML(model, {"": 0.5, "0": 0.1})) == {"0", "1", "4", "6"}
    assert moved(ml.MAML(model, {"0.weight": 0.1})) == {"0"}
    assert moved(ml.MAML(model, {"*weight": 0.1})) == {"1", "4", "6"}
    assert moved(ml.BOIL(model, 0.5)) == {"1", "4"}
    assert moved(ml.MetaSGD(model, 0.5)) == {"1", "4", "6"}
    assert ml.MAML(model, 0.5).settings()["frozen"] == ["0"]
    assert "frozen" not in ml.MAML(smooth_network(), 0.5).settings()


@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_a_frozen_layer_has_no_rate_in_any_way_of_running(way: str) -> None:
    model, episodes = smooth_network(), made_up_tasks()
    expected = ml.MAML(model, {"": 0.4, "0": 0.0, "1": 0.0}, 2, execution="loop")(episodes)
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    learner = ml.MAML(model, 0.4, 2, execution=way)
    torch.testing.assert_close(learner(episodes), expected, rtol=1e-12, atol=1e-13)
    ml.meta_backward(learner, episodes)
    assert model[0].weight.grad is None


@pytest.mark.parametrize("algorithm", [ml.MAML, ml.MetaSGD])
def test_freezing_takes_effect_after_construction_too(algorithm: type[ml.MAML]) -> None:
    model = smooth_network()
    learner = algorithm(model, 0.5)
    assert moved(learner) == {"0", "1", "4", "6"}
    model[4].requires_grad_(False)
    assert moved(learner) == {"0", "1", "6"}
    ml.meta_backward(learner, made_up_tasks())
    model[4].requires_grad_(True)
    assert moved(learner) == {"0", "1", "4", "6"}


def test_an_inner_loop_that_would_move_nothing_is_refused() -> None:
    model, episodes = smooth_network().requires_grad_(False), made_up_tasks()
    with pytest.raises(ValueError, match=r"requires_grad=False.*lr=\{'6': 0\.1\}"):
        ml.evaluate(ml.MAML(model, 0.5), unstack(episodes))
    assert moved(ml.MAML(model, {"6": 0.5})) == {"6"}
    assert moved(ml.ANIL(model, 0.5)) == {"6"}  # whose rate is the head's
    assert moved(ml.MAML(model, 0.0)) == set()
    assert moved(ml.MAML(smooth_network(), 0.5).frozen(["0", "1", "4", "6"])) == set()


def test_wildcards() -> None:
    model = smooth_network()
    assert sorted(ml.MAML(model, {"": 0.1, "*.bias": 0.0}).rates) == [
        "0.weight",
        "1.weight",
        "4.weight",
        "6.weight",
    ]
    assert ml.MAML(model, {"[01]": 0.1, "0.bias": 0.2}).rates == {
        "0.weight": 0.1,
        "0.bias": 0.2,
        "1.weight": 0.1,
        "1.bias": 0.1,
    }
    with pytest.raises(ValueError, match=r"the wildcard '\*lora_\*' matches no parameter"):
        ml.MAML(model, {"*lora_*": 0.1})
    with pytest.raises(ValueError, match="ANIL adapts its head '6' alone"):
        ml.ANIL(model, {"*.bias": 0.1})
    assert "6.bias" not in ml.BOIL(model, {"*.bias": 0.1}).rates
    with pytest.raises(ValueError, match="BOIL leaves its head '6'"):
        ml.BOIL(model, {"6.*": 0.1})


@pytest.mark.parametrize("way", WAYS_TO_RUN)
@pytest.mark.parametrize("name", ["MAML", "ANIL", "BOIL"])
def test_settings_set_later_are_those_of_construction(name: str, way: str) -> None:
    model, episodes, kind = smooth_network(), made_up_tasks(), getattr(ml, name)
    learner = kind(model, 0.1, execution=way)
    learner(episodes)
    learner.lr, learner.steps, learner.update, learner.loss = (
        0.4,
        3,
        "momentum",
        nn.CrossEntropyLoss(label_smoothing=0.1),
    )
    other = kind(
        model,
        0.4,
        3,
        update="momentum",
        loss=nn.CrossEntropyLoss(label_smoothing=0.1),
        execution=way,
    )
    torch.testing.assert_close(learner(episodes), other(episodes), rtol=1e-12, atol=1e-13)
    assert learner.settings() == other.settings()


def test_the_head_and_the_rule_can_be_set_later() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    learner = ml.ANIL(model, 0.4)
    learner.head = "4"
    assert sorted(learner.rates) == ["4.bias", "4.weight"]
    torch.testing.assert_close(
        learner(episodes), ml.MAML(model, {"4": 0.4})(episodes), rtol=1e-12, atol=1e-13
    )
    learner.head = None
    assert learner.head == "6"
    nil = ml.NIL(model)
    nil.rule, nil.head = "sum", "4"
    assert torch.equal(nil(episodes), ml.NIL(model, "sum", head="4")(episodes))


def test_a_setting_that_is_refused_leaves_the_learner_as_it_was() -> None:
    model = smooth_network()
    learner, nil = ml.ANIL(model, 0.4), ml.NIL(model)
    before = learner.settings()
    for name, value, error in (
        ("lr", -1.0, ValueError),
        ("lr", "0.1", TypeError),
        ("lr", {"0": 0.1}, ValueError),
        ("lr", {"nothing": 0.1}, ValueError),
        ("lr", {3: 0.1}, TypeError),
        ("steps", -1, ValueError),
        ("steps", 1.5, TypeError),
        ("steps", "3", TypeError),
        ("head", "nothing", ValueError),
        ("head", 3, TypeError),
        ("loss", "mse", TypeError),
        ("execution", "vmap", ValueError),
        ("update", "rmsprop", ValueError),
        ("first_order", 2, TypeError),
    ):
        with pytest.raises(error):
            setattr(learner, name, value)
    assert learner.settings() == before
    assert sorted(learner.rates) == ["6.bias", "6.weight"]
    with pytest.raises(ValueError, match="no rule 'mean'"):
        nil.rule = "mean"
    with pytest.raises(TypeError, match=r"learner\.lr = \{\*\*learner\.lr, '0': 5\.0\}"):
        ml.MAML(model, {"0": 0.1}).lr["0"] = 5.0  # type: ignore[index]
    given = {"0": 0.1}
    learner = ml.MAML(model, given)
    given["0"] = 5.0
    assert learner.rates["0.weight"] == learner.settings()["lr"]["0"] == 0.1


def test_learned_rates_are_not_set() -> None:
    learner = ml.MetaSGD(smooth_network(), 0.4)
    with pytest.raises(ValueError, match=r"learned.*build a new learner"):
        learner.lr = 5.0
    learner.steps = 2
    learner.head = "4"
    assert learner.settings()["lr"] == 0.4
    with pytest.raises(ValueError, match="no gradient for a learned inner rate"):
        ml.Reptile(smooth_network(), nn.Parameter(torch.tensor(0.1)))
    reptile = ml.Reptile(smooth_network(), 0.1)
    with pytest.raises(ValueError, match="use MAML"):
        reptile.first_order = False
    with pytest.raises(ValueError, match="no gradient for a learned inner rate"):
        reptile.lr = {"0": nn.Parameter(torch.tensor(0.1))}


def test_one_learned_rate_for_all_layers_is_trained_whatever_is_frozen() -> None:
    rate = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
    learner = ml.MAML(smooth_network(), rate)
    for held in ([], ["0"]):
        rate.grad = None
        ml.meta_backward(learner.frozen(held), made_up_tasks())
        assert rate.grad is not None and rate.grad != 0
    assert learner.settings()["lr"] == "learned"
    copied = copy.deepcopy(learner)
    assert torch.equal(copied(made_up_tasks()), learner(made_up_tasks()))


@pytest.mark.parametrize(
    ("update", "optimizer"),
    [
        ("sgd", lambda groups: torch.optim.SGD(groups)),
        ("momentum", lambda groups: torch.optim.SGD(groups, momentum=0.9)),
        ("adam", lambda groups: torch.optim.Adam(groups)),
        (
            partial(adam, betas=(0.0, 0.99)),
            lambda groups: torch.optim.Adam(groups, betas=(0.0, 0.99)),
        ),
        (partial(momentum, decay=0.5), lambda groups: torch.optim.SGD(groups, momentum=0.5)),
    ],
)
@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_updates_are_the_optimizers_of_pytorch(update, optimizer, way: str) -> None:  # type: ignore[no-untyped-def]
    model, episodes = smooth_network(), made_up_tasks(tasks=2)
    learner = ml.MAML(model, {"": 0.05, "6": 0.2}, 4, update=update, execution=way)
    expected = []
    for task in unstack(episodes):
        trained = copy.deepcopy(model)
        body = [
            parameter for name, parameter in trained.named_parameters() if not name.startswith("6")
        ]
        inner = optimizer(
            [{"params": body, "lr": 0.05}, {"params": trained[6].parameters(), "lr": 0.2}]
        )
        for _ in range(4):
            inner.zero_grad()
            nn.functional.cross_entropy(
                trained(task.support.inputs), task.support.targets
            ).backward()
            inner.step()
        expected.append(trained(task.query.inputs))
    torch.testing.assert_close(learner(episodes), torch.stack(expected), rtol=1e-9, atol=1e-11)


def test_adam_has_a_second_derivative_where_gradients_are_zero() -> None:
    start = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def last(weights: torch.Tensor) -> torch.Tensor:
        closure = lambda w: (w["w"][0] ** 2).sum()  # noqa: E731
        return inner_loop(closure, {"w": weights}, {"w": 0.1}, 2, update=adam)["w"]

    assert torch.autograd.gradcheck(last, (start,))


def test_an_optimizer_of_pytorch_is_told_what_to_write_instead() -> None:
    model = MLP(2, 2)
    for update, cure in (
        (torch.optim.Adam, "update='adam'"),
        (torch.optim.SGD, "update='sgd' or update='momentum'"),
        (partial(torch.optim.RMSprop, lr=0.1), "'sgd', 'momentum', 'adam', or a function"),
        (torch.optim.SGD(model.parameters(), lr=0.1), "update='sgd'"),
    ):
        with pytest.raises(TypeError, match=cure):
            ml.MAML(model, 0.1, update=update)
    with pytest.raises(ValueError, match="'sgd', 'momentum', 'adam'"):
        ml.MAML(model, 0.1, update="Adam")
    with pytest.raises(TypeError, match=r"update=0\.9"):
        ml.Reptile(model, 0.1, update=0.9)  # type: ignore[arg-type]
    assert (
        ml.MAML(model, 0.1, update=partial(adam, eps=1e-4)).settings()["update"]
        == "adam(eps=0.0001)"
    )


def test_the_outer_loop_takes_names_too() -> None:
    curves = []
    for optimizer, schedule in (
        ("momentum", "cosine"),
        (
            lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4),
        ),
    ):
        learner = FAMILY["MAML"](smooth_network())
        tasks = unstack(made_up_tasks())
        curves.append(
            ml.meta_train(
                learner, tasks, steps=4, optimizer=optimizer, schedule=schedule, progress=False
            ).losses
        )
    assert curves[0] == curves[1]
    for setting, value, message in (
        ("optimizer", "adamm", "'sgd', 'momentum', 'adam', 'adamw'"),
        ("schedule", "step", "'linear', 'cosine'"),
        (
            "schedule",
            torch.optim.lr_scheduler.CosineAnnealingLR,
            "lambda optimizer: CosineAnnealingLR",
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            ml.meta_train(
                FAMILY["MAML"](smooth_network()), tasks, steps=1, progress=False, **{setting: value}
            )


def test_tensors_given_as_rates_are_buffers() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    rate = torch.tensor(0.3, dtype=torch.float64)
    learner = ml.MAML(model, {"": rate, "6": 0.1})
    assert torch.equal(learner(episodes), ml.MAML(model, {"": 0.3, "6": 0.1})(episodes))
    kept = [name for name in learner.state_dict() if name.startswith("rate of ")]
    assert sorted(kept) == [f"rate of {i}/{kind}" for i in "014" for kind in ("bias", "weight")]
    other = ml.MAML(smooth_network(), {"": torch.zeros_like(rate), "6": 0.1})
    other.load_state_dict(learner.state_dict())
    assert torch.equal(other(episodes), learner(episodes))
    moved_rates = copy.deepcopy(learner).to(torch.float32).rates
    assert moved_rates["0.weight"].dtype == torch.float32
    shared = learner.with_steps(2)
    shared.lr = 0.2
    assert not any(name.startswith("rate of ") for name in shared.state_dict())
    assert any(name.startswith("rate of ") for name in learner.state_dict())
