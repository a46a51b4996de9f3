"""First components and dominant images: the paper's mechanism in numbers known beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder

from metalearn import layers
from metalearn.analysis import linear_cka, similarity_map
from metalearn.analysis.networks.block_structure import block_structure
from metalearn.analysis.networks.components import (
    components,
    leading_component,
    without,
)
from metalearn.models import cifar_resnet


class Layers(nn.Module):
    """A network that returns the columns of its inputs as layers "0", "1", ..."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.widths = widths
        for number in range(len(widths)):
            self.add_module(str(number), nn.Identity())

    def forward(self, inputs: Tensor) -> Tensor:
        for layer, part in zip(self.children(), inputs.split(self.widths, 1), strict=True):
            out = layer(part)
        return out


def spiked() -> tuple[Tensor, Tensor]:
    """Independent noise with five images far out on the same side: (500, 60) twice."""
    generator = np.random.default_rng(0)
    first, second = generator.standard_normal((2, 500, 60))
    directions = generator.standard_normal((2, 60))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    dominant = np.zeros(500)
    dominant[:5] = 1
    spikes = [240 * np.outer(dominant, direction) for direction in directions]
    return torch.tensor(first + spikes[0]), torch.tensor(second + spikes[1])


def test_a_few_images_make_unrelated_layers_alike() -> None:
    x, y = spiked()
    inputs = torch.cat([x, y], 1)
    found = components(Layers(60, 60), inputs.split(128), ["0", "1"])
    assert linear_cka(x, y) == pytest.approx(0.9956, abs=5e-5)
    assert found.agreement[0] == pytest.approx(0.9967, abs=5e-5)
    assert found["0"].share == pytest.approx(0.907, abs=5e-4)
    assert sorted(found.dominant("0")) == [0, 1, 2, 3, 4]
    assert found["0"].participation == pytest.approx(5, rel=0.05)
    assert found.carried("0", found.dominant("0")) == pytest.approx(0.988, abs=1e-3)
    left = torch.cat(list(without(inputs.split(128), found.dominant("0"))))
    assert left.shape == (495, 120)
    assert linear_cka(left[:, :60], left[:, 60:]) == pytest.approx(-0.0014, abs=5e-5)
    removed = []
    for side, row in zip((x, y), found.layers, strict=True):
        direction = torch.tensor(row.direction)
        centred = side - torch.tensor(row.mean)
        removed.append(centred - torch.outer(centred @ direction, direction))
    assert linear_cka(*removed) == pytest.approx(-0.0013, abs=5e-5)


def test_the_map_without_the_component_is_about_nothing() -> None:
    x, y = spiked()
    found = components(Layers(60, 60), torch.cat([x, y], 1), ["0", "1"])
    assert found.similarity(removed=0).values[0, 1] == pytest.approx(0.9956, abs=5e-5)
    assert found.similarity().values[0, 1] == pytest.approx(-0.0013, abs=5e-5)
    np.testing.assert_allclose(np.diag(found.similarity().values), 1)
    with pytest.raises(ValueError, match="give 0 or 1"):
        found.similarity(removed=2)


def test_without_as_many_other_images_they_stay_alike() -> None:
    x, y = spiked()
    left = torch.cat(list(without(torch.cat([x, y], 1), range(100, 105))))
    assert linear_cka(left[:, :60], left[:, 60:]) > 0.99


@pytest.mark.parametrize("shape", [(40, 200), (200, 12), (9, 3)])
def test_power_iteration_agrees_with_the_eigenvalues(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(shape, generator=generator, dtype=torch.float64)
    row = components(Layers(shape[1]), activations, ["0"]).layers[0]
    centred = activations - activations.mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    assert row.share == pytest.approx(float(values[-1] / values.sum()), rel=1e-9)
    assert abs(float(torch.tensor(row.scores) @ vectors[:, -1])) == pytest.approx(1, abs=1e-6)
    assert row.residual <= 1e-6
    projected = centred.numpy() @ row.direction
    np.testing.assert_allclose(projected, float(values[-1].sqrt()) * row.scores, atol=1e-5)
    assert row.scores[np.abs(row.scores).argmax()] > 0


def test_many_images_and_few_give_the_same() -> None:
    x = torch.randn(60, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direct = components(Layers(9), x, ["0"]).layers[0]
    value, scores, residual = leading_component(x, x.mean(0))
    assert residual <= 1e-6
    np.testing.assert_allclose(scores, direct.scores, atol=1e-6)
    assert value / float((x - x.mean(0)).square().sum()) == pytest.approx(direct.share, rel=1e-9)


def test_shares_of_extreme_layers_are_known() -> None:
    rank_one = torch.outer(torch.arange(6.0), torch.rand(5) + 1)
    row = components(Layers(5), rank_one, ["0"]).layers[0]
    assert row.share == pytest.approx(1, abs=1e-6)
    # n orthonormal rows have n - 1 equal eigenvalues after centring.
    row = components(Layers(8), torch.eye(8), ["0"]).layers[0]
    assert row.share == pytest.approx(1 / 7, rel=1e-6)


def test_rotation_and_scale_change_nothing_and_permuted_images_permute_the_scores() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 7, generator=generator, dtype=torch.float64) * torch.arange(1, 8)
    plain = components(Layers(7), x, ["0"]).layers[0]
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64)).Q
    turned = components(Layers(7), 3 * x @ rotation + 5, ["0"]).layers[0]
    assert turned.share == pytest.approx(plain.share, rel=1e-9)
    np.testing.assert_allclose(turned.scores, plain.scores, atol=1e-5)
    order = torch.randperm(60, generator=generator)
    permuted = components(Layers(7), x[order], ["0"]).layers[0]
    np.testing.assert_allclose(permuted.scores, plain.scores[order], atol=1e-5)


