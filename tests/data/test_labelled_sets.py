"""Images to fine-tune on: folders, MedMNIST's files, torchvision's sets, and files that are not
whole.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.data.labelled_sets import (
    divided,
    image_folders,
    load,
    medmnist,
    medmnist_file,
    sized,
    torchvision_set,
)
from tests.helpers import medmnist_arrays


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of each of three classes."""
    generator = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (tmp_path / "all" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(generator.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(
                tmp_path / "all" / name / f"{i}.png"
            )
    return tmp_path / "all"


@pytest.mark.parametrize("colour", [False, True])
def test_a_medmnist_file_gives_its_three_parts_as_they_are(tmp_path: Path, colour: bool) -> None:
    stored = medmnist_arrays(colour)
    np.savez(tmp_path / "some.npz", **stored)
    parts = load(str(tmp_path / "some.npz"))
    assert [len(part) for part in parts if part] == [12, 4, 6]
    image = parts.train.images[3].numpy()
    assert np.array_equal(
        image.transpose(1, 2, 0) if colour else image[0], stored["train_images"][3]
    )
    assert parts.test.labels.tolist() == [0, 1] * 3


def test_a_truncated_medmnist_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    np.savez_compressed(path, **medmnist_arrays())
    content = path.read_bytes()
    for kept in (0, 100, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:kept])
        with pytest.raises(
            ValueError, match=r"some\.npz is not a complete MedMNIST file .* download it again"
        ):
            medmnist_file(path)
    path.write_bytes(content[:200] + bytes(50) + content[250:])
    with pytest.raises(ValueError, match=r"some\.npz is not a complete MedMNIST file"):
        medmnist_file(path)


def test_missing_arrays_pickles_and_other_kinds_of_labels_are_named(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    without = medmnist_arrays()
    del without["test_labels"]
    for stored, message in (
        (without, "lacks test_labels"),
        (medmnist_arrays(train_labels=np.zeros((12, 14), dtype=np.uint8)), "14 labels an image"),
        (
            medmnist_arrays(train_images=np.zeros((12, 8, 8, 8), dtype=np.uint8)),
            "volumes are not read",
        ),
        (
            medmnist_arrays(train_labels=np.zeros((11, 1), dtype=np.uint8)),
            "not one integer for each of 12 images",
        ),
        (
            medmnist_arrays(train_labels=np.array([{}] * 12, dtype=object)),
            "not a complete MedMNIST file",
        ),
    ):
        np.savez(path, **stored)
        with pytest.raises(ValueError, match=message):
            medmnist_file(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(path)
    with pytest.raises(ValueError, match="no npz archive"):
        medmnist_file(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        medmnist_file(tmp_path / "none.npz")


def test_a_folder_of_classes_is_divided_by_seed_with_every_class_in_both_parts(
    folder: Path,
) -> None:
    parts, again = (image_folders(folder, held_out=0.3, seed=1, progress=False) for _ in range(2))
    assert (
        parts.train.names == parts.test.names == ("ant", "bee", "cat") and parts.validation is None
    )
    assert (
        torch.bincount(parts.train.labels).tolist() == [7] * 3
        and torch.bincount(parts.test.labels).tolist() == [3] * 3
    )
    assert torch.equal(parts.train.images, again.train.images)
    both = torch.cat([parts.train.images, parts.test.images]).flatten(1)
    assert len(both.unique(dim=0)) == 30
    other = image_folders(folder, held_out=0.3, seed=2, progress=False)
    assert not torch.equal(other.test.images, parts.test.images)


def test_split_folders_are_read_as_they_lie(folder: Path, tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        (tmp_path / "split").mkdir(exist_ok=True)
        (tmp_path / "split" / part).symlink_to(folder)
    parts = load(str(tmp_path / "split"), size=6, channels=1, progress=False)
    assert parts.validation is not None and parts.train.images.shape == (30, 1, 6, 6)
    named = load("split", tmp_path, size=6, channels=1, progress=False)
    assert torch.equal(named.train.images, parts.train.images)


def test_folders_whose_parts_have_other_classes_or_that_are_missing_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    top = tmp_path / "top"
    top.mkdir()
    with pytest.raises(FileNotFoundError, match="has no folders of images"):
        image_folders(top)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        image_folders(tmp_path / "nowhere")
    (top / "train").symlink_to(folder)
    with pytest.raises(FileNotFoundError, match="none for the test"):
        image_folders(top, progress=False)
    (top / "test" / "dog").mkdir(parents=True)
    (folder / "ant" / "0.png").rename(top / "test" / "dog" / "0.png")
    with pytest.raises(ValueError, match="in one of them only"):
        image_folders(top, progress=False)


def test_a_class_of_one_image_cannot_be_divided(tmp_path: Path) -> None:
    parts = load("glyphs")
    single = parts.train.classes([0]).images[:1]
    from metalearn.data.images import LabelledImages

    with pytest.raises(ValueError, match="has one image"):
        divided(LabelledImages(single, torch.tensor([0])), 0.2)
    with pytest.raises(ValueError, match="between 0 and 1"):
        divided(parts.train, 1.0)


def test_channels_and_size_are_brought_to_what_is_asked_for() -> None:
    grey = load("glyphs").test
    colour = sized(grey, 20, 3)
    assert colour.images.shape == (len(grey), 3, 20, 20) and torch.equal(
        colour.images[:, 0], colour.images[:, 2]
    )
    assert sized(colour, None, 1).images.shape[1] == 1 and colour.description["resized"] == 20
    with pytest.raises(ValueError, match="channels=2"):
        sized(grey, None, 2)


def test_a_torchvision_set_is_read_from_its_own_files(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("t10k", 4)):
        pixels = generator.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + count.to_bytes(4, "big") + bytes(range(count))
        )
    parts = load("fashion-mnist", tmp_path)
    assert parts.train.images.shape == (8, 1, 28, 28) and parts.test.labels.tolist() == [0, 1, 2, 3]
    assert parts.train.names[0] == "T-shirt/top"


def test_sets_that_are_not_there_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match="CIFAR10 could not be read"):
        torchvision_set("cifar10", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"pneumoniamnist\.npz"):
        load("pneumoniamnist", tmp_path)
    with pytest.raises(ValueError, match="there is no data set 'nothing'"):
        load("nothing", tmp_path)
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(ImportError, match=r"metalearn-transfer\[medmnist\]"):
        medmnist("pneumoniamnist", tmp_path, download=True)


def test_the_medmnist_package_is_asked_to_download_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def downloads(split: str, root: str, download: bool) -> None:
        np.savez(Path(root) / "somemnist.npz", **medmnist_arrays())

    package = SimpleNamespace(
        INFO={"somemnist": {"python_class": "SomeMNIST"}}, SomeMNIST=downloads
    )
    monkeypatch.setitem(sys.modules, "medmnist", package)
    assert len(load("somemnist", tmp_path / "new", download=True).train) == 12
    with pytest.raises(ValueError, match="has no set 'othermnist'"):
        load("othermnist", tmp_path, download=True)

    def fails(split: str, root: str, download: bool) -> None:
        raise RuntimeError("Automatic download failed!")

    package.SomeMNIST = fails
    with pytest.raises(OSError, match=r"somemnist .*put .* at .*somemnist\.npz"):
        load("somemnist", tmp_path, download=True)


@pytest.mark.data
def test_pneumoniamnist_has_its_published_numbers(data: Path) -> None:
    parts = load("pneumoniamnist", data)
    assert (len(parts.train), len(parts.validation or []), len(parts.test)) == (4708, 524, 624)
    assert torch.bincount(parts.test.labels).tolist() == [234, 390]
