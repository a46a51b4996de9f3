"""Folders of images: the three ways to split classes, sizes and channels, and what is refused by
name.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.data import decoding
from metalearn.tasks import FewShot, image_folder, mini_imagenet


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def fill(root: Path, classes: list[str], images: int = 3) -> Path:
    """Every image has the colour (its class's number, its own number, 0)."""
    for c, name in enumerate(classes):
        for i in range(images):
            paint(root / name / f"{i}.png", (10 * c, 10 * i, 0))
    return root


@pytest.fixture
def flat(tmp_path) -> Path:
    return fill(tmp_path / "own", [f"class{c:02}" for c in range(25)])


def test_split_folders_are_read_as_they_lie(tmp_path):
    for split, classes in (("train", ["a", "b"]), ("val", ["c"]), ("test", ["d", "e", "f"])):
        fill(tmp_path / split, classes)
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    found = {
        split: image_folder(tmp_path, split, size=None) for split in ("train", "validation", "test")
    }
    assert {split: data.names for split, data in found.items()} == {
        "train": ("a", "b"),
        "validation": ("c",),
        "test": ("d", "e", "f"),
    }
    test = found["test"]
    assert test.images.shape == (9, 3, 12, 12) and test.labels.tolist() == [
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        2,
    ]
    assert test.images[5, :, 3, 3].tolist() == [10, 20, 0]
    assert test.description == {
        "source": "image_folder",
        "folder": tmp_path.name,
        "split": "test",
        "classes_split_by": "folders",
        "size": None,
    }


def test_a_class_named_train_is_a_class(tmp_path):
    fill(tmp_path, ["bus", "car", "train"])
    assert (
        sum(
            len(image_folder(tmp_path, split, cache=False).names)
            for split in ("train", "validation", "test")
        )
        == 3
    )


def test_classes_are_dealt_by_seed_and_recorded(flat):
    splits = [
        image_folder(flat, split, seed=4, cache=False) for split in ("train", "validation", "test")
    ]
    assert [len(data.names) for data in splits] == [16, 4, 5]
    assert sorted(name for data in splits for name in data.names) == [
        f"class{c:02}" for c in range(25)
    ]
    assert (
        splits[1].description["classes"] == list(splits[1].names)
        and splits[1].description["seed"] == 4
    )
    assert all(
        int(data.images[i, 0, 0, 0]) == 10 * int(data.names[data.labels[i]][5:])
        for data in splits
        for i in range(len(data))
    )
    assert image_folder(flat, "test", seed=5, cache=False).names != splits[2].names
    assert image_folder(flat, "test", seed=4, cache=False).names == splits[2].names


@pytest.mark.parametrize(
    ("splits", "counts"),
    [((0.2, 0.2, 0.6), (5, 5, 15)), ((5, 6, 7), (5, 6, 7)), ([1, 1, 1], (1, 1, 1))],
)
def test_the_deal_takes_fractions_or_numbers_of_classes(flat, splits, counts):
    names = [
        image_folder(flat, split, splits=splits, cache=False).names
        for split in ("train", "validation", "test")
    ]
    assert tuple(map(len, names)) == counts and len(set(sum(names, ()))) == sum(counts)


def test_a_csv_file_with_a_split_column(flat):
    rows = [
        "filename,label,split",
        "class00/0.png,x,train",
        "class03/1.png,w,train",
        "class01/2.png,y,val",
        "class00/2.png,x,train",
    ]
    (flat / "splits.csv").write_text("\n".join(rows))
    train = image_folder(flat, splits=flat / "splits.csv", size=None)
    assert (
        train.names == ("w", "x")
        and train.images[:, :2, 0, 0].tolist() == [[30, 10], [0, 0], [0, 20]]
        and train.labels.tolist() == [0, 1, 1]
    )
    assert image_folder(flat, "validation", splits=flat / "splits.csv").images[
        :, :2, 0, 0
    ].tolist() == [[10, 20]]
    with pytest.raises(ValueError, match=r"splits\.csv lists no image for test"):
        image_folder(flat, "test", splits=flat / "splits.csv")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("file,label\na,b\n", ValueError, "columns filename and label"),
        ("filename,label\n", ValueError, "a line for each image"),
        (
            "filename,label\nclass00/0.png,x\nclass00/9.png,x\n",
            FileNotFoundError,
            r"line 3 lists .*class00/9.png, which does not exist",
        ),
    ],
)
def test_a_csv_file_that_does_not_fit_is_named(flat, text, error, message):
    (flat / "splits.csv").write_text(text)
    with pytest.raises(error, match=rf"splits.csv.*{message}"):
        image_folder(flat, splits=flat / "splits.csv")
    with pytest.raises(FileNotFoundError, match=r"no split file .*other\.csv"):
        image_folder(flat, splits=flat / "other.csv")


