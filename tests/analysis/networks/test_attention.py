"""Distances of heads, norms of the stream, and networks without a connection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metalearn.analysis.networks.attention import (
    PatchGrid,
    attention_distances,
    patch_grid,
    residual_off,
    residual_points,
    skip,
    stream_norms,
)
from metalearn.analysis.networks.similarity_map import similarity_map
from metalearn.models import SmallViT


class Tokens(nn.Module):
    """Patches of an image as tokens, then one attention with weights that the test sets."""

    def __init__(self, size: int, patch: int, scores: Tensor | None = None) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 4, patch, stride=patch)
        self.norm = nn.LayerNorm(4)
        self.attend = Fixed(
            torch.zeros((size // patch) ** 2, (size // patch) ** 2) if scores is None else scores
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.attend(self.norm(self.embed(images).flatten(2).mT))


class Fixed(nn.Module):
    """Attention with fixed scores, whatever the tokens."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.register_buffer("scores", scores)

    def forward(self, tokens: Tensor) -> Tensor:
        x = tokens[:, None]
        zero = torch.zeros_like(x)
        return nn.functional.scaled_dot_product_attention(zero, zero, x, attn_mask=self.scores)[
            :, 0
        ]


@pytest.mark.parametrize(
    ("size", "patch", "distance"),
    [(2, 1, 0.85355339), (32, 4, 16.5459308), (224, 32, 115.5028941), (224, 16, 116.4922271)],
)
def test_uniform_attention_has_the_golden_distances(size: int, patch: int, distance: float) -> None:
    found = attention_distances(Tokens(size, patch), torch.rand(2, 1, size, size))
    assert found.uniform == pytest.approx(distance, abs=5e-8)
    assert found.distances[0] == pytest.approx([distance], rel=1e-6)
    assert found.entropies[0] == pytest.approx([found.uniform_entropy], rel=1e-6)


def test_the_corner_sees_farthest() -> None:
    grid = PatchGrid(14, 14, 0, (16.0, 16.0))
    assert float(grid.distances()[0].mean()) == pytest.approx(161.0301674, abs=5e-8)


def test_one_hot_attention_has_the_distance_of_its_patch() -> None:
    far = 1e4 * torch.eye(16)
    assert attention_distances(Tokens(16, 4, far), torch.rand(1, 1, 16, 16)).distances[0] == 0
    right = 1e4 * torch.eye(16).roll(1, 1)
    rows = torch.arange(16)
    last = rows % 4 == 3
    right[last] = 1e4 * torch.eye(16)[last]  # the last column looks at itself
    found = attention_distances(Tokens(16, 4, right), torch.rand(1, 1, 16, 16))
    assert found.distances[0] == pytest.approx([4 * 12 / 16])


def test_rows_are_renormalised_over_the_patches() -> None:
    torch.manual_seed(0)
    network, images = SmallViT(width=12, depth=1), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        network.blocks[0].attention.qkv.weight.zero_()  # attention is uniform
        network.blocks[0].attention.qkv.bias.zero_()
    shares = attention_distances(network, images, renormalise=False)
    whole = attention_distances(network, images)
    # The class token takes 1 of 65 equal parts.
    np.testing.assert_allclose(shares.distances[0] / whole.distances[0], 64 / 65, rtol=1e-6)


def test_batches_of_any_size_give_the_same_distances() -> None:
    torch.manual_seed(0)
    network, images = SmallViT(width=12, depth=2), torch.rand(7, 3, 32, 32)
    at_once = attention_distances(network, images)
    in_parts = attention_distances(network, images.split(3))
    assert in_parts.images == 7
    for first, second in zip(at_once.distances, in_parts.distances, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-6)


def test_a_grid_that_is_no_square_comes_from_the_patch_embedding() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), patch_size=8, depth=1)
    images = torch.rand(2, 3, 32, 48)
    assert patch_grid(network, images) == (4, 6, 1, (8.0, 8.0))
    assert attention_distances(network, images).grid.width == 6
    registers = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=28, depth=1)
    assert patch_grid(registers, torch.rand(1, 3, 28, 28)) == (2, 2, 5, (14.0, 14.0))


def test_bad_grids_and_networks_are_refused_with_the_cure() -> None:
    network, images = SmallViT(width=12, depth=1), torch.rand(2, 3, 32, 32)
    with pytest.raises(ValueError, match="65 tokens are not a grid of 5 x 5"):
        attention_distances(network, images, grid=(5, 5))
    with pytest.raises(ValueError, match="2 special tokens"):
        attention_distances(network, images, special=2)
    with pytest.raises(ValueError, match=r"has no tokens.*similarity_map"):
        attention_distances(nn.Sequential(nn.Conv2d(3, 4, 3)), images)
    with pytest.raises(ValueError, match="gave no batch"):
        attention_distances(network, iter([]))
    with pytest.raises(TypeError, match="give a vision transformer"):
        attention_distances("vit", images)


def test_windowed_attention_is_refused() -> None:
    torchvision = pytest.importorskip("torchvision")
    swin = torchvision.models.swin_t(num_classes=10)
    with pytest.raises(ValueError, match=r"no tokens"):
        attention_distances(swin, torch.rand(1, 3, 64, 64))


