"""The study of block structure on a network whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metalearn.studies.block_structure import block_study, evolution


class Noise(nn.Module):
    """Layers that return independent noise, but for a few images that all of them push aside."""

    def __init__(self, layers: int, push: float) -> None:
        super().__init__()
        for number in range(layers):
            self.add_module(str(number), nn.Identity())
        self.push = push

    def forward(self, images: Tensor) -> Tensor:
        marks = images[:, 0, 0, 0] > 0.9  # the dominant images carry a mark
        for number, layer in enumerate(self.children()):
            generator = torch.Generator().manual_seed(number)
            mixing = torch.randn(images[0].numel(), 20, generator=generator)
            direction = torch.randn(20, generator=generator)
            noise = torch.sin(40 * images.flatten(1) @ mixing)
            out = layer(noise + self.push * marks[:, None] * direction)
        return out


def marked(count: int = 120) -> Tensor:
    images = 0.8 * torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images[:4, 0, 0, 0] = 1
    return images


NAMES = ["0", "1", "2", "3"]


def test_the_similarity_of_unrelated_layers_goes_with_the_dominant_images() -> None:
    study = block_study(Noise(4, 200.0), marked().split(40), NAMES)
    assert sorted(study.dominant) == [0, 1, 2, 3]
    means = {row["map"]: row["similarity"] for row in study.records()}
    assert means["all images"] > 0.9
    assert means["without as many random images"] > 0.9
    assert abs(means["without the dominant images"]) < 0.1
    assert abs(means["without the first components"]) < 0.1
    assert "4 dominant ones hold" in study.answer()
    assert study.to_dict()["carried"] > 0.95


def test_without_dominant_images_there_is_nothing_to_find() -> None:
    study = block_study(Noise(4, 0.0), marked(), NAMES)
    assert len(study.structure) == 0
    assert study.answer().startswith("No block structure.")


def test_the_page_shows_maps_and_the_dominant_images(tmp_path: Path) -> None:
    images = marked()
    study = block_study(Noise(4, 200.0), images, NAMES)
    study.report(tmp_path / "page.html", images.expand(-1, 3, -1, -1))
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 6
    assert "Davari" in page
    assert "without the dominant images" in page


def test_evolution_compares_dominant_images_with_those_of_the_end() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    end = {name: torch.randn_like(tensor) for name, tensor in start.items()}
    inputs = torch.randn(200, 6)
    found = evolution(network, {0: start, 7: end}, inputs, ["0", "2"], share=0.05)
    assert [row.step for row in found.steps] == [0, 7]
    assert found.steps[1].overlap == 1
    assert 0 <= found.steps[0].overlap < 1
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, start[name])  # left as it was
    with pytest.raises(ValueError, match="not of this Sequential"):
        evolution(network, {0: {"x": torch.zeros(1)}, 1: end}, inputs)
    assert np.isfinite([row["similarity"] for row in found.records()]).all()


def test_networks_that_are_dead_and_no_snapshots_are_refused() -> None:
    images = torch.randn(20, 3)
    dead = nn.Sequential(nn.Threshold(1e9, 0.0), nn.Threshold(1e9, 0.0), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"all layers \(0, 1\) are constant over the 20 images"):
        block_study(dead, images, ["0", "1"])
    with pytest.raises(ValueError, match=r"all layers \(0, 1\) are constant"):
        evolution(dead, {0: dead.state_dict()}, images, ["0", "1"])
    with pytest.raises(ValueError, match="no snapshots"):
        evolution(dead, {}, images)


def test_the_answer_tells_when_no_image_stands_out() -> None:
    images = torch.cat([torch.ones(30, 4), -torch.ones(30, 4)])
    network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    answer = block_study(network, images, ["0", "1"]).answer()
    assert "about 60 of 60 images; none stands out" in answer


def test_too_few_images_beside_the_dominant_ones_are_refused() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    with pytest.raises(ValueError, match=r"4 images, of which 1 dominate.* give more images"):
        block_study(network, torch.randn(4, 6), ["0", "1"])
