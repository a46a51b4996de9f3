"""One outer step: trajectories before and after adaptation, and what TRPO lowers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.network.module_call import Weights

from .environments import Environment
from .learner import Batch, PolicyMAML
from .policies import LEAST_LOG_STD, kl_divergence, log_probability
from .randomness import Draws
from .rollouts import Trajectories, collect, per_step
from .trpo import TRPO, Objective, Parameters, StepRecord, trust_region_step


class Sampling(NamedTuple):
    """How many trajectories a step takes.

    Attributes:
        meta_batch: tasks of an outer step.
        episodes: of each task, before and after adaptation.
        horizon: the most steps of an episode.
    """

    meta_batch: int = 20
    episodes: int = 20
    horizon: int = 100


class Sampled(NamedTuple):
    """The trajectories of an outer step.

    Attributes:
        trajectories: before each inner step, and after the last.
        batches: their steps with advantages.
        weights: under which the last were collected.
    """

    trajectories: list[Trajectories]
    batches: list[Batch]
    weights: Weights


def sample(
    learner: PolicyMAML, environment: Environment, sampling: Sampling, draws: Draws
) -> Sampled:
    """Draw tasks, and collect trajectories before each inner step and after the last.

    Every inner step has trajectories of its own, of the policy that it starts from.
    """
    tasks = environment.sample_tasks(sampling.meta_batch, draws)
    weights = {
        name: weight.detach() for name, weight in learner.weights(sampling.meta_batch).items()
    }
    trajectories: list[Trajectories] = []
    batches: list[Batch] = []
    for stage in range(learner.steps + 1):
        if stage:
            with torch.no_grad():
                weights = learner.adapt(weights, batches[-1])
        collected = collect(
            environment,
            learner.policy,
            tasks,
            weights,
            episodes=sampling.episodes,
            horizon=sampling.horizon,
            draws=draws.at_stage(stage),
        )
        trajectories.append(collected)
        batches.append(learner.batch(collected))
    return Sampled(trajectories, batches, weights)


def outer_objective(
    learner: PolicyMAML, support: Sequence[Batch], query: Batch, collected_with: Weights
) -> Callable[[Mapping[str, Tensor]], Objective]:
    """The surrogate and the divergence of post-update policies, as functions of the parameters.

    `-E[pi'(a|s) / pi'_old(a|s) A]` and `E[KL(pi'_old(.|s) || pi'(.|s))]`, with pi' the policy after
    the inner steps, over the steps of the query trajectories and then over tasks. The gradient runs
    through the inner steps. As in the papers' code, the trajectories themselves are held fixed.

    Args:
        learner: whose inner steps.
        support: a batch for each inner step.
        query: trajectories after the last.
        collected_with: the weights under which the query was collected.
    """
    tasks = len(query.mask)
    with torch.no_grad():
        old_means = learner.means(collected_with, query.observations)
        old_log_std = per_step(collected_with["log_std"]).clamp(min=LEAST_LOG_STD)
        curvatures = _curvatures(query, old_log_std)
        old = learner.log_probability(collected_with, query)

    def objective(parameters: Mapping[str, Tensor]) -> Objective:
        weights = learner.adapt_all(learner.weights(tasks, parameters), support)
        means = learner.means(weights, query.observations)
        log_std = per_step(weights["log_std"]).clamp(min=LEAST_LOG_STD)
        new = log_probability(means, log_std, query.actions)
        surrogate = -query.mean((new - old).exp() * query.advantages)
        kl = query.mean(kl_divergence(old_means, old_log_std, means, log_std))
        return Objective(surrogate.mean(), kl.mean(), (means, log_std), curvatures)

    return objective


def _curvatures(batch: Batch, log_std: Tensor) -> tuple[Tensor, Tensor]:
    """The second derivatives of the mean divergence, by means and by log_std, where it is zero.

    They are 1 / sigma² and 2 (the Fisher information of a normal distribution), times the weight of
    a step in the mean over steps and tasks.
    """
    # (tasks, steps, 1)
    weights = (batch.mask / batch.mask.sum(-1, keepdim=True) / len(batch.mask))[..., None]
    # log_std has a row a task, which counts for all steps of it, or one row for all tasks
    rows = log_std[..., 0].numel()
    return weights * (-2 * log_std).exp(), torch.full_like(log_std, 2 / rows)


def outer_step(
    learner: PolicyMAML, sampled: Sampled, settings: TRPO
) -> tuple[Parameters, StepRecord]:
    """The meta-parameters after a step of TRPO; the policy itself is not changed."""
    *support, query = sampled.batches
    objective = outer_objective(learner, support, query, sampled.weights)
    trained = {
        name: parameter
        for name, parameter in learner.policy.named_parameters()
        if parameter.requires_grad
    }
    return trust_region_step(objective, trained, settings)
