"""Random numbers of an episode, which depend on a seed and the episode's place alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metalearn.runtime.checks import whole_number
from metalearn.tasks.keyed_random import philox, seeded

Split = Literal["train", "test"]
Purpose = Literal["task", "start", "action"]

SPLITS = ("train", "test")
PURPOSES = ("task", "start", "action")

# The bits of a 64-bit key: split 1, purpose 2, step 25, stage 8, task 14, episode 14.
STEP_BITS = 25
STAGE_BITS = 8
PLACE_BITS = 14


@dataclass(frozen=True)
class Draws:
    """Random numbers keyed by (seed, split, step, stage, task, episode).

    Nothing is carried from one draw to the next, so an episode repeats alone, with other tasks, and
    after a resumed training.

    Args:
        seed: 0 to 2**64 - 1.
        split: "train" or "test"; the same seed gives both of them other numbers.
        step: the outer step.
        stage: which set of trajectories of that step: 0 before adaptation, 1 after one inner step.

    Raises:
        ValueError: a number does not fit the key.

    Example:
        >>> draws = Draws(seed=0, step=3)
        >>> few = draws.normal("action", tasks=2, episodes=2, shape=(4,))
        >>> many = draws.normal("action", tasks=5, episodes=9, shape=(4,))
        >>> torch.equal(few, many[:2, :2])
        True
    """

    seed: int
    split: Split = "train"
    step: int = 0
    stage: int = 0

    def __post_init__(self) -> None:
        seeded(self.seed)
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split!r} is not one of 'train', 'test'")
        _check_bits("step", self.step, STEP_BITS)
        _check_bits("stage", self.stage, STAGE_BITS)

    def at_stage(self, stage: int) -> Draws:
        """The draws of another stage of the same step."""
        return replace(self, stage=stage)

    def normal(
        self, purpose: Purpose, *, tasks: int, episodes: int, shape: tuple[int, ...]
    ) -> Tensor:
        """Standard normal numbers (tasks, episodes, *shape), in double precision."""
        return self._filled(purpose, tasks, episodes, shape, uniform=False)

    def uniform(
        self, purpose: Purpose, *, tasks: int, episodes: int, shape: tuple[int, ...]
    ) -> Tensor:
        """Numbers of [0, 1), (tasks, episodes, *shape), in double precision."""
        return self._filled(purpose, tasks, episodes, shape, uniform=True)

    def _filled(
        self,
        purpose: Purpose,
        tasks: int,
        episodes: int,
        shape: tuple[int, ...],
        *,
        uniform: bool,
    ) -> Tensor:
        _check_bits("tasks", tasks - 1, PLACE_BITS)
        _check_bits("episodes", episodes - 1, PLACE_BITS)
        # A task's own numbers do not depend on the stage.
        stage = 0 if purpose == "task" else self.stage
        prefix = SPLITS.index(self.split) << 2 | PURPOSES.index(purpose)
        prefix = (prefix << STEP_BITS | self.step) << STAGE_BITS | stage
        values = np.empty((tasks, episodes, *shape))
        for task in range(tasks):
            for episode in range(episodes):
                key = (prefix << PLACE_BITS | task) << PLACE_BITS | episode
                generator = philox(self.seed, key)
                draw = generator.random if uniform else generator.standard_normal
                values[task, episode] = draw(shape)
        return torch.from_numpy(values)


def _check_bits(name: str, value: int, bits: int) -> None:
    """Raise ValueError if a number does not fit its part of the key."""
    if whole_number(name, value, least=0) >= 1 << bits:
        raise ValueError(f"{name}={value} must be below {1 << bits:,}")
