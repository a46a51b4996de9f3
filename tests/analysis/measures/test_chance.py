"""The chance level: how often it shuffles, its p values, and CCA per task and pooled."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks.pages.reuse import mean_cca, pooled_cca, written_as
from metalearn import MAML, Examples
from metalearn.analysis import compare_layers, feature_reuse, similarity_map
from metalearn.analysis.adaptation.observations import MeanOverTasks
from metalearn.analysis.adaptation.over_seeds import over_seeds
from metalearn.analysis.measures.chance import arrangements, chosen_draws, measured
from metalearn.analysis.networks.between import similarity_between
from metalearn.analysis.networks.per_task import cca_of_task
from metalearn.models import Conv4
from metalearn.runtime.statistics import holm, p_value
from tests.helpers import prototype_tasks, small_conv4

MEASURES = ("cca", "svcca", "pwcca", "linear_cka", "rbf_cka", "procrustes")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# CCA a task


def maps_of_tasks(count: int = 4) -> tuple[list[Tensor], list[Tensor]]:
    """Images (20, 3, 5, 5) a task, and the same with channels mixed by an invertible map that is
    another one in each task.
    """
    before = [random(20, 3, 5, 5, seed=i) for i in range(count)]
    after = [
        torch.einsum("dc,nchw->ndhw", random(3, 3, seed=100 + i), x) for i, x in enumerate(before)
    ]
    return before, after


def test_a_map_of_its_own_for_each_task_is_similarity_1_a_task_and_less_pooled() -> None:
    before, after = maps_of_tasks()
    per_task = [
        cca_of_task({"a": x}, {"a": y}, ["a"], draws=0, seed=0)["a"].similarity
        for x, y in zip(before, after, strict=True)
    ]
    assert per_task == pytest.approx([1.0] * 4)
    pooled = compare_layers(
        {"a": torch.cat(before)}, {"a": torch.cat(after)}, measure="cca", draws=0
    )["a"].similarity
    assert pooled < 0.8


def test_cca_of_a_task_is_numpys_of_positions_by_channels() -> None:
    x, y = random(20, 3, 5, 5, seed=1), random(20, 4, 5, 5, seed=2)
    y[:, 0] += x[:, 1]
    rows = [np.moveaxis(side.numpy(), 1, -1).reshape(-1, side.shape[1]) for side in (x, y)]
    bases = [np.linalg.qr(side - side.mean(0))[0] for side in rows]
    expected = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean()
    found = cca_of_task({"a": x}, {"a": y}, ["a"], draws=0, seed=0)["a"]
    assert found.similarity == pytest.approx(expected)
    assert (found.examples, found.features) == (500, (3, 4))


def test_tokens_vectors_and_single_channels_have_their_positions_as_examples() -> None:
    shapes = {
        "tokens": (12, 7, 5),
        "vectors": (40, 5),
        "one channel": (12, 1, 4, 4),
        "wide": (30, 64, 14, 14),
    }
    found = cca_of_task(
        {k: random(*s) for k, s in shapes.items()},
        {k: random(*s) for k, s in shapes.items()},
        [*shapes],
        draws=0,
        seed=0,
    )
    assert {row.layer: row.examples for row in found.layers} == {
        "tokens": 84,
        "vectors": 40,
        "one channel": 192,
        "wide": 1920,
    }
    assert all(row.similarity == 1 for row in found.layers)


def test_feature_reuse_has_both_with_sizes_floors_and_the_mean_over_tasks() -> None:
    learner, episodes = MAML(small_conv4(), lr=0.3), prototype_tasks(3)
    layer = feature_reuse(learner, episodes).layers[1]
    expected = []
    for support, query in zip(
        *(zip(part.inputs, part.targets, strict=True) for part in episodes), strict=True
    ):
        with torch.no_grad():
            weights = learner.adapt(Examples(*support)).weights
        row = compare_layers(
            learner.model, (learner.model, weights), query[0], ["block2"], measure="cca", draws=0
        )["block2"]
        expected.append(row.similarity)
    assert layer.cca.mean == pytest.approx(np.mean(expected), abs=1e-5)
    assert layer.cca.interval > 0
    assert (layer.cca_size, layer.cca_pooled_size) == ((12 * 16, 6), (3 * 12 * 16, 6))
    assert layer.cca.mean > layer.cca_pooled > layer.cca_pooled_floor.median
    assert layer.cca_floor.draws == layer.cca_pooled_floor.draws == layer.cka_floor.draws == 200


def test_report_and_seeds_hold_both() -> None:
    reuses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        reuses.append(feature_reuse(MAML(Conv4(3, 1, 6, 16), lr=0.3), prototype_tasks(3), draws=19))
    printed = str(reuses[0])
    layer = reuses[0].layers[0]
    assert (
        f"{layer.cca.mean:.3f} ± {layer.cca.interval:.3f}" in printed
        and f"{layer.cca_pooled:.3f}" in printed
    )
    assert (
        "CCA, pooled" in printed
        and "draws: CKA 19, CCA 19, pooled 19" in printed
        and "0.05 or more" in printed
    )
    pooled = over_seeds(reuses)
    assert pooled.layers[0].cca_floor.draws == 19
    assert pooled.layers[0].cka_p == max(reuse.layers[0].cka_p for reuse in reuses)
    assert "the largest of any seed" in str(pooled)
    assert json.dumps(pooled.to_dict(), allow_nan=False)


def test_too_few_positions_are_undefined_in_a_task_and_said_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 30), nn.Tanh(), nn.Linear(30, 3))
    reuse = feature_reuse(MAML(model, lr=0.1), prototype_tasks(4))
    layer = reuse.layers[0]
    assert (
        math.isnan(layer.cca.mean)
        and math.isnan(layer.cca_floor.median)
        and layer.cca_size == (12, 30)
    )
    assert not math.isnan(layer.cca_pooled)
    assert sum(note.count("n=12 examples and d=30") for note in reuse.notes) == 1
    assert "nan" not in str(reuse)


def test_a_task_without_a_value_is_left_out_and_said() -> None:
    alive = [
        cca_of_task({"a": random(20, 3)}, {"a": random(20, 3, seed=i)}, ["a"], draws=5, seed=0)["a"]
        for i in (1, 2)
    ]
    dead = cca_of_task({"a": random(20, 3)}, {"a": torch.ones(20, 3)}, ["a"], draws=5, seed=0)["a"]
    found = MeanOverTasks([dead, *alive])
    assert found.estimate.mean == pytest.approx(np.mean([row.similarity for row in alive]))
    assert found.note.startswith("1 of 3 tasks") and "no variance" in found.note
    chance = np.mean([row.chance for row in alive], axis=0)
    reached = sum(draw >= found.estimate.mean for draw in chance)
    assert found.floor.draws == 5 and found.p == pytest.approx((1 + reached) / (1 + 5))
    assert math.isnan(MeanOverTasks([dead]).estimate.mean) and math.isnan(MeanOverTasks([dead]).p)


def test_one_task_has_a_value_and_no_interval() -> None:
    one = feature_reuse(MAML(small_conv4(), lr=0.3), prototype_tasks(1)).layers[0]
    assert not math.isnan(one.cca.mean) and math.isnan(one.cca.interval)


def test_networks_are_compared_a_task_and_pooled() -> None:
    torch.manual_seed(1)
    learners = [MAML(small_conv4(), lr=0.3), MAML(Conv4(3, 1, 6, 16), lr=0.3)]
    found = similarity_between({"a": learners}, prototype_tasks(3), draws=4)
    body = found["a", "a"].body
    assert body["cca"].mean > body["cca_pooled"].mean
    assert "4 draws" in str(found) and "cca_pooled" in str(found)


def test_tables_name_old_rows_as_pooled() -> None:
    old, new = {"cca": 0.8}, {"cca": {"mean": 0.9, "interval": 0.01}, "cca_pooled": 0.7}
    assert (mean_cca(old), pooled_cca(old), mean_cca(new), pooled_cca(new)) == (None, 0.8, 0.9, 0.7)
    assert written_as("cka", old) == written_as("cka", new) == "cka"


# Draws and p values


def test_the_add_one_p_is_never_0_and_counts_ties() -> None:
    assert p_value(0.9, np.zeros(200)) == 1 / 201
    assert p_value(0.5, np.full(9, 0.5 - 1e-12)) == 1
    assert p_value(0.9, np.zeros(200), arrangements(4)) == 1 / 7
    assert math.isnan(p_value(math.nan, np.zeros(5))) and math.isnan(p_value(0.5, np.empty(0)))


def test_holm_is_the_published_procedure() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, math.nan, 0.9]) == pytest.approx([0.04, math.nan, 0.9], nan_ok=True)
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize("measure", ["cca", "linear_cka"])
def test_unrelated_pairs_pass_the_95_percent_line_in_one_of_20(measure: str) -> None:
    pairs = 100
    values = []
    for i in range(pairs):
        profile = compare_layers(
            {"a": random(60, 6, seed=i)},
            {"a": random(60, 6, seed=10_000 + i)},
            measure=measure,
            seed=i,
        )
        assert len(profile["a"].chance) == 200
        values.append((profile["a"].similarity > profile["a"].floor.upper, profile["a"].p))
    above, p = np.array(values).T
    low, high = stats.binom.interval(0.998, pairs, 0.05)
    assert low <= above.sum() <= high
    assert stats.kstest(p, "uniform").pvalue > 0.001


@pytest.mark.slow
def test_the_rate_of_false_positives_at_300_x_32() -> None:
    above = 0
    for i in range(200):
        value, chance = measured(
            "cca", random(300, 32, seed=i), random(300, 32, seed=10_000 + i), seed=i
        )
        assert len(chance) == 200
        above += value > np.quantile(chance, 0.95)
    low, high = stats.binom.interval(0.998, 200, 0.05)
    assert low <= above <= high


def test_the_number_of_draws_follows_the_cost_and_what_is_given() -> None:
    small, large = random(300, 32), random(4000, 200)
    assert len(measured("cca", small, small.flip(0))[1]) == 200
    assert len(measured("cca", large, large.flip(0))[1]) == 20
    assert len(measured("cca", small, small.flip(0), draws=7)[1]) == 7
    assert (
        chosen_draws(0, 1e12) == 0
        and chosen_draws(None, 1e7) == 200
        and chosen_draws(None, 1.01e7) == 20
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_draws_are_the_measure_of_shuffled_rows(measure: str) -> None:
    from metalearn.analysis.measures.chance import rearranged

    x, y = random(40, 3, seed=1), random(40, 3, seed=2)
    orders = rearranged(40, 10, torch.Generator().manual_seed(5), 4)
    expected = [measured(measure, x, y[order], draws=0)[0] for order in orders]
    assert measured(measure, x, y, groups=10, draws=4, seed=5)[1] == pytest.approx(
        expected, abs=1e-12
    )
    blocks = orders.reshape(4, 10, 4)
    assert bool((blocks[:, :, 0] % 4 == 0).all()) and bool(
        (blocks[:, :, 0] // 4 != torch.arange(10)).all()
    )


def test_tables_print_p_values_and_draws() -> None:
    x = {"a": random(50, 4), "b": random(50, 4, seed=1), "dead": torch.zeros(50, 4)}
    y = {"a": 2 * random(50, 4), "b": random(50, 4, seed=2), "dead": torch.zeros(50, 4)}
    profile = compare_layers(x, y)
    assert profile["a"].p == 1 / 201 and profile.adjusted[0] == 2 / 201
    assert math.isnan(profile["dead"].p) and math.isnan(profile.adjusted[2])
    assert "200 draws" in str(profile) and "0.005 or more" in str(profile)
    rows: Any = profile.to_dict()["layers"]
    assert (
        rows[0]["p"] == 1 / 201
        and rows[2]["p_adjusted"] is None
        and rows[0]["floor"]["draws"] == 200
    )
    without = compare_layers(x, y, draws=0)
    assert math.isnan(without["a"].p) and "none without draws" in str(without)
    assert compare_layers({"a": x["a"]}, {"a": x["a"]})["a"].p == 1 / 201  # the same network too


def test_two_groups_have_one_other_order_however_many_draws() -> None:
    profile = compare_layers({"a": random(40, 2)}, {"a": 3 * random(40, 2)}, groups=2, draws=200)
    assert profile["a"].p == 1 / 2


def test_loaders_choose_by_their_length() -> None:
    a, b = (
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)),
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)),
    )
    batches = random(60, 4).float().split(20)
    assert len(compare_layers(a, b, batches)["0"].chance) == 200
    assert len(compare_layers(a, b, iter(batches))["0"].chance) == 20
    assert len(compare_layers(a, b, batches, draws=3, measure="cca")["0"].chance) == 3
    found = similarity_map(a, b, batches)
    assert len(found.chance) == found.floor.draws == 200 and "200 draws" in str(found)
    assert len(similarity_map(a, b, iter(list(batches)), draws=5).chance) == 5


@pytest.mark.parametrize("draws", [-1, 1.5, True, "20"])
def test_draws_that_are_no_count_are_refused(draws: Any) -> None:
    x = random(20, 3)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    calls = (
        lambda: measured("cca", x, x, draws=draws),
        lambda: compare_layers({"a": x}, {"a": x}, draws=draws),
        lambda: similarity_map(model, model, x, draws=draws),
        lambda: feature_reuse(MAML(small_conv4(), lr=0.3), prototype_tasks(2), draws=draws),
        lambda: similarity_between(
            {"a": [MAML(small_conv4(), lr=0.3), MAML(small_conv4(), lr=0.3)]},
            prototype_tasks(2),
            draws=draws,
        ),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"draws=.*must be a whole number from 0 on"):
            call()
