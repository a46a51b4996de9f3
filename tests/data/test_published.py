"""Published data sets in the layouts of their archives: their splits, and half a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from metalearn.data import published
from metalearn.data.cross_domain import CROP_DISEASE, FINDINGS, LESIONS
from metalearn.data.labelled_sets import load
from metalearn.data.published import SPLITS, class_table
from metalearn.tasks import FewShot, chestx, crop_disease, cub, isic, tiered_imagenet

TRUTH = "ISIC2018_Task3_Training_GroundTruth"


def paint(path: Path, red: int, green: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (red, green, 0)).save(path)


def class_folders(root: Path, names: list[str], each: int = 1) -> Path:
    """Images whose red is the number of their class, and whose green is their own."""
    for number, name in enumerate(names):
        for i in range(each):
            paint(root / name / f"{i}.png", number % 256, i)
    return root


def write_isic(top: Path, each: int = 2) -> Path:
    """Images of every lesion, whose red is 30 times its number -> the table of their classes."""
    lines = [f"image,{','.join(LESIONS)}"]
    for number in range(len(LESIONS) * each):
        lesion = number % len(LESIONS)
        marks = ["1.0" if i == lesion else "0.0" for i in range(len(LESIONS))]
        paint(top / "ISIC2018_Task3_Training_Input" / f"ISIC_{number:07}.jpg", 30 * lesion)
        lines.append(f"ISIC_{number:07},{','.join(marks)}")
    table = top / TRUTH / f"{TRUTH}.csv"
    table.parent.mkdir(parents=True)
    table.write_text("\n".join(lines) + "\n")
    return table


def write_chestx(top: Path, folder: Callable[[int], str], each: int = 2) -> Path:
    """Grey images of every finding, in two folders -> the table of their findings."""
    lines = ["Image Index,Finding Labels,Follow-up #"]
    for number in range(len(FINDINGS) * each):
        finding = number % len(FINDINGS)
        path = top / folder(number) / f"{number:08}_000.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 6), 30 * finding).save(path)
        lines.append(f"{path.name},{FINDINGS[finding]},0")
    # Images with another finding, or with two, need no file.
    lines += ["00000777_000.png,Hernia,0", "00000888_000.png,Mass|Nodule,1"]
    lines += ["00000999_000.png,No Finding,0"]
    table = top / "Data_Entry_2017.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


@pytest.mark.parametrize(
    ("file", "column", "counts"),
    [
        ("tiered_imagenet.csv", "split", (351, 97, 160)),
        ("cub.csv", "chen2019", (100, 50, 50)),
        ("cub.csv", "ye2020", (100, 50, 50)),
        ("cub.csv", "triantafillou2020", (140, 30, 30)),
    ],
)
def test_published_splits_have_their_numbers_and_share_no_class(
    file: str, column: str, counts: tuple[int, int, int]
) -> None:
    splits = class_table(file, column)
    assert tuple(len(splits[split]) for split in SPLITS) == counts
    assert len(set().union(*splits.values())) == sum(counts)


def test_no_category_of_tiered_imagenet_is_in_two_splits() -> None:
    lines = Path(published.__file__).with_name("tiered_imagenet.csv").read_text()
    splits: dict[str, set[str]] = {}
    for line in lines.splitlines()[1:]:
        _, category, split = line.split(",")
        splits.setdefault(split, set()).add(category)
    assert [len(splits[split]) for split in SPLITS] == [20, 6, 8]
    assert len(set().union(*splits.values())) == 34


def test_the_split_of_chen_is_by_number() -> None:
    numbers = {
        split: [int(name[:3]) for name in names]
        for split, names in class_table("cub.csv", "chen2019").items()
    }
    assert numbers["train"] == list(range(1, 201, 2))
    assert numbers["validation"] == list(range(2, 201, 4))
    assert numbers["test"] == list(range(4, 201, 4))


@pytest.mark.parametrize("place", ["tiered_imagenet/{split}", "tiered_imagenet", "imagenet/train"])
def test_tiered_imagenet_is_read_from_its_own_folders_and_from_imagenets(
    tmp_path: Path, place: str
) -> None:
    splits = class_table("tiered_imagenet.csv", "split")
    for split in ("validation", "test"):
        folder = {"validation": "val", "test": "test"}[split]
        class_folders(tmp_path / place.format(split=folder), splits[split])
    if place == "imagenet/train":  # images of validation of ImageNet itself are other images
        class_folders(tmp_path / "imagenet" / "val", ["n01532829", *splits["validation"]], each=3)
    images = tiered_imagenet(tmp_path, "val", size=4, progress=False)
    assert images.names == tuple(splits["validation"]) and len(images) == 97
    assert images.images[:, 0, 0, 0].tolist() == list(range(97))
    assert images.description == {
        "source": "tiered_imagenet",
        "split": "validation",
        "size": 4,
        "images_per_class": 1,
    }
    if place == "imagenet/train":
        (tmp_path / "imagenet" / "val" / "n01532829").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"has 0 of the 351 train classes of tieredImageNet"):
        tiered_imagenet(tmp_path, "train")


@pytest.mark.parametrize("place", ["CUB_200_2011/images", "CUB_200_2011", "cub/images", "images"])
def test_birds_are_split_by_the_protocol(tmp_path: Path, place: str) -> None:
    names = sorted(set().union(*class_table("cub.csv", "chen2019").values()))
    class_folders(tmp_path / place, names)
    for protocol in ("chen2019", "ye2020", "triantafillou2020"):
        found = cub(tmp_path, "test", protocol=protocol, size=4, progress=False)
        expected = class_table("cub.csv", protocol)["test"]
        assert list(found.names) == expected
        assert found.images[:, 0, 0, 0].tolist() == [int(name[:3]) - 1 for name in expected]
        assert found.description["protocol"] == protocol
    with pytest.raises(ValueError, match="protocol='chen' is not one of chen2019, ye2020"):
        cub(tmp_path, protocol="chen")


def test_half_a_folder_of_birds_names_what_is_missing(tmp_path: Path) -> None:
    names = class_table("cub.csv", "chen2019")["train"]
    class_folders(tmp_path / "CUB_200_2011" / "images", names[:93])
    with pytest.raises(
        ValueError,
        match=r"CUB_200_2011 has 93 of the 100 train classes of CUB-200-2011, without"
        r" 187\.\w+, 189\.\w+, .*, \.\.\.; complete it from CUB_200_2011\.tgz",
    ):
        cub(tmp_path)


def test_crops_are_those_of_the_part_for_training(tmp_path: Path) -> None:
    names = CROP_DISEASE.classes("test")
    assert len(names) == len(set(names)) == 38
    class_folders(tmp_path / "crop_disease" / "dataset" / "train", names, each=2)
    class_folders(tmp_path / "crop_disease" / "dataset" / "test", names, each=1)
    found = crop_disease(tmp_path, size=4, progress=False)
    assert found.names == tuple(names) and len(found) == 76
    (tmp_path / "crop_disease" / "dataset" / "train" / names[5] / "0.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"Cherry.*0\.png is not a readable image"):
        crop_disease(tmp_path, size=4, progress=False)
    for i in range(2):
        (tmp_path / "crop_disease" / "dataset" / "train" / names[5] / f"{i}.png").unlink()
    with pytest.raises(ValueError, match=r"class folder .*Cherry.* has no images"):
        crop_disease(tmp_path, size=4, progress=False)


@pytest.mark.parametrize("place", ["isic", "."])
def test_lesions_are_those_of_the_ground_truth(tmp_path: Path, place: str) -> None:
    write_isic(tmp_path / place)
    found = isic(tmp_path, size=4, progress=False)
    assert found.names == LESIONS and found.labels.tolist() == sorted([*range(7)] * 2)
    assert (found.images[:, 0, 0, 0].long() - 30 * found.labels).abs().max() < 4  # of JPEG
    assert FewShot(found, 5, 1, 1, tasks=1)[0].query.inputs.shape == (5, 3, 4, 4)


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("image,MEL", "image,SCC", ValueError, r"GroundTruth\.csv needs the columns image, mel,"),
        ("VASC\n", "VASC,SCC\n", ValueError, r"line 2 has 8 fields.* 9 columns"),
        ("1.0,0.0", "0.0,0.0", ValueError, r"line 2 marks no class; mark one class by 1"),
        ("1.0,0.0", "1.0,1.0", ValueError, r"line 2 marks MEL and NV; mark one class"),
        ("1.0,0.0", "0.7,0.0", ValueError, r"line 2 marks MEL; mark one class by 1"),
        ("0000000", "0000099", FileNotFoundError, r"line 2 lists ISIC_0000099.jpg, which is in no"),
        ("0.0,1.0\n", "1.0,0.0\n", ValueError, r"lists no image of VASC, of the 7 test classes"),
        ("image,M", '"image,M', ValueError, r"needs the columns|cannot be read"),
    ],
)
def test_a_ground_truth_that_does_not_fit_is_named(
    tmp_path: Path, old: str, new: str, error: type[Exception], message: str
) -> None:
    table = write_isic(tmp_path / "isic")
    text = table.read_text()
    table.write_text(text.replace(old, new) if old == "0.0,1.0\n" else text.replace(old, new, 1))
    with pytest.raises(error, match=message):
        isic(tmp_path)


def test_images_without_their_ground_truth_are_named(tmp_path: Path) -> None:
    write_isic(tmp_path / "isic").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"no ISIC 2018 in .*isic has no {TRUTH}/{TRUTH}\.csv\): put the"
    ):
        isic(tmp_path)


def test_a_ground_truth_with_another_class_is_named(tmp_path: Path) -> None:
    table = write_isic(tmp_path / "isic")
    lines = table.read_text().splitlines()
    table.write_text("\n".join([f"{lines[0]},SCC", *[f"{line},0.0" for line in lines[1:]]]))
    with pytest.raises(ValueError, match=r"line 2: there is a column scc, .*no class of ISIC 2018"):
        isic(tmp_path)


@pytest.mark.parametrize("folder", ["images", "images_{part:03}/images", "images_{part:03}"])
def test_chest_images_have_a_single_finding(tmp_path: Path, folder: str) -> None:
    write_chestx(tmp_path / "chestx", lambda number: folder.format(part=1 + number % 2))
    found = chestx(tmp_path, size=4, progress=False)
    assert found.names == FINDINGS and len(found) == 14
    assert found.images[:, :, 0, 0].tolist() == [[30 * int(c)] * 3 for c in found.labels]


def test_unknown_findings_and_images_that_are_not_unpacked_are_named(tmp_path: Path) -> None:
    table = write_chestx(tmp_path, lambda number: f"images_{1 + number % 2:03}")
    text = table.read_text()
    table.write_text(text.replace("Mass|Nodule", "Mass|Mould"))
    with pytest.raises(ValueError, match=r"line 17 has the finding 'Mould', which is none of Atel"):
        chestx(tmp_path)
    table.write_text(text)
    (tmp_path / "images_002").rename(tmp_path / "elsewhere")
    with pytest.raises(
        FileNotFoundError, match=r"line 3 lists 00000001_000.png, .*images_001 to images_012|nihcc"
    ):
        chestx(tmp_path)


@pytest.mark.parametrize("read", [crop_disease, isic, chestx])
def test_the_domains_have_no_classes_for_training(tmp_path: Path, read: Any) -> None:
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=r"are all for the test.*evaluate --dataset"):
            read(tmp_path, split)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (tiered_imagenet, r"no tieredImageNet in .*image-net\.org.*\.pkl files.*tiered_imagenet"),
        (cub, r"no CUB-200-2011 in .*CUB_200_2011\.tgz.*data\.caltech\.edu.*into .*CUB_200_2011"),
        (crop_disease, r"no CropDisease in .*dataset/train.*saroz014.*into .*crop_disease"),
        (isic, r"no ISIC 2018 in .*Training_Input and .*GroundTruth .*isic-archive.*into .*isic"),
        (chestx, r"no ChestX-ray14 in .*Data_Entry_2017\.csv.*nihcc.*into .*chestx"),
    ],
)
def test_a_missing_set_says_what_to_put_where(tmp_path: Path, read: Any, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        read(tmp_path)
    with pytest.raises(ValueError, match="size=0"):
        read(tmp_path, "test", size=0)


def test_a_domain_is_a_target_of_transfer(tmp_path: Path) -> None:
    write_isic(tmp_path / "isic", each=5)
    parts = load("ISIC", tmp_path, size=6, held_out=0.4, progress=False)
    assert parts.train.names == LESIONS and parts.train.images.shape == (21, 3, 6, 6)
    assert torch.bincount(parts.test.labels).tolist() == [2] * 7
