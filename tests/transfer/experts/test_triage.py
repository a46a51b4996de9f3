"""Division of work between an algorithm and humans, against trying every division."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from transfer import triage


def losses(items: int, seed: int, efforts: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Losses of the algorithm and of humans, which fall by less and less with more effort."""
    generator = np.random.default_rng(seed)
    start = generator.uniform(0.2, 1, items)
    falls = -np.sort(-generator.uniform(0, 0.2, (items, efforts - 1)))
    human = start[:, None] - np.concatenate([np.zeros((items, 1)), np.cumsum(falls, 1)], 1)
    return generator.uniform(size=items), human


def least(g: np.ndarray, f: np.ndarray, costs: list[int], budget: int) -> float:
    """The least total loss over all choices of an effort, 0 for the algorithm, for each item."""
    options = np.column_stack([g, f])
    best = np.inf
    for levels in itertools.product(range(len(costs) + 1), repeat=len(g)):
        spent = sum(([0, *costs])[level] for level in levels)
        if spent <= budget:
            best = min(best, options[np.arange(len(g)), list(levels)].sum())
    return best


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("items", [1, 7, 12])
def test_one_effort_is_exact(items: int, seed: int) -> None:
    g, f = losses(items, seed)
    for budget in range(items + 1):
        plan = triage(g, f[:, 0], budget=budget)
        assert plan.total == pytest.approx(least(g, f, [1], budget))
        assert plan.effort.sum() == len(plan.kept) <= budget
        parts = g[plan.automated].sum() + f[plan.kept, 0].sum()
        assert plan.total == pytest.approx(parts)


@pytest.mark.parametrize("costs", [[1, 2], [1, 3], [2, 3, 5]])
def test_several_efforts_are_exact(costs: list[int]) -> None:
    items = 5
    g, f = losses(items, 0, len(costs))
    # Convex in the effort for unequal costs too.
    saved = -np.sort(-np.random.default_rng(1).uniform(0, 0.1, (items, len(costs) - 1)))
    f[:, 1:] = f[:, :1] - np.cumsum(saved * np.diff(costs), 1)
    for budget in range(items * costs[-1] + 1):
        plan = triage(g, f, budget=budget, effort=costs)
        assert plan.total == pytest.approx(least(g, f, costs, budget))
        assert plan.effort.sum() <= budget
        assert plan.total <= plan.curve.totals["oracle"][plan.curve.effort <= budget].min() + 1e-12


def test_the_total_falls_with_the_budget() -> None:
    g, f = losses(40, 0, 3)
    one = [triage(g, f[:, 0], budget=budget).total for budget in range(41)]
    several = [triage(g, f, budget=budget).total for budget in range(121)]
    for totals in (one, several):
        assert (np.diff(totals) <= 1e-12).all()
    assert several[40] < one[40]


def test_budget_0_automates_all_and_perfect_humans_none() -> None:
    g, f = losses(12, 0)
    assert triage(g, f[:, 0], budget=0).automated.tolist() == list(range(12))
    assert triage(g, f[:, 0], budget=0).total == pytest.approx(g.sum())
    g[3] = 0
    assert len(triage(g, np.zeros(12), budget=12).automated) == 0
    perfect = np.zeros((12, 2))
    plan = triage(g, perfect, budget=24)
    assert len(plan.automated) == 0 and plan.effort.tolist() == [1] * 12


def test_the_ends_of_the_curve_are_the_pure_strategies() -> None:
    g, f = losses(30, 0, 3)
    one = triage(g, f[:, 0], budget=10, gain=np.random.default_rng(0).normal(size=30)).curve
    assert list(one.totals) == ["oracle", "predicted", "random"]
    for totals in one.totals.values():
        assert totals[0] == pytest.approx(f[:, 0].sum()) and totals[-1] == g.sum()
        assert (one.totals["oracle"] <= totals + 1e-12).all()
    assert one.effort.tolist() == list(range(30, -1, -1))
    several = triage(g, f, budget=30).curve
    assert several.totals["oracle"][0] == pytest.approx(f[:, 0].sum())
    assert several.totals["oracle"][-1] == pytest.approx(g.sum())
    everything = triage(g, f, budget=90).curve
    assert everything.totals["oracle"][0] == pytest.approx(f[:, -1].sum())


