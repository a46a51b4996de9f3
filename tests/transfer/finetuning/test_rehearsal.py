"""Batches that hold images of earlier tasks, each under the head of its own task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers import striped_images
from transfer import finetune
from transfer.finetuning.rehearsal import Rehearsal, TaskHeads, route


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))


def rehearsal(count: int, current: int = 1) -> Rehearsal:
    images = striped_images(seed=5)
    return Rehearsal(images.images, images.labels, torch.zeros_like(images.labels), current, count)


def test_every_example_goes_through_the_head_of_its_task() -> None:
    heads = TaskHeads([nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)])
    features = torch.rand(5, 4)
    route(nn.Sequential(heads), torch.tensor([2, 0, 2, 1, 0]))
    logits = heads(features)
    for row, task in enumerate([2, 0, 2, 1, 0]):
        torch.testing.assert_close(logits[row], heads.heads[task](features[row]))
    assert torch.equal(heads.eval()(features), heads.heads[2](features))
    heads.train().tasks = None
    assert torch.equal(heads(features), heads.heads[2](features))


def test_a_batch_has_the_share_of_earlier_images_and_keeps_the_order_of_its_own() -> None:
    inputs, targets = torch.rand(36, 1, 6, 6), torch.arange(36) % 3
    joined = rehearsal(3).joined(inputs, targets, 8, 7, balanced=False)
    images, labels, tasks, batches = joined
    assert len(images) == len(labels) == len(tasks) == 72
    assert tasks[:36].unique().tolist() == [1] and tasks[36:].unique().tolist() == [0]
    seen = [next(batches) for _ in range(7)]  # an epoch of 5 of 36
    assert all(len(batch) == 8 and int((batch >= 36).sum()) == 3 for batch in seen)
    own = torch.cat([batch[batch < 36] for batch in seen])
    assert len(own.unique()) == len(own) == 35


def test_a_whole_batch_of_earlier_images_is_a_training_on_them() -> None:
    train = finetune(striped_images(), striped_images(seed=1), steps=6, batch=8, optimizer="sgd")
    earlier = finetune(
        striped_images(seed=5), striped_images(seed=1), steps=6, batch=8, optimizer="sgd"
    )
    model, expected = network(), network()
    curve = replace(train, rehearsal=rehearsal(8))(model, seed=3)
    assert curve.losses == earlier(expected, seed=3).losses
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_settings_record_the_images() -> None:
    train = finetune(striped_images(), striped_images(seed=1), steps=2)
    assert "rehearsal" not in train.settings
    recorded = replace(train, rehearsal=rehearsal(2)).settings["rehearsal"]
    assert recorded["count"] == 2
    other = replace(train, rehearsal=rehearsal(2, current=2)).settings["rehearsal"]
    assert other == recorded


def test_a_head_for_each_task_trains_on_the_images_of_its_task_alone() -> None:
    model = network()
    model[3] = TaskHeads([nn.Linear(8, 3), nn.Linear(8, 3), model[3]])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train = finetune(striped_images(), striped_images(seed=1), steps=2, batch=8, optimizer="sgd")
    replace(train, rehearsal=rehearsal(3, current=2))(model, seed=0)
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    heads = {name.split(".")[2] for name in changed if name.startswith("3.")}
    assert heads == {"0", "2"}


def test_a_training_that_was_stopped_continues_with_the_same_batches(tmp_path: Path) -> None:
    train = finetune(
        striped_images(),
        striped_images(seed=1),
        steps=6,
        batch=8,
        evaluate_every=2,
        folder=tmp_path,
    )
    kept = replace(train, rehearsal=rehearsal(3))

    def stop(count: int = 1, text: str = "") -> None:
        if (tmp_path / "seed3.training.previous").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(network(), 3, stop)
    with pytest.raises(ValueError, match="rehearsal"):
        train(network(), 3)
    continued, whole = network(), network()
    assert kept(continued, 3).losses == replace(kept, folder=None)(whole, 3).losses
    for name, tensor in whole.state_dict().items():
        assert torch.equal(continued.state_dict()[name], tensor), name