class Scaled(nn.Module):
    """A pre-norm block whose branch returns a multiple of the stream."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.branch = Multiple(factor)

    def forward(self, stream: Tensor) -> Tensor:
        self.norm(stream)
        return stream + self.branch(stream)


class Multiple(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, stream: Tensor) -> Tensor:
        return self.factor * stream


def test_a_branch_that_adds_c_times_its_input_has_ratio_one_over_c() -> None:
    body = nn.Sequential(Scaled(0.5), Scaled(4.0), nn.LayerNorm(6))
    embed = nn.Conv2d(1, 6, 4, stride=4)
    network = nn.Sequential(embed, nn.Flatten(2), Transpose(), body)
    found = stream_norms(network, torch.rand(5, 1, 8, 8))
    assert [row.patches for row in found.branches] == pytest.approx([2.0, 0.25], rel=1e-5)
    assert np.isnan(found.branches[0].class_token)
    assert "-" in str(found)


class Transpose(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.mT


def test_points_of_the_stream_are_named_for_every_library_and_map() -> None:
    from torchvision.models import VisionTransformer

    network = VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    points = residual_points(network)
    assert len(points) == 10
    assert points[1] == "encoder.layers.encoder_layer_0.self_attention:0"
    found = similarity_map(network, network, torch.rand(8, 3, 16, 16), points, points)
    assert np.allclose(np.diag(found.values), 1)
    with pytest.raises(ValueError, match="name the layers yourself"):
        residual_points(nn.Sequential(nn.Linear(2, 2)))


def test_skipping_a_block_is_the_network_without_it() -> None:
    torch.manual_seed(0)
    network, images = SmallViT(width=12, depth=3).eval(), torch.rand(2, 3, 32, 32)
    with skip(network, ["blocks.1"]), torch.no_grad():
        skipped = network(images)
    del network.blocks[1]
    with torch.no_grad():
        assert torch.equal(skipped, network(images))
    with pytest.raises(ValueError, match="cannot be skipped"), skip(network, ["patches"]):
        network(images)
    with pytest.raises(ValueError, match="blocks"), skip(network, ["block.1"]):
        pass


def test_without_its_residual_a_block_returns_its_branches() -> None:
    torch.manual_seed(0)
    network, images = SmallViT(width=12, depth=2).eval(), torch.rand(2, 3, 32, 32)
    block = network.blocks[1]
    stream = torch.rand(2, 65, 12)
    with residual_off(network, "blocks.1"), torch.no_grad():
        alone = block(stream)
        network(images)
    torch.testing.assert_close(alone, block(stream) - stream)
    convolution = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="pre-norm"), residual_off(convolution, "0"):
        convolution(images)


def test_results_print_draw_and_become_rows(tmp_path: Path) -> None:
    network, images = SmallViT(width=12, depth=2), torch.rand(3, 3, 32, 32)
    found = attention_distances(network, images)
    assert "uniform attention: 16.5 pixels" in str(found)
    assert len(found.records()) == 6
    assert found.to_dict()["grid"]["height"] == 8
    points = found.figure().axes[0].collections
    assert [len(drawn.get_offsets()) for drawn in points] == [3, 3]
    norms = stream_norms(network, images)
    assert norms.records()[0]["branch"] == "blocks.0.attention"
    lines = norms.figure().axes[0].lines
    np.testing.assert_allclose(lines[0].get_ydata(), [row.patches for row in norms.branches])
    norms.plot(tmp_path / "norms.png")
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")


class LinearPatches(nn.Module):
    """A transformer that embeds patches of 8 pixels without a convolution."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(64, 8)
        self.block = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, batch_first=batch_first, norm_first=True
        )

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(nn.functional.unfold(images, 8, stride=8).mT)
        if not self.block.self_attn.batch_first:
            return self.block(tokens.transpose(0, 1)).transpose(0, 1)
        return self.block(tokens)


def test_the_grid_of_images_that_are_no_square_is_not_guessed() -> None:
    """16 x 64 pixels are 2 x 8 patches, which a square of 4 x 4 would pass for."""
    images = torch.rand(3, 1, 16, 64)
    with pytest.raises(ValueError, match=r"16 tokens .* 16 x 64 pixels.*give grid="):
        attention_distances(LinearPatches(), images)
    found = attention_distances(LinearPatches(), images, grid=(2, 8))
    assert (found.grid.height, found.grid.width) == (2, 8)
    assert found.grid.patch == (8, 8)
    assert attention_distances(LinearPatches(), torch.rand(3, 1, 32, 32)).grid[:2] == (4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 8}, r"grid=8; give \(rows, columns\)"),
        ({"grid": (0, 16)}, r"grid\[0\]=0"),
        ({"patch": 0}, r"patch\[0\]=0"),
        ({"patch": "4"}, "patch='4'; give pixels"),
        ({"special": 70}, "special=70; give a number of the 16 tokens"),
    ],
)
def test_odd_grids_and_patches_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_distances(LinearPatches(), torch.rand(2, 1, 32, 32), **options)


def test_tokens_that_are_not_images_first_are_refused() -> None:
    network, images = LinearPatches(batch_first=False), torch.rand(16, 1, 32, 32)
    for measure in (attention_distances, stream_norms):  # 16 images of 16 tokens
        with pytest.raises(ValueError, match=r"block .* build it with batch_first=True"):
            measure(network, images)
    with pytest.raises(ValueError, match="no input has the shape"):
        attention_distances(network.block, torch.rand(4, 9, 8))