def test_little_memory_reads_the_loader_more_often_and_gives_the_same() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    images = torch.randn(50, 6)
    loader = DataLoader(TensorDataset(images, torch.zeros(50)), batch_size=16)
    whole = components(network, loader)
    groups = components(network, loader, memory=1)
    assert [row.layer for row in whole.layers] == [row.layer for row in groups.layers]
    for first, second in zip(whole.layers, groups.layers, strict=True):
        np.testing.assert_array_equal(first.scores, second.scores)


def test_a_dead_layer_has_no_component_and_is_named() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Threshold(1e9, 0.0))
    found = components(network, torch.randn(10, 4), ["0", "1"])
    assert np.isnan(found["1"].share)
    assert found.notes == ("layer 1 is constant over the images (a dead layer?)",)
    assert "a dead layer?" in str(found)
    assert found.to_dict()["layers"][1]["share"] is None


def test_no_image_stands_out_of_a_flat_component() -> None:
    x = torch.linspace(-1, 1, 100)[:, None] @ torch.ones(1, 5)
    found = components(Layers(5), x, ["0"])
    assert len(found.dominant("0")) == 0
    assert len(found.dominant("0", share=0.02)) == 2


def test_too_few_images_are_refused() -> None:
    x = torch.zeros(10, 3)
    x[:4] = 100 + torch.rand(4, 3)
    x[4:] = 1e-3 * torch.rand(6, 3)
    found = components(Layers(3), x, ["0"])
    with pytest.raises(ValueError, match=r"4 of 10 images.*at least 12"):
        found.dominant("0")
    with pytest.raises(ValueError, match="3 images; a component needs at least 4"):
        components(Layers(3), x[:3], ["0"])
    with pytest.raises(ValueError, match="share=2"):
        found.dominant("0", share=2)


def test_loaders_that_cannot_be_read_again_in_the_same_order_are_refused() -> None:
    network, images = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(40, 4)
    with pytest.raises(ValueError, match="only once"):
        components(network, iter(images.split(8)))
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(images), batch_size=8, shuffle=True)
    with pytest.raises(ValueError, match="shuffle=False"):
        components(network, loader)
    with pytest.raises(ValueError, match="not finite"):
        components(network, images * torch.tensor([1, 1, 1, torch.inf]))
    with pytest.raises(KeyError, match="these were: 0"):
        components(network, images)["2"]


def test_batches_of_any_form_lose_the_same_images() -> None:
    images, labels = torch.arange(6.0)[:, None], torch.arange(6)
    pairs = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    kept = [tuple(part.flatten().tolist() for part in batch) for batch in without(pairs, [0, 4])]
    assert kept == [([1.0, 2.0], [1, 2]), ([3.0, 5.0], [3, 5])]
    named = list(without({"ids": images, "label": labels}, [0, 1, 2]))
    assert named[0]["label"].tolist() == [3, 4, 5]
    assert [len(batch) for batch in without(images.split(3), [0, 1, 2])] == [3]


def test_a_published_network_without_a_block_has_small_components(data: Path) -> None:
    """CIFAR-10's narrow ResNet-20: small shares, carried by hundreds of images."""
    folder = ImageFolder(str(data / "cifar10/test"))
    images = [folder[i][0] for i in range(0, 10_000, 20)]
    pixels = torch.stack([torch.tensor(np.asarray(image)) for image in images])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = ((pixels / 255 - mean) / std).movedim(-1, 1)
    network = cifar_resnet(20)
    weights = torch.load(
        data / "weights/cifar10_resnet20-12fca82f.th", map_location="cpu", weights_only=True
    )
    named = {name.removeprefix("module."): w for name, w in weights["state_dict"].items()}
    network.load_state_dict(named)
    names = [name for name in layers(network) if name not in ("conv1", "linear")]
    found = components(network, inputs.split(100), names)
    shares = [row.share for row in found.layers]
    expected = [0.19, 0.09, 0.04, 0.05, 0.05, 0.04, 0.04, 0.03, 0.03, 0.10]
    assert shares == pytest.approx(expected, abs=0.025)
    assert all(150 < row.participation < 260 for row in found.layers)
    similar = similarity_map(network, network, inputs.split(100), names, names, draws=0)
    assert len(block_structure(similar, found)) == 0


def test_it_draws_every_layer() -> None:
    found = components(Layers(4, 4), torch.randn(30, 8), ["0", "1"])
    lines = found.figure().axes[0].lines
    np.testing.assert_allclose(lines[0].get_ydata(), [row.share for row in found.layers])
    assert [record["layer"] for record in found.records()] == ["0", "1"]


def test_a_loader_of_float32_rounds_little() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 50, generator=generator)
    value, vector, _ = leading_component(x, x.double().mean(0))
    exact, same, _ = leading_component(x.double(), x.double().mean(0))
    assert value == pytest.approx(exact, rel=1e-9)
    torch.testing.assert_close(vector, same)


@pytest.mark.parametrize("scale", [1e-22, 1.0, 1e16, 1e17, 1e18, 1e19, 1e22])
def test_steps_in_float32_neither_overflow_nor_decide(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(60, 12, generator=generator)
    activations[:, 0] *= 5
    activations = activations * scale
    mean = activations.double().mean(0)
    centred = activations.double() - mean
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    value, vector, residual = leading_component(activations, mean)
    assert value == pytest.approx(float(values[-1]), rel=1e-9)
    assert abs(float(vector @ vectors[:, -1])) == pytest.approx(1, abs=1e-9)
    assert residual <= 1e-6
