"""The learned case of the theory: a hidden feature makes prediction via the votes useless."""

from __future__ import annotations

import pytest
import torch

from transfer import disagreement
from transfer.experts.hidden_feature import hidden_case, hidden_votes


def test_the_votes_have_the_stated_disagreement() -> None:
    votes = hidden_votes(20_000, 5, seed=0)
    measured = disagreement(votes.counts)
    assert float(measured.mean()) == pytest.approx(float(votes.disagreement.mean()), abs=0.01)
    high = votes.disagreement > 0.4
    expected = float(votes.disagreement[high].mean())
    assert float(measured[high].mean()) == pytest.approx(expected, abs=0.01)
    # The hidden feature hides which class it is.
    shares = votes.counts[~high].double().mean(0)
    assert float(shares[0]) == pytest.approx(float(shares[1]), abs=0.1)


def test_the_seed_decides_the_items() -> None:
    first, again, other = (hidden_votes(50, 3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.inputs, again.inputs) and torch.equal(first.counts, again.counts)
    assert not torch.equal(first.inputs, other.inputs)


def test_direct_prediction_learns_what_the_votes_cannot_tell() -> None:
    case = hidden_case(3, items=4000, test_items=1000, steps=200, draws=100)
    contest = case.contest
    assert contest.direct.auc.low > 0.9 and contest.direct.rank.low > 0.8
    assert 0.3 < contest.via.auc.value < 0.75
    assert contest.auc_difference.low > 0.2
    # The votes say .5 everywhere; the truth is .5 - 2 a(x)².
    assert contest.via.mean == pytest.approx(0.5, abs=0.02)
    assert contest.direct.mean == pytest.approx(case.mean, abs=0.04)
    assert case.mean < 0.36


def test_the_same_seed_gives_the_same_case() -> None:
    settings = {"items": 60, "test_items": 40, "steps": 3, "draws": 5}
    state = torch.get_rng_state()
    assert hidden_case(3, **settings) == hidden_case(3, **settings)
    assert hidden_case(3, **settings) != hidden_case(3, **settings, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
