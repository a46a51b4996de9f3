"""Disagreement of votes: unbiased by enumeration, and bad votes refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from transfer import disagreement
from transfer.experts.votes import counts_of_raters


def expectation(shares: tuple[float, ...], raters: int, **options: object) -> float:
    """The expected disagreement over all votes of so many raters."""
    classes = range(len(shares))
    total = 0.0
    for votes in itertools.product(classes, repeat=raters):
        chance = math.prod(shares[vote] for vote in votes)
        counts = [[votes.count(label) for label in classes]]
        total += chance * float(disagreement(counts, **options))
    return total


@pytest.mark.parametrize("raters", [2, 3, 5])
def test_it_is_unbiased_over_all_votes(raters: int) -> None:
    shares = (0.5, 0.3, 0.2)
    assert expectation(shares, raters) == pytest.approx(0.62, abs=1e-12)
    plain = expectation(shares, raters, unbiased=False)
    assert plain == pytest.approx((1 - 1 / raters) * 0.62, abs=1e-12)


def test_the_uncorrected_value_of_three_raters() -> None:
    assert expectation((0.5, 0.3, 0.2), 3, unbiased=False) == pytest.approx(0.41333, abs=1e-5)


def test_the_variance_of_grades_is_unbiased() -> None:
    shares = (0.5, 0.3, 0.2)
    grades = (0.0, 1.0, 4.0)
    mean = 0.3 + 0.8
    variance = 0.3 + 3.2 - mean**2
    assert expectation(shares, 3, grades=grades) == pytest.approx(variance, abs=1e-12)
    counts = [[2, 1, 3]]
    votes = np.repeat(grades, counts[0])
    assert float(disagreement(counts, grades=grades)) == pytest.approx(np.var(votes, ddof=1))
    shifted = disagreement(counts, grades=[1e6 + grade for grade in grades])
    assert float(shifted) == pytest.approx(np.var(votes, ddof=1), rel=1e-6)


def test_the_order_of_classes_does_not_matter() -> None:
    counts = torch.randint(1, 6, (20, 4))
    permuted = counts[:, torch.randperm(4)]
    assert torch.equal(disagreement(counts), disagreement(permuted))  # ties stay ties


def test_agreement_is_zero_and_two_raters_who_differ_are_one() -> None:
    assert disagreement([[5, 0], [0, 2]]).tolist() == [0, 0]
    assert float(disagreement([[1, 1]])) == 1
    assert float(disagreement([[1, 1]], unbiased=False)) == 0.5


def test_one_rater_says_nothing() -> None:
    values = disagreement([[1, 0], [1, 1]])
    assert values[0].isnan() and values[1] == 1
    assert disagreement([[1, 0], [1, 1]], unbiased=False).tolist() == [0, 0.5]
    with pytest.raises(ValueError, match=r"all 2 items have one rater.*two or more"):
        disagreement([[1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[2, 1], [-1, 3]], r"item 1 for class 0 are -1"),
        ([[0.5, 0.5]], r"item 0 for class 0 are 0\.5.*whole numbers"),
        ([[math.nan, 1]], r"item 0 for class 0 are nan"),
        ([[2, 1], [0, 0]], r"item 1 has no votes"),
        (np.zeros((0, 3)), r"of no item"),
    ],
)
def test_bad_votes_are_refused(counts: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        disagreement(counts)


@pytest.mark.parametrize("counts", [[1, 2], "votes", [[1, 2], [1]], 3])
def test_what_is_no_matrix_is_refused(counts: object) -> None:
    with pytest.raises(TypeError, match=r"\(items, classes\)"):
        disagreement(counts)


def test_grades_are_one_for_each_class() -> None:
    with pytest.raises(ValueError, match=r"2 grades for 3 classes"):
        disagreement([[1, 1, 0]], grades=(0, 1))


def test_labels_of_raters_become_votes() -> None:
    counts = counts_of_raters(np.array([[0, 2, 2], [1, 1, 1]], dtype=np.uint8), 3)
    assert counts.tolist() == [[1, 0, 2], [0, 3, 0]]
    with pytest.raises(ValueError, match=r"rater 1 gave item 0 the label 3"):
        counts_of_raters([[0, 3]], 3)
    with pytest.raises(ValueError, match=r"one column for each rater"):
        counts_of_raters([0, 1], 3)
