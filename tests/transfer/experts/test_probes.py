"""Disagreement predicted from each layer, where the answer is known."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from metalearn.episodes import Examples
from transfer import disagreement_probes
from transfer.experts.probes import contest_of
from transfer.experts.votes import spread_of_shares


def hidden(items: int, raters: int, seed: int) -> Examples:
    """A hidden feature swaps the two classes; one input says how sure raters are.

    The shares of the votes are (.5 + a, .5 - a) or swapped, with a between 0 and .48.
    """
    generator = np.random.default_rng(seed)
    inputs = generator.uniform(size=(items, 3))
    sure = 0.48 * inputs[:, 0]
    first = np.where(generator.random(items) < 0.5, 0.5 + sure, 0.5 - sure)
    votes = generator.binomial(raters, first)
    counts = np.stack([votes, raters - votes], 1)
    return Examples(torch.tensor(inputs).float(), torch.tensor(counts))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 2))


def mirrored(data: Examples) -> Examples:
    """The data, and once more with the hidden feature the other way round."""
    votes = data.targets
    return Examples(data.inputs.repeat(2, 1), torch.cat([votes, votes.flip(1)]))


def test_the_theory_of_a_hidden_feature() -> None:
    shares = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).double()  # a = .4, for h = 0 and h = 1
    disagreement_of_mean = float(spread_of_shares(shares.mean(0, keepdim=True)))
    mean_disagreement = float(spread_of_shares(shares).mean())
    variance = float(shares.var(0, correction=0).sum())
    assert disagreement_of_mean == pytest.approx(0.5)
    assert mean_disagreement == pytest.approx(0.18)
    assert (
        disagreement_of_mean - mean_disagreement == pytest.approx(variance) == pytest.approx(0.32)
    )


def test_what_both_ways_estimate_orders_all_or_nothing() -> None:
    sure = np.random.default_rng(0).uniform(0, 0.48, 200)
    truth = 0.5 - 2 * sure**2
    contest = contest_of(0.5 - 2 * sure**2, np.full(200, 0.5), truth, float(truth.mean()))
    assert contest.direct.auc.value == contest.direct.auc.low == 1
    assert contest.via.auc.value == contest.via.auc.high == 0.5
    assert contest.auc_difference.value == 0.5
    assert np.isnan(contest.via.rank.value)


def test_direct_prediction_orders_the_items_where_a_feature_is_hidden() -> None:
    train, test = mirrored(hidden(1500, 3, seed=0)), hidden(2000, 50, seed=1)
    probes = disagreement_probes(network(), train, test, ["0", "1"], draws=50)
    for row in probes.layers:
        contest = row.contest
        assert contest.direct.auc.low > 0.9 and contest.direct.rank.low > 0.8
        # Direct is unbiased; via is too high by the variance of the shares, the mean of 2 a².
        assert contest.direct.mean == pytest.approx(probes.mean, abs=0.02)
        assert contest.via.mean == pytest.approx(0.5, abs=1e-6)
        assert contest.via.mean - probes.mean == pytest.approx(2 * 0.48**2 / 3, abs=0.02)
    assert probes["1"].features == 12


def visible(items: int, raters: int, seed: int) -> Examples:
    """Nothing is hidden: the shares are linear in the inputs."""
    generator = np.random.default_rng(seed)
    inputs = generator.uniform(size=(items, 3))
    votes = generator.binomial(raters, inputs[:, 0])
    counts = np.stack([votes, raters - votes], 1)
    return Examples(torch.tensor(inputs).float(), torch.tensor(counts))


def test_via_the_votes_wins_where_the_shares_are_linear() -> None:
    train, test = visible(2000, 3, seed=0), visible(1000, 50, seed=1)
    contest = (
        disagreement_probes(nn.Sequential(nn.Identity()), train, test, ["0"]).layers[0].contest
    )
    # The disagreement 2 x (1 - x) is no linear function of x.
    assert contest.via.auc.low > 0.95
    assert contest.auc_difference.high < -0.2


def test_the_same_seed_gives_the_same_result_and_data_sets_do_as_examples(tmp_path: Path) -> None:
    train, test = hidden(200, 3, seed=0), hidden(100, 9, seed=1)
    probes = disagreement_probes(network(), train, test, draws=30)
    sets = TensorDataset(*train), TensorDataset(*test)
    assert disagreement_probes(network(), *sets, draws=30) == probes
    other = disagreement_probes(network(), train, test, draws=30, seed=1)
    assert other["0"].contest.direct.auc.value == probes["0"].contest.direct.auc.value
    assert other["0"].contest.direct.auc.low != probes["0"].contest.direct.auc.low
    assert len(probes.records()) == 2 and probes.to_dict()["train"] == 200
    assert "AUC direct" in str(probes)
    probes.plot(tmp_path / "probes.svg")


def with_single(data: Examples, items: int) -> Examples:
    votes = data.targets.clone()
    votes[:items] = torch.tensor([1, 0])
    return Examples(data.inputs, votes)


def test_items_with_one_rater_are_left_out_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    train, test = hidden(100, 3, seed=0), hidden(80, 9, seed=1)
    with caplog.at_level(logging.WARNING, "metalearn"):
        probes = disagreement_probes(network(), with_single(train, 7), with_single(test, 2))
    assert "7 items of the training set have one rater" in caplog.text
    assert (probes.train, probes.test, probes.dropped) == (93, 78, (7, 2))
    rest = (
        Examples(train.inputs[7:], train.targets[7:]),
        Examples(test.inputs[2:], test.targets[2:]),
    )
    assert disagreement_probes(network(), *rest).layers == probes.layers
    assert "7 training and 2 test items with one rater were left out" in str(probes)


def test_a_test_set_without_high_disagreement_has_no_auc() -> None:
    train, test = hidden(100, 3, seed=0), hidden(80, 9, seed=1)
    probes = disagreement_probes(network(), train, test, ["0"], above=2.0, draws=10)
    assert np.isnan(probes["0"].contest.direct.auc.value)
    assert np.isfinite(probes["0"].contest.direct.rank.value)
    assert "not defined" in str(probes)
    constant = Examples(test.inputs, torch.tensor([[2, 2]]).expand(80, 2))
    probes = disagreement_probes(network(), train, constant, ["0"], draws=10)
    assert np.isnan(probes["0"].contest.direct.rank.value)
    assert "-" in probes.table().rows[0]


GOOD = hidden(50, 3, seed=0)


def votes(counts: object) -> Examples:
    return Examples(GOOD.inputs, torch.as_tensor(counts))


def refused(train: object, test: object = GOOD, **options: object) -> None:
    disagreement_probes(network(), train, test, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": votes(GOOD.targets - 2)}, r"votes of the training set of item \d+ .* are -"),
        ({"train": votes(GOOD.targets / 2)}, r"training set of item \d+ .*whole numbers"),
        ({"train": votes(GOOD.targets * 0)}, r"item 0 has no votes of the training set"),
        ({"train": with_single(GOOD, 50)}, r"all 50 items of the training set have one rater"),
        ({"train": votes(GOOD.targets * 0 + 1)}, r"all training items have the disagreement 1"),
        ({"train": Examples(GOOD.inputs[:9], GOOD.targets)}, r"9 inputs and votes of 50 items"),
        (
            {"train": GOOD, "test": votes(torch.ones(50, 3))},
            r"training votes are of 2 classes and the test votes of 3",
        ),
        ({"train": GOOD, "layers": ["7"]}, r"7"),
        ({"train": GOOD, "convention": "mean"}, r"there is no convention 'mean'"),
        ({"train": GOOD, "draws": -1}, r"draws=-1"),
    ],
)
def test_bad_input_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refused(**arguments)


@pytest.mark.parametrize("data", [3, [(torch.ones(3), "votes")], [torch.ones(3)]])
def test_what_is_no_data_of_votes_is_refused(data: object) -> None:
    with pytest.raises(TypeError, match=r"the training set"):
        refused(data)


def test_a_contest_needs_one_finite_value_an_item() -> None:
    with pytest.raises(ValueError, match=r"give one an item"):
        contest_of(np.ones(3), np.ones(2), np.ones(3), 0.5)
    with pytest.raises(ValueError, match=r"via of item 1 is nan"):
        contest_of(np.ones(2), np.array([1, np.nan]), np.ones(2), 0.5)
