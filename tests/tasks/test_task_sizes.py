"""Ways, shots and queries that are drawn for each task."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from metalearn.episodes import stack
from metalearn.tasks import FewShot, MetaDatasetSizes, Mixture, glyphs
from metalearn.tasks.keyed_random import philox

COUNTS = np.array([20, 30, 8, 50, 25, 40, 12, 60])


def numbered(counts: np.ndarray = COUNTS) -> TensorDataset:
    """Every example is its own number, so that what was drawn can be read."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.from_numpy(counts))
    return TensorDataset(torch.arange(len(labels)).float().unsqueeze(1), labels)


def class_of(numbers: torch.Tensor) -> np.ndarray:
    return np.searchsorted(np.cumsum(COUNTS), numbers.flatten().long().numpy(), side="right")


def test_ranges_are_drawn_whole_and_uniformly() -> None:
    tasks = FewShot(numbered(), ways=(2, 5), shots=(1, 3), queries=(2, 4), tasks=600, seed=4)
    seen: dict[str, list[int]] = {"ways": [], "shots": [], "queries": []}
    for i in range(600):
        support, query = tasks[i]
        counts = support.targets.bincount()
        assert counts.unique().numel() == 1
        assert query.targets.bincount().unique().numel() == 1
        ways = len(counts)
        seen["ways"].append(ways)
        seen["shots"].append(int(counts[0]))
        seen["queries"].append(len(query.targets) // ways)
        drawn = torch.cat([support.inputs, query.inputs]).flatten()
        assert drawn.unique().numel() == len(drawn)  # support and query are disjoint
        classes = class_of(support.inputs)
        for label in range(ways):
            own = classes[support.targets.numpy() == label]
            assert len(set(own)) == 1
            assert set(class_of(query.inputs)[query.targets.numpy() == label]) == set(own)
    for name, (low, high) in {"ways": (2, 5), "shots": (1, 3), "queries": (2, 4)}.items():
        values, frequency = np.unique(seen[name], return_counts=True)
        assert values.tolist() == list(range(low, high + 1)), name
        expected = 600 / len(values)
        # Chi squared at 99.9 % for 3 degrees of freedom.
        assert ((frequency - expected) ** 2 / expected).sum() < 16.3, name


def test_a_task_depends_on_seed_and_index_alone() -> None:
    tasks = FewShot(numbered(), (2, 5), (1, 3), 4, tasks=20, seed=9)
    again = FewShot(numbered(), (2, 5), (1, 3), 4, tasks=20, seed=9)
    assert all(again[i].query.inputs.equal(tasks[i].query.inputs) for i in reversed(range(20)))
    other = FewShot(numbered(), (2, 5), (1, 3), 4, tasks=20, seed=10)
    assert any(other[i].support.inputs.shape != tasks[i].support.inputs.shape for i in range(20))
    loader = DataLoader(tasks, batch_size=None, num_workers=1)
    for i, task in zip(range(3), loader, strict=False):
        assert task.support.inputs.equal(tasks[i].support.inputs)


def test_fixed_numbers_draw_what_they_always_drew() -> None:
    fixed = FewShot(glyphs("test"), 5, 1, 3, tasks=4, seed=2)
    assert not fixed.sizes_vary
    assert fixed.settings()["ways"] == 5
    one_value = FewShot(glyphs("test"), (5, 5), 1, 3, tasks=4, seed=2)
    assert one_value[0].support.inputs.shape == fixed[0].support.inputs.shape


def test_the_rule_of_meta_dataset_is_followed() -> None:
    rule = MetaDatasetSizes(ways=(3, 6), queries=10, support=40, per_class=15)
    tasks = FewShot(numbered(), sizes=rule, tasks=400, seed=1)
    for i in range(400):
        support, query = tasks[i]
        shots = support.targets.bincount().numpy()
        queries = query.targets.bincount().numpy()
        classes = [
            class_of(support.inputs)[support.targets.numpy() == k][0] for k in range(len(shots))
        ]
        sizes = COUNTS[classes]
        assert 3 <= len(shots) <= 6
        assert (queries == min(10, sizes.min() // 2)).all()
        assert (shots >= 1).all()
        assert (shots + queries <= sizes).all()
        assert shots.sum() <= 40


def test_the_numbers_of_meta_dataset_match_a_plain_computation() -> None:
    rule = MetaDatasetSizes(ways=(3, 6), queries=7, support=60, per_class=20)
    for seed in range(20):
        size = rule.draw(philox(seed, 0), COUNTS)
        rng = philox(seed, 0)
        ways = rng.integers(3, 7)
        classes = rng.choice(8, ways, replace=False)
        queries = min(7, min(COUNTS[c] for c in classes) // 2)
        beta = 1 - rng.random()
        contributions = [math.ceil(beta * min(20, COUNTS[c] - queries)) for c in classes]
        total = min(60, sum(contributions))
        noise = rng.uniform(math.log(0.5), math.log(2), ways)
        weights = [COUNTS[c] * math.exp(a) for c, a in zip(classes, noise, strict=True)]
        shots = [
            min(COUNTS[c] - queries, 1 + math.floor(w / sum(weights) * (total - ways)))
            for c, w in zip(classes, weights, strict=True)
        ]
        assert size.classes.tolist() == classes.tolist()
        assert size.shots.tolist() == shots
        assert set(size.queries.tolist()) == {queries}


def test_the_record_tells_the_rule() -> None:
    ranged = FewShot(numbered(), (2, 5), 1, 4, tasks=20).settings()
    assert (ranged["ways"], ranged["shots"], ranged["queries"]) == ([2, 5], [1, 1], [4, 4])
    rule = FewShot(numbered(), sizes=MetaDatasetSizes(), tasks=20).settings()
    assert (rule["sizes"], rule["ways"], rule["support"]) == ("Meta-Dataset", [5, 50], 500)
    assert "shots" not in rule
    assert "RangedSizes" not in repr(FewShot(numbered(), (2, 5), 1, 4, tasks=20))


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "range falls": ({"ways": (5, 2)}, ValueError, r"ways=\(5, 2\) falls.*\(2, 5\)"),
    "three numbers": ({"shots": (1, 2, 3)}, ValueError, r"give a number, or \(smallest, largest\)"),
    "zero": ({"ways": (0, 3)}, ValueError, "ways=0"),
    "fraction": ({"queries": (1.5, 3)}, TypeError, "queries"),
    "too many ways": ({"ways": (2, 9)}, ValueError, "8 classes but ways=.*9"),
    "too many images": ({"shots": (1, 6)}, ValueError, "'2' has 8 images but .* need 10"),
    "nothing": ({"ways": None}, TypeError, "ways=None"),
    "both": ({"sizes": MetaDatasetSizes()}, TypeError, "both set the sizes of tasks"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sizes_are_named(case: str) -> None:
    changes, error, message = BAD[case]
    options: dict[str, Any] = {"ways": (2, 5), "shots": 1, "queries": 4, "tasks": 5, **changes}
    with pytest.raises(error, match=message):
        FewShot(numbered(), **options)


def test_bad_rules_of_meta_dataset_are_named() -> None:
    with pytest.raises(ValueError, match="support=20 is less than the 50 ways"):
        MetaDatasetSizes(support=20)
    with pytest.raises(ValueError, match="queries=0"):
        MetaDatasetSizes(queries=0)
    with pytest.raises(ValueError, match="class '1' has 1 images"):
        FewShot(numbered(np.array([5, 1, 5])), sizes=MetaDatasetSizes(ways=(2, 3)), tasks=3)
    with pytest.raises(ValueError, match=r"8 classes but .*ask for at most 8 ways"):
        FewShot(numbered(), sizes=MetaDatasetSizes(ways=(9, 12)), tasks=3)
    with pytest.raises(TypeError, match="tasks"):
        FewShot(numbered(), sizes=MetaDatasetSizes(ways=(2, 3)))


def test_stacks_are_padded_and_augmented_alike() -> None:
    tasks = FewShot(glyphs("test"), (2, 4), (1, 2), 3, tasks=8, augment=torch.nn.Identity())
    stacked = tasks.stack([0, 1, 2, 3])
    expected = stack([tasks[i] for i in range(4)], pad=True)
    assert stacked.query.inputs.equal(expected.query.inputs)
    mixed = Mixture({"a": tasks}, tasks=4)
    assert mixed.sizes_vary
    assert not Mixture({"a": FewShot(glyphs("test"), 3, 1, 2, tasks=4)}, tasks=4).sizes_vary
