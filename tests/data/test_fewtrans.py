"""FewTrans: its layouts, the published draw of base classes, and folders that are not whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from metalearn.data import fewtrans as module
from metalearn.data.fewtrans import PARTS, numbers_of
from metalearn.tasks import fewtrans


def paint(path: Path, red: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (red, 0, 0)).save(path)


def textures(root: Path, count: int = 47) -> Path:
    for number in range(count):
        paint(root / "dtd" / "images" / f"texture{number:02}" / "0.png", number)
    return root


@pytest.mark.parametrize("name", PARTS)
def test_base_and_novel_classes_are_all_of_them(name: str) -> None:
    part = PARTS[name]
    base, novel = (numbers_of(part, classes) for classes in ("base", "novel"))
    assert len(base) == part.base and sorted(base + novel) == list(range(part.total))


def test_the_draw_is_that_of_numpys_old_generator() -> None:
    # Computed apart, by the call in the code of the authors: 37 of 47 by RandomState(22).choice.
    assert numbers_of(PARTS["dtd"], "novel") == [0, 4, 8, 20, 29, 31, 36, 38, 43, 44]


@pytest.mark.parametrize("above", ["", "fewtrans"])
def test_class_folders_are_read_by_number(tmp_path: Path, above: str) -> None:
    textures(tmp_path / above)
    for classes in ("base", "novel"):
        found = fewtrans(tmp_path, "dtd", classes=classes, size=4, progress=False)
        numbers = numbers_of(PARTS["dtd"], classes)
        assert found.names == tuple(f"texture{number:02}" for number in numbers)
        assert found.images[:, 0, 0, 0].tolist() == numbers
        assert found.description["classes"] == classes
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=r"FewTrans are for the test of pretrained networks"):
            fewtrans(tmp_path, "dtd", split)


def test_flowers_are_labelled_by_the_mat_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARTS, "flowers", PARTS["flowers"]._replace(base=3, total=5))
    labels = [5, 1, 2, 3, 4, 1]
    for number, label in enumerate(labels, start=1):
        paint(tmp_path / "vggflowers" / "jpg" / f"image_{number:05}.jpg", 40 * label)
    table = tmp_path / "vggflowers" / "imagelabels.mat"
    savemat(table, {"labels": np.array([labels])})
    found = fewtrans(tmp_path, "flowers", size=4, progress=False)
    numbers = numbers_of(PARTS["flowers"], "base")
    assert found.names == tuple(f"{number + 1:03}" for number in numbers)
    reds = [40 * int(found.names[label]) for label in found.labels.tolist()]
    assert np.abs(found.images[:, 0, 0, 0].numpy().astype(int) - reds).max() < 4  # of JPEG
    (tmp_path / "vggflowers" / "jpg" / "image_00002.jpg").unlink()
    (tmp_path / "vggflowers" / "jpg" / "image_00003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"imagelabels\.mat lists .*image_0000\d\.jpg"):
        fewtrans(tmp_path, "flowers", classes="base", size=4)
    table.write_bytes(b"MATLAB")
    with pytest.raises(ValueError, match=r"imagelabels\.mat cannot be read"):
        fewtrans(tmp_path, "flowers", size=4)


def test_fungi_are_listed_by_two_json_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARTS, "fungi", PARTS["fungi"]._replace(base=2, total=3))
    categories = [{"id": i, "name": f"fungus {i % 2}"} for i in (2, 0, 1)]  # names may repeat
    for number, name in enumerate(("train", "val")):
        images = [{"id": i, "file_name": f"images/{name}{i}.png"} for i in range(3)]
        annotations = [{"image_id": i, "category_id": i} for i in range(3)]
        for i in range(3):
            paint(tmp_path / "fungi" / "images" / f"{name}{i}.png", 10 * i + number)
        record = {"categories": categories, "images": images, "annotations": annotations}
        (tmp_path / "fungi" / f"{name}.json").write_text(json.dumps(record))
    found = fewtrans(tmp_path, "fungi", size=4, progress=False)
    numbers = numbers_of(PARTS["fungi"], "base")
    assert found.names == tuple(f"{number:04}.fungus {number % 2}" for number in numbers)
    expected = [10 * number + part for number in numbers for part in range(2)]
    assert found.images[:, 0, 0, 0].tolist() == expected
    (tmp_path / "fungi" / "val.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"val\.json is not a file of FGVCx Fungi 2018"):
        fewtrans(tmp_path, "fungi")


def test_folders_that_are_not_whole_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no dtd of FewTrans in .*47 classes into .*dtd"):
        fewtrans(tmp_path, "dtd")
    textures(tmp_path, 46)
    with pytest.raises(ValueError, match=r"dtd/images has 46 classes, but dtd of FewTrans has 47"):
        fewtrans(tmp_path, "dtd")
    (tmp_path / "dtd" / "images" / "texture46").mkdir()
    with pytest.raises(ValueError, match=r"texture46 has no images"):
        fewtrans(tmp_path, "dtd", size=4)
    with pytest.raises(ValueError, match="dataset='imagenet' is not one of quickdraw"):
        fewtrans(tmp_path, "imagenet")
    with pytest.raises(ValueError, match="classes='new' is not one of base, novel"):
        fewtrans(tmp_path, "dtd", classes="new")
    assert module.SEED == 22
