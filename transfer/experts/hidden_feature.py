"""The case that the theory of direct prediction is about: raters see a feature, the network none.

Raghu et al. 2019 (arXiv:1807.01771). Of two classes, raters choose the first with a share of
.5 + a(x), or, if a hidden feature is 1, of .5 - a(x). The network sees x alone. The mean shares
given x are (.5, .5) for every x, so prediction via the votes says .5 everywhere and orders nothing;
the disagreement given x is .5 - 2 a(x)², which direct prediction can learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from metalearn.runtime.checks import positive
from transfer.experts.probes import Contest, contest_of
from transfer.experts.votes import disagreement, spread_of_shares
from transfer.finetuning.finetune import finetune

LARGEST = 0.48  # of a(x)
INPUTS = 10
WIDTH = 64  # of the hidden layer


class HiddenVotes(NamedTuple):
    """Items with a hidden feature.

    Attributes:
        inputs: (items, inputs) x, float32.
        counts: (items, 2) votes.
        disagreement: (items,) of infinitely many raters, .5 - 2 a(x)².
    """

    inputs: Tensor
    counts: Tensor
    disagreement: Tensor


def hidden_votes(items: int, raters: int, *, seed: int = 0) -> HiddenVotes:
    r"""Draw items, their hidden feature and their votes.

    $a(x) = .48 \sigma(2 w^T x)$ with normal x and a unit vector w, the same for every seed.

    Args:
        items: how many.
        raters: votes of each.
        seed: of the draws.

    Example:
        >>> votes = hidden_votes(100, raters=3)
        >>> votes.inputs.shape, votes.counts.sum(1).unique()
        (torch.Size([100, 10]), tensor([3]))
    """
    items, raters = positive(items=items, raters=raters)
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(items, INPUTS))
    direction = np.full(INPUTS, INPUTS**-0.5)
    sure = LARGEST / (1 + np.exp(-2 * inputs @ direction))  # a(x) (items,)
    sign = generator.choice([-1, 1], items)  # the hidden feature
    first = generator.binomial(raters, 0.5 + sign * sure)
    return HiddenVotes(
        torch.tensor(inputs, dtype=torch.float32),
        torch.tensor(np.stack([first, raters - first], 1)),
        torch.tensor(0.5 - 2 * sure**2),
    )


@dataclass(frozen=True)
class HiddenCase:
    """Direct prediction against prediction via the votes, with a hidden feature.

    Attributes:
        raters: votes of each training item.
        contest: both predictions against the true disagreement of the test items.
        mean: the mean true disagreement.
    """

    raters: int
    contest: Contest
    mean: float


def hidden_case(
    raters: int,
    *,
    items: int = 8000,
    test_items: int = 2000,
    steps: int = 600,
    draws: int = 1000,
    seed: int = 0,
) -> HiddenCase:
    """Train one small network on votes and one on disagreement, where a feature is hidden.

    Args:
        raters: votes of each training item.
        items: training items.
        test_items: test items.
        steps: updates of each network.
        draws: bootstrap samples of the test items.
        seed: of the items, the networks and their training.

    Example:
        >>> case = hidden_case(3, items=50, test_items=50, steps=2, draws=0)
        >>> case.raters, 0 < case.mean < 0.5
        (3, True)
    """
    train = hidden_votes(items, raters, seed=2 * seed)
    test = hidden_votes(test_items, raters, seed=2 * seed + 1)
    # The test items are scored against the truth below, and not by these targets.
    direct = _trained(train.inputs, disagreement(train.counts), test, 1, "mse", steps, seed)
    via = _trained(train.inputs, train.counts, test, 2, "soft", steps, seed)
    with torch.no_grad():
        predicted = direct(test.inputs)[:, 0].double()
        shares = via(test.inputs).double().softmax(1)
    truth = test.disagreement
    contest = contest_of(
        predicted, spread_of_shares(shares), truth, float(truth.mean()), draws=draws, seed=seed
    )
    return HiddenCase(raters, contest, float(truth.mean()))


def _trained(
    inputs: Tensor,
    targets: Tensor,
    test: HiddenVotes,
    outputs: int,
    loss: str,
    steps: int,
    seed: int,
) -> nn.Module:
    test_targets = test.counts if loss == "soft" else disagreement(test.counts)
    train = finetune(
        TensorDataset(inputs, targets),
        TensorDataset(test.inputs, test_targets),
        steps=steps,
        batch=128,
        lr=3e-3,
        evaluate_every=steps,
        loss=loss,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs))
    train(model, seed)
    return model.eval()
