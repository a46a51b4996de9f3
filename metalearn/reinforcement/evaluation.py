"""Returns after each gradient step on tasks that training has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.network.module_call import Weights
from metalearn.runtime.checks import positive, positive_number, whole_number
from metalearn.runtime.progress import progress as show_progress
from metalearn.runtime.statistics import Estimate
from metalearn.runtime.tables import Table, Tabular

from .environments import Environment
from .learner import PolicyMAML
from .randomness import Draws
from .rollouts import Trajectories, collect

LATER = 0.5


@dataclass(frozen=True)
class Returns(Tabular):
    """Mean returns after each gradient step; prints as a table.

    Attributes:
        per_task: (steps + 1, tasks) the mean return over the episodes of each task.
        lengths: (steps + 1,) the mean number of steps of an episode.
        episodes: of each task and step.
        horizon: the most steps of an episode.
    """

    per_task: Tensor
    lengths: Tensor
    episodes: int
    horizon: int

    @property
    def means(self) -> list[float]:
        """The mean return after each number of steps."""
        return [estimate.mean for estimate in self.estimates]

    @property
    def estimates(self) -> list[Estimate]:
        """The same with 95 % intervals over tasks."""
        return [Estimate.of(row) for row in self.per_task]

    @property
    def gain(self) -> Estimate:
        """What the first gradient step adds, paired over tasks."""
        return Estimate.of(self.per_task[1] - self.per_task[0])

    def records(self) -> list[dict[str, Any]]:
        """A row for each number of steps."""
        return [
            {
                "steps": steps,
                "return": estimate._asdict(),
                "length": float(length),
                "tasks": self.per_task.shape[1],
            }
            for steps, (estimate, length) in enumerate(
                zip(self.estimates, self.lengths, strict=True)
            )
        ]

    def table(self) -> Table:
        """The rows as text."""
        rows = [
            (str(row["steps"]), Estimate(**row["return"]).shown(".2f"), f"{row['length']:.1f}")
            for row in self.records()
        ]
        note = (
            f"{self.per_task.shape[1]} tasks, {self.episodes} episodes each, at most"
            f" {self.horizon} steps; ± is the 95 % interval over tasks"
        )
        return Table(("gradient steps", "return", "episode length"), rows, note=note)

    def __str__(self) -> str:
        return str(self.table())


@dataclass(frozen=True)
class Adaptation:
    """The weights and trajectories of a test, from the meta-initialisation on.

    Attributes:
        tasks: (tasks, parameters).
        weights: before the first gradient step, and after each.
        trajectories: under these weights.
    """

    tasks: Tensor
    weights: list[Weights]
    trajectories: list[Trajectories]


def adaptation(
    learner: PolicyMAML,
    environment: Environment,
    *,
    tasks: int | Tensor = 40,
    steps: int = 3,
    episodes: int = 20,
    horizon: int = 100,
    later: float = LATER,
    seed: int = 0,
    progress: bool = False,
) -> Adaptation:
    """Adapt to test tasks; every gradient step has fresh trajectories of the policy before it.

    Args:
        learner: not changed.
        environment: the family of tasks.
        tasks: how many, or the tasks themselves (tasks, parameters).
        steps: gradient steps.
        episodes: of each task and step.
        horizon: the most steps of an episode.
        later: a factor of the inner rate after the first step; Finn et al. 2017 halve it.
        seed: of tasks, starts and actions. The same seed in training draws others.
        progress: show the progress on standard error.

    Raises:
        ValueError: as `collect` does.
    """
    steps = whole_number("steps", steps, least=0)
    later = positive_number("later", later)
    draws = Draws(whole_number("seed", seed, least=0), "test")
    if not isinstance(tasks, Tensor):
        (count,) = positive(tasks=tasks)
        tasks = environment.sample_tasks(count, draws)
    weights = {name: weight.detach() for name, weight in learner.weights(len(tasks)).items()}
    all_weights: list[Weights] = []
    trajectories: list[Trajectories] = []
    with (
        torch.no_grad(),
        show_progress("adaptation", steps + 1, shown=progress) as advance,
    ):
        for stage in range(steps + 1):
            if stage:
                scale = 1.0 if stage == 1 else later
                weights = learner.adapt(weights, learner.batch(trajectories[-1]), scale=scale)
            all_weights.append(weights)
            trajectories.append(
                collect(
                    environment,
                    learner.policy,
                    tasks,
                    weights,
                    episodes=episodes,
                    horizon=horizon,
                    draws=draws.at_stage(stage),
                )
            )
            advance(text=f"return {float(trajectories[-1].returns.mean()):.1f}")
    return Adaptation(tasks, all_weights, trajectories)


def returns(
    learner: PolicyMAML,
    environment: Environment,
    *,
    tasks: int | Tensor = 40,
    steps: int = 3,
    episodes: int = 20,
    horizon: int = 100,
    later: float = LATER,
    seed: int = 0,
    progress: bool = False,
) -> Returns:
    """The mean return before adaptation and after each gradient step, over test tasks.

    Args:
        learner: not changed.
        environment: the family of tasks.
        tasks: how many, or the tasks themselves (tasks, parameters).
        steps: gradient steps, each on fresh trajectories.
        episodes: of each task and step.
        horizon: the most steps of an episode.
        later: a factor of the inner rate after the first step; Finn et al. 2017 halve it.
        seed: of tasks, starts and actions. The same seed in training draws others.
        progress: show the progress on standard error.

    Raises:
        ValueError: the policy does not fit the environment, or numbers are not finite.

    Example:
        >>> from metalearn.models import MLP
        >>> from metalearn.reinforcement import GaussianPolicy, Navigation
        >>> learner = PolicyMAML(GaussianPolicy(MLP(2, 2, hidden=(8,))), lr=0.1)
        >>> result = returns(learner, Navigation(), tasks=3, steps=1, episodes=2, horizon=5)
        >>> result.per_task.shape
        torch.Size([2, 3])
    """
    adapted = adaptation(
        learner,
        environment,
        tasks=tasks,
        steps=steps,
        episodes=episodes,
        horizon=horizon,
        later=later,
        seed=seed,
        progress=progress,
    )
    # (tasks, episodes) -> (tasks,), for each number of steps
    per_task = torch.stack([each.returns.mean(1) for each in adapted.trajectories])
    lengths = torch.stack([each.lengths.mean() for each in adapted.trajectories])
    return Returns(per_task, lengths, episodes, horizon)
