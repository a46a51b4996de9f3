"""Gaussian policies around any network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metalearn.network.layers import head as find_head
from metalearn.runtime.checks import positive_number, whole_number

LEAST_LOG_STD = math.log(1e-6)


class GaussianPolicy(nn.Module):
    """Actions are normal: `a ~ N(network(s), diag(exp(log_std))²)`.

    The standard deviation does not depend on the observation. It is a parameter of the policy, as
    in Duan et al. 2016 (arXiv:1604.06778).

    Args:
        network: from observations (..., observations) to the mean action (..., actions).
        actions: the numbers of an action; by default the outputs of the network's head.
        std: the standard deviation at the start.
        head: the path of the network's head; by default its last `nn.Linear`.

    Raises:
        ValueError: the network has no `nn.Linear` as its head and `actions` is not given.

    Example:
        >>> from metalearn.models import MLP
        >>> policy = GaussianPolicy(MLP(2, 2, hidden=(100, 100)))
        >>> policy(torch.zeros(7, 2)).shape, policy.log_std
        (torch.Size([7, 2]), Parameter containing:
        tensor([0., 0.], requires_grad=True))
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        actions: int | None = None,
        std: float = 1.0,
        head: str | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.head = f"network.{find_head(network, head)}"
        if actions is None:
            last = self.get_submodule(self.head)
            if not isinstance(last, nn.Linear):
                raise ValueError(
                    f"the head {self.head!r} is a {type(last).__name__}, which does not tell the"
                    " numbers of an action; pass actions="
                )
            actions = last.out_features
        actions = whole_number("actions", actions)
        std = positive_number("std", std)
        self.log_std = nn.Parameter(torch.full((actions,), math.log(std)))

    @property
    def actions(self) -> int:
        """The numbers of an action."""
        return len(self.log_std)

    def forward(self, observations: Tensor) -> Tensor:
        """Observations (..., observations) -> mean actions (..., actions)."""
        return self.network(observations)


def log_probability(means: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """The log density of actions under a Gaussian policy.

    `sum_i -(a_i - mu_i)² / (2 sigma_i²) - log sigma_i - log(2 pi) / 2`

    Args:
        means: (..., actions).
        log_std: broadcasts against `means`; below log(1e-6) it counts as that.
        actions: (..., actions).

    Returns:
        (...)

    Example:
        >>> round(log_probability(torch.zeros(1), torch.zeros(1), torch.zeros(1)).item(), 4)
        -0.9189
    """
    log_std = log_std.clamp(min=LEAST_LOG_STD)
    standardized = (actions - means) * (-log_std).exp()
    densities = -0.5 * standardized.square() - log_std - 0.5 * math.log(2 * math.pi)
    return densities.sum(-1)


def kl_divergence(
    means: Tensor, log_std: Tensor, other_means: Tensor, other_log_std: Tensor
) -> Tensor:
    """`KL(N(mu, sigma²) || N(mu', sigma'²))`, summed over the numbers of an action.

    `sum_i log(sigma'_i / sigma_i) + (sigma_i² + (mu_i - mu'_i)²) / (2 sigma'_i²) - 1/2`

    Args:
        means: (..., actions) of the first.
        log_std: of the first, broadcasts against its means.
        other_means: (..., actions) of the second.
        other_log_std: of the second.

    Returns:
        (...)

    Example:
        >>> first, second = torch.tensor([0.0]), torch.tensor([1.0])
        >>> kl_divergence(first, torch.zeros(1), second, torch.zeros(1)).item()
        0.5
    """
    log_std = log_std.clamp(min=LEAST_LOG_STD)
    other_log_std = other_log_std.clamp(min=LEAST_LOG_STD)
    spread = (2 * log_std).exp() + (means - other_means).square()
    ratio = spread * (-2 * other_log_std).exp()
    return (other_log_std - log_std + 0.5 * ratio - 0.5).sum(-1)
