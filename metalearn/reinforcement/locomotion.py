"""Bodies that walk, with a direction or a velocity as the task (Finn et al. 2017, section 5.3)."""

from __future__ import annotations

import os
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from metalearn.runtime.checks import positive_number
from metalearn.runtime.files import Record

from .environments import Step
from .mujoco import Physics, gymnasium_model
from .randomness import Draws

Observation = Literal["v5", "finn"]

SUBSTEPS = 5
NOISE = 0.1  # of the start, as gymnasium has it
TORSO_HEIGHT = 0.7  # of HalfCheetah's torso above its slide joint, in the model file


class Locomotion:
    """What the bodies share: starts, actions and the cost of controls.

    An action is a tenth of a motor's range, as in the PyTorch code that ANIL's authors built on:
    the policy acts in [-10, 10], and what is beyond is clipped. With a scale of 1, a standard
    deviation of 1 would saturate the motors.

    Args:
        action_scale: the policy's action that is a motor's full range.
        model_file: the model; by default gymnasium's.
        threads: of the physics; by default as many as torch uses.

    Raises:
        ImportError: mujoco or gymnasium is not installed.
        FileNotFoundError: there is no such model file.
    """

    name: ClassVar[str]
    model: ClassVar[str]
    actions: int
    observations: int
    control_cost: ClassVar[float]

    def __init__(
        self,
        *,
        action_scale: float = 10.0,
        model_file: str | os.PathLike[str] | None = None,
        threads: int | None = None,
    ) -> None:
        self.action_scale = positive_number("action_scale", action_scale)
        file = model_file or gymnasium_model(self.model)
        self.physics = Physics(file, substeps=SUBSTEPS, threads=threads)
        self.tasks = torch.zeros(0, 1, dtype=torch.float64)
        self.episodes = 0

    def sample_tasks(self, tasks: int, draws: Draws) -> Tensor:
        """Draw tasks (tasks, 1)."""
        raise NotImplementedError

    def observe(self) -> np.ndarray:
        """What is seen of the physics, (all episodes, observations)."""
        raise NotImplementedError

    def reward(self, velocities: Tensor) -> Tensor:
        """The reward (tasks, episodes) of forward velocities, before the cost of control."""
        raise NotImplementedError

    def ended(self) -> np.ndarray:
        """Whether episodes have ended, (all episodes,)."""
        return np.zeros(len(self.physics.states), dtype=bool)

    def reset(self, tasks: Tensor, episodes: int, draws: Draws) -> Tensor:
        """Start at rest plus noise: uniform in positions, normal in velocities."""
        self.tasks = tasks.double()
        self.episodes = episodes
        positions = self.physics.model.nq
        size = positions + self.physics.model.nv
        normal = draws.normal("start", tasks=len(tasks), episodes=episodes, shape=(size,))
        # (tasks, episodes, ...) -> (all episodes, ...)
        normal = normal.flatten(0, 1)
        # A normal number under its own distribution function is uniform.
        uniform = 2 * torch.special.ndtr(normal[:, :positions]) - 1
        self.physics.start(NOISE * uniform.numpy(), NOISE * normal[:, positions:].numpy())
        return self._by_task(self.observe())

    def step(self, actions: Tensor) -> Step:
        """Hold an action (tasks, episodes, actions) for 0.05 seconds."""
        controls = (actions.double() / self.action_scale).clamp(-1, 1)
        before = self.physics.positions[:, 0].copy()
        self.physics.step(controls.flatten(0, 1).numpy())
        velocities = (self.physics.positions[:, 0] - before) / self.physics.seconds
        rewards = self.reward(self._by_task(velocities))
        rewards = rewards - self.control_cost * controls.square().sum(-1)
        return Step(self._by_task(self.observe()), rewards, self._by_task(self.ended()))

    def settings(self) -> Record:
        """The settings, for records."""
        return {
            "environment": self.name,
            "action_scale": self.action_scale,
            "control_cost": self.control_cost,
        }

    def _by_task(self, values: np.ndarray) -> Tensor:
        """(all episodes, ...) -> (tasks, episodes, ...)."""
        return torch.from_numpy(values).unflatten(0, (len(self.tasks), self.episodes))


