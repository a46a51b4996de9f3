"""`feature_reuse` and what it calls on regression tasks: the loss in place of the accuracy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from metalearn import ANIL, BOIL, MAML, evaluate
from metalearn.analysis import differences, feature_reuse, freezing, over_seeds, report
from metalearn.models import MLP
from metalearn.tasks import Sinusoid
from tests.helpers import drawn_curves


def learner(algorithm=MAML, seed: int = 0, **options):
    torch.manual_seed(seed)
    return algorithm(MLP(1, 1, hidden=(16, 16)), lr=0.01, loss=F.mse_loss, **options)


def test_losses_stand_in_place_of_accuracies(tmp_path: Path) -> None:
    tasks, maml = Sinusoid(shots=10, queries=8, tasks=12), learner(steps=2)
    reuse = feature_reuse(maml, tasks)
    result = evaluate(maml, tasks)
    assert result.measure == reuse.accuracies.measure == reuse.freezing.measure == "loss"
    assert reuse.accuracies.own.mean == pytest.approx(result.mean, rel=1e-5)
    constant = [
        F.mse_loss(task.support.targets.mean(0).expand_as(task.query.targets), task.query.targets)
        for task in tasks
    ]
    assert reuse.accuracies.chance == pytest.approx(float(torch.stack(constant).mean()), rel=1e-5)
    frozen = evaluate(
        maml.frozen(
            ["body.0", "body.2"]
            if "body.0" in reuse.freezing.rows[-1].layers
            else reuse.freezing.rows[-1].layers
        ),
        tasks,
    )
    assert reuse.freezing.rows[-1].cost.mean == pytest.approx(frozen.mean - result.mean, abs=1e-6)
    assert (reuse.ways, reuse.shots, reuse.queries) == (0, 10, 8)
    printed = str(reuse)
    assert (
        "regression from 10 examples, 8 queries" in printed
        and "accuracy %" not in printed
        and "points" not in printed.split("The rule.")[0]
    )
    frozen = drawn_curves(reuse.figure().axes[1])["MAML, own steps (the paper's)"]
    assert frozen == pytest.approx([row.accuracy.mean for row in reuse.freezing.rows])
    reuse.report(tmp_path / "reuse.html")
    assert "ridge regression" in (tmp_path / "reuse.html").read_text()
    assert reuse.to_dict()["accuracies"]["measure"] == "loss"


def test_a_head_that_is_left_out_is_replaced_by_ridge_regression() -> None:
    linear = learner(ANIL, steps=1)
    reuse = feature_reuse(linear, Sinusoid(shots=20, queries=8, tasks=10))
    assert reuse.accuracies.headless_after.mean < reuse.accuracies.chance
    assert reuse.accuracies.head_cost.mean == pytest.approx(
        reuse.accuracies.headless_after.mean - reuse.accuracies.head_after.mean, abs=1e-9
    )
    assert all(layer.unmoved for layer in reuse.layers if not layer.head)


def test_an_untrained_learner_is_not_said_to_solve_anything() -> None:
    reuse = feature_reuse(learner(), Sinusoid(shots=5, queries=5, tasks=6))
    assert reuse.verdict.answer == "no verdict"
    assert "predicting the mean of the support targets" in reuse.verdict.evidence


def test_seeds_and_learners_are_pooled_and_compared(tmp_path: Path) -> None:
    tasks = Sinusoid(shots=6, queries=5, tasks=4)
    pooled = [
        over_seeds([feature_reuse(learner(kind, seed), tasks) for seed in (0, 1)])
        for kind in (MAML, BOIL)
    ]
    assert [one.accuracies.measure for one in pooled] == ["loss", "loss"] and pooled[
        0
    ].freezing.measure == "loss"
    assert differences(pooled)[0].measure == "loss"
    report(pooled, tmp_path / "page.html")
    assert "loss, tasks analysed" in (tmp_path / "page.html").read_text()
    assert "loss" in str(freezing(learner(), tasks)) and "points" not in str(
        freezing(learner(), tasks)
    )


def test_a_target_of_one_dimension_and_several_outputs_do(tmp_path: Path) -> None:
    from metalearn.episodes import Episode, Examples

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 12, 3, generator=generator)
    weights = torch.randn(4, 3, 2, generator=generator)
    targets = inputs @ weights
    torch.manual_seed(0)
    several = MAML(MLP(3, 2, hidden=(8,)), lr=0.05, loss=F.mse_loss)
    examples = Episode(
        Examples(inputs[:, :6], targets[:, :6]), Examples(inputs[:, 6:], targets[:, 6:])
    )
    assert feature_reuse(several, examples).accuracies.measure == "loss"

    flat = MAML(
        MLP(3, 1, hidden=(8,)),
        lr=0.05,
        loss=lambda outputs, values: F.l1_loss(outputs.reshape(values.shape), values),
    )
    single = Episode(
        Examples(inputs[:, :6], targets[:, :6, 0]), Examples(inputs[:, 6:], targets[:, 6:, 0])
    )
    assert feature_reuse(flat, single).accuracies.own.mean > 0
