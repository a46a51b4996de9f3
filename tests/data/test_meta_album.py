"""Meta-Album's layout: the table of categories, whole sets and splits, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from metalearn.experiments.images import load
from metalearn.tasks import FewShot, meta_album

INFO = {
    "dataset_name": "BRD_Mini",
    "total_categories": 6,
    "image_column_name": "FILE_NAME",
    "category_column_name": "CATEGORY",
}


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Three images of each of six birds, whose red is 20 times the number of their category."""
    top = tmp_path / "BRD_Mini"
    (top / "images").mkdir(parents=True)
    lines = ["FILE_NAME,CATEGORY,SUPER_CATEGORY"]
    for number in range(18):
        bird = number % 6
        Image.new("RGB", (8, 8), (20 * bird, number, 0)).save(top / "images" / f"{number}.png")
        lines.append(f"{number}.png,bird {bird},family {bird // 3}")
    (top / "labels.csv").write_text("\n".join(lines) + "\n")
    (top / "info.json").write_text(json.dumps(INFO))
    return top


def test_all_categories_are_for_the_test(album: Path) -> None:
    found = meta_album(album, size=8, progress=False)
    assert found.names == tuple(f"bird {i}" for i in range(6)) and len(found) == 18
    assert found.images[:, 0, 0, 0].tolist() == (20 * found.labels).tolist()
    assert found.description == {
        "source": "meta_album",
        "folder": "BRD_Mini",
        "split": "test",
        "size": 8,
    }
    assert FewShot(found, 5, 1, 2, tasks=1)[0].query.inputs.shape == (10, 3, 8, 8)
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=r"no published split.*--split-ratio 64,16,20"):
            meta_album(album, split)


def test_a_split_by_seed_divides_them(album: Path) -> None:
    parts = [
        meta_album(album, split, splits=(3, 1, 2), seed=1, size=8, progress=False)
        for split in ("train", "validation", "test")
    ]
    assert [len(part.names) for part in parts] == [3, 1, 2]
    assert len({name for part in parts for name in part.names}) == 6
    assert parts[0].description["classes_per_split"] == {"train": 3, "validation": 1, "test": 2}
    for part in parts:
        reds = [20 * int(part.names[label][-1]) for label in part.labels.tolist()]
        assert part.images[:, 0, 0, 0].tolist() == reds
    with pytest.raises(ValueError, match=r"has 6 categories but a split by seed needs 9"):
        meta_album(album, splits=(5, 2, 2))


def test_info_json_names_the_columns_and_may_be_missing(album: Path) -> None:
    table = album / "labels.csv"
    text = table.read_text()
    table.write_text(text.replace("FILE_NAME,CATEGORY", "file,label"))
    with pytest.raises(ValueError, match=r"labels\.csv needs the columns file_name and category"):
        meta_album(album)
    names = {**INFO, "image_column_name": "file", "category_column_name": "label"}
    (album / "info.json").write_text(json.dumps(names))
    assert len(meta_album(album, size=8, cache=False).names) == 6
    (album / "info.json").unlink()
    table.write_text(text)
    assert len(meta_album(album, size=8, cache=False, in_memory=False)) == 18


@pytest.mark.parametrize(
    ("file", "old", "new", "error", "message"),
    [
        ("labels.csv", "bird 4", "bird 7", ValueError, r"has 7 categories, but .*info\.json says"),
        ("labels.csv", "\n4.png", "\n99.png", FileNotFoundError, r"line 6 lists .*99\.png, which"),
        ("labels.csv", "4.png", "../info.json", ValueError, r"line 6 lists .* lies outside"),
        ("labels.csv", "bird 4,", ",", ValueError, r"line 6 has no file_name or no category"),
        ("info.json", "{", "", ValueError, r"info\.json is not JSON"),
        ("info.json", None, "[1]", ValueError, r"info\.json holds no JSON object"),
    ],
)
def test_what_does_not_fit_is_named(
    album: Path, file: str, old: str | None, new: str, error: type[Exception], message: str
) -> None:
    text = (album / file).read_text()
    (album / file).write_text(new if old is None else text.replace(old, new, 1))
    with pytest.raises(error, match=message):
        meta_album(album)


def test_an_image_that_cannot_be_read_is_named(album: Path) -> None:
    (album / "images" / "4.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"images/4\.png is empty"):
        meta_album(album, size=8)


def test_half_a_folder_says_what_to_put_where(album: Path) -> None:
    (album / "labels.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no data set of Meta-Album in .*put labels\.csv,"):
        meta_album(album)


def test_a_path_is_enough_for_an_experiment(album: Path) -> None:
    assert len(load(str(album), "test", "unused", size=8).names) == 6
    divided = load(str(album), "train", "unused", size=8, split_ratio="3,1,2")
    assert len(divided.names) == 3
    with pytest.raises(ValueError, match=r"layout of Meta-Album; divide .*--split-ratio"):
        load(str(album), "train", "unused", splits="splits.csv")
