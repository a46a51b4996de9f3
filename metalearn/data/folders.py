"""Few-shot data from folders of images: a user's own, and miniImageNet."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence, Sized
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from metalearn.runtime.checks import positive
from metalearn.runtime.files import Record

from .decoding import (
    NO_FILES,
    checked_root,
    existing_root,
    folders_in,
    images_in,
    split_named,
)
from .image_files import Classes, read_images
from .images import LabelledImages
from .split_table import FOLDERS, listed

log = logging.getLogger("metalearn")
FRACTIONS = (0.64, 0.16, 0.2)  # of the classes for training, validation and test
T = TypeVar("T", Path, str)
MINI_IMAGENET = {"train": 64, "validation": 16, "test": 20}  # classes of each split


def image_folder(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    size: int | None = 84,
    splits: str | os.PathLike[str] | Sequence[float] | None = None,
    seed: int = 0,
    channels: int = 3,
    in_memory: bool = True,
    cache: bool | str | os.PathLike[str] = True,
    progress: bool = True,
) -> LabelledImages:
    """The images of one split of `root/{train,val,test}/class/*`, or of `root/class/*`.

    Without split folders the classes are dealt to the splits by `seed`; `description` records which
    classes this split has, and how many each split has. The images are decoded once, in threads,
    and kept in `root/.metalearn` (or in the user's cache folder if `root` cannot be written, with
    a warning). Hidden folders and files that are not images are skipped.

    Images are read as a viewer shows them: upright by their EXIF orientation, and opaque
    (transparent parts are white). The first frame of an animation is read. Grey images of 16 bits
    or of floating-point values from 0 to 1 are reduced to 8 bits.

    Args:
        root: the folder.
        split: "train", "validation" (or "val") or "test".
        size: the height and width in pixels. Images are resized with an antialiased (Lanczos)
            filter, which does not keep their proportions. None keeps the images as they are; all
            must then have one size.
        splits: how the classes are split. A CSV file with the columns filename (within `root`),
            label and split; a folder with train.csv, val.csv and test.csv, without the column
            split; or three numbers for a split by seed: fractions that sum to 1, or numbers of
            classes. None: split folders if they exist, else fractions 0.64, 0.16 and 0.2.
        seed: of a split by seed.
        channels: 3 for RGB, 1 for grey.
        in_memory: False reads the images of a task when it is drawn, for more images than memory
            holds. Tasks are the same either way.
        cache: False keeps no decoded images; a path is another folder to keep them in.
        progress: whether to show progress on stderr while decoding.

    Raises:
        FileNotFoundError: if the folder, a split or a listed file is missing.
        ValueError: if a class has no images, an image is empty, unreadable or of another size,
            there are too few classes to split, or a class or file is in two splits. The message
            names the file or folder, and the line of a CSV file.
    """
    split = split_named(split, FOLDERS)
    if size is not None:
        (size,) = positive(size=size)
    top = existing_root(root)
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} must be 3 (RGB) or 1 (grey)")
    classes, description = _classes(top, split, splits, seed)
    # Caches of different splits of one folder lie side by side.
    layout = hashlib.sha256(repr((splits, seed)).encode()).hexdigest()[:8]
    description = {
        "source": "image_folder",
        "folder": top.resolve().name,
        "split": split,
        **description,
        "size": size,
    }
    return read_images(
        classes,
        top,
        f"{split}-{layout}",
        description,
        channels=channels,
        size=size,
        title=top.name,
        in_memory=in_memory,
        cache=cache,
        progress=progress,
    )


def mini_imagenet(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    size: int = 84,
    in_memory: bool = True,
    cache: bool | str | os.PathLike[str] = True,
    progress: bool = True,
) -> LabelledImages:
    """MiniImageNet in the split of Ravi and Larochelle (2017).

    It has 64 / 16 / 20 classes of 600 images for training, validation and test. A folder with fewer
    images is read as it is; `description` has the smallest number of images per class.

    Args:
        root: a folder that holds `{train,val,test}/<class>/*.jpg`, or `images/*.jpg` beside the
            published `train.csv`, `val.csv` and `test.csv`; or whose `miniimagenet` does.
        split: as in `image_folder`.
        size: as in `image_folder`.
        in_memory: as in `image_folder`.
        cache: as in `image_folder`.
        progress: as in `image_folder`.

    Raises:
        FileNotFoundError: if there is no miniImageNet in `root`.
        ValueError: if the split has another number of classes.

    Example:
        >>> mini_imagenet("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: there is no miniImageNet in /nowhere: ...
    """
    split = split_named(split, FOLDERS)
    # Either layout, in the folder itself or in its folder miniimagenet.
    for top in (checked_root(root) / "miniimagenet", Path(root)):
        listed = (top / "images").is_dir() and (top / "train.csv").is_file()
        if listed or folders_in(top / "train"):
            break
    else:
        raise FileNotFoundError(
            f"there is no miniImageNet in {root}: put train/, val/ and test/ with one folder of"
            " images per class there, or images/ with Ravi and Larochelle's train.csv, val.csv and"
            f" test.csv; it cannot be downloaded. {NO_FILES}"
        )
    source, splits = top, None
    if listed:
        source, splits = top / "images", top
    data = image_folder(
        source,
        split,
        size=size,
        splits=splits,
        in_memory=in_memory,
        cache=cache,
        progress=progress,
    )
    expected = MINI_IMAGENET[split]
    if len(data.names) != expected:
        raise ValueError(
            f"{source} has {len(data.names)} classes for {split}, but miniImageNet has {expected};"
            f" complete it, or read the folder as it is with image_folder({str(source)!r})"
        )
    data.description = {
        "source": "mini_imagenet",
        "split": split,
        "images_per_class": int(torch.bincount(data.labels).min()),
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
    shares = FRACTIONS
    if splits is not None:
        shares = tuple(splits)
    dealt = deal(folders_in(top), shares, seed, top)
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
    """The folder of each split, by any of its names in any case, if it holds class folders."""
    folders = {folder.name.lower(): folder for folder in folders_in(top)}
    # The usual name of a split comes first: of train and training, train is read.
    folder_of_split: dict[str, Path] = {}
    for split, aliases in FOLDERS.items():
        for alias in aliases:
            if alias in folders and folders_in(folders[alias]):
                folder_of_split.setdefault(split, folders[alias])
    return folder_of_split


def _in_folders(top: Path, split: str, folders: dict[str, Path]) -> Classes:
    """The files of every class in the folder of this split."""
    if split not in folders:
        place = top / FOLDERS[split][0]
        raise FileNotFoundError(
            f"{top} has a train folder but none for {split}: make {place} with one folder per class"
        )
    elsewhere: set[str] = set()  # the classes of the other splits
    for name, folder in folders.items():
        if name != split:
            elsewhere.update(place.name for place in folders_in(folder))
    classes = {folder.name: images_in(folder) for folder in folders_in(folders[split])}
    shared = classes.keys() & elsewhere
    if shared:
        log.warning(
            "%s shares %d classes with another split (%s, ...): few-shot tests need unseen ones",
            folders[split],
            len(shared),
            min(shared),
        )
    return classes


def deal(
    classes: Sequence[T],
    shares: tuple[float, ...],
    seed: int,
    source: object,
    kind: str = "class folders",
) -> dict[str, list[T]]:
    """Deal classes to the splits by seed.

    Args:
        classes: in an order that is the same on every machine.
        shares: fractions that sum to 1, or numbers of classes.
        seed: of the deal.
        source: what has them, for messages.
        kind: what they are there, for messages.

    Raises:
        ValueError: if the shares are not three positive numbers, or there are too few classes.

    Example:
        >>> deal("abcdefgh", (5, 2, 1), 0, "the alphabet")["validation"]
        ['a', 'b']
    """
    positive_numbers = len(shares) == 3 and all(map(_is_positive, shares))
    counted = positive_numbers and all(isinstance(share, int | np.integer) for share in shares)
    if not positive_numbers or (not counted and abs(sum(shares) - 1) > 1e-6):
        raise ValueError(
            f"splits={shares} must be three positive fractions that sum to 1, or three numbers of"
            " classes"
        )
    needed = 3
    if counted:
        needed = sum(map(int, shares))
    if len(classes) < needed:
        raise ValueError(
            f"{source} has {len(classes)} {kind} but a split by seed needs {needed}; add classes,"
            " or name the splits in a CSV file"
        )
    if counted:
        train, validation, test = map(int, shares)
    else:
        # A small share still holds out one class.
        validation, test = (max(1, round(share * len(classes))) for share in shares[1:])
        train = len(classes) - validation - test
    if train < 1:
        raise ValueError(
            f"splits={shares} leave no class to train on: of {len(classes)} classes {validation}"
            f" and {test} are held out"
        )
    # The classes in random order; each split takes the next part.
    order = [classes[i] for i in np.random.default_rng(seed).permutation(len(classes))]
    return {
        "train": sorted(order[:train]),
        "validation": sorted(order[train : train + validation]),
        "test": sorted(order[train + validation : train + validation + test]),
    }


def _is_positive(share: object) -> bool:
    return isinstance(share, Real) and not isinstance(share, bool) and float(share) > 0
