"""2-D navigation: a point that walks to a goal that it does not see (Finn et al. 2017, 5.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metalearn.runtime.files import Record

from .environments import Step
from .randomness import Draws

Reward = Literal["distance", "squared"]


class Navigation:
    """A point in the plane walks from (0, 0) to a goal; a task is a goal.

    The observation is the position and does not hold the goal, so a policy learns it from rewards
    alone. An action is a step, clipped to 0.1 in each coordinate. An episode ends when both
    coordinates are within 0.01 of the goal.

    Args:
        reward: "distance", the negative distance to the goal, as published code has it; "squared",
            the negative squared distance, as the text of Finn et al. 2017 (arXiv:1703.03400) has
            it.
        extent: goals are uniform in [-extent, extent]².

    Raises:
        ValueError: the reward has another name.

    Example:
        >>> environment = Navigation()
        >>> goals = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
        >>> _ = environment.reset(goals, 1, Draws(0))
        >>> [round(environment.step(torch.ones(1, 1, 2)).rewards.item(), 3) for _ in range(5)]
        [-0.566, -0.424, -0.283, -0.141, -0.0]
    """

    observations = 2
    actions = 2
    step_size = 0.1
    reached = 0.01

    def __init__(self, reward: Reward = "distance", extent: float = 0.5) -> None:
        if reward not in ("distance", "squared"):
            raise ValueError(f"reward={reward!r} is not one of 'distance', 'squared'")
        self.reward = reward
        self.extent = extent
        self.goals = torch.zeros(0, 1, 2, dtype=torch.float64)
        self.positions = self.goals

    def sample_tasks(self, tasks: int, draws: Draws) -> Tensor:
        """Draw goals (tasks, 2)."""
        uniform = draws.uniform("task", tasks=tasks, episodes=1, shape=(2,))
        return (2 * uniform[:, 0] - 1) * self.extent

    def reset(self, tasks: Tensor, episodes: int, draws: Draws) -> Tensor:
        """Put every point at (0, 0); there is nothing random in it."""
        # (tasks, 2) -> (tasks, 1, 2), one goal for all episodes of a task
        self.goals = tasks.double()[:, None]
        self.positions = torch.zeros(len(tasks), episodes, 2, dtype=torch.float64)
        return self.positions

    def step(self, actions: Tensor) -> Step:
        """Move every point by its action (tasks, episodes, 2)."""
        moves = actions.double().clamp(-self.step_size, self.step_size)
        self.positions = self.positions + moves
        offsets = self.positions - self.goals
        squares = offsets.square().sum(-1)
        rewards = -squares if self.reward == "squared" else -squares.sqrt()
        done = (offsets.abs() < self.reached).all(-1)
        return Step(self.positions, rewards, done)

    def settings(self) -> Record:
        """The settings, for records."""
        return {"environment": "navigation", "reward": self.reward, "extent": self.extent}
