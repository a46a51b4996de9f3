"""Image files that are decoded as they are drawn: the same tasks as of the images in memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision.transforms import v2

from metalearn.data import decoding, image_files
from metalearn.data.images import LabelledImages, in_memory
from metalearn.experiments.images import converted
from metalearn.tasks import FewShot, ImageFiles, image_folder, mini_imagenet
from metalearn.tasks.batches import Minibatches

CLASSES = {"train": ["ant", "bee", "cat"], "test": ["dog", "elk"]}
read = partial(image_folder, size=8, cache=False, progress=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of noise of each class, of several sizes."""
    generator = np.random.default_rng(0)
    for split, names in CLASSES.items():
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = generator.integers(0, 255, (9 + i, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_nothing_is_kept_and_the_record_is_the_same(folder: Path) -> None:
    stored = read(folder)
    files = image_folder(folder, size=8, in_memory=False)
    assert isinstance(files, ImageFiles) and not isinstance(stored, ImageFiles)
    assert not (folder / ".metalearn").exists()
    assert files.description == stored.description and files.names == stored.names
    assert len(files) == 18 and files.image_shape == stored.image_shape == (3, 8, 8)
    assert torch.equal(files.labels, stored.labels)
    image, label = files[7]
    assert torch.equal(image, stored[7][0]) and label == stored[7][1] == 1
    assert torch.equal(files.images, stored.images)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": "imagenet"},
        {"transform": v2.Grayscale()},
        {"augment": v2.RandomCrop(8, padding=2)},
    ],
)
def test_tasks_are_those_of_the_images_in_memory(folder: Path, options: dict[str, object]) -> None:
    drawn = []
    for stored in (True, False):
        tasks = FewShot(read(folder, in_memory=stored), 2, 1, 3, tasks=4, seed=3, **options)
        # Files have no random transforms of their own, so tasks may be drawn ahead in a thread.
        assert tasks.draws_globally == ("augment" in options)
        drawn.append([tasks[2], tasks.stack([0, 3])])
    for ours, theirs in zip(*drawn, strict=True):
        assert torch.equal(ours.support.inputs, theirs.support.inputs)
        assert torch.equal(ours.query.inputs, theirs.query.inputs)
        assert torch.equal(ours.query.targets, theirs.query.targets)


def test_only_the_images_of_a_task_are_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = FewShot(read(folder, in_memory=False), 2, 1, 3, tasks=4)
    decoded = []

    def counted(path: Path, channels: int, size: int) -> torch.Tensor:
        decoded.append(path)
        return decoding.decode(path, channels, size)

    monkeypatch.setattr(image_files, "decode", counted)
    support, query = tasks[1]
    assert len(decoded) == len(support.inputs) + len(query.inputs) == 8


def test_classes_conversions_and_minibatches_are_the_same(folder: Path) -> None:
    stored, files = read(folder), read(folder, in_memory=False)
    for change in (
        lambda images: images.classes([2, 0], note="two"),
        lambda images: converted(images, channels=1, size=6),
        lambda images: converted(images, channels=1, size=6).classes([1]),
        lambda images: converted(converted(images, channels=1, size=8), channels=1, size=6),
    ):
        expected, found = change(stored), change(files)
        assert isinstance(found, ImageFiles) and found.description == expected.description
        assert found.names == expected.names and torch.equal(found.labels, expected.labels)
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found[3][0], expected[3][0])
    assert converted(files, channels=3, size=8) is files
    batches = [Minibatches(images, size=5, seed=1)[2].query for images in (stored, files)]
    assert torch.equal(batches[0].inputs, batches[1].inputs)
    assert torch.equal(batches[0].targets, batches[1].targets)
    with pytest.raises(ValueError, match=r"classes \[7\] do not exist"):
        files.classes([7])


def test_parts_of_either_keep_the_names_of_their_classes(folder: Path) -> None:
    for images in (read(folder), read(folder, in_memory=False)):
        assert isinstance(images, LabelledImages)
        assert in_memory(Subset(images, [17, 0, 1]))[2] == ("ant", "cat")


def test_a_file_that_breaks_is_named_when_it_is_drawn(folder: Path) -> None:
    files = read(folder, in_memory=False)
    (folder / "train" / "bee" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(ValueError, match=r"bee/3\.png is not a readable image"):
        files[9]
    (folder / "train" / "bee" / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"3\.png"):
        files[9]


def test_images_that_memory_cannot_hold_may_be_read_as_they_are_drawn(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"GB of memory; give a smaller size, .*in_memory=False"):
        image_folder(folder, size=10**6)
    assert len(image_folder(folder, size=10**6, in_memory=False)) == 18


def test_images_of_several_sizes_need_a_size(folder: Path) -> None:
    files = image_folder(folder, size=None, in_memory=False)
    with pytest.raises(
        ValueError, match=r"0\.png is 12x9 pixels but .*1\.png is 12x10; give size="
    ):
        files.take(torch.tensor([1, 0, 2]))
    with pytest.raises(ValueError, match=r"pixels but .*0\.png is 12x9; give size="):
        _ = files.images


def test_mini_imagenet_may_be_read_so_too(tmp_path: Path) -> None:
    for c in range(16):
        (tmp_path / "val" / f"n{c:08}").mkdir(parents=True)
        Image.new("RGB", (5, 5), (c, 0, 0)).save(tmp_path / "val" / f"n{c:08}" / "0.png")
    (tmp_path / "train" / "other").mkdir(parents=True)
    found = mini_imagenet(tmp_path, "val", size=4, in_memory=False)
    assert isinstance(found, ImageFiles) and found.description["images_per_class"] == 1
    assert found.take(torch.tensor([9]))[0, 0, 0, 0] == 9
