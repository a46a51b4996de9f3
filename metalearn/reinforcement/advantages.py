"""How much better than expected: discounted returns, the linear baseline, and advantages."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RIDGE = 1e-5
ATTEMPTS = 6  # the ridge, and five times the tenfold of it


def discounted_sums(rewards: Tensor, discount: float) -> Tensor:
    """`R_t = r_t + discount * R_{t+1}`, along the last dimension.

    Args:
        rewards: (..., time), zero after the end of an episode.
        discount: 0 to 1.

    Returns:
        (..., time)

    Example:
        >>> discounted_sums(torch.tensor([1.0, 2.0, 4.0]), 0.5)
        tensor([3., 4., 4.])
    """
    sums = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[..., 0])
    for t in reversed(range(rewards.shape[-1])):
        following = rewards[..., t] + discount * following
        sums[..., t] = following
    return sums


def baseline_features(observations: Tensor) -> Tensor:
    """`[s, s², t/100, (t/100)², (t/100)³, 1]` of every step (Duan et al. 2016).

    Args:
        observations: (tasks, episodes, time, observations).

    Returns:
        (tasks, episodes, time, 2 * observations + 4)
    """
    time = torch.arange(observations.shape[2]).to(observations) / 100
    # (time,) -> (tasks, episodes, time, 1)
    time = time[:, None].expand(*observations.shape[:3], 1)
    powers = (time, time**2, time**3, torch.ones_like(time))
    return torch.cat((observations, observations.square(), *powers), dim=-1)


class Baseline(NamedTuple):
    """A linear fit of returns.

    Attributes:
        values: (tasks, episodes, time) the predicted returns, zero where the mask is.
        ridge: (tasks,) the ridge that the fit of each task needed.
    """

    values: Tensor
    ridge: Tensor


def linear_baseline(
    observations: Tensor, returns: Tensor, mask: Tensor, *, ridge: float = RIDGE
) -> Baseline:
    """Fit the returns of each task by its own ridge regression on `baseline_features`.

    Computed in double precision. If the normal equations of a task are singular, its ridge is
    raised tenfold, up to five times.

    Args:
        observations: (tasks, episodes, time, observations).
        returns: (tasks, episodes, time) discounted returns.
        mask: (tasks, episodes, time) the steps that count.
        ridge: what is added to the diagonal of the normal equations.

    Returns:
        The predicted returns.

    Raises:
        ValueError: the fit of a task is singular under the largest ridge.

    Example:
        >>> s = torch.randn(1, 6, 9, 2)
        >>> returns = 3 * s[..., 0] - s[..., 1] ** 2 + 1
        >>> fit = linear_baseline(s, returns, torch.ones(1, 6, 9))
        >>> torch.allclose(fit.values, returns, atol=1e-3)
        True
    """
    features = baseline_features(observations.double()) * mask[..., None]
    # (tasks, episodes, time, features) -> (tasks, rows, features)
    rows = features.flatten(1, 2)
    targets = (returns.double() * mask).flatten(1, 2)[..., None]
    gram = rows.mT @ rows  # (tasks, features, features)
    right = rows.mT @ targets
    ridges = torch.full((len(gram),), ridge, dtype=torch.float64, device=gram.device)
    weights, failed = _solved(gram, right, ridges)
    for _ in range(ATTEMPTS - 1):
        if not failed.any():
            break
        ridges = torch.where(failed, 10 * ridges, ridges)
        weights, failed = _solved(gram, right, ridges)
    if failed.any():
        task = int(failed.nonzero()[0])
        largest = float(rows[task].abs().max())
        raise ValueError(
            f"the linear baseline of task {task} is singular even with a ridge of"
            f" {float(ridges[task]):g}; its largest feature is {largest:.3g}: scale the"
            " observations, or end episodes before they diverge"
        )
    values = (rows @ weights).squeeze(-1).unflatten(1, returns.shape[1:])
    return Baseline(values.to(returns), ridges)


def _solved(gram: Tensor, right: Tensor, ridges: Tensor) -> tuple[Tensor, Tensor]:
    """`(gram + ridge)^-1 right` of each task, and (tasks,) whether it failed."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(gram + ridges[:, None, None] * identity)
    failed = (info != 0) | ~factor.flatten(1).isfinite().all(1)
    # A failed factor is replaced, because the solver does not accept it.
    factor = torch.where(failed[:, None, None], identity, factor)
    weights = torch.cholesky_solve(right, factor)
    return weights, failed | ~weights.flatten(1).isfinite().all(1)


def generalized_advantages(
    rewards: Tensor, values: Tensor, *, discount: float = 0.99, decay: float = 1.0
) -> Tensor:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438).

    `A_t = sum_k (discount * decay)^k delta_{t+k}`, `delta_t = r_t + discount V_{t+1} - V_t`, with a
    value of zero after the last step. With decay 1 it is the discounted return minus the value.

    Args:
        rewards: (..., time), zero after the end of an episode.
        values: (..., time), zero after the end of an episode.
        discount: of rewards, gamma.
        decay: of the temporal differences, lambda.

    Returns:
        (..., time)

    Example:
        >>> rewards = torch.tensor([1.0, 2.0])
        >>> generalized_advantages(rewards, torch.tensor([0.5, 1.0]), discount=1.0)
        tensor([2.5000, 1.0000])
    """
    following = torch.zeros_like(values)
    following[..., :-1] = values[..., 1:]
    differences = rewards + discount * following - values
    return discounted_sums(differences, discount * decay)


def normalized(values: Tensor, mask: Tensor) -> Tensor:
    """The values of each task with mean 0 and standard deviation 1 over the steps that count.

    Args:
        values: (tasks, episodes, time).
        mask: (tasks, episodes, time).

    Returns:
        (tasks, episodes, time), zero where the mask is.

    Example:
        >>> normalized(torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([[[1.0, 1.0, 0.0]]]))
        tensor([[[-1.,  1.,  0.]]])
    """
    count = mask.sum((1, 2), keepdim=True)
    mean = (values * mask).sum((1, 2), keepdim=True) / count
    centred = (values - mean) * mask
    std = (centred.square().sum((1, 2), keepdim=True) / count).sqrt()
    return centred / (std + 1e-8)
