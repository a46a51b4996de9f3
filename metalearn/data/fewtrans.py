"""FewTrans (Luo et al. 2026, arXiv:2603.00478): data sets for few-shot transfer, and their splits.

The classes of each data set are numbered in the order of their folders' names. Those that numpy's
`RandomState(22)` draws first are its base classes, of which few-shot tasks are made; the others are
novel classes. The layouts are those of https://github.com/Frankluox/FewTrans.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metalearn.runtime.checks import positive

from .decoding import NO_FILES, check_choice, checked_root, folders_in, images_in, split_named
from .image_files import Classes, read_images
from .images import LabelledImages
from .split_table import file_within

SEED = 22  # of the published draw
SOURCE = "https://github.com/Frankluox/FewTrans"


def _class_folders(top: Path, chosen: list[int] | None = None) -> Classes:
    """The images of class folders, numbered by name; without images if none is chosen."""
    folders = folders_in(top)
    if chosen is None:
        return {folder.name: [] for folder in folders}
    return {folders[number].name: images_in(folders[number]) for number in chosen}


def _flowers(top: Path, chosen: list[int] | None = None) -> Classes:
    """VGG Flower: jpg/image_00001.jpg, ..., and their labels from 1 in imagelabels.mat."""
    from scipy.io import loadmat  # takes long to import

    table = top / "imagelabels.mat"
    try:
        labels = np.asarray(loadmat(str(table))["labels"]).reshape(-1).tolist()
    except FileNotFoundError:
        return {}
    except Exception as error:  # scipy's reader raises errors of any kind for a broken file
        raise ValueError(f"{table} cannot be read ({error}); download it again") from error
    classes: Classes = {f"{label:03}": [] for label in sorted(set(labels))}
    for number, label in enumerate(labels, start=1):
        classes[f"{label:03}"].append(top / "jpg" / f"image_{number:05}.jpg")
    return _chosen(classes, chosen, table)


def _fungi(top: Path, chosen: list[int] | None = None) -> Classes:
    """FGVCx Fungi 2018: train.json and val.json list the images and their categories."""
    classes: Classes = {}
    for table in (top / "train.json", top / "val.json"):
        if not table.is_file():
            return {}
        try:
            listed = json.loads(table.read_text(encoding="utf-8"))
            names = {
                entry["id"]: f"{entry['id']:04}.{entry['name']}" for entry in listed["categories"]
            }
            files = {entry["id"]: entry["file_name"] for entry in listed["images"]}
            for number in sorted(names):
                classes.setdefault(names[number], [])
            for entry in listed["annotations"]:
                classes[names[entry["category_id"]]].append(
                    file_within(top, files[entry["image_id"]], str(table))
                )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{table} is not a file of FGVCx Fungi 2018 ({error!r}); download it again"
            ) from error
    return _chosen(classes, chosen, top / "train.json")


def _chosen(classes: Classes, chosen: list[int] | None, table: Path) -> Classes:
    """Some of the classes by number. Raises an error if one has no images, or one is missing."""
    if chosen is None:
        return classes
    names = list(classes)
    some = {names[number]: classes[names[number]] for number in chosen}
    for name, paths in some.items():
        if not paths:
            raise ValueError(f"{table} lists no image of {name}; download it again")
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{table} lists {missing[0]}, which does not exist; unpack all images"
            )
    return some


class Part(NamedTuple):
    """One data set of the benchmark: its folder, its numbers of classes and its layout."""

    folder: str
    base: int
    total: int
    files: Callable[..., Classes] = _class_folders


PARTS = {
    "quickdraw": Part("domainnet/quickdraw", 276, 345),
    "flowers": Part("vggflowers", 82, 102, _flowers),
    "aircraft": Part("aircraft", 80, 100),
    "dtd": Part("dtd/images", 37, 47),
    "fungi": Part("fungi", 1115, 1394, _fungi),
    "cifar100": Part("cifar100", 80, 100),
    "eurosat": Part("EuroSAT", 6, 10),
    "ucf101": Part("UCF-101-midframes", 81, 101),
    "plant-disease": Part("plant_disease/train", 30, 38),
}
"""ImageNet's part is missing: its classes are split by a graph that does not come with it."""


