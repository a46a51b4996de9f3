"""Meta-Album (Ullah et al. 2022): data sets of ten domains, all in one layout."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalearn.runtime.checks import positive
from metalearn.runtime.files import Record

from .csv_rows import csv_rows
from .decoding import checked_root, split_named
from .folders import deal
from .image_files import Classes, read_images
from .images import LabelledImages
from .split_table import file_within

COLUMNS = {"image_column_name": "FILE_NAME", "category_column_name": "CATEGORY"}
SOURCE = "https://meta-album.github.io (or OpenML)"


def meta_album(
    root: str | os.PathLike[str],
    split: str = "test",
    *,
    splits: Sequence[float] | None = None,
    seed: int = 0,
    size: int = 128,
    in_memory: bool = True,
    cache: bool | str | os.PathLike[str] = True,
    progress: bool = True,
) -> LabelledImages:
    """One data set of Meta-Album (Ullah et al. 2022), such as BRD_Mini.

    There is no published split of its classes: all are for the test, or `splits` divides them.

    Args:
        root: the folder that holds `labels.csv` (with the columns FILE_NAME and CATEGORY, or those
            that `info.json` names) and `images/`, as the archive of a data set is unpacked.
        split: "train", "validation" (or "val") or "test".
        splits: three numbers for a split by seed: fractions that sum to 1, or numbers of classes.
            None: all classes are for the test.
        seed: of a split by seed.
        size: the height and width in pixels; the images have 128.
        in_memory: as in `image_folder`.
        cache: as in `image_folder`.
        progress: as in `image_folder`.

    Raises:
        FileNotFoundError: if there is no such data set in `root`, or a listed image is missing.
        ValueError: if `labels.csv` has another number of categories than `info.json` says, a line
            has no category, or another split than the test is wanted without `splits`.

    Example:
        >>> meta_album("/nowhere/BRD_Mini")
        Traceback (most recent call last):
        FileNotFoundError: there is no data set of Meta-Album in /nowhere/BRD_Mini: put ...
    """
    split = split_named(split)
    (size,) = positive(size=size)
    top = checked_root(root)
    if not is_meta_album(top):
        raise FileNotFoundError(
            f"there is no data set of Meta-Album in {top}: put labels.csv, info.json and the folder"
            f" images of a data set from {SOURCE} there"
        )
    classes = _classes(top)
    names = sorted(classes)
    description: Record = {"source": "meta_album", "folder": top.resolve().name, "split": split}
    if splits is not None:
        dealt = deal(names, tuple(splits), seed, top, "categories")
        names = dealt[split]
        description |= {"classes_split_by": "seed", "seed": seed, "shares": tuple(splits)}
        description["classes_per_split"] = {part: len(dealt[part]) for part in dealt}
    elif split != "test":
        raise ValueError(
            f"split={split!r}: Meta-Album has no published split, so all classes of {top} are for"
            " the test; divide them with --split-ratio 64,16,20 (splits=(0.64, 0.16, 0.2))"
        )
    return read_images(
        {name: classes[name] for name in names},
        top,
        "-".join([split, *map(str, splits or ()), str(seed)]),
        {**description, "size": size},
        channels=3,
        size=size,
        title=top.name,
        in_memory=in_memory,
        cache=cache,
        progress=progress,
    )


def is_meta_album(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has the layout of Meta-Album's data sets."""
    return (Path(folder) / "labels.csv").is_file() and (Path(folder) / "images").is_dir()


def _classes(top: Path) -> Classes:
    """The images of each category."""
    info = _info(top)
    image, category = (
        str(info.get(key, default)).strip().lower() for key, default in COLUMNS.items()
    )
    table = top / "labels.csv"
    classes: Classes = {}
    for row in csv_rows(table, (image, category), f"needs the columns {image} and {category}"):
        name, label = row.values[image], row.values[category]
        if not name or not label:
            raise ValueError(f"{row.place} has no {image} or no {category}; fill it in")
        path = file_within(top / "images", name, row.place)
        if not path.is_file():
            raise FileNotFoundError(
                f"{row.place} lists {path}, which does not exist; get the archive from {SOURCE}"
            )
        classes.setdefault(label, []).append(path)
    expected = info.get("total_categories", len(classes))
    if len(classes) != expected or not classes:
        raise ValueError(
            f"{table} has {len(classes)} categories, but {top / 'info.json'} says {expected};"
            f" mend one of them, or get the archive from {SOURCE}"
        )
    return classes


def _info(top: Path) -> dict[str, Any]:
    """What info.json says; nothing if there is none."""
    path = top / "info.json"
    if not path.is_file():
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); mend it or delete it") from error
    if not isinstance(info, dict):
        raise ValueError(f"{path} holds no JSON object; mend it or delete it")
    return info
