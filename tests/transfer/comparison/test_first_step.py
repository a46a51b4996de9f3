"""Starts before the first update: loss, gradients and dead units."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from metalearn.runtime import files
from tests.helpers import striped_images
from transfer import compare, everywhere, finetune, fresh
from transfer.comparison.first_step import first_step
from transfer.comparison.tables import first_table

IMAGES = striped_images((16, 16, 16), seed=0)
OTHERS = striped_images((8, 8, 8), seed=1)
TRAIN = finetune(IMAGES, OTHERS, steps=4, batch=8)


STARTS = {"random": everywhere(fresh()), "same": everywhere(fresh())}


def build() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 3))


def test_loss_and_gradients_are_those_of_the_first_training_step() -> None:
    network = build()
    first = first_step(copy.deepcopy(network), TRAIN, seed=0)
    sgd = finetune(IMAGES, OTHERS, steps=1, batch=8, lr=1.0, optimizer=plain_sgd)
    trained = copy.deepcopy(network)
    losses = sgd(trained, seed=0).losses
    assert first.loss == pytest.approx(losses[0])
    # One step of gradient descent at rate 1 moves each layer by its gradient.
    for layer in ("1", "3"):
        moved = 0.0
        for kind in ("weight", "bias"):
            name = f"{layer}.{kind}"
            difference = trained.get_parameter(name) - network.get_parameter(name)
            moved += difference.square().sum().item()
        assert first.gradients[layer] == pytest.approx(math.sqrt(moved), rel=1e-4)
    assert first.gradient == pytest.approx(math.hypot(*first.gradients.values()))


def plain_sgd(groups: list, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr)


def test_units_behind_a_closed_relu_are_dead() -> None:
    network = build()
    with torch.no_grad():
        network[1].weight.abs_()
        network[1].bias.fill_(1.0)
        network[1].bias[:2] = -1e6
    first = first_step(network, TRAIN, seed=0)
    # Six hidden units and three outputs.
    assert (first.dead, first.units) == (2, 9)
    assert first.dead_share == pytest.approx(2 / 9)


def test_layers_that_do_not_train_do_not_count() -> None:
    frozen = finetune(IMAGES, OTHERS, steps=4, batch=8, frozen={"1": 0})
    first = first_step(build(), frozen, seed=0)
    assert list(first.gradients) == ["3"]
    assert first.units == 3


def test_a_comparison_has_it_for_every_run_and_trains_as_without(tmp_path: Path) -> None:
    comparison = compare(STARTS, build, TRAIN, TRAIN.probe(12), seeds=[0, 1], folder=tmp_path)
    for run in comparison.runs:
        torch.manual_seed(run.seed)
        network = build()
        assert run.curve.losses == TRAIN(copy.deepcopy(network), run.seed).losses
        assert run.first == first_step(network, TRAIN, run.seed)
        assert run.first.loss == pytest.approx(run.curve.losses[0])
    assert "before the first update" in str(comparison)
    assert comparison.to_dict()["runs"][0]["first"]["units"] == 9


def test_runs_of_earlier_versions_are_read(tmp_path: Path) -> None:
    options = {"seeds": [0], "folder": tmp_path}
    compare(STARTS, build, TRAIN, TRAIN.probe(12), **options)
    path = tmp_path / "random-seed0.safetensors"
    tensors, record = files.load(path)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    del record["first"]
    files.save(path, kept, record)
    comparison = compare(STARTS, build, TRAIN, TRAIN.probe(12), **options)
    assert comparison.runs[0].first is None
    assert len(first_table(comparison).rows) == 1  # of the other start
