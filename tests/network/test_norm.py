"""Whose statistics batch norm uses."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import metalearn as ml
from metalearn.network.norm import check_statistics, statistics


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 3))
    for _ in range(5):
        model(torch.randn(8, 1, 5, 5) * 3 + 2)
    return model


def test_batch_statistics_normalise_by_the_batch_in_both_modes() -> None:
    model = network()
    assert ml.batch_statistics(model) is model
    inputs = torch.randn(8, 1, 5, 5)
    by_hand = nn.functional.batch_norm(
        model[0](inputs), None, None, model[1].weight, model[1].bias, training=True
    )
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)[:2](inputs), by_hand)
    assert statistics(model) == "batch statistics"


def test_frozen_statistics_stay_as_they_are_in_both_modes() -> None:
    model, inputs = network(), torch.randn(8, 1, 5, 5)
    expected = model.eval()(inputs)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert ml.frozen_statistics(model) is model
    for mode in (True, False):
        assert torch.equal(model.train(mode)(inputs), expected)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert statistics(model) == "frozen statistics"
    assert ml.frozen_statistics(model) is model


def test_what_keeps_running_statistics_is_refused_with_the_cure() -> None:
    with pytest.raises(
        ValueError,
        match=r"1 \(BatchNorm2d\) keeps.*batch_statistics\(model\).*frozen_statistics\(model\)",
    ):
        check_statistics(network())
    with pytest.raises(ValueError, match=r"bn1 \(BatchNorm2d\) and 19 more keep running"):
        check_statistics(torchvision.models.resnet18(num_classes=2))
    for cured in (
        ml.batch_statistics(network()),
        ml.frozen_statistics(network()),
        nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)),
    ):
        check_statistics(cured)


def test_there_must_be_statistics_to_freeze() -> None:
    with pytest.raises(ValueError, match="0 has no running statistics to freeze"):
        ml.frozen_statistics(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)))


def test_instance_norm_without_running_statistics_is_left_alone() -> None:
    model = nn.Sequential(nn.InstanceNorm2d(3, affine=True))
    check_statistics(model)
    assert type(ml.frozen_statistics(model)[0]) is nn.InstanceNorm2d
