"""2-D navigation and its random numbers."""

from __future__ import annotations

import math

import pytest
import torch

from metalearn.models import MLP
from metalearn.reinforcement import Draws, GaussianPolicy, Navigation, collect


def walk(environment: Navigation, goal: tuple[float, float], horizon: int, towards: bool) -> float:
    """The return of an optimal walk to the goal, or of staying at the start."""
    goals = torch.tensor([goal], dtype=torch.float64)
    position = environment.reset(goals, 1, Draws(0))
    total = 0.0
    for _ in range(horizon):
        action = goals[:, None] - position if towards else torch.zeros(1, 1, 2)
        position, rewards, done = environment.step(action)
        total += float(rewards)
        if done.item():
            break
    return total


def test_returns_of_the_optimal_policy_and_of_staying() -> None:
    # distances 0.4, 0.3, 0.2, 0.1, 0 times sqrt(2)
    assert walk(Navigation(), (0.5, 0.5), 100, True) == pytest.approx(-math.sqrt(2), abs=1e-9)
    assert walk(Navigation(), (0.5, 0.5), 100, False) == pytest.approx(-70.7107, abs=1e-4)
    assert walk(Navigation("squared"), (0.5, 0.5), 100, False) == pytest.approx(-50)


def test_staying_costs_38_26_in_expectation() -> None:
    goals = Navigation().sample_tasks(4000, Draws(3))
    assert 100 * float(goals.norm(dim=1).mean()) == pytest.approx(38.26, abs=0.6)
    assert float(goals.abs().max()) < 0.5


def test_steps_are_clipped_and_the_end_is_near_the_goal() -> None:
    environment = Navigation()
    environment.reset(torch.tensor([[0.1, -0.1]]), 1, Draws(0))
    position, _, done = environment.step(torch.tensor([[[7.0, -0.095]]]))
    assert position.flatten().tolist() == pytest.approx([0.1, -0.095])
    assert done.item()  # 0.005 is within 0.01


def test_unknown_rewards_are_named() -> None:
    with pytest.raises(ValueError, match="reward='cubed' is not one of 'distance', 'squared'"):
        Navigation("cubed")  # type: ignore[arg-type]


@pytest.mark.parametrize("few", [1, 3])
def test_episodes_repeat_by_seed_task_and_episode(few: int) -> None:
    torch.manual_seed(0)
    policy = GaussianPolicy(MLP(2, 2, hidden=(5,)))
    weights = dict(policy.named_parameters())
    draws = Draws(seed=4, step=2)
    goals = Navigation().sample_tasks(6, draws)
    sizes = {"horizon": 12, "draws": draws}
    many = collect(Navigation(), policy, goals, weights, episodes=8, **sizes)
    alone = collect(Navigation(), policy, goals[:few], weights, episodes=few, **sizes)
    torch.testing.assert_close(alone.observations, many.observations[:few, :few])
    torch.testing.assert_close(alone.rewards, many.rewards[:few, :few])


def test_no_two_draws_share_numbers() -> None:
    bases = [
        Draws(0),
        Draws(1),
        Draws(0, step=1),
        Draws(0, stage=1),
        Draws(0, "test"),
    ]
    values = [draws.normal("action", tasks=3, episodes=3, shape=(2,)) for draws in bases]
    values.append(Draws(0).normal("start", tasks=3, episodes=3, shape=(2,)))
    numbers = torch.stack(values).flatten()
    assert len(numbers.unique()) == len(numbers)
    # A task stays the same over the stages of a step.
    first, second = (Navigation().sample_tasks(4, Draws(0, stage=stage)) for stage in (0, 1))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"seed": 0, "step": 2**25}, "step=33554432 must be below 33,554,432"),
        ({"seed": 0, "split": "val"}, "split='val'"),
    ],
)
def test_draws_outside_the_key_are_named(settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Draws(**settings)