class HalfCheetah(Locomotion):
    """A cheetah in a plane; an episode has no end of its own.

    Args:
        observation: "v5", the 17 numbers of gymnasium's HalfCheetah-v5: positions without x, and
            velocities; "finn", the same and the position of the torso, which holds x, 20 numbers.
        action_scale: the policy's action that is a motor's full range.
        model_file: the model; by default gymnasium's half_cheetah.xml.
        threads: of the physics; by default as many as torch uses.

    Raises:
        ImportError: mujoco or gymnasium is not installed.
        FileNotFoundError: there is no such model file.
        ValueError: the observation has another name.
    """

    model = "half_cheetah.xml"
    actions = 6
    control_cost = 0.05

    def __init__(
        self,
        *,
        observation: Observation = "v5",
        action_scale: float = 10.0,
        model_file: str | os.PathLike[str] | None = None,
        threads: int | None = None,
    ) -> None:
        widths = {"v5": 17, "finn": 20}
        if observation not in widths:
            raise ValueError(f"observation={observation!r} is not one of 'v5', 'finn'")
        super().__init__(action_scale=action_scale, model_file=model_file, threads=threads)
        self.observation = observation
        self.observations = widths[observation]

    def observe(self) -> np.ndarray:
        """The observations (all episodes, observations)."""
        positions = self.physics.positions
        parts = [positions[:, 1:], self.physics.velocities]
        if self.observation == "finn":
            # x, y and z of the torso, whose joints slide along x and z
            torso = np.zeros((len(positions), 3))
            torso[:, 0] = positions[:, 0]
            torso[:, 2] = positions[:, 1] + TORSO_HEIGHT
            parts.append(torso)
        return np.concatenate(parts, 1)

    def settings(self) -> Record:
        """The settings, for records."""
        return {**super().settings(), "observation": self.observation}


class HalfCheetahDir(HalfCheetah):
    """Run forwards or backwards: `direction * velocity - 0.05 |a|²`, a the controls.

    A task is 1 or -1. The arguments are those of `HalfCheetah`.
    """

    name = "half-cheetah-dir"

    def sample_tasks(self, tasks: int, draws: Draws) -> Tensor:
        """Draw directions (tasks, 1), 1 or -1."""
        return directions(tasks, draws)

    def reward(self, velocities: Tensor) -> Tensor:
        """The velocity in the direction of the task."""
        return self.tasks * velocities


class HalfCheetahVel(HalfCheetah):
    """Run at a velocity: `-|velocity - v*| - 0.05 |a|²`, a the controls.

    A task is v*, uniform in [0, 2]. The arguments are those of `HalfCheetah`.
    """

    name = "half-cheetah-vel"

    def sample_tasks(self, tasks: int, draws: Draws) -> Tensor:
        """Draw velocities (tasks, 1), uniform in [0, 2]."""
        return 2 * draws.uniform("task", tasks=tasks, episodes=1, shape=(1,))[:, 0]

    def reward(self, velocities: Tensor) -> Tensor:
        """The negative distance to the velocity of the task."""
        return -(velocities - self.tasks).abs()


class AntDir(Locomotion):
    """Walk forwards or backwards on four legs: `direction * velocity - 0.5 |a|² + 1`.

    A task is 1 or -1, the direction along x. The last term is for an upright torso, with a height
    of 0.2 to 1; otherwise the episode ends. The observation has the 27 numbers of gymnasium's
    Ant-v5 without contact forces, which cost nothing here. The arguments are those of `Locomotion`.
    """

    name = "ant-dir"
    model = "ant.xml"
    actions = 8
    observations = 27
    control_cost = 0.5

    def sample_tasks(self, tasks: int, draws: Draws) -> Tensor:
        """Draw directions (tasks, 1), 1 or -1."""
        return directions(tasks, draws)

    def observe(self) -> np.ndarray:
        """The observations (all episodes, 27): positions without x and y, and velocities."""
        return np.concatenate((self.physics.positions[:, 2:], self.physics.velocities), 1)

    def ended(self) -> np.ndarray:
        """Whether the torso is too low or too high, (all episodes,)."""
        height = self.physics.positions[:, 2]
        return ~((height >= 0.2) & (height <= 1.0))

    def reward(self, velocities: Tensor) -> Tensor:
        """The velocity in the direction of the task, and 1 for an upright torso."""
        return self.tasks * velocities + (~self._by_task(self.ended())).double()


def directions(tasks: int, draws: Draws) -> Tensor:
    """Directions (tasks, 1), 1 or -1 with equal chances."""
    uniform = draws.uniform("task", tasks=tasks, episodes=1, shape=(1,))[:, 0]
    return torch.where(uniform < 0.5, -1.0, 1.0).double()
