"""Pointer value retrieval: labels, holdouts and determinism of vectors."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter

import pytest
import torch

from metalearn.data.pointer_value import (
    BLOCK,
    FUNCTIONS,
    PointerVectors,
    label_entropy,
    pointed_windows,
    pointer_vectors,
)
from metalearn.tasks import FewShot


def slow_majority(window: list[int]) -> int:
    counts = Counter(window)
    return min(value for value, count in counts.items() if count == max(counts.values()))


SLOW = {
    "sum": lambda window: sum(window) % 10,
    "min": min,
    "max": max,
    "median": statistics.median_low,
    "majority": slow_majority,
}


def slow_window(row: list[int], complexity: int) -> list[int]:
    pointer, *values = row
    return [values[(pointer + step) % 10] for step in range(complexity + 1)]


def windows_of(data: PointerVectors) -> list[tuple[int, ...]]:
    return [tuple(slow_window(row, data.complexity)) for row in data.inputs.tolist()]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("complexity", "wrap"), [(0, False), (1, False), (3, True), (9, True)])
def test_labels_are_those_of_a_slow_loop(function: str, complexity: int, wrap: bool) -> None:
    data = pointer_vectors(200, complexity=complexity, function=function, seed=3, wrap=wrap)
    slow = [SLOW[function](list(window)) for window in windows_of(data)]
    assert data.labels.tolist() == slow
    assert data.inputs.dtype == data.labels.dtype == torch.int64
    assert data.inputs.shape == (200, 11)


@pytest.mark.parametrize(
    ("function", "window", "label"),
    [
        ("median", [9, 1, 4, 2], 2),  # the lower of 2 and 4
        ("median", [7, 3], 3),
        ("majority", [5, 2, 5, 2], 2),  # the smaller of two that are as frequent
        ("majority", [8, 8, 1], 8),
        ("majority", [3, 1, 2], 1),
        ("sum", [9, 9, 9], 7),
    ],
)
def test_ties_by_table(function: str, window: list[int], label: int) -> None:
    assert FUNCTIONS[function](torch.tensor([window])).tolist() == [label]


@pytest.mark.parametrize(("complexity", "holdout", "wrap"), [(1, 2, False), (2, 4, True)])
def test_no_training_window_is_held_out_and_every_adversarial_one_is(
    complexity: int, holdout: int, wrap: bool
) -> None:
    held_out = list(itertools.permutations(range(complexity + 1)))[:holdout]
    settings = {"complexity": complexity, "holdout": holdout, "wrap": wrap}
    train = pointer_vectors(BLOCK + 500, seed=0, **settings)
    assert not set(windows_of(train)) & set(held_out)
    shifted = pointer_vectors(3000, seed=1, adversarial=True, **settings)
    counts = Counter(windows_of(shifted))
    assert set(counts) == set(held_out)
    # Each held-out window is as frequent: within 5 standard deviations.
    expected = 3000 / holdout
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in counts.values())


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(("holdout", "adversarial"), [(0, False), (2, False), (2, True)])
def test_pointers_are_uniform(holdout: int, adversarial: bool, wrap: bool) -> None:
    data = pointer_vectors(
        50_000, complexity=1, seed=5, holdout=holdout, adversarial=adversarial, wrap=wrap
    )
    counts = torch.bincount(data.inputs[:, 0])
    pointers = 10 if wrap else 9
    assert len(counts) == pointers
    expected = 50_000 / pointers
    assert float((counts - expected).abs().max()) < 5 * math.sqrt(expected)
    # The values outside of the window are uniform too.
    others = (data.inputs[:, :1] + torch.tensor([3, 5])) % 10
    counts = torch.bincount(data.inputs[:, 1:].gather(1, others).flatten())
    assert float((counts - 10_000).abs().max()) < 5 * math.sqrt(10_000)


def test_rejection_leaves_the_distribution_of_other_windows_alone() -> None:
    # The unofficial code adds 1 to the values of held-out rows, which doubles shifted windows.
    train = pointer_vectors(300_000, complexity=1, seed=0, holdout=2)
    windows = pointed_windows(train.inputs, 1)
    counts = torch.bincount(10 * windows[:, 0] + windows[:, 1], minlength=100)
    assert counts[1] == counts[10] == 0
    expected = 300_000 / 98
    others = counts[counts > 0]
    assert len(others) == 98
    assert float((others - expected).abs().max()) < 5 * math.sqrt(expected)


def test_rows_depend_on_the_seed_and_their_number_alone() -> None:
    settings = {"complexity": 1, "holdout": 2, "function": "max"}
    many = pointer_vectors(BLOCK + 10, seed=7, **settings)
    few = pointer_vectors(100, seed=7, **settings)
    assert torch.equal(many.inputs[:100], few.inputs) and torch.equal(many.labels[:100], few.labels)
    again = pointer_vectors(BLOCK + 10, seed=7, **settings)
    assert torch.equal(many.inputs, again.inputs)
    other = pointer_vectors(100, seed=8, **settings)
    assert not torch.equal(few.inputs, other.inputs)
    # Two blocks do not repeat each other.
    assert not torch.equal(many.inputs[:10], many.inputs[BLOCK:])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_adversarial_labels_are_constant_whatever_is_held_out(function: str) -> None:
    # All functions are symmetric, so every permutation of (0, ..., m) has one label.
    for holdout in (1, 3, 24):
        shifted = pointer_vectors(
            500, complexity=3, function=function, holdout=holdout, adversarial=True
        )
        assert shifted.entropy == 0
    assert pointer_vectors(500, complexity=1, holdout=1, adversarial=True).labels.eq(1).all()


def test_entropy_of_labels() -> None:
    assert label_entropy(torch.tensor([0, 1, 2, 3])) == 2
    assert label_entropy(torch.tensor([0, 0, 0, 1])) == pytest.approx(0.811278124)
    assert pointer_vectors(20_000, function="sum").entropy == pytest.approx(math.log2(10), abs=1e-3)


def test_facts_are_those_of_the_inputs() -> None:
    data = pointer_vectors(50, complexity=2, seed=1)
    facts = data.facts()
    assert list(facts) == ["pointer", *(f"value {i}" for i in range(10)), "pointed value"]
    for i, row in enumerate(data.inputs.tolist()):
        assert int(facts["pointed value"][i]) == row[1 + row[0]]
        assert int(facts["value 4"][i]) == row[5]


def test_few_shot_tasks_take_vectors() -> None:
    tasks = FewShot(pointer_vectors(500), ways=5, shots=2, queries=3, tasks=4)
    support, query = tasks[0]
    assert support.inputs.shape == (10, 11) and support.inputs.dtype == torch.int64
    assert query.inputs.shape == (15, 11)
    assert tasks.settings()["data"]["source"] == "pointer_vectors"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"complexity": 10}, "complexity=10.*give 0 to 9"),
        ({"complexity": -1}, "complexity=-1"),
        ({"holdout": 1}, "holdout=1 with complexity=0"),
        ({"complexity": 2, "holdout": 7}, "holdout=7.*give at most 6"),
        ({"function": "maximum"}, r"'maximum' \(did you mean max"),
        ({"function": "xyz"}, "'xyz'; choose from sum, min, max, median, majority"),
        ({"function": ["sum"]}, "there is no function"),
        ({"complexity": 1, "adversarial": True}, "holdout=0 holds out none"),
        (
            {"complexity": 9, "holdout": 3, "adversarial": True, "size": 4},
            "size=4: .* there are 3 different inputs",
        ),
        ({"size": 10**12}, "size=1,000,000,000,000"),
        ({"size": 0}, "size=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_settings_are_named_with_a_cure(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pointer_vectors(**{"size": 10, **settings})


@pytest.mark.parametrize("settings", [{"size": 10.0}, {"complexity": "1"}, {"holdout": True}])
def test_numbers_that_are_not_whole(settings: dict) -> None:
    with pytest.raises(TypeError, match="whole number"):
        pointer_vectors(**{"size": 10, "complexity": 1, **settings})
