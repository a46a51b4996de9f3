"""Every exact meta-gradient, in every way of running tasks, against central differences."""

from __future__ import annotations

import pytest
import torch

import metalearn as ml
from tests.helpers import (
    EXACT,
    FAMILY,
    WAYS_TO_RUN,
    central_difference,
    gradients,
    made_up_tasks,
    outer_loss,
    smooth_network,
)

pytestmark = pytest.mark.usefixtures("two_threads")


def check(learner: ml.Learner) -> None:
    ml.meta_backward(learner, made_up_tasks())
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        direction = [
            torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for p in learner.meta_parameters().values()
        ]
        exact = sum(
            (p.grad * d).sum().item()
            for p, d in zip(learner.meta_parameters().values(), direction, strict=True)
        )
        assert exact == pytest.approx(central_difference(learner, direction), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("way", WAYS_TO_RUN)
@pytest.mark.parametrize("name", EXACT)
def test_meta_gradient_is_the_derivative_of_the_outer_loss(name: str, way: str) -> None:
    check(FAMILY[name](smooth_network(), execution=way))


@pytest.mark.parametrize("way", WAYS_TO_RUN)
@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "group", "frozen", "none"])
def test_meta_gradient_is_right_through_every_normalisation_layer(norm: str, way: str) -> None:
    check(FAMILY["MAML"](smooth_network(norm), execution=way))


@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_meta_gradient_is_right_through_another_update_and_learned_rates(way: str) -> None:
    def momentum(weights, gradients, rates, state):  # type: ignore[no-untyped-def]
        state = (
            gradients if state is None else {n: 0.9 * state[n] + gradients[n] for n in gradients}
        )
        return {n: w - rates[n] * state[n] for n, w in weights.items()}, state

    rate = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    learner = ml.MAML(
        smooth_network(), lr={"": 0.2, "6": rate}, steps=3, update=momentum, execution=way
    )
    assert any(parameter is rate for parameter in learner.meta_parameters().values())
    check(learner)


@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_first_order_is_the_query_gradient_at_the_adapted_weights(way: str) -> None:
    episodes, learner = made_up_tasks(), FAMILY["FOMAML"](smooth_network(), execution=way)
    ml.meta_backward(learner, episodes)
    expected = torch.zeros_like(gradients(learner))
    for task in ml.episodes.unstack(episodes):
        with torch.no_grad():
            adapted = {
                name: weight.clone().requires_grad_()
                for name, weight in learner.adapt(task.support).weights.items()
            }
        loss = learner.loss(learner.network(adapted, task.query.inputs), task.query.targets)
        expected += (
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(adapted.values()))]) / 3
        )
    torch.testing.assert_close(gradients(learner), expected, rtol=1e-12, atol=1e-14)


def test_first_order_builds_no_second_graph() -> None:
    learner = FAMILY["FOMAML"](smooth_network(), execution="loop")
    calls = []
    original, torch.autograd.grad = (
        torch.autograd.grad,
        lambda *a, **k: calls.append(k.get("create_graph", False)) or original(*a, **k),
    )
    try:
        ml.meta_backward(learner, made_up_tasks())
    finally:
        torch.autograd.grad = original
    assert calls and not any(calls)


@pytest.mark.parametrize("name", FAMILY)
def test_meta_backward_equals_backward_on_the_learner(name: str) -> None:
    episodes, learner = made_up_tasks(), FAMILY[name](smooth_network(), execution="loop")
    outer_loss(learner, episodes).backward()
    expected = gradients(learner)
    learner.zero_grad()
    result = ml.meta_backward(learner, episodes)
    torch.testing.assert_close(gradients(learner), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(result.logits, learner(episodes).detach(), rtol=1e-12, atol=1e-14)
    assert result.losses.mean().item() == pytest.approx(
        outer_loss(learner, episodes).item(), rel=1e-12
    )


def test_meta_backward_adds_to_what_is_there() -> None:
    learner = FAMILY["MAML"](smooth_network())
    ml.meta_backward(learner, made_up_tasks())
    once = gradients(learner).clone()
    ml.meta_backward(learner, made_up_tasks())
    torch.testing.assert_close(gradients(learner), 2 * once, rtol=1e-12, atol=1e-14)


def test_parameters_that_do_not_reach_the_loss_are_named() -> None:
    class Unused(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.spare, self.head = (
                torch.nn.Linear(4, 4),
                torch.nn.Linear(4, 4),
                torch.nn.Linear(4, 3),
            )

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(inputs))

    episodes = made_up_tasks(shape=(4,))
    with pytest.raises(
        ValueError, match=r"inner loss does not depend on spare\.weight, spare\.bias"
    ):
        ml.meta_backward(ml.MAML(Unused().double(), lr=0.1), episodes)
    with pytest.raises(
        ValueError, match=r"outer loss does not depend on spare\.weight, spare\.bias"
    ):
        ml.meta_backward(ml.ANIL(Unused().double(), lr=0.1), episodes)