def fewtrans(
    root: str | os.PathLike[str],
    dataset: str,
    split: str = "test",
    *,
    classes: str = "base",
    size: int = 224,
    in_memory: bool = True,
    cache: bool | str | os.PathLike[str] = True,
    progress: bool = True,
) -> LabelledImages:
    """One data set of FewTrans (Luo et al. 2026, arXiv:2603.00478).

    All classes are for the test of pretrained networks.

    Args:
        root: the folder that holds the data sets in the layout of the authors' code, such as
            `dtd/images/<class>/*` or `vggflowers/jpg`; or whose folder `fewtrans` does.
        dataset: "quickdraw", "flowers", "aircraft", "dtd", "fungi", "cifar100", "eurosat",
            "ucf101" or "plant-disease". ImageNet's part is not read.
        split: "test"; there are no classes for training or validation.
        classes: "base", of which the benchmark makes its few-shot tasks, or "novel", on which it
            tests what vision-language models have learned of the base classes.
        size: the height and width in pixels; the benchmark has 224.
        in_memory: as in `image_folder`.
        cache: as in `image_folder`.
        progress: as in `image_folder`.

    Raises:
        FileNotFoundError: if the data set is missing; the message says what to put where.
        ValueError: if it has another number of classes, or there is no such data set or split.

    Example:
        >>> fewtrans("/nowhere", "dtd")
        Traceback (most recent call last):
        FileNotFoundError: there is no dtd of FewTrans in /nowhere: put ...
    """
    check_choice("dataset", dataset, PARTS)
    check_choice("classes", classes, ("base", "novel"))
    split = split_named(split)
    if split != "test":
        raise ValueError(
            f"split={split!r}: all classes of FewTrans are for the test of pretrained networks;"
            " train on another data set"
        )
    (size,) = positive(size=size)
    part = PARTS[dataset]
    top = _folder(checked_root(root), dataset, part)
    count = len(part.files(top))
    if count != part.total:
        raise ValueError(
            f"{top} has {count} classes, but {dataset} of FewTrans has {part.total}; complete it,"
            f" or delete what is no class (see {SOURCE})"
        )
    numbers = numbers_of(part, classes)
    images = part.files(top, numbers)
    description: dict[str, Any] = {
        "source": "fewtrans",
        "dataset": dataset,
        "split": split,
        "classes": classes,
        "size": size,
        "images_per_class": min(map(len, images.values())),
    }
    return read_images(
        images,
        top,
        f"fewtrans-{dataset}-{classes}",
        description,
        channels=3,
        size=size,
        title=f"{dataset} of FewTrans",
        in_memory=in_memory,
        cache=cache,
        progress=progress,
    )


def numbers_of(part: Part, classes: str) -> list[int]:
    """The numbers of the base or of the novel classes of a data set.

    Example:
        >>> numbers_of(PARTS["eurosat"], "novel")
        [0, 4, 5, 8]
    """
    published = np.random.RandomState(SEED)
    base = set(published.choice(part.total, part.base, replace=False).tolist())
    if classes == "base":
        return sorted(base)
    return sorted(set(range(part.total)) - base)


def _folder(root: Path, dataset: str, part: Part) -> Path:
    """The folder of a data set."""
    for top in (root / "fewtrans" / part.folder, root / part.folder):
        if part.files(top):
            return top
    raise FileNotFoundError(
        f"there is no {dataset} of FewTrans in {root}: put its {part.total} classes into"
        f" {root / part.folder}, as {SOURCE} describes; no library here downloads it. {NO_FILES}"
    )
