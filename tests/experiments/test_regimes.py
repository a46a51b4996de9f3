"""Training without an inner loop: the common head, the batches, and that runs resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metalearn.algorithms import NIL
from metalearn.algorithms.joint import JointTraining
from metalearn.episodes import Episode, Examples, stack
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.regimes import (
    Minibatches,
    at_test,
    multiclass,
    multitask,
    restored,
    snapshots,
    trained,
)
from metalearn.models import Conv4
from metalearn.runtime import files
from metalearn.tasks import FewShot, LabelledImages, glyphs
from metalearn.training.loop import meta_train


def experiment(folder: Path, **changes: object) -> Experiment:
    settings = {
        "steps": 2,
        "hidden": 4,
        "meta_batch": 2,
        "test_tasks": 4,
        "execution": "loop",
        "runs": str(folder),
    }
    return Experiment(**{**settings, **changes})


def images(classes: int = 6, each: int = 10) -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    shades = torch.arange(classes).repeat_interleave(each)
    noise = torch.randint(20, (classes * each, 1, 16, 16), generator=generator)
    return LabelledImages((noise + 30 * shades[:, None, None, None]).to(torch.uint8), shades)


def test_the_common_head_answers_every_task_alike_whatever_its_support_set() -> None:
    torch.manual_seed(0)
    learner = JointTraining(Conv4(3, hidden=4, size=16), execution="loop")
    query = Examples(torch.rand(6, 1, 16, 16), torch.arange(3).repeat(2))
    tasks = stack(
        [Episode(Examples(torch.rand(3, 1, 16, 16), torch.randperm(3)), query) for _ in range(3)]
    )
    logits = learner(tasks)
    for one in logits:
        torch.testing.assert_close(one, learner.model(query.inputs))
    assert not learner.rates
    assert learner.frozen(["block1"]).steps == 0


def test_multitask_training_is_gradient_descent_on_the_mean_query_loss_of_all_tasks() -> None:
    tasks = FewShot(images(), ways=3, shots=1, queries=2, tasks=4)
    torch.manual_seed(0)
    model, other = Conv4(3, hidden=4, size=16), Conv4(3, hidden=4, size=16)
    other.load_state_dict(model.state_dict())
    multitask(
        model,
        tasks,
        steps=1,
        meta_batch=4,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        progress=False,
    )
    losses = [
        torch.nn.functional.cross_entropy(other(tasks[i].query.inputs), tasks[i].query.targets)
        for i in range(4)
    ]
    torch.stack(losses).mean().backward()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.1 * theirs.grad)


def test_batches_are_different_images_under_their_own_labels_named_by_seed_and_index() -> None:
    data = images()
    batches = Minibatches(data, 20, seed=3)
    query = batches[5].query
    assert query.inputs.shape == (20, 1, 16, 16)
    assert len(query.inputs.flatten(1).unique(dim=0)) == 20
    for image, label in zip(query.inputs, query.targets, strict=True):
        assert (image * 255 / 30).mean().floor() == label
    assert torch.equal(Minibatches(data, 20, seed=3)[5].query.inputs, query.inputs)
    assert not torch.equal(Minibatches(data, 20, seed=4)[5].query.targets, query.targets)
    assert not torch.equal(batches[6].query.targets, query.targets)
    with pytest.raises(ValueError, match="size=61 but there are 60 images"):
        Minibatches(data, 61)


def test_multiclass_training_learns_the_classes_and_needs_an_output_for_each() -> None:
    torch.manual_seed(0)
    curve = multiclass(
        Conv4(6, hidden=8, size=16),
        images(),
        steps=40,
        batch=30,
        optimizer=lambda p: torch.optim.Adam(p, 1e-2),
        progress=False,
    )
    assert curve.losses[-1] < 0.5 * curve.losses[0]
    assert max(curve.accuracies[-5:]) > 2 / 6
    with pytest.raises(ValueError, match="the head 'head' has 5 outputs, but there are 6 classes"):
        multiclass(Conv4(5, hidden=4, size=16), images(), steps=1)


def test_multiclass_is_meta_training_of_a_common_head_on_batches() -> None:
    torch.manual_seed(0)
    one, other = Conv4(6, hidden=4, size=16), Conv4(6, hidden=4, size=16)
    other.load_state_dict(one.state_dict())
    multiclass(one, images(), steps=2, batch=12, progress=False)
    meta_train(
        JointTraining(other), Minibatches(images(), 12), steps=2, meta_batch=1, progress=False
    )
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("regime", "outputs"),
    [("multiclass", len(glyphs("train").names)), ("multitask", 5), ("random", 5), ("anil", 5)],
)
def test_each_regime_is_trained_once_and_starts_from_the_same_body(
    regime: str, outputs: int, tmp_path: Path
) -> None:
    problem = experiment(tmp_path)
    run = trained(problem, regime, progress=False)
    assert run.learner.model.head.out_features == outputs
    assert len(run.curve.losses) == (0 if regime == "random" else 2)
    again = trained(problem, regime, progress=False)
    for ours, theirs in zip(
        run.learner.model.parameters(), again.learner.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    start = problem.fresh_model().block1.conv.weight
    assert torch.equal(run.learner.model.block1.conv.weight, start) == (regime == "random")
    assert isinstance(at_test(run), NIL) == (regime != "anil")


@pytest.mark.parametrize("regime", ["multiclass", "multitask", "nil-train"])
def test_every_regime_is_restored_from_its_checkpoint_alone(regime: str, tmp_path: Path) -> None:
    run = trained(experiment(tmp_path), regime, progress=False)
    again = restored(run.experiment.checkpoint(regime), test_tasks=3)
    assert (again.algorithm, again.experiment.test_tasks, again.curve.losses) == (
        regime,
        3,
        run.curve.losses,
    )
    assert again.experiment.to_dict(regime) == run.experiment.to_dict(regime)
    for ours, theirs in zip(
        again.learner.model.parameters(), run.learner.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_regimes_see_as_many_training_images_a_step(tmp_path: Path) -> None:
    problem, seen = experiment(tmp_path), {}
    for regime in ("multiclass", "multitask"):
        trained(problem, regime, progress=False)
        episodes = files.load(problem.checkpoint(regime))[1]["settings"]["episodes"]
        seen[regime] = episodes.get("batch") or 2 * 5 * episodes["queries"]
    chosen = problem.settings()
    assert set(seen.values()) == {
        chosen.meta_batch * problem.ways * (problem.shots + chosen.train_queries)
    }


def test_an_unknown_regime_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="there is no regime 'nil'; choose from maml, anil, multiclass"
    ):
        trained(experiment(tmp_path), "nil", progress=False)


def test_snapshots_are_points_of_one_run_and_are_kept(tmp_path: Path) -> None:
    problem = experiment(tmp_path)
    found = snapshots(problem, "anil", [3, 1], progress=False)
    assert [files.load(path)[1]["step"] for path in found.values()] == [1, 3]
    straight = experiment(tmp_path / "other", steps=3, schedule="constant")
    straight.train("anil", progress=False)
    ours, theirs = files.load(found[3])[0], files.load(straight.checkpoint("anil"))[0]
    assert all(
        torch.equal(ours[name], theirs[name]) for name in theirs if name.startswith("learner.")
    )
    before = found[1].stat().st_mtime_ns
    assert snapshots(problem, "anil", [1, 3, 4], progress=False)[1].stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"is at step 4 already and there is no .*-step2"):
        snapshots(problem, "anil", [2], progress=False)
