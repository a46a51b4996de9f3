"""Networks that predict one class for every image: marked wherever their score is shown."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from metalearn import MAML, evaluate
from metalearn.data.images import LabelledImages
from metalearn.evaluation import Evaluation
from metalearn.tasks import FewShot, glyphs
from tests.helpers import drawn_curves
from transfer import compare, everywhere, finetune, fresh
from transfer.comparison.figures import summary
from transfer.finetuning.curve import Curve
from transfer.finetuning.figures import training_curve
from transfer.finetuning.finetune import FineTuning


class Dead(nn.Sequential):
    """A network whose units are all off, so that it predicts the class of its head's largest bias
    for every image.
    """

    def __init__(self, label: int = 1) -> None:
        super().__init__(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
        with torch.no_grad():
            self[0].bias.fill_(-100)
            self[3].bias.copy_(torch.tensor([0.0, 1.0]) if label else torch.tensor([1.0, 0.0]))


def healthy() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))


def pictures(counts: tuple[int, ...] = (6, 18), seed: int = 0) -> LabelledImages:
    """Noise; images of the second class are brighter."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    noise = torch.rand(len(labels), 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return LabelledImages(
        (100 * noise + 150 * (labels > 0)[:, None, None, None]).to(torch.uint8), labels
    )


def training(metric: str = "accuracy", test: tuple[int, ...] = (6, 18), **options) -> FineTuning:
    return finetune(
        pictures(), pictures(test, seed=1), steps=4, batch=8, metric=metric, lr=1e-4, **options
    )


@pytest.mark.parametrize(
    ("metric", "score"), [("accuracy", 0.75), ("balanced_accuracy", 0.5), ("auc", 0.5)]
)
def test_a_collapsed_curve_says_so_beside_the_majoritys_score(metric: str, score: float) -> None:
    curve = training(metric)(Dead(), seed=0)
    assert curve.collapsed and curve.final == curve.majority == score
    assert curve.test_counts == {0: 6, 1: 18} and curve.predicted_counts == {1: 24}
    assert "collapsed: class 1" in repr(curve) and f"majority class {score:.4f}" in repr(curve)
    record = json.loads(json.dumps(curve.to_dict()))
    assert record["collapsed"] is True and record["majority"] == score
    assert Curve.from_dict(record) == curve


def test_collapse_onto_the_rare_class_scores_less_than_the_majority_and_is_marked_too() -> None:
    curve = finetune(pictures(), pictures(seed=1), steps=1, batch=8, lr=0.0)(Dead(label=0), seed=0)
    assert curve.collapsed and (curve.final, curve.majority) == (0.25, 0.75)


def test_one_class_in_the_test_set_predicted_rightly_is_no_collapse() -> None:
    curve = training(test=(0, 9))(Dead(), seed=0)
    assert curve.final == 1 and not curve.collapsed


def test_with_early_stopping_the_evaluation_that_counts_decides() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with torch.no_grad():
        network[1].weight.fill_(0.1)
        network[1].bias.copy_(torch.tensor([0.0, 5.0]))
    stopping = {"validation": pictures(seed=2), "early_stop": 9, "evaluate_every": 1}
    curve = finetune(pictures(), pictures(seed=1), steps=2, lr=10.0, **stopping)(network, seed=0)
    assert curve.best == 0 and curve.collapsed and curve.predicted_counts == {1: 24}


def test_curves_of_ones_own_and_of_older_files_are_not_judged() -> None:
    curve = Curve("accuracy", (0, 10), {"accuracy": (0.5, 0.5)})
    assert not curve.collapsed and math.isnan(curve.majority)
    older = {
        key: value
        for key, value in curve.to_dict().items()
        if key not in ("test_counts", "predicted_counts", "majority", "collapsed")
    }
    assert Curve.from_dict(older) == curve


@pytest.fixture(scope="module")
def comparison():
    train = training()
    return compare(
        {"random": (Dead, everywhere(fresh())), "well": everywhere(fresh())},
        healthy,
        train,
        train.probe(24),
        seeds=[0, 1],
    )


def test_the_table_the_page_and_the_record_mark_a_collapsed_start(
    comparison, tmp_path: Path
) -> None:
    assert comparison.collapsed["random"] == (0, 1)
    text = str(comparison)
    assert "random has collapsed: it predicts class 1 for every test image in 2 of 2 seeds" in text
    assert "collapsed in 2 of 2" in text and "majority class" in text and "75.00 %" in text
    assert "class 0: 6, class 1: 18" in text
    assert "collapsed: random" in repr(comparison) and len(repr(comparison)) < 300
    comparison.report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert (
        "random has collapsed" in page
        and "majority class" in page
        and "class 0: 6, class 1: 18" in page
    )
    record = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert record["collapsed"]["random"] == [0, 1] and record["majority"] == 0.75
    assert record["test_counts"] == {"0": 6, "1": 18}
    assert record["finals"][0]["collapsed"] == 2
    assert record["runs"][0]["curve"]["collapsed"] is True


def test_a_learner_at_exactly_chance_in_every_task_is_marked() -> None:
    tasks = FewShot(glyphs("test", classes=6), 3, 1, 2, tasks=4)
    dead = nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        dead[1].bias.fill_(-1000)
        dead[3].bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    found = evaluate(MAML(dead, lr=0.01), tasks)
    assert found.at_chance and found.to_dict()["at_chance"] and "at exactly chance" in str(found)
    assert not Evaluation(
        torch.tensor([0.5, 0.5]).double(), settings={"episodes": {"ways": 3}}
    ).at_chance
    assert not Evaluation(torch.tensor([0.5]).double()).at_chance


def test_curves_and_comparisons_are_drawn(comparison, tmp_path: Path) -> None:
    comparison.plot(tmp_path / "all.png")
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    assert drawn_curves(summary(comparison).axes[0])["majority class"] == [0.75, 0.75]
    curve = comparison.runs[0].curve
    curve.plot(tmp_path / "one.svg")
    assert b"<svg" in (tmp_path / "one.svg").read_bytes()
    score, loss = training_curve(
        curve.steps, curve.values, curve.losses, metric="accuracy", majority=0.75
    ).axes
    assert list(score.get_lines()[0].get_ydata()) == list(curve.values)
    assert drawn_curves(score)["majority class"] == [0.75, 0.75]
    assert list(loss.get_lines()[0].get_ydata()) == list(curve.losses)
