"""Trajectories of many tasks and episodes at once, as tensors with a mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metalearn.network.functional import Functional
from metalearn.network.layers import is_inside
from metalearn.network.module_call import Weights
from metalearn.runtime.checks import positive

from .environments import Environment
from .policies import LEAST_LOG_STD, GaussianPolicy
from .randomness import Draws


@dataclass(frozen=True)
class Trajectories:
    """Episodes of several tasks.

    Attributes:
        observations: (tasks, episodes, time, observations) before each action.
        actions: (tasks, episodes, time, actions).
        rewards: (tasks, episodes, time), zero after the end of an episode.
        mask: (tasks, episodes, time), 1 up to the step that ends the episode, 0 after it.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor

    @property
    def returns(self) -> Tensor:
        """(tasks, episodes) the sum of rewards, without a discount."""
        return self.rewards.sum(-1)

    @property
    def lengths(self) -> Tensor:
        """(tasks, episodes) the number of steps."""
        return self.mask.sum(-1)


def collect(
    environment: Environment,
    policy: GaussianPolicy,
    tasks: Tensor,
    weights: Weights,
    *,
    episodes: int,
    horizon: int,
    draws: Draws,
) -> Trajectories:
    """Run episodes of every task under a policy.

    Args:
        environment: where.
        policy: the network as a module.
        tasks: (tasks, parameters).
        weights: of the policy by name; those with a leading task dimension differ between tasks.
        episodes: of each task.
        horizon: the most steps of an episode.
        draws: the random numbers of starts and actions.

    Returns:
        The trajectories, in the precision and on the device of the policy.

    Raises:
        ValueError: the horizon or the number of episodes is below 1, the policy does not fit the
            environment, an observation or a reward is not finite, or every episode ends at its
            first step.

    Example:
        >>> from metalearn.models import MLP
        >>> from metalearn.reinforcement import Navigation
        >>> policy, draws = GaussianPolicy(MLP(2, 2)), Draws(seed=0)
        >>> goals = Navigation().sample_tasks(3, draws)
        >>> weights = dict(policy.named_parameters())
        >>> paths = collect(
        ...     Navigation(), policy, goals, weights, episodes=4, horizon=10, draws=draws
        ... )
        >>> paths.observations.shape
        torch.Size([3, 4, 10, 2])
    """
    episodes, horizon = positive(episodes=episodes, horizon=horizon)
    count = len(tasks)
    network = Functional(policy, policy.head).stacked(count)
    log_std = per_step(weights["log_std"])
    noise = draws.normal(
        "action", tasks=count, episodes=episodes, shape=(horizon, policy.actions)
    ).to(log_std)
    # (tasks, episodes, time, actions): the deviation from the mean of every action
    noise = noise * log_std.clamp(min=LEAST_LOG_STD).exp()[..., None, :]
    steps = _Recorder(log_std, horizon)
    alive = torch.ones(count, episodes, dtype=torch.bool)
    with torch.no_grad():
        check_policy(policy, environment)
        observations = environment.reset(tasks, episodes, draws)
        for t in range(horizon):
            _check_finite("observation", observations, alive, t)
            seen = observations.to(log_std)
            actions = network(weights, seen) + noise[:, :, t]
            observations, rewards, done = environment.step(actions.cpu())
            _check_finite("reward", rewards, alive, t)
            steps.add(seen, actions, rewards, alive)
            alive = alive & ~done
            if not alive.any():
                break
    if t == 0 and horizon > 1:
        raise ValueError(
            f"every episode of all {count} tasks ended at its first step, so there is nothing to"
            " learn from; check how the environment starts and ends"
        )
    return steps.trajectories()


def per_step(log_std: Tensor) -> Tensor:
    """log_std (actions,), or (tasks, actions), to broadcast against (tasks, steps, actions)."""
    return log_std if log_std.ndim == 1 else log_std[:, None]


def check_policy(policy: GaussianPolicy, environment: Environment) -> None:
    """Check that a policy fits an environment.

    Args:
        policy: the policy.
        environment: where it is to run.

    Raises:
        TypeError: the environment is not one of many episodes at once.
        ValueError: the numbers of observations or actions differ, or the policy's head is not the
            last linear layer that runs.
    """
    name = type(environment).__name__
    if not isinstance(environment, Environment):
        raise TypeError(
            f"{name} is not an environment of many episodes at once; use Navigation(),"
            " HalfCheetahDir(), ..., or write a class with the methods of"
            " metalearn.reinforcement.Environment"
        )
    example = torch.zeros(1, 1, environment.observations).to(policy.log_std)
    with torch.no_grad(), _linear_layers_run(policy) as ran:
        try:
            width = policy(example).shape[-1]
        except RuntimeError as error:
            raise ValueError(
                f"the policy cannot read the {environment.observations} numbers of an observation"
                f" of {name} ({str(error).splitlines()[0]}); build its network with"
                f" {environment.observations} inputs"
            ) from error
    if width != environment.actions or policy.actions != environment.actions:
        raise ValueError(
            f"the policy's output has {width} numbers and its log_std {policy.actions}, but an"
            f" action of {name} has {environment.actions}; build its network with"
            f" {environment.actions} outputs"
        )
    if ran and not is_inside(ran[-1], policy.head):
        last = ran[-1].removeprefix("network.")
        raise ValueError(
            f"the last linear layer that runs is {ran[-1]!r}, and the policy's head is"
            f" {policy.head!r}; build the policy with GaussianPolicy(network, head={last!r})"
        )


@contextmanager
def _linear_layers_run(policy: GaussianPolicy) -> Iterator[list[str]]:
    """The names of the linear layers that run, in that order."""
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in policy.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


class _Recorder:
    """The steps of episodes that run, one after the other."""

    def __init__(self, like: Tensor, horizon: int) -> None:
        self.like = like
        self.horizon = horizon
        self.steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, seen: Tensor, actions: Tensor, rewards: Tensor, alive: Tensor) -> None:
        """Add one step of every episode."""
        # What follows the end of an episode counts 0, be it finite or not.
        rewards = torch.where(alive, rewards, 0).to(self.like)
        alive = alive.to(self.like.device)
        seen = torch.where(alive[..., None], seen, 0)
        actions = torch.where(alive[..., None], actions, 0)
        self.steps.append((seen, actions, rewards, alive.to(self.like)))

    def trajectories(self) -> Trajectories:
        """Everything, (tasks, episodes, time, ...)."""
        observations, actions, rewards, mask = zip(*self.steps, strict=True)
        return Trajectories(
            torch.stack(observations, 2),
            torch.stack(actions, 2),
            torch.stack(rewards, 2),
            torch.stack(mask, 2),
        )


def _check_finite(name: str, values: Tensor, alive: Tensor, step: int) -> None:
    """Raise ValueError if a value of an episode that has not ended is not finite."""
    # (tasks, episodes, ...) -> (tasks, episodes)
    wrong = ~values.reshape(*alive.shape, -1).isfinite().all(-1) & alive
    if wrong.any():
        task, episode = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"the {name} of task {task}, episode {episode} is not finite at step {step}, as after"
            " an unstable step of the physics; use smaller actions or rates, or end such episodes"
            " in the environment"
        )
