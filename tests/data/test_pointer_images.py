"""Pointer value retrieval: images of four digits."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.datasets import MNIST

from metalearn.data.images import LabelledImages
from metalearn.tasks import FewShot, pointer_images

# The corner of each place in the image, and its column in `digits`.
TOP_RIGHT = (0, 40, 1)
BOTTOM_LEFT = (40, 0, 2)
BOTTOM_RIGHT = (40, 40, 3)


def digits(images: int = 60) -> LabelledImages:
    """Random pixels with a label each; pixels are 1 or more, so the ground can be told."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(1, 256, (images, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return LabelledImages(pixels, torch.arange(images) % 10, tuple("0123456789"))


def place_of(pointer: int) -> tuple[int, int, int]:
    if pointer <= 3:
        return TOP_RIGHT
    return BOTTOM_LEFT if pointer <= 6 else BOTTOM_RIGHT


def test_the_cell_under_the_pointer_shows_a_shifted_digit_of_the_label() -> None:
    source = digits()
    found = pointer_images(source, 300, seed=1)
    assert found.images.shape == (300, 1, 80, 80)
    seen = set()
    for i in range(300):
        top, side, column = place_of(int(found.digits[i, 0]))
        row, left = found.offsets[i, column].tolist()
        crop = found.images[i, 0, top : top + 40, side : side + 40]
        number = int(found.sources[i, column])
        assert torch.equal(crop[row : row + 28, left : left + 28], source.images[number, 0])
        assert int(crop.count_nonzero()) == 28 * 28  # nothing else is drawn in the cell
        assert int(source.labels[number]) == int(found.labels[i])
        seen.update((row, left))
    assert seen == set(range(13))  # up to 6 pixels to each side of the middle


def test_held_out_digits_are_only_in_adversarial_images() -> None:
    held_out = {1: {1, 2, 3}, 2: {4, 5, 6}, 3: {7, 8, 9, 0}}
    train = pointer_images(digits(), 5000, seed=0, holdout="positions")
    shifted = pointer_images(digits(), 2000, seed=1, holdout="positions", adversarial=True)
    for column, digit in held_out.items():
        assert set(train.digits[:, column].tolist()) == set(range(10)) - digit
        assert set(shifted.digits[:, column].tolist()) == digit
    for images in (train, shifted):
        counts = torch.bincount(images.digits[:, 0])
        expected = len(images) / 10
        assert float((counts - expected).abs().max()) < 5 * math.sqrt(expected)
    # A constant predictor gets 0.4 / 3 of the adversarial labels at most.
    assert shifted.entropy > 3


def test_images_depend_on_the_seed_and_their_number_alone() -> None:
    many = pointer_images(digits(), 4100, seed=3)
    few = pointer_images(digits(), 20, seed=3)
    assert torch.equal(many.images[:20], few.images) and torch.equal(many.labels[:20], few.labels)
    assert not torch.equal(few.images, pointer_images(digits(), 20, seed=4).images)


def test_digits_are_drawn_uniformly_whatever_their_shares_in_the_source() -> None:
    source = digits(200)
    keep = (source.labels != 7) | (torch.arange(200) < 20)  # 2 images of the digit 7
    uneven = LabelledImages(source.images[keep], source.labels[keep], source.names)
    found = pointer_images(uneven, 4000, seed=0)
    counts = torch.bincount(found.digits.flatten())
    assert float((counts - 1600).abs().max()) < 5 * math.sqrt(1600)


def test_facts_and_few_shot_tasks() -> None:
    found = pointer_images(digits(), 400)
    facts = found.facts()
    assert list(facts) == ["pointer", "top right", "bottom left", "bottom right"]
    assert torch.equal(facts["bottom left"], found.digits[:, 2])
    support, _ = FewShot(found, 5, 1, 1, tasks=1)[0]
    assert support.inputs.shape == (5, 1, 80, 80)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"holdout": "position"}, "holdout='position' is not one of positions"),
        ({"adversarial": True}, "nothing is held out; give holdout='positions'"),
        ({"size": 0}, "size=0"),
        ({"size": 10**10}, "size=10,000,000,000 needs"),
    ],
)
def test_bad_settings_are_named_with_a_cure(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pointer_images(digits(), **{"size": 5, **settings})


def test_sources_that_are_no_digits() -> None:
    source = digits()
    with pytest.raises(ValueError, match="no image of the digit 9"):
        pointer_images(LabelledImages(source.images[:9], source.labels[:9], source.names), 5)
    with pytest.raises(ValueError, match="have 3 classes"):
        pointer_images(source.classes([0, 1, 2]), 5)
    colour = LabelledImages(source.images.expand(-1, 3, -1, -1), source.labels, source.names)
    with pytest.raises(ValueError, match=r"images of \(3, 28, 28\)"):
        pointer_images(colour, 5)
    with pytest.raises(TypeError, match="the digits are a Tensor"):
        pointer_images(source.images, 5)  # type: ignore[arg-type]


def mnist(root: Path, *, train: bool) -> LabelledImages:
    """The first images of MNIST's training or test set."""
    data = MNIST(str(root), train=train, download=True)  # unpacks the files that are there
    return LabelledImages(data.data[:1000, None], data.targets[:1000], tuple("0123456789"))


def test_training_digits_and_test_digits_of_mnist_do_not_mix(data: Path, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (data / "MNIST" / "raw").glob("*.gz"):
        shutil.copyfile(file, raw / file.name)
    train, test = mnist(tmp_path, train=True), mnist(tmp_path, train=False)
    for part, other in ((train, test), (test, train)):
        found = pointer_images(part, 50, seed=0)
        unknown = {bytes(image.numpy()) for image in other.images}
        for i in range(50):
            row, column = found.offsets[i, 0].tolist()
            crop = found.images[i, 0, row : row + 28, column : column + 28].contiguous()
            assert torch.equal(crop, part.images[found.sources[i, 0], 0])
            assert bytes(crop.numpy()) not in unknown
