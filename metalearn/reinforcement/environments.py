"""Environments with many tasks and episodes at once, and how one is chosen by name."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from metalearn.runtime.files import Record

from .randomness import Draws


class Step(NamedTuple):
    """What an environment returns for one action of every episode.

    Attributes:
        observations: (tasks, episodes, observations) after the action.
        rewards: (tasks, episodes).
        done: (tasks, episodes) whether the episode has ended with this step.
    """

    observations: Tensor
    rewards: Tensor
    done: Tensor


@runtime_checkable
class Environment(Protocol):
    """A family of tasks; all episodes of all tasks run at once.

    Tensors are in double precision on the CPU. An episode that has ended goes on; `collect` masks
    what follows.

    Attributes:
        observations: numbers of an observation.
        actions: numbers of an action.
    """

    observations: int
    actions: int

    def sample_tasks(self, tasks: int, draws: Draws) -> Tensor:
        """Draw tasks.

        Args:
            tasks: how many.
            draws: the random numbers.

        Returns:
            (tasks, parameters) what makes each of them a task of its own.
        """
        ...

    def reset(self, tasks: Tensor, episodes: int, draws: Draws) -> Tensor:
        """Start so many episodes of each task.

        Args:
            tasks: (tasks, parameters) from `sample_tasks`.
            episodes: of each task.
            draws: the random numbers.

        Returns:
            The first observations (tasks, episodes, observations).
        """
        ...

    def step(self, actions: Tensor) -> Step:
        """Take one action in every episode.

        Args:
            actions: (tasks, episodes, actions).
        """
        ...

    def settings(self) -> Record:
        """A JSON-able record of the environment, for checkpoints and result lines."""
        ...
