"""MAML++, switch by switch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import metalearn as ml
from metalearn.algorithms.maml_plus_plus import step_weights
from metalearn.episodes import Episode, unstack
from metalearn.models import MLP
from metalearn.training.checkpoints import restore
from tests.helpers import (
    WAYS_TO_RUN,
    gradients,
    made_up_tasks,
    outer_loss,
    point_task,
    smooth_network,
)

pytestmark = pytest.mark.usefixtures("two_threads")

SWITCHES: dict[str, dict[str, Any]] = {
    "loss": {"multi_step_epochs": 10},
    "order": {"first_order_epochs": 2},
    "rates": {"learned_rates": True},
    "norms": {"step_norms": True},
    "all": {
        "multi_step_epochs": 10,
        "learned_rates": True,
        "step_norms": True,
    },
}


def meta_gradient(learner: ml.Learner, episodes: Episode) -> torch.Tensor:
    learner.zero_grad()
    ml.meta_backward(learner, episodes)
    return gradients(learner).clone()


@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_with_all_switches_off_it_is_maml_bit_for_bit(way: str) -> None:
    model, episodes = smooth_network(), made_up_tasks()
    for first_order in (False, True):
        options: dict[str, Any] = {"execution": way, "first_order": first_order}
        plain, plus = ml.MAML(model, 0.3, 3, **options), ml.MAMLPlusPlus(model, 0.3, 3, **options)
        assert torch.equal(plus(episodes), plain(episodes))
        assert torch.equal(meta_gradient(plus, episodes), meta_gradient(plain, episodes))


@pytest.mark.parametrize("switch", ["rates", "norms"])
def test_what_is_learned_of_each_step_starts_as_maml_without_moving_norms(switch: str) -> None:
    model, episodes = smooth_network(), made_up_tasks()
    lr = {"": 0.3, "1": 0.0} if switch == "norms" else 0.3
    plus = ml.MAMLPlusPlus(model, 0.3, 3, **SWITCHES[switch])
    plain = ml.MAML(model, lr, 3)
    torch.testing.assert_close(plus(episodes), plain(episodes), rtol=1e-12, atol=1e-13)
    shared = meta_gradient(plain, episodes)
    found = meta_gradient(plus, episodes)
    if switch == "rates":
        torch.testing.assert_close(found[: len(shared)], shared, rtol=1e-10, atol=1e-13)


def test_the_norms_of_the_steps_share_the_gradient_of_one_norm() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    plus = ml.MAMLPlusPlus(model, 0.3, 3, step_norms=True)
    plain = ml.MAML(model, {"": 0.3, "1": 0.0}, 3)
    meta_gradient(plain, episodes)
    expected = model[1].weight.grad.clone()
    meta_gradient(plus, episodes)
    torch.testing.assert_close(plus.norms["1/weight"].grad.sum(0), expected, rtol=1e-9, atol=1e-12)
    assert "model.1.weight" not in plus.meta_parameters()


def test_each_step_takes_its_own_rates_and_norms_by_hand() -> None:
    model, task = smooth_network(), unstack(made_up_tasks())[0]
    learner = ml.MAMLPlusPlus(model, 0.3, 2, learned_rates=True, step_norms=True)
    with torch.no_grad():
        for parameter in (*learner.learned_rates.values(), *learner.norms.values()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    weights = dict(model.named_parameters())
    for step in range(2):
        for kind in ("weight", "bias"):
            weights[f"1.{kind}"] = learner.norms[f"1/{kind}"][step]
        logits = torch.func.functional_call(model, weights, task.support.inputs)
        loss = nn.functional.cross_entropy(logits, task.support.targets)
        moving = [name for name in weights if not name.startswith("1.")]
        found = torch.autograd.grad(loss, [weights[name] for name in moving], create_graph=True)
        for name, gradient in zip(moving, found, strict=True):
            rate = learner.learned_rates[name.replace(".", "/")][step]
            weights[name] = weights[name] - rate * gradient
    adapted = learner.adapt(task.support).weights
    for name, weight in weights.items():
        torch.testing.assert_close(adapted[name], weight, rtol=1e-11, atol=1e-13)


def test_steps_beyond_the_trained_ones_take_the_last_rates() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    learner = ml.MAMLPlusPlus(model, 0.3, 2, learned_rates=True, step_norms=True)
    plain = ml.MAML(model, {"": 0.3, "1": 0.0}, 5)
    torch.testing.assert_close(
        learner.with_steps(5)(episodes), plain(episodes), rtol=1e-11, atol=1e-12
    )


# The multi-step loss


def multi_step_loss(learner: ml.MAMLPlusPlus, episodes: Episode) -> torch.Tensor:
    """The sum over steps of the loss of a learner that takes as many."""
    weights = step_weights(learner.steps, learner.epoch, learner.multi_step_epochs)
    losses = [outer_loss(learner.with_steps(i + 1), episodes) for i in range(learner.steps)]
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))


@pytest.mark.parametrize("way", WAYS_TO_RUN)
@pytest.mark.parametrize("epoch", [0, 4])
def test_the_multi_step_loss_weighs_the_losses_after_every_step(way: str, epoch: int) -> None:
    episodes = made_up_tasks()
    learner = ml.MAMLPlusPlus(smooth_network(), 0.3, 3, epoch=1, execution=way, **SWITCHES["all"])
    for _ in range(epoch):
        learner.advance()
    learner.zero_grad()
    expected = multi_step_loss(learner, episodes)
    expected.backward()
    wanted = gradients(learner).clone()
    learner.zero_grad()
    result = ml.meta_backward(learner, episodes)
    assert result.losses.mean().item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradients(learner), wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.logits, learner(episodes).detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_its_gradient_against_central_differences(way: str) -> None:
    episodes = made_up_tasks()
    learner = ml.MAMLPlusPlus(smooth_network(), 0.3, 3, execution=way, **SWITCHES["all"])
    meta_gradient(learner, episodes)
    parameters = list(learner.meta_parameters().values())
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    exact = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True))
    losses = {}
    for sign in (-2, -1, 1, 2):
        with torch.no_grad():
            for parameter, step in zip(parameters, direction, strict=True):
                parameter.add_(1e-4 * sign * step)
            losses[sign] = multi_step_loss(learner, episodes).item()
            for parameter, step in zip(parameters, direction, strict=True):
                parameter.sub_(1e-4 * sign * step)
    difference = (8 * (losses[1] - losses[-1]) - (losses[2] - losses[-2])) / 12e-4
    assert exact == pytest.approx(difference, rel=1e-7, abs=1e-9)


def test_after_its_epochs_the_loss_is_that_of_the_last_step_bit_for_bit() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    learner = ml.MAMLPlusPlus(model, 0.3, 3, multi_step_epochs=2, epoch=3)
    first = meta_gradient(learner, episodes)
    for _ in range(6):
        learner.advance()
    assert learner.epoch == 2
    expected = meta_gradient(ml.MAML(model, 0.3, 3), episodes)
    assert torch.equal(meta_gradient(learner, episodes), expected)
    assert not torch.equal(first, expected)


def test_the_weights_of_the_steps_are_the_papers() -> None:
    """Equal at first, a constant fall to 0.03 / steps, the rest to the last step; the sum is 1.

    The value at each epoch is written out as the authors' code states it.
    """
    for steps in (1, 2, 5):
        for epoch in range(14):
            weights = step_weights(steps, epoch, 10)
            assert sum(weights) == pytest.approx(1)
            early = max(1 / steps - epoch / steps / 10, 0.03 / steps)
            assert weights[:-1] == pytest.approx([early] * (steps - 1))
            last = min(1 / steps + epoch * (steps - 1) / steps / 10, 1 - (steps - 1) * 0.03 / steps)
            assert weights[-1] == pytest.approx(last)
    # They multiply the losses: a later epoch gives an early loss less, not more.
    assert step_weights(5, 9, 10)[0] < step_weights(5, 1, 10)[0]


# Derivative-order annealing


def test_second_derivatives_come_in_with_their_epoch() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    learner = ml.MAMLPlusPlus(model, 0.3, 2, first_order_epochs=1, epoch=2)
    first = meta_gradient(ml.MAML(model, 0.3, 2, first_order=True), episodes)
    second = meta_gradient(ml.MAML(model, 0.3, 2), episodes)
    settings = learner.settings()
    for step in range(4):
        expected = first if step < 2 else second
        assert torch.equal(meta_gradient(learner, episodes), expected), step
        learner.advance()
    assert learner.settings() == settings


# Training


def point_learner(**options: Any) -> ml.MAMLPlusPlus:
    torch.manual_seed(0)
    return ml.MAMLPlusPlus(
        MLP(4, 3, (8,)),
        0.1,
        2,
        multi_step_epochs=2,
        first_order_epochs=1,
        epoch=2,
        learned_rates=True,
        execution="loop",
        **options,
    )


def test_a_resumed_run_counts_its_epochs_on(tmp_path: Path) -> None:
    tasks = [point_task(seed) for seed in range(6)]
    whole, parts = point_learner(), point_learner()
    options: dict[str, Any] = {"meta_batch": 2, "progress": False}
    ml.meta_train(whole, tasks, steps=5, **options)
    ml.meta_train(parts, tasks, steps=3, checkpoint=tmp_path / "run", **options)
    parts = point_learner()
    ml.meta_train(parts, tasks, steps=5, checkpoint=tmp_path / "run", **options)
    assert (whole.epoch, parts.epoch, int(parts.outer_steps)) == (2, 2, 5)
    assert not parts.first_order
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    restored = point_learner()
    assert restored.first_order
    restore(restored, tmp_path / "run")
    assert (restored.epoch, restored.first_order) == (2, False)


def test_bad_switches_are_named() -> None:
    with pytest.raises(ValueError, match=r"step_norms=True, but MLP has no norm"):
        ml.MAMLPlusPlus(MLP(2, 2), 0.1, step_norms=True)
    with pytest.raises(ValueError, match="give one of them"):
        ml.MAMLPlusPlus(MLP(2, 2), 0.1, first_order=True, first_order_epochs=3)
    with pytest.raises(ValueError, match="multi_step_epochs=-1"):
        ml.MAMLPlusPlus(MLP(2, 2), 0.1, multi_step_epochs=-1)
    with pytest.raises(TypeError, match=r"epoch=2\.5"):
        ml.MAMLPlusPlus(MLP(2, 2), 0.1, epoch=2.5)  # type: ignore[arg-type]
