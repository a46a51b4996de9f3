"""Freeze training: the linear schedule, score and time side by side, and what it refuses."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from tests.helpers import striped_images
from transfer import finetune
from transfer.finetuning.freeze_training import freeze_training
from transfer.finetuning.schedule import from_below


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))


def training(**settings: object) -> object:
    return finetune(striped_images(), striped_images(seed=1), steps=12, batch=8, **settings)


def test_the_schedule_is_linear_and_the_last_layer_always_trains() -> None:
    assert from_below(["a", "b", "c", "d"], 100) == {"a": 25, "b": 50, "c": 75}
    assert from_below(["a", "b", "c", "d"], 100, 0.5) == {"a": 12, "b": 25, "c": 38}


@pytest.mark.parametrize("scale", [0, -1.0, 1.5, float("nan")])
def test_a_scale_lies_between_0_and_1(scale: float) -> None:
    with pytest.raises(ValueError, match="up to 1"):
        from_below(["a", "b"], 10, scale)


def test_one_layer_cannot_be_frozen_from_below() -> None:
    with pytest.raises(ValueError, match="at least two"):
        from_below(["a"], 10)


def test_each_schedule_is_a_training_of_its_own_from_the_same_weights() -> None:
    result = freeze_training(
        network, partial(training), ["1", "3"], scales=(1.0, 0.5), seeds=(0, 1)
    )
    assert [row.name for row in result.rows] == ["nothing frozen", "scale 1", "scale 0.5"]
    torch.manual_seed(0)
    model = network()
    frozen = training(frozen={"1": 3})(model, 0).final
    torch.manual_seed(1)
    frozen += training(frozen={"1": 3})(network(), 1).final
    assert result.rows[2].score.mean == pytest.approx(frozen / 2)
    assert result.rows[0].share_of_time == 1.0 and result.rows[1].share_of_time > 0
    assert "share of the time" in str(result) and len(result.records()) == 3


def test_a_schedule_that_holds_everything_is_refused_with_the_step() -> None:
    with pytest.raises(ValueError, match=r"all parameters from step 8 on.*head"):
        training(frozen={"1": 4, "3": 8})(network(), 0)


def test_without_seeds_there_is_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        freeze_training(network, training, seeds=())
