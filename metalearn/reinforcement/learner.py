"""MAML and ANIL for policies: the policy gradient as the closure of the inner step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from metalearn.algorithms.rates import LR, assign_rates, describe_rates
from metalearn.engine.inner_loop import inner_step
from metalearn.network.functional import Functional
from metalearn.network.layers import is_inside
from metalearn.network.module_call import Weights
from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Record

from .advantages import (
    discounted_sums,
    generalized_advantages,
    linear_baseline,
    normalized,
)
from .policies import GaussianPolicy, log_probability
from .rollouts import Trajectories, per_step


@dataclass(frozen=True)
class Batch:
    """The steps of trajectories in one dimension, with their advantages.

    Attributes:
        observations: (tasks, steps, observations).
        actions: (tasks, steps, actions).
        advantages: (tasks, steps), normalised over the steps that count.
        mask: (tasks, steps).
    """

    observations: Tensor
    actions: Tensor
    advantages: Tensor
    mask: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """The mean of (tasks, steps) over the steps that count, (tasks,)."""
        return (values * self.mask).sum(-1) / self.mask.sum(-1)


class PolicyMAML(nn.Module):
    """MAML for policies: inner steps of the policy gradient (Finn et al. 2017, section 5.3).

        L(w) = -sum_t m_t log pi_w(a_t|s_t) A_t / sum_t m_t,   w' = w - lr * grad L(w)

    Advantages come from generalized advantage estimation over a linear baseline, fitted to each
    task's trajectories, and are normalised per task (Duan et al. 2016).

    Args:
        policy: the policy; its parameters are the meta-initialisation.
        lr: the inner rate: a number for everything, or rates by path, such as `{"head": 0.1}`,
            which is ANIL. Paths are those of the policy or of its network.
        steps: inner steps in training.
        first_order: treat the inner gradient as a constant.
        adapt_std: whether the standard deviation adapts too; by default if `lr` is a number.
        discount: of rewards, gamma.
        decay: lambda of the advantages.

    Raises:
        ValueError: a path is not in the policy, or a rate is negative or not finite.

    Example:
        >>> from metalearn.models import MLP
        >>> learner = PolicyMAML(GaussianPolicy(MLP(2, 2)), lr={"head": 0.1})
        >>> list(learner.rates)
        ['network.head.weight', 'network.head.bias']
    """

    def __init__(
        self,
        policy: GaussianPolicy,
        lr: LR = 0.1,
        *,
        steps: int = 1,
        first_order: bool = False,
        adapt_std: bool | None = None,
        discount: float = 0.99,
        decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.lr = lr
        self.steps = whole_number("steps", steps, least=0)
        self.first_order = first_order
        self.discount = discount
        self.decay = decay
        paths = dict(lr) if isinstance(lr, Mapping) else {"": lr}
        if adapt_std is None:
            adapt_std = not isinstance(lr, Mapping)
        self.rates = assign_rates(policy, {self._path(path): rate for path, rate in paths.items()})
        if not adapt_std and "log_std" not in paths:
            self.rates.pop("log_std", None)
        elif adapt_std and "log_std" not in self.rates and self.rates:
            # That of the head, if layers are named.
            self.rates["log_std"] = self.rates.get(
                f"{policy.head}.bias", next(iter(self.rates.values()))
            )
        self.network = Functional(policy, policy.head)

    def _path(self, path: str) -> str:
        """A path of the policy, for one of the policy or of its network."""
        if path in ("", "log_std") or is_inside(path, "network"):
            return path
        return f"network.{path}"

    def weights(self, tasks: int, parameters: Mapping[str, Tensor] | None = None) -> Weights:
        """The weights of so many tasks before adaptation.

        Args:
            tasks: how many.
            parameters: in place of the policy's own, by name.

        Returns:
            Every weight by name; those that adapt have a leading task dimension.
        """
        weights = dict(self.policy.named_parameters()) | dict(parameters or {})
        # (...) -> (tasks, ...), a view
        return {
            name: weight.expand(tasks, *weight.shape) if name in self.rates else weight
            for name, weight in weights.items()
        }

    def batch(self, trajectories: Trajectories) -> Batch:
        """The steps of trajectories with their advantages."""
        rewards = trajectories.rewards
        mask = trajectories.mask
        returns = discounted_sums(rewards, self.discount)
        baseline = linear_baseline(trajectories.observations, returns, mask)
        advantages = generalized_advantages(
            rewards, baseline.values, discount=self.discount, decay=self.decay
        )
        # (tasks, episodes, time, ...) -> (tasks, steps, ...)
        return Batch(
            trajectories.observations.flatten(1, 2),
            trajectories.actions.flatten(1, 2),
            normalized(advantages, mask).flatten(1, 2),
            mask.flatten(1, 2),
        )

    def means(self, weights: Weights, observations: Tensor) -> Tensor:
        """The mean actions (tasks, steps, actions) under weights of each task."""
        return self.network.stacked(len(observations))(weights, observations)

    def log_probability(self, weights: Weights, batch: Batch) -> Tensor:
        """The log density (tasks, steps) of a batch's actions under weights of each task."""
        means = self.means(weights, batch.observations)
        return log_probability(means, per_step(weights["log_std"]), batch.actions)

    def policy_gradient(self, batch: Batch) -> Callable[[Weights], Tensor]:
        """The closure whose gradient is REINFORCE's: from weights to a loss (tasks,)."""

        def loss(weights: Weights) -> Tensor:
            return -batch.mean(self.log_probability(weights, batch) * batch.advantages)

        return loss

    def adapt(self, weights: Weights, batch: Batch, *, scale: float = 1.0) -> Weights:
        """One inner step of every task on its own batch.

        Args:
            weights: from `weights`, or from the step before.
            batch: trajectories under these weights.
            scale: a factor of every rate.

        Returns:
            The adapted weights, differentiable to the meta-initialisation.
        """
        rates = {name: scale * rate for name, rate in self.rates.items()}
        adapted, _ = inner_step(
            self.policy_gradient(batch), weights, rates, first_order=self.first_order
        )
        return adapted

    def adapt_all(self, weights: Weights, batches: Iterable[Batch]) -> Weights:
        """One inner step for each of the batches, in order."""
        for batch in batches:
            weights = self.adapt(weights, batch)
        return weights

    def settings(self) -> Record:
        """A JSON-able record of the learner."""
        return {
            "learner": type(self).__name__,
            "lr": describe_rates(self.lr),
            "steps": self.steps,
            "first_order": self.first_order,
            "adapts": list(self.rates),
            "discount": self.discount,
            "decay": self.decay,
        }


class PolicyANIL(PolicyMAML):
    """ANIL for policies: only the head adapts (Raghu et al. 2020, arXiv:1909.09157).

    The same as `PolicyMAML(policy, lr={head: lr})`.

    Args:
        policy: the policy.
        lr: the inner rate of the head.
        **settings: those of `PolicyMAML`.

    Example:
        >>> from metalearn.models import MLP
        >>> list(PolicyANIL(GaussianPolicy(MLP(2, 2)), lr=0.1).rates)
        ['network.head.weight', 'network.head.bias']
    """

    def __init__(
        self, policy: GaussianPolicy, lr: float | Tensor = 0.1, **settings: object
    ) -> None:
        super().__init__(policy, {policy.head: lr}, **settings)  # type: ignore[arg-type]
