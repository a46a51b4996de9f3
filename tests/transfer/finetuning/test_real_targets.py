"""Fine-tuning on votes and on numbers: losses, scores, and targets that are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from metalearn.training.regularisers import pulled
from tests.helpers import striped_images
from transfer import compare, disagreement, everywhere, finetune, fresh
from transfer.finetuning.curve import Curve
from transfer.finetuning.objectives import SoftVotes, SquaredError


def voted(items: int = 60, raters: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs (items, 4) and votes (items, 2): the first input says how much raters agree."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(items, 4, generator=generator)
    chance = torch.sigmoid(3 * inputs[:, 0]).double()
    first = torch.binomial(torch.full((items,), float(raters)).double(), chance, generator)
    return inputs, torch.stack([first, raters - first], 1).long()


def network(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, outputs))


def training(loss: object = "soft", outputs: int = 2, **options: object) -> Curve:
    sets = [voted(200), voted(400, raters=20, seed=1)]
    if loss == "mse" or isinstance(loss, SquaredError):
        sets = [(inputs, disagreement(votes)) for inputs, votes in sets]
    parts = [TensorDataset(*tensors) for tensors in sets]
    settings = {"steps": 40, "batch": 20, "lr": 0.01, "evaluate_every": 20, **options}
    return finetune(*parts, loss=loss, **settings)(network(outputs), seed=3)


def test_votes_of_one_mind_are_labels() -> None:
    logits = torch.randn(8, 3)
    labels = torch.randint(3, (8,))
    votes = 5.0 * F.one_hot(labels, 3)
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(SoftVotes().loss(logits, votes, None), expected)


@pytest.mark.parametrize("objective", [SoftVotes(), SquaredError()])
def test_the_loss_has_its_gradient(objective: SoftVotes | SquaredError) -> None:
    soft = isinstance(objective, SoftVotes)
    outputs = torch.randn(5, 3 if soft else 1, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(1, 5, (5, 3)).double() if soft else torch.rand(5).double()
    assert torch.autograd.gradcheck(lambda x: objective.loss(x, targets, None), outputs)


def test_the_loss_of_votes_is_least_at_their_shares() -> None:
    votes = torch.tensor([[1.0, 3.0]])
    at_shares = SoftVotes().loss(torch.tensor([[0.25, 0.75]]).log(), votes, None)
    for share in (0.2, 0.3):
        other = SoftVotes().loss(torch.tensor([[share, 1 - share]]).log(), votes, None)
        assert other > at_shares


@pytest.mark.parametrize(("loss", "outputs"), [("soft", 2), ("mse", 1)])
def test_training_orders_the_items_by_disagreement(loss: str, outputs: int) -> None:
    curve = training(loss, outputs, steps=200, evaluate_every=100)
    assert curve.metric == "rank"
    assert curve.final > 0.5 > curve.values[0]
    assert curve.scores["auc_above"][-1] > 0.8
    assert not curve.collapsed and math.isnan(curve.majority)
    assert Curve.from_dict(curve.to_dict()) == curve
    again = training(loss, outputs, steps=200, evaluate_every=100)
    assert (again.losses, again.scores) == (curve.losses, curve.scores)


def test_the_scores_are_those_of_scipy() -> None:
    _, votes = voted(raters=5)
    logits = torch.randn(60, 2)
    truth = disagreement(votes).numpy()
    predicted = 1 - (logits.double().softmax(1) ** 2).sum(1).numpy()
    scores = SoftVotes(above=0.5).scores(logits, votes, 2)
    assert scores["rank"] == pytest.approx(stats.spearmanr(predicted, truth).statistic)
    high = truth > 0.5
    u = stats.mannwhitneyu(predicted[high], predicted[~high]).statistic
    assert scores["auc_above"] == pytest.approx(u / (high.sum() * (~high).sum()))


def test_the_threshold_is_the_mean_of_training_unless_it_is_given() -> None:
    inputs, votes = voted()
    data = TensorDataset(inputs, votes)
    train = finetune(data, data, steps=1, loss="soft")
    expected = float(disagreement(votes).mean())
    assert train.settings["loss"] == f"SoftVotes(above={expected})"
    train = finetune(data, data, steps=1, loss=SoftVotes(above=0.3))
    assert train.settings["loss"] == "SoftVotes(above=0.3)"


def test_items_with_one_rater_train_and_are_not_scored() -> None:
    inputs, votes = voted()
    single = torch.tensor([[1, 0]]).repeat(10, 1)
    more = TensorDataset(torch.cat([inputs, inputs[:10]]), torch.cat([votes, single]))
    less = TensorDataset(inputs, votes)
    settings = {"steps": 2, "batch": 8, "loss": "soft"}
    with_single = finetune(less, more, **settings)(network(), seed=0)
    assert with_single.scores == finetune(less, less, **settings)(network(), seed=0).scores


def test_a_constant_prediction_orders_nothing() -> None:
    scores = SquaredError(above=0.5).scores(torch.ones(4, 1), torch.tensor([0.0, 0, 1, 1]), 1)
    assert scores == {"rank": 0.0, "auc_above": 0.5}


def test_starts_are_compared_on_votes() -> None:
    data = TensorDataset(*voted())
    train = finetune(data, data, steps=4, batch=10, evaluate_every=2, loss="soft")
    starts = {"fresh": everywhere(fresh()), "again": everywhere(fresh())}
    comparison = compare(starts, network, train, voted(100)[0], seeds=(0, 1))
    assert comparison.metric == "rank" and "rank" in str(comparison)


def refused(votes: object, test_votes: object = None, **options: object) -> None:
    inputs, usual = voted()
    votes = usual if votes is None else torch.as_tensor(votes)
    test_votes = usual if test_votes is None else torch.as_tensor(test_votes)
    parts = TensorDataset(inputs[: len(votes)], votes), TensorDataset(inputs, test_votes)
    finetune(*parts, steps=2, **{"loss": "soft", **options})


AGREED = np.tile([3, 0], (60, 1))
MIXED = np.concatenate([np.tile([3, 0], (30, 1)), np.tile([1, 2], (30, 1))])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"votes": MIXED - 1}, r"votes of the training set of item 0 for class 1 are -1"),
        ({"votes": MIXED / 3}, r"item 30 for class 0 are 0\.333.*whole numbers"),
        ({"votes": MIXED * 0}, r"item 0 has no votes"),
        ({"votes": AGREED}, r"all items of the training set have the disagreement 0"),
        ({"votes": None, "test_votes": AGREED}, r"all items of the test set"),
        ({"votes": MIXED // 2 + 0}, r"one rater"),
        ({"votes": None, "test_votes": np.tile([1, 1, 1], (60, 1))}, r"of 3 classes"),
        ({"votes": None, "loss": SoftVotes(above=2.0), "metric": "auc_above"}, r"above 2 is not"),
        ({"votes": None, "metric": "accuracy"}, r"metric='accuracy'; choose rank, auc_above"),
        ({"votes": None, "balance": "loss"}, r"balance='loss'.*leave it out"),
        ({"votes": None, "loss": "hinge"}, r"loss='hinge'; choose cross_entropy, soft, mse"),
        ({"votes": None, "loss": "mse"}, r"shape \(60, 2\).*loss='soft'"),
        ({"votes": np.full(60, np.nan), "loss": "mse"}, r"target of item 0 .* is nan"),
    ],
)
def test_bad_targets_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refused(**arguments)


def test_labels_are_no_votes() -> None:
    with pytest.raises(TypeError, match=r"training set have shape \(36,\)"):
        finetune(striped_images(), striped_images(), steps=2, loss="soft")
    with pytest.raises(TypeError, match=r"item 0 of the training set is no pair"):
        finetune("images", "images", steps=2, loss="soft")
    with pytest.raises(TypeError, match=r"the training set is a generator"):
        finetune((pair for pair in ()), [], steps=2, loss="mse")


def test_a_head_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"outputs=2"):
        training("soft", outputs=3)
    with pytest.raises(ValueError, match=r"outputs=1"):
        training("mse", outputs=2)


def test_pairs_read_one_by_one_and_several_inputs_train_alike() -> None:
    inputs, votes = voted()
    settings = {"steps": 4, "batch": 8, "loss": "soft"}
    together = TensorDataset(inputs, votes)
    pairs = list(zip(inputs, votes, strict=True))
    expected = finetune(together, together, **settings)(network(), seed=0)
    one_by_one = finetune(pairs, pairs, **settings)(network(), seed=0)
    assert (one_by_one.losses, one_by_one.scores) == (expected.losses, expected.scores)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    named = [({"x": entry}, vote) for entry, vote in pairs]
    several = finetune(named, named, **settings)(Named(), seed=0)
    assert (several.losses, several.scores) == (expected.losses, expected.scores)


def test_a_training_on_votes_that_was_stopped_continues_with_the_same_bits(tmp_path: Path) -> None:
    parts = [TensorDataset(*voted(200)), TensorDataset(*voted(400, raters=20, seed=1))]
    options: dict[str, Any] = {
        "steps": 12,
        "batch": 20,
        "evaluate_every": 4,
        "loss": "soft",
        "decay": "cosine",
        "frozen": {"0": 6},
        "penalty": pulled(network(), 0.1),
        "keep": (0, 6),
    }

    def stop(count: int = 1, text: str = "") -> None:
        if (tmp_path / "seed0.training.previous").exists():
            raise KeyboardInterrupt

    train = finetune(*parts, **options, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(network(), 0, stop)
    continued, whole = network(), network()
    curve, expected = train(continued, 0), finetune(*parts, **options)(whole, 0)
    assert curve.losses == expected.losses and curve.scores == expected.scores
    assert list(curve.snapshots) == [0, 6]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(continued.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="loss"):
        finetune(*parts, **{**options, "loss": SoftVotes(above=0.1)}, folder=tmp_path)(network(), 0)
