"""Effective receptive fields in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from metalearn.analysis.networks.receptive_fields import receptive_fields
from metalearn.models import Conv4, SmallViT, cifar_resnet


def constant(convolutions: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolutions with equal positive weights and no bias."""
    network = nn.Sequential(
        *(nn.Conv2d(1, 1, 3, stride, padding=1, bias=False) for _ in range(convolutions))
    )
    for layer in network:
        nn.init.constant_(layer.weight, 1.0)
    return network.double()


@pytest.mark.parametrize("convolutions", [1, 3, 5])
def test_n_convolutions_have_variance_two_n_thirds_on_each_axis(convolutions: int) -> None:
    found = receptive_fields(constant(convolutions), torch.rand(2, 1, 21, 21).double())
    last = found.layers[-1]
    side = 2 * convolutions + 1
    assert last.support == side**2
    assert last.radius == pytest.approx(math.sqrt(2 * 2 * convolutions / 3), rel=1e-12)
    rows = last.weights.sum(1)
    places = np.arange(21) - 10
    assert (rows * places**2).sum() == pytest.approx(2 * convolutions / 3, rel=1e-12)


def test_strides_multiply_the_support() -> None:
    found = receptive_fields(constant(3, stride=2), torch.rand(1, 1, 64, 64).double())
    # 3, then 3 + 2 * 2, then 7 + 2 * 4 pixels on a side
    assert [row.support for row in found.layers] == [3**2, 7**2, 15**2]


def test_a_block_without_attention_sees_its_own_patch_alone() -> None:
    torch.manual_seed(0)
    network = SmallViT(width=12, depth=1)
    nn.init.zeros_(network.blocks[0].attention.project.weight)
    found = receptive_fields(network, torch.rand(3, 3, 32, 32), ["patches", "blocks.0"])
    for row in found.layers:
        assert row.support == 16
        assert row.own == pytest.approx(1)
    whole = receptive_fields(SmallViT(width=12, depth=1), torch.rand(3, 3, 32, 32), ["blocks.0"])
    assert whole["blocks.0"].support == 32 * 32
    assert whole["blocks.0"].own > 0.25  # sixteen times an even share, through the skip


def test_fields_grow_with_depth_and_the_seed_repeats_them() -> None:
    torch.manual_seed(0)
    network, images = cifar_resnet(14), torch.rand(4, 3, 32, 32)
    stages = ["conv1", "layer1", "layer2", "layer3"]
    found = receptive_fields(network, images, stages)
    radii = [row.radius for row in found.layers]
    assert radii == sorted(radii)
    again = receptive_fields(network, images, stages)
    np.testing.assert_array_equal(again["layer3"].weights, found["layer3"].weights)
    other = receptive_fields(network, images, stages, seed=1)
    assert not np.array_equal(other["layer3"].weights, found["layer3"].weights)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_it_prints_becomes_rows_and_draws_every_layer() -> None:
    found = receptive_fields(constant(2), torch.rand(1, 1, 9, 9).double())
    assert "own cell, %" in str(found)
    assert [record["layer"] for record in found.records()] == ["0", "1"]
    assert found.to_dict()["layers"][0]["support"] == 9
    images = [axes.images[0].get_array() for axes in found.figure().axes]
    np.testing.assert_allclose(images[1], found["1"].weights)
    with pytest.raises(KeyError, match="these were: 0, 1"):
        found["2"]


def test_bad_input_is_refused_with_the_cure() -> None:
    network, images = Conv4(5, channels=3, hidden=4, size=32), torch.rand(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"head.*no positions"):
        receptive_fields(network, images, ["head"])
    with pytest.raises(ValueError, match=r"give \(images, channels, height, width\)"):
        receptive_fields(network, images[0])
    with pytest.raises(ValueError, match="blok1"):
        receptive_fields(network, images, ["blok1"])
    dead = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Threshold(1e9, 0.0))
    with pytest.raises(ValueError, match="no gradient from the centre of layer '1'"):
        receptive_fields(dead, images, ["1"])
    with pytest.raises(ValueError, match="no layer that returns positions"):
        receptive_fields(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), images)