def test_size_channels_and_the_filter(tmp_path):
    paint(tmp_path / "train" / "a" / "0.png", (200, 100, 50), (30, 20))
    paint(tmp_path / "train" / "a" / "1.jpg", (200, 100, 50), (8, 9))
    colour, grey = image_folder(tmp_path, size=16), image_folder(tmp_path, size=16, channels=1)
    assert colour.images.shape == (2, 3, 16, 16) and grey.images.shape == (2, 1, 16, 16)
    assert (colour.images[0].permute(1, 2, 0) == torch.tensor([200, 100, 50])).all()
    assert (grey.images[0] == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()
    with pytest.raises(ValueError, match=r"1.jpg is 8x9 pixels but .*0.png is 30x20; give size="):
        image_folder(tmp_path, size=None)
    with pytest.raises(ValueError, match="channels=2"):
        image_folder(tmp_path, channels=2)


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path, caplog):
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(
        tmp_path / "train" / "a" / "0.png"
    )
    assert image_folder(tmp_path, channels=1, size=None).images.unique().tolist() == [
        round(40000 / 257)
    ]
    assert "1 of 1 images have more than 8 bits a channel" in caplog.text


def test_the_cache_is_kept_per_setting_and_follows_the_files(flat, monkeypatch, caplog):
    first = image_folder(flat, "test", size=10)
    image_folder(flat, "test", size=12)
    assert len(list((flat / ".metalearn").iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode", None)
        assert torch.equal(image_folder(flat, "test", size=10).images, first.images)
    (flat / first.names[0] / "0.png").unlink()
    assert (
        len(image_folder(flat, "test", size=10)) == len(first) - 1 and "have changed" in caplog.text
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\x89PNG\r\n\x1a\nbroken", "is not a readable image")],
)
def test_broken_images_are_named(tmp_path, content, message):
    (fill(tmp_path / "train", ["a", "b"]) / "b" / "1.png").write_bytes(content)
    with pytest.raises(ValueError, match=f"train/b/1.png {message}"):
        image_folder(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has 0 class folders but a split by seed needs 3"):
        image_folder(tmp_path)
    fill(tmp_path / "train", ["a"])
    with pytest.raises(FileNotFoundError, match="has a train folder but none for test"):
        image_folder(tmp_path, "test")
    (tmp_path / "train" / "b").mkdir()
    with pytest.raises(ValueError, match="train/b has no images"):
        image_folder(tmp_path)


@pytest.mark.parametrize("splits", [(0.5, 0.5, 0.5), (1, 1), (0.5, 0.5, 0.0), (20, 5, 1)])
def test_a_deal_that_cannot_be_is_refused(flat, splits):
    with pytest.raises(ValueError, match=r"three positive fractions|a split by seed needs 26"):
        image_folder(flat, splits=splits)


def test_classes_in_two_splits_are_reported(tmp_path, caplog):
    fill(tmp_path / "train", ["a", "b"])
    fill(tmp_path / "test", ["b", "c"])
    image_folder(tmp_path, "test")
    assert "shares 1 classes with another split (b, ...)" in caplog.text


def test_mini_imagenet_reads_folders_and_the_published_csv_files_alike(tmp_path):
    names = [f"n{c:08}" for c in range(16)]
    for c, name in enumerate(names):
        paint(tmp_path / "miniimagenet" / "train" / name / f"{name}00.png", (c, 0, 0))
        paint(tmp_path / "miniimagenet" / "val" / name / f"{name}00.png", (c, 0, 0))
        paint(tmp_path / "csv" / "images" / f"{name}00.png", (c, 0, 0))
    for split, listed_names in (("train", ["other"]), ("val", names), ("test", ["another"])):
        paint(tmp_path / "csv" / "images" / f"{listed_names[0]}00.png", (0, 0, 0))
        (tmp_path / "csv" / f"{split}.csv").write_text(
            "filename,label\n" + "".join(f"{name}00.png,{name}\n" for name in listed_names)
        )
    folders, listed = (mini_imagenet(root, "validation") for root in (tmp_path, tmp_path / "csv"))
    assert folders.names == listed.names == tuple(names) and torch.equal(
        folders.images, listed.images
    )
    assert folders.description == {
        "source": "mini_imagenet",
        "split": "validation",
        "images_per_class": 1,
        "size": 84,
    }
    with pytest.raises(ValueError, match=r"has 1 classes for train, but miniImageNet has 64"):
        mini_imagenet(tmp_path / "csv")
    with pytest.raises(FileNotFoundError, match=r"no miniImageNet in .*train.csv.*glyphs"):
        mini_imagenet(tmp_path / "nowhere")


@pytest.mark.data
def test_the_real_mini_imagenet_makes_tasks(data, tmp_path):
    real = mini_imagenet(data, "validation", cache=tmp_path)
    assert (
        len(real.names) == 16
        and real.images.shape == (3200, 3, 84, 84)
        and real.description["images_per_class"] == 200
    )
    support, query = FewShot(real, 5, 5, 15, tasks=600, seed=2)[599]
    assert (
        support.inputs.shape == (25, 3, 84, 84)
        and query.inputs.shape == (75, 3, 84, 84)
        and 0.3 < query.inputs.mean() < 0.6
    )