def test_an_interior_share_is_best_where_each_side_is_better_on_half_of_the_items() -> None:
    g = np.array([0.1] * 50 + [0.9] * 50)
    plan = triage(g, np.full(100, 0.4), budget=100)
    assert plan.share == plan.curve.best() == 0.5
    assert plan.total < min(plan.curve.totals["oracle"][[0, -1]])
    assert "decides 50 of 100 items" in plan.answer()


def test_the_random_ranking_is_the_mean_over_rankings() -> None:
    g, f = losses(6, 0)
    curves = []
    for ranking in itertools.permutations(range(6)):
        plan = triage(g, f[:, 0], budget=6, gain=ranking)
        curves.append(plan.curve.totals["predicted"])
    np.testing.assert_allclose(np.mean(curves, 0), plan.curve.totals["random"])


def test_a_prediction_ranks_and_the_true_losses_count() -> None:
    g, f = losses(20, 0)
    saved = g - f[:, 0]
    exact = triage(g, f[:, 0], budget=5)
    predicted = triage(g, f[:, 0], budget=5, gain=3 * saved + 1)
    assert predicted.kept.tolist() == exact.kept.tolist()
    np.testing.assert_allclose(predicted.curve.totals["predicted"], exact.curve.totals["oracle"])
    worst = triage(g, f[:, 0], budget=5, gain=-saved)
    assert worst.total > predicted.total and len(worst.kept) == 5


def test_many_items_have_a_short_curve_and_the_result_is_written(tmp_path: Path) -> None:
    g, f = losses(2000, 0, 3)
    plan = triage(g, f, budget=2500)
    assert len(plan.curve.automated) == 101
    assert len(plan.records()) == 2000 and len(plan.curve.records()) == 101
    assert plan.to_dict()["budget"] == 2500
    assert "mean loss, oracle" in str(plan)
    plan.plot(tmp_path / "curve.svg")


CONVEX = r"decreasing and convex"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"human_loss": [0.1, 0.2]}, r"3 losses of the algorithm and 2 of humans"),
        ({"budget": 4}, r"budget=4 must be a whole number from 0 to 3"),
        ({"budget": -1}, r"budget=-1"),
        ({"budget": 1.5}, r"budget=1\.5"),
        ({"effort": [-1]}, r"effort=\[-1\] must be ascending whole numbers from 1 on"),
        ({"effort": [0]}, r"effort=\[0\]"),
        ({"effort": [0.5]}, r"effort=\[0\.5\]"),
        ({"effort": [1, 2]}, r"2 efforts for 1 columns"),
        ({"human_loss": [[0.3, 0.2]] * 3, "effort": [2, 1]}, r"effort=\[2, 1\]"),
        ({"algorithm_loss": [0.1, np.nan, 0.2]}, r"algorithm_loss of item 1 is nan"),
        ({"algorithm_loss": "losses"}, r"algorithm_loss holds no numbers"),
        ({"algorithm_loss": []}, r"algorithm_loss has shape \(0,\)"),
        ({"human_loss": np.zeros((3, 2, 1))}, r"human_loss has shape \(3, 2, 1\)"),
        ({"human_loss": [[0.1, 0.2]] * 3}, r"item 0 are \[0\.1, 0\.2\].*" + CONVEX),
        ({"human_loss": [[0.9, 0.8, 0.1]] * 3}, CONVEX),
        ({"gain": [1.0, 2.0]}, r"2 gains for 3 items"),
        ({"human_loss": [[0.2, 0.1]] * 3, "gain": [1.0, 2, 3]}, r"gain= .* there are 2"),
    ],
)
def test_bad_input_is_refused(arguments: dict, message: str) -> None:
    usual = {"algorithm_loss": [0.5, 0.1, 0.3], "human_loss": [0.2] * 3, "budget": 2}
    with pytest.raises(ValueError, match=message):
        triage(**{**usual, **arguments})
