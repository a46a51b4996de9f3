"""Fine-tuning: the plain loop to the last bit, scores with known answers, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from metalearn.data.images import LabelledImages
from tests.helpers import striped_images
from transfer import finetune, linear_probe
from transfer.finetuning.curve import Curve
from transfer.finetuning.finetune import order, subset
from transfer.finetuning.scores import auc, scores


def network(outputs: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(64, outputs),
    )


def test_the_curve_and_the_weights_are_those_of_a_plain_loop_to_the_last_bit() -> None:
    train, test = striped_images(), striped_images(seed=1)
    ours, theirs = network(), network()
    curve = finetune(train, test, steps=7, batch=8, lr=0.01, evaluate_every=3)(ours, seed=5)

    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01)
    losses, found, step = [], [], 0

    def accuracy() -> float:
        theirs.eval()
        with torch.no_grad():
            right = theirs(test.images.float() / 255).argmax(1) == test.labels
        theirs.train()
        return float(right.double().mean())

    found.append(accuracy())
    while step < 7:
        for batch in torch.randperm(len(train), generator=generator)[:32].split(8):
            loss = F.cross_entropy(theirs(train.images[batch].float() / 255), train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step += 1
            if step in (3, 6, 7):
                found.append(accuracy())
            if step == 7:
                break
    assert curve.losses == tuple(losses)
    assert curve.values == tuple(found) and curve.steps == (0, 3, 6, 7) and curve.final == found[-1]
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )


def test_the_seed_decides_the_curve_whatever_was_drawn_before() -> None:
    train = finetune(striped_images(), striped_images(seed=1), steps=6, batch=8)
    first = train(network(), seed=1)
    torch.rand(7)
    assert train(network(), seed=1).losses == first.losses != train(network(), seed=2).losses
    assert Curve.from_dict(first.to_dict()) == first


def test_training_leaves_the_global_generator_alone() -> None:
    model = network()
    torch.manual_seed(3)
    finetune(striped_images(), striped_images(seed=1), steps=2)(model, seed=0)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_every_epoch_has_each_image_at_most_once_and_batches_are_full(
    batch: int, count: int, seed: int
) -> None:
    targets = torch.arange(count) % 2
    batches, size = order(targets, batch, seed), min(batch, count)
    epoch = torch.cat([next(batches) for _ in range(count // size)])
    assert len(epoch.unique()) == len(epoch) == count - count % size


def test_balanced_batches_draw_each_class_as_often() -> None:
    targets = torch.tensor([0] * 900 + [1] * 100)
    batches = order(targets, 100, 0, balanced=True)
    share = torch.cat([targets[next(batches)] for _ in range(40)]).float().mean()
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 4000)


def test_a_balanced_loss_is_cross_entropy_weighed_by_the_inverse_of_class_sizes() -> None:
    train, ours, theirs = striped_images((20, 4, 12)), network(), network()
    curve = finetune(train, striped_images(seed=1), steps=1, batch=36, balance="loss")(ours, seed=2)
    torch.manual_seed(2)
    everything = torch.randperm(36, generator=torch.Generator().manual_seed(2))
    loss = F.cross_entropy(
        theirs(train.images[everything].float() / 255),
        train.labels[everything],
        weight=torch.tensor([36 / 60, 36 / 12, 36 / 36]),
    )
    assert curve.losses[0] == pytest.approx(loss.item(), rel=1e-6)


def test_scores_have_known_values() -> None:
    logits, targets = (
        torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [2, 0, 0]]),
        torch.tensor([0, 1, 2, 2]),
    )
    found = scores(logits, targets)
    assert found["accuracy"] == 0.75 and found["balanced_accuracy"] == pytest.approx(
        (1 + 1 + 0.5) / 3
    )
    assert found["auc"] == pytest.approx((5 / 6 + 1 + 0.75) / 3)
    assert "auc" not in scores(logits, torch.tensor([0, 1, 1, 1]))


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_auc_is_the_share_of_pairs_in_order_with_ties_as_halves(
    pairs: list[tuple[int, bool]],
) -> None:
    positives = [value for value, positive in pairs if positive]
    negatives = [value for value, positive in pairs if not positive]
    logits = torch.tensor([[0.0, float(value)] for value, _ in pairs])
    targets = torch.tensor([int(positive) for _, positive in pairs])
    if not positives or not negatives:
        with pytest.raises(ValueError, match="is not defined"):
            auc(logits, targets)
        return
    won = sum((a > b) + 0.5 * (a == b) for a in positives for b in negatives)
    assert auc(logits, targets) == pytest.approx(won / (len(positives) * len(negatives)))
    assert auc(50 * logits, targets) == pytest.approx(won / (len(positives) * len(negatives)))


def test_steps_to_a_threshold_are_interpolated_and_none_where_it_is_not_reached() -> None:
    curve = Curve("auc", (0, 10, 20, 30), {"auc": (0.2, 0.6, 0.5, 0.9)})
    assert (
        curve.steps_to(0.4) == pytest.approx(5)
        and curve.steps_to(0.1) == 0
        and curve.steps_to(0.6) == pytest.approx(10)
    )
    assert curve.steps_to(0.7) == pytest.approx(25) and curve.steps_to(0.91) is None


@given(st.lists(st.integers(1, 30), min_size=2, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_a_subset_has_the_number_asked_for_and_every_class_its_share(
    counts: list[int], data: st.DataObject
) -> None:
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    wanted = data.draw(st.integers(len(counts), sum(counts)))
    chosen = subset(targets, wanted, seed=1)
    taken = torch.bincount(targets[chosen], minlength=len(counts))
    assert len(chosen) == wanted == len(chosen.unique()) and int(taken.min()) >= 1
    if wanted * min(counts) >= sum(counts):
        assert all(
            abs(int(n) - wanted * count / sum(counts)) <= 1
            for n, count in zip(taken, counts, strict=True)
        )


def test_a_subset_depends_on_the_seed_and_a_fraction_is_of_all() -> None:
    targets = striped_images((40, 20, 20)).labels
    assert not torch.equal(subset(targets, 20, 0), subset(targets, 20, 1))
    assert torch.equal(subset(targets, 0.25, 0), subset(targets, 20, 0))
    assert len(subset(targets, 1.0, 0)) == 80


def test_rates_and_frozen_layers_hold_what_they_name() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    finetune(striped_images(), striped_images(seed=1), steps=2, rates={"0": 0.0})(model, seed=0)
    moved = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert "0.weight" not in moved and {"1.weight", "1.running_mean", "5.weight"} <= moved

    for frozen in ("1", linear_probe):
        model = network()
        finetune(striped_images(), striped_images(seed=1), steps=2, frozen=frozen)(model, seed=0)
        assert {
            name
            for name, tensor in model.state_dict().items()
            if not torch.equal(tensor, before[name])
        } == {"5.weight", "5.bias"}


def test_rates_decay_along_half_a_cosine() -> None:
    train, test = striped_images(), striped_images(seed=1)
    model, reference = network(), network()
    plain = {"steps": 6, "batch": 8, "lr": 0.02, "optimizer": "sgd", "evaluate_every": 2}
    finetune(train, test, **plain, decay="cosine")(model, seed=5)

    def scheduled(groups: list, lr: float) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: (1 + math.cos(math.pi * step / 6)) / 2
        )
        optimizer.register_step_post_hook(lambda *_: schedule.step())
        return optimizer

    finetune(train, test, **plain | {"optimizer": scheduled})(reference, seed=5)
    for value, expected in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(value, expected)


def test_early_stopping_goes_back_to_the_best_validation_score() -> None:
    train = striped_images()
    wrong = LabelledImages(
        train.images, (train.labels + 1) % 3
    )  # the better it fits, the worse it scores here
    model = network()
    curve = finetune(
        train,
        striped_images(seed=1),
        steps=40,
        lr=0.01,
        evaluate_every=2,
        validation=wrong,
        early_stop=2,
    )(model, seed=0)
    best = max(range(len(curve.validation)), key=lambda i: (curve.validation[i], -i))
    assert curve.best == best and curve.steps[-1] == 2 * (best + 2) < 40
    assert curve.final == curve.values[best]
    model.eval()
    with torch.no_grad():
        predicted = model(striped_images(seed=1).images.float() / 255)
    assert scores(predicted, striped_images(seed=1).labels)["accuracy"] == curve.final


def test_a_transform_is_applied_in_training_and_at_test_and_augmentation_in_training_alone() -> (
    None
):
    seen: dict[str, list[int]] = {"transform": [], "augment": []}

    def watch(name: str, batch: torch.Tensor) -> torch.Tensor:
        seen[name].append(len(batch))
        return batch

    train = finetune(
        striped_images(),
        striped_images(seed=1),
        steps=2,
        batch=8,
        evaluate_every=2,
        transform=lambda x: watch("transform", x),
        augment=lambda x: watch("augment", x),
    )
    train(network(), seed=0)
    assert seen == {"transform": [36, 8, 8, 36], "augment": [8, 8]}
    assert train.probe(5).shape == (5, 1, 6, 6) and float(train.probe(5).max()) <= 1


def test_any_data_set_of_floats_is_taken_as_it_is() -> None:
    values = torch.randn(12, 3)
    data = TensorDataset(values, torch.arange(12) % 2)
    train = finetune(data, data, steps=1)
    assert torch.equal(train.train_inputs, values) and train(nn.Linear(3, 2), seed=0).steps == (
        0,
        1,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": striped_images((9,))}, "one class \\(0\\) in all its 9 images"),
        (
            {"test": striped_images((3, 3, 3, 3))},
            "test set has the class 3",
        ),
        ({"images": 2}, "2 training images of 3 classes"),
        ({"images": 37}, "there are 36 training images"),
        ({"images": float("nan")}, "images=nan; give a number"),
        ({"metric": "f1"}, "accuracy, balanced_accuracy, auc"),
        ({"metric": "auc", "test": striped_images((3, 3))}, "has no image of class 2"),
        ({"optimizer": "lion"}, "adam, adamw, sgd"),
        ({"balance": "both"}, "'loss', 'batches' or None"),
        ({"early_stop": 3}, "needs validation="),
        ({"decay": "linear"}, "choose 'cosine'"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"device": "tpu"}, "device='tpu' cannot be used here"),
    ],
)
def test_bad_input_is_refused_before_any_training(arguments: dict, message: str) -> None:
    given = {"train": striped_images(), "test": striped_images(seed=1), "steps": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        finetune(given.pop("train"), given.pop("test"), **given)


def test_labels_beyond_the_heads_outputs_are_named_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"labels run to 2, .*\(2,\).*outputs=3"):
        finetune(striped_images(), striped_images(seed=1), steps=2)(network(outputs=2), seed=0)


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    with pytest.raises(FloatingPointError, match="lower lr"):
        finetune(striped_images(), striped_images(seed=1), steps=60, lr=1e30, optimizer="sgd")(
            network(), seed=0
        )
