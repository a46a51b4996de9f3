"""Gaussian policies: densities, divergences, and what does not fit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from metalearn.models import MLP
from metalearn.reinforcement import GaussianPolicy, Navigation
from metalearn.reinforcement import policies as gaussian
from metalearn.reinforcement.rollouts import check_policy


def test_the_divergence_of_two_normals() -> None:
    first = torch.tensor([-0.2]), torch.tensor([math.log(0.8)])
    second = torch.tensor([0.3]), torch.tensor([math.log(0.5)])
    value = gaussian.kl_divergence(*(tensor.double() for tensor in (*first, *second)))
    assert float(value) == pytest.approx(0.8099964, abs=1e-6)


def test_densities_and_divergences_are_those_of_torch() -> None:
    torch.manual_seed(0)
    means, other = torch.randn(2, 5, 3, dtype=torch.float64)
    log_std, other_log_std = torch.randn(2, 3, dtype=torch.float64)
    actions = torch.randn(5, 3, dtype=torch.float64)
    p = Independent(Normal(means, log_std.exp()), 1)
    q = Independent(Normal(other, other_log_std.exp()), 1)
    densities = gaussian.log_probability(means, log_std, actions)
    torch.testing.assert_close(densities, p.log_prob(actions))
    divergence = gaussian.kl_divergence(means, log_std, other, other_log_std)
    torch.testing.assert_close(divergence, kl_divergence(p, q))


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        (GaussianPolicy(MLP(2, 3)), r"output has 3 numbers.*build its network with 2 outputs"),
        (GaussianPolicy(MLP(2, 2), actions=3), r"its log_std 3, but an action of Navigation has 2"),
        (GaussianPolicy(MLP(4, 2)), r"2 numbers of an observation.*with 2 inputs"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(policy: GaussianPolicy, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_policy(policy, Navigation())


def test_a_head_that_is_not_linear_needs_the_number_of_actions() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
    with pytest.raises(ValueError, match=r"is a Conv2d.*pass actions="):
        GaussianPolicy(network)
    assert GaussianPolicy(network, actions=2).actions == 2
    with pytest.raises(ValueError, match=r"no Linear or Conv2d.*head="):
        GaussianPolicy(nn.Sequential(nn.Tanh()))


class TwoHeads(nn.Module):
    """The layer that is registered last is not the one that computes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 2)
        self.auxiliary = nn.Linear(2, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.out(inputs)


def test_a_head_that_is_not_the_last_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"GaussianPolicy\(network, head='out'\)"):
        check_policy(GaussianPolicy(TwoHeads()), Navigation())
    check_policy(GaussianPolicy(TwoHeads(), head="out"), Navigation())


def test_an_environment_of_one_episode_is_refused() -> None:
    class Gym:
        def reset(self) -> None: ...

        def step(self) -> None: ...

    with pytest.raises(TypeError, match=r"Gym is not an environment of many episodes at once"):
        check_policy(GaussianPolicy(MLP(2, 2)), Gym())  # type: ignore[arg-type]
