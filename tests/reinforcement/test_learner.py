"""The policy gradient as an inner step, and the meta-gradient through it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metalearn.models import MLP
from metalearn.reinforcement import Draws, GaussianPolicy, Navigation, PolicyANIL, PolicyMAML
from metalearn.reinforcement.learner import Batch
from metalearn.reinforcement.outer import Sampling, outer_objective, sample

SIZES = Sampling(meta_batch=3, episodes=4, horizon=6)


def policy(dtype: torch.dtype = torch.float64) -> GaussianPolicy:
    torch.manual_seed(1)
    network = MLP(2, 2, hidden=(6, 5))
    network.relu1 = nn.Tanh()  # smooth, for central differences
    network.relu2 = nn.Tanh()
    return GaussianPolicy(network, std=0.5).to(dtype)


def parameters(learner: PolicyMAML) -> dict[str, Tensor]:
    return {
        name: parameter.detach().clone().requires_grad_()
        for name, parameter in learner.policy.named_parameters()
    }


@pytest.mark.parametrize(
    "settings",
    [{"lr": 0.3}, {"lr": 0.3, "steps": 2}, {"lr": {"head": 0.3}}, {"lr": 0.3, "adapt_std": False}],
    ids=str,
)
def test_the_meta_gradient_is_that_of_central_differences(settings: dict) -> None:
    learner = PolicyMAML(policy(), **settings)
    # The trajectories are held fixed.
    sampled = sample(learner, Navigation(), SIZES, Draws(0))
    *support, query = sampled.batches
    objective = outer_objective(learner, support, query, sampled.weights)
    start = parameters(learner)
    surrogate = objective(start).surrogate
    gradients = torch.autograd.grad(surrogate, list(start.values()))
    directions = [torch.randn_like(gradient) for gradient in gradients]

    def shifted(size: float) -> float:
        moved = {
            name: tensor.detach() + size * direction
            for (name, tensor), direction in zip(start.items(), directions, strict=True)
        }
        return objective(moved).surrogate.item()

    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert (shifted(1e-5) - shifted(-1e-5)) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_first_order_treats_the_inner_gradient_as_a_constant() -> None:
    exact = PolicyMAML(policy(), lr=0.3)
    cut = PolicyMAML(exact.policy, lr=0.3, first_order=True)
    sampled = sample(exact, Navigation(), SIZES, Draws(0))
    *support, query = sampled.batches
    gradients = []
    for learner in (exact, cut):
        start = parameters(learner)
        objective = outer_objective(learner, support, query, sampled.weights)
        surrogate = objective(start).surrogate
        gradients.append(torch.autograd.grad(surrogate, start["network.head.weight"])[0])
    assert not torch.allclose(*gradients, rtol=1e-3)


def test_anil_is_maml_whose_head_alone_has_a_rate() -> None:
    anil = PolicyANIL(policy(), lr=0.2)
    maml = PolicyMAML(anil.policy, lr={"head": 0.2})
    results = [sample(learner, Navigation(), SIZES, Draws(0)) for learner in (anil, maml)]
    for name, weight in results[0].weights.items():
        assert torch.equal(weight, results[1].weights[name]), name
        is_adapted = weight.ndim > anil.policy.get_parameter(name).ndim
        assert is_adapted == ("head" in name), name


@pytest.mark.parametrize(
    ("settings", "adapts"),
    [
        ({"lr": 0.1}, True),
        ({"lr": 0.1, "adapt_std": False}, False),
        ({"lr": {"head": 0.1}}, False),
        ({"lr": {"head": 0.1}, "adapt_std": True}, True),
        ({"lr": {"head": 0.1, "log_std": 0.2}}, True),
    ],
    ids=str,
)
def test_whether_the_standard_deviation_adapts(settings: dict, adapts: bool) -> None:
    assert ("log_std" in PolicyMAML(policy(), **settings).rates) == adapts


def test_a_rate_of_zero_changes_nothing() -> None:
    learner = PolicyMAML(policy(), lr=0.0)
    sampled = sample(learner, Navigation(), SIZES, Draws(0))
    for name, weight in sampled.weights.items():
        assert torch.equal(weight, learner.policy.get_parameter(name))


def test_a_path_that_reaches_nothing_is_named() -> None:
    with pytest.raises(ValueError, match="haed"):
        PolicyMAML(policy(), lr={"haed": 0.1})


def test_reinforce_is_unbiased_on_a_bandit() -> None:
    # One step, a ~ N(mu, sigma²), reward c . a: the gradient of the expected reward by mu is c.
    slope = torch.tensor([1.5, -0.5], dtype=torch.float64)
    bandit = GaussianPolicy(MLP(1, 2, hidden=()), std=0.7).double()
    learner = PolicyMAML(bandit, lr=0.1)
    count = 200_000
    observations = torch.zeros(1, count, 1, dtype=torch.float64)
    with torch.no_grad():
        actions = bandit(observations) + 0.7 * torch.randn(1, count, 2, dtype=torch.float64)
    # A constant baseline leaves the gradient unbiased.
    rewards = actions @ slope - bandit.network.head.bias.detach() @ slope
    batch = Batch(observations, actions, rewards, torch.ones(1, count, dtype=torch.float64))
    bias = learner.weights(1)["network.head.bias"]
    loss = learner.policy_gradient(batch)({**learner.weights(1), "network.head.bias": bias})
    (gradient,) = torch.autograd.grad(loss.sum(), bias)
    torch.testing.assert_close(-gradient[0], slope, atol=0.02, rtol=0)


def test_what_is_masked_does_not_count() -> None:
    learner = PolicyMAML(policy(), lr=0.1)
    batch = sample(learner, Navigation(), SIZES, Draws(0)).batches[0]
    weights = learner.weights(3)
    mask = batch.mask.clone()
    mask[:, 10:] = 0
    spoilt = Batch(
        torch.where(mask[..., None] > 0, batch.observations, 9.0),
        torch.where(mask[..., None] > 0, batch.actions, 9.0),
        batch.advantages,
        mask,
    )
    short = Batch(
        batch.observations[:, :10],
        batch.actions[:, :10],
        batch.advantages[:, :10],
        mask[:, :10],
    )
    losses = [learner.policy_gradient(each)(weights) for each in (spoilt, short)]
    torch.testing.assert_close(*losses)
