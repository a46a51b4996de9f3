"""Norms of shortcuts and branches, beside those of hooks on the layers that make them."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from metalearn.analysis import shortcut_norms
from metalearn.models import Conv4, ResNet12, cifar_resnet
from metalearn.network.activations import representations
from metalearn.network.modes import evaluation_mode

PARTS = ("self_attention:0", "mlp")
# What enters each block of a transformer.
STREAMS = ["encoder.dropout", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]


def ratio(shortcut: Tensor, branch: Tensor) -> float:
    norms = [side.double().flatten(1).norm(dim=1) for side in (shortcut, branch)]
    return float((norms[0] / norms[1]).mean())


def outputs_of(model: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    with evaluation_mode([model]), torch.no_grad(), representations(model, names) as outputs:
        model(images)
    return outputs


def resnet18() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None)


def test_sides_are_those_of_the_layers_that_make_them() -> None:
    model, images = resnet18(), torch.randn(6, 3, 64, 64)
    rows = {row.block: row for row in shortcut_norms(model, images.split(2)).blocks}
    assert list(rows) == [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    names = ["layer1.0", "layer1.1.bn2", "layer2.0.bn2", "layer2.0.downsample"]
    seen = outputs_of(model, names, images)
    identity = ratio(seen["layer1.0"], seen["layer1.1.bn2"])
    assert rows["layer1.1"].ratio == pytest.approx(identity, rel=1e-6)
    assert not rows["layer1.1"].projected
    projected = ratio(seen["layer2.0.downsample"], seen["layer2.0.bn2"])
    assert rows["layer2.0"].ratio == pytest.approx(projected, rel=1e-6)
    assert rows["layer2.0"].projected


def test_the_ratio_follows_the_scale_of_the_branch() -> None:
    model, images = resnet18(), torch.randn(4, 3, 64, 64)
    before = shortcut_norms(model, images).blocks[0].ratio
    with torch.no_grad():
        model.layer1[0].bn2.weight *= 4
    assert shortcut_norms(model, images).blocks[0].ratio == pytest.approx(before / 4, rel=1e-6)


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        (lambda: cifar_resnet(20), 9),
        (lambda: ResNet12(ways=5), 4),
        (lambda: timm.create_model("resnet26t"), 8),
        (lambda: timm.create_model("mobilenetv3_small_100"), 6),
        (lambda: torchvision.models.efficientnet_b0(weights=None), 9),
        (lambda: torchvision.models.resnext50_32x4d(weights=None), 16),
    ],
)
def test_blocks_of_other_libraries_are_found(model: object, blocks: int) -> None:
    torch.manual_seed(0)
    network = model()
    images = torch.randn(2, 3, 64, 64)
    found = shortcut_norms(network, images)
    assert len(found.blocks) == blocks
    assert all(row.ratio > 0 for row in found.blocks)
    assert "norm over branch" in str(found)


@pytest.mark.parametrize("images", [1, 3])
def test_transformers_agree_with_the_norms_of_their_streams(images: int) -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 16, "num_layers": 3, "num_heads": 2}
    vit = torchvision.models.VisionTransformer(**sizes, hidden_dim=16, mlp_dim=32)
    vit.class_token = nn.Parameter(torch.randn(1, 1, 16))
    pictures = torch.rand(images, 3, 32, 32)
    found = [row.ratio for row in shortcut_norms(vit, pictures).blocks]
    branches = outputs_of(
        vit,
        [f"encoder.layers.encoder_layer_{i}.{part}" for i in range(3) for part in PARTS],
        pictures,
    )
    norms = {name: output.double().flatten(1).norm(dim=1) for name, output in branches.items()}
    assert len(found) == 6
    streams = outputs_of(vit, STREAMS, pictures)
    for i in range(3):
        before = streams[STREAMS[i]].double()
        attended = branches[f"encoder.layers.encoder_layer_{i}.self_attention:0"].double()
        expected = float((before.flatten(1).norm(dim=1) / attended.flatten(1).norm(dim=1)).mean())
        assert found[2 * i] == pytest.approx(expected, rel=1e-5)
        middle = (before + attended).flatten(1).norm(dim=1)
        added = norms[f"encoder.layers.encoder_layer_{i}.mlp"]
        assert found[2 * i + 1] == pytest.approx(float((middle / added).mean()), rel=1e-5)


def test_outputs_stay_the_same_and_nothing_is_left_behind() -> None:
    model, images = resnet18().eval(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        shortcut_norms(model, images)
        assert torch.equal(model(images), before)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_network_without_shortcuts_is_refused() -> None:
    with pytest.raises(ValueError, match="Conv4 adds no branch to a shortcut"):
        shortcut_norms(Conv4(ways=5, hidden=8), torch.rand(4, 1, 28, 28))
    with pytest.raises(ValueError, match="the loader gave no batch"):
        shortcut_norms(resnet18(), [])
