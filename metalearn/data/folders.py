"""Folders of images as few-shot data: one's own, and miniImageNet."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence, Sized
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.runtime.checks import positive
from metalearn.runtime.files import Record

from .decoding import (
    READING,
    cached,
    checked_root,
    decode_all,
    fingerprint,
    folders_in,
    images_in,
    split_named,
)
from .images import LabelledImages
from .split_table import FOLDERS, listed

log = logging.getLogger("metalearn")
FRACTIONS = (0.64, 0.16, 0.2)
Classes = dict[str, list[Path]]


def image_folder(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    size: int | None = 84,
    splits: str | os.PathLike[str] | Sequence[float] | None = None,
    seed: int = 0,
    channels: int = 3,
    cache: bool | str | os.PathLike[str] = True,
    progress: bool = True,
) -> LabelledImages:
    """The images of one split of a folder, as `root/{train,val,test}/class/*` or `root/class/*`.

    Without split folders the classes are dealt to the splits by `seed`; `description` records which
    classes this split got, and how many each split got. The images are decoded once, in threads,
    and kept in `root/.metalearn` (or in the user's cache folder where `root` cannot be written,
    which is said). Hidden folders and files that are not images are passed over.

    Images are read as a viewer shows them: turned by their EXIF orientation, and opaque (what is
    transparent is white). Of an animation the first frame is read. Grey images of 16 bits, and of
    floating-point numbers from 0 to 1, are brought to 8 bits.

    Args:
        root: the folder.
        split: "train", "validation" or "test".
        size: the height and width in pixels to which every image is brought with an antialiased
            (Lanczos) filter, without keeping its proportions; None keeps the images as they are,
            which must then be of one size.
        splits: a CSV file with the columns filename (within `root`), label and split; or a folder
            with train.csv, val.csv and test.csv, without the column split; or three numbers for a
            split by seed: fractions that sum to 1, or numbers of classes. None: split folders where
            they exist, else fractions 0.64, 0.16 and 0.2.
        seed: of a split by seed.
        channels: 3 for RGB, 1 for grey.
        cache: False decodes anew; a folder keeps the decoded images there.
        progress: whether to show progress on stderr while decoding.

    Raises FileNotFoundError where the folder, a split or a listed file is missing, and ValueError
    where a class has no images, an image is empty, unreadable or of another size, there are too few
    classes to split, or a class or file is in two splits; the message names the file or folder, and
    the line of a CSV file.
    """
    split = split_named(split, FOLDERS)
    if size is not None:
        (size,) = positive(size=size)
    top = checked_root(root)
    if not top.is_dir():
        raise FileNotFoundError(
            f"there is no folder {top}: put folders of images there, one per class; `--dataset"
            " glyphs` needs no files"
        )
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} must be 3 (RGB) or 1 (grey)")
    classes, description = _classes(top, split, splits, seed)
    paths = [path for images in classes.values() for path in images]
    title = f"decoding {len(paths)} images of {top.name}"
    layout = hashlib.sha256(repr((splits, seed)).encode()).hexdigest()[:8]
    images = cached(
        f"{split}-{layout}-{size or 'own'}-{channels}",
        top,
        fingerprint(paths, top, f"{READING} {size} {channels}"),
        lambda: decode_all(paths, channels, size, title, progress),
        cache,
    )
    labels = torch.arange(len(classes)).repeat_interleave(
        torch.tensor([len(images) for images in classes.values()])
    )
    return LabelledImages(
        images,
        labels,
        classes,
        {
            "source": "image_folder",
            "folder": top.resolve().name,
            "split": split,
            **description,
            "size": size,
        },
    )


def mini_imagenet(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    size: int = 84,
    cache: bool | str | os.PathLike[str] = True,
    progress: bool = True,
) -> LabelledImages:
    """miniImageNet in the split of Ravi and Larochelle (2017): 64 / 16 / 20 classes of 600 images
    for training, validation and test.

    Args:
        root: a folder that holds (or whose `miniimagenet` holds) `{train,val,test}/<class>/*.jpg`,
            or `images/*.jpg` beside the published `train.csv`, `val.csv` and `test.csv`.
        split, size, cache, progress: as in `image_folder`.

    A folder with fewer images is read as it is, and `description` has the smallest number of images
    per class. Raises FileNotFoundError where nothing is there, and ValueError where the split has
    another number of classes.

    Example:
        >>> mini_imagenet("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: there is no miniImageNet in /nowhere: ...
    """
    split = split_named(split, FOLDERS)
    for top in (checked_root(root) / "miniimagenet", Path(root)):
        listed = (top / "images").is_dir() and (top / "train.csv").is_file()
        if listed or folders_in(top / "train"):
            break
    else:
        raise FileNotFoundError(
            f"there is no miniImageNet in {root}: put train/, val/ and test/ with one folder of"
            " images per class there, or images/ with Ravi and Larochelle's train.csv, val.csv and"
            " test.csv; it cannot be downloaded. `--dataset glyphs` needs no files"
        )
    source = top / "images" if listed else top
    data = image_folder(
        source, split, size=size, splits=top if listed else None, cache=cache, progress=progress
    )
    expected = {"train": 64, "validation": 16, "test": 20}[split]
    if len(data.names) != expected:
        raise ValueError(
            f"{source} has {len(data.names)} classes for {split}, but miniImageNet has {expected};"
            f" complete it, or read the folder for what it is with image_folder({str(source)!r})"
        )
    fewest = int(torch.bincount(data.labels).min())
    data.description = {
        "source": "mini_imagenet",
        "split": split,
        "images_per_class": fewest,
        "size": size,
    }
    return data


def _classes(top: Path, split: str, splits: Any, seed: int) -> tuple[Classes, Record]:
    """The files of every class of this split, and how the split was made."""
    if isinstance(splits, str | os.PathLike):
        tables = listed(top, Path(splits), split)
        if split not in tables:
            raise ValueError(
                f"{splits} lists no image for {split}; its split column may hold"
                f" {', '.join(FOLDERS[split])}"
            )
        return tables[split], {
            "classes_split_by": Path(splits).name,
            "classes_per_split": _counts(tables),
        }
    folders = split_folders(top)
    if splits is None and "train" in folders:
        return _in_folders(top, split, folders), {"classes_split_by": "folders"}
    shares = FRACTIONS if splits is None else tuple(splits)
    dealt = _dealt(top, shares, seed)
    return {folder.name: images_in(folder) for folder in dealt[split]}, {
        "classes_split_by": "seed",
        "seed": seed,
        "shares": shares,
        "classes": [folder.name for folder in dealt[split]],
        "classes_per_split": _counts(dealt),
    }


def _counts(splits: Mapping[str, Sized]) -> dict[str, int]:
    return {name: len(classes) for name, classes in splits.items()}


def split_folders(top: Path) -> dict[str, Path]:
    """The folders of the splits, by any of their names in any case: those that hold class folders."""
    folders = {folder.name.lower(): folder for folder in folders_in(top)}
    found: dict[str, Path] = {}
    for split, aliases in FOLDERS.items():
        for alias in aliases:
            if alias in folders and folders_in(folders[alias]):
                found.setdefault(split, folders[alias])
    return found


def _in_folders(top: Path, split: str, folders: dict[str, Path]) -> Classes:
    if split not in folders:
        place = top / FOLDERS[split][0]
        raise FileNotFoundError(
            f"{top} has a train folder but none for {split}: make {place} with one folder per class"
        )
    classes = {name: {folder.name for folder in folders_in(path)} for name, path in folders.items()}
    shared = classes[split] & set().union(
        *(names for name, names in classes.items() if name != split)
    )
    if shared:
        log.warning(
            "%s shares %d classes with another split (%s, ...): few-shot tests need unseen ones",
            folders[split],
            len(shared),
            min(shared),
        )
    return {folder.name: images_in(folder) for folder in folders_in(folders[split])}


def _dealt(top: Path, shares: tuple[float, ...], seed: int) -> dict[str, list[Path]]:
    """The class folders of every split, in a deal by seed; `shares` are fractions that sum to 1, or
    numbers of classes.
    """
    classes = folders_in(top)
    numbers = len(shares) == 3 and all(
        isinstance(share, Real) and not isinstance(share, bool) and share > 0 for share in shares
    )
    counted = numbers and all(isinstance(share, int | np.integer) for share in shares)
    if not numbers or (not counted and abs(sum(shares) - 1) > 1e-6):
        raise ValueError(
            f"splits={shares} must be three positive fractions that sum to 1, or three numbers of"
            " classes"
        )
    if len(classes) < 3 or (counted and sum(shares) > len(classes)):
        needed = sum(shares) if counted else 3
        raise ValueError(
            f"{top} has {len(classes)} class folders but a split by seed needs {needed}; add"
            " classes, or name the splits in a CSV file"
        )
    validation, test = (
        int(share) if counted else max(1, round(share * len(classes))) for share in shares[1:]
    )
    train = int(shares[0]) if counted else len(classes) - validation - test
    if train < 1:
        raise ValueError(
            f"splits={shares} leave no class to train on: of {len(classes)} classes {validation}"
            f" and {test} are held out"
        )
    order = [classes[i] for i in np.random.default_rng(seed).permutation(len(classes))]
    return {
        "train": sorted(order[:train]),
        "validation": sorted(order[train : train + validation]),
        "test": sorted(order[train + validation : train + validation + test]),
    }
