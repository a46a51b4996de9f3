"""The rule of the verdict: what it decides, what it says first, and where it stays silent."""

from __future__ import annotations

import math

import pytest

from metalearn.analysis import Estimate, verdict
from metalearn.analysis.adaptation.verdict import RULE

SAME = Estimate(0.99, 0.005)
CHANGED = Estimate(0.5, 0.02)
NOTHING = Estimate(0.001, 0.004)
MUCH = Estimate(0.083, 0.014)


@pytest.mark.parametrize("similarity", [{"a": SAME, "b": SAME}, {"a": SAME, "b": CHANGED}, {}])
def test_a_change_that_is_worth_nothing_is_feature_reuse(similarity):
    assert verdict(NOTHING, similarity).answer == "feature reuse"


def test_a_change_that_loses_accuracy_is_feature_reuse_and_said_to_lose():
    answer = verdict(Estimate(-0.03, 0.01), {"a": SAME})
    assert answer.answer == "feature reuse"
    assert "loses 3.00 ± 1.00 points" in answer.evidence and "-" not in answer.evidence


@pytest.mark.parametrize(("interval", "answer"), [(0.01, "feature reuse"), (0.04, "undecided")])
def test_a_loss_within_its_interval_is_called_a_loss_too(interval, answer):
    found = verdict(Estimate(-0.0093, interval), {})
    assert found.answer == answer
    assert "loses 0.93" in found.evidence and "-0.93" not in found.evidence


@pytest.mark.parametrize("similarity", [{"a": SAME}, {"a": CHANGED}, {}])
def test_a_change_that_is_worth_more_than_the_bound_is_rapid_learning(similarity):
    assert verdict(MUCH, similarity).answer == "rapid learning"


@pytest.mark.parametrize(
    "worth",
    [
        Estimate(0.02, 0.004),
        Estimate(0.05, 0.04),
        Estimate(0.015, math.nan),
        Estimate(math.nan, math.nan),
    ],
)
def test_an_interval_on_the_bound_or_none_is_undecided(worth):
    assert verdict(worth, {"a": CHANGED}).answer == "undecided"


@pytest.mark.parametrize(
    ("costs", "answer"),
    [
        ((0.001, 0.08), "reuse below b, rapid learning in b"),
        ((0.08, 0.09), "rapid learning"),
        ((0.019, 0.08), "rapid learning"),  # within its interval of the bound
    ],
)
def test_rapid_learning_is_placed_by_what_can_be_frozen(costs, answer):
    frozen = {name: Estimate(cost, 0.005) for name, cost in zip("ab", costs, strict=True)}
    assert verdict(MUCH, {"a": SAME, "b": CHANGED}, frozen).answer == answer


def test_rapid_learning_of_several_layers_is_placed_from_the_first_of_them_on():
    frozen = {"a": NOTHING, "b": Estimate(0.04, 0.01), "c": MUCH}
    assert (
        verdict(MUCH, dict.fromkeys("abc", SAME), frozen).answer
        == "reuse below b, rapid learning from b on"
    )


def test_the_first_sentence_says_the_worth_and_which_layer_it_is():
    added = {"a": Estimate(0.001, 0.002), "b": Estimate(0.08, 0.01)}
    evidence = verdict(MUCH, {"a": SAME, "b": CHANGED}, added=added).evidence
    assert evidence.startswith(
        "Adapting the body is worth 8.30 ± 1.40 points here; most of that is b."
    )
    assert "b changes (CKA below 0.9)." in evidence
    equal = {"a": Estimate(0.04, 0.01), "b": Estimate(0.041, 0.01)}
    assert "most" not in verdict(MUCH, {"a": SAME, "b": SAME}, added=equal).evidence


def test_every_condition_has_its_status_and_the_rule_its_bounds():
    criteria = verdict(NOTHING, {"a": SAME, "b": CHANGED, "c": Estimate(0.9, 0.02)}).criteria
    assert [criterion.status for criterion in criteria] == ["holds", "holds", "fails", "open"]
    assert "2 points" in RULE and "0.9" in RULE


def test_for_losses_the_bound_is_a_share_of_the_loss_of_a_constant():
    worth = Estimate(0.03, 0.005)
    assert verdict(worth, {}, measure="loss", whole=4.0).answer == "feature reuse"
    assert verdict(worth, {}, measure="loss", whole=1.0).answer == "rapid learning"
    assert "points" not in verdict(worth, {}, measure="loss", whole=1.0).evidence


@pytest.mark.parametrize("wrong", [0.08, (0.08, 0.01), None])
def test_a_worth_without_an_interval_is_refused(wrong):
    with pytest.raises(TypeError, match="give an Estimate"):
        verdict(wrong, {"a": SAME})


def test_similarities_without_intervals_are_refused():
    with pytest.raises(TypeError, match="give an Estimate"):
        verdict(MUCH, {"a": 0.9})
    with pytest.raises(TypeError, match="similarity"):
        verdict(MUCH, [SAME])
