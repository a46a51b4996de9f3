"""The images of an experiment: a data set by name or path, in its size and channels."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from metalearn import tasks
from metalearn.data.few_shot_sets import CUB_PROTOCOLS
from metalearn.data.fewtrans import PARTS
from metalearn.data.image_files import ImageFiles
from metalearn.data.images import LabelledImages
from metalearn.data.meta_album import is_meta_album
from metalearn.runtime.options import Listed, listed

Protocol = Literal["vinyals", "finn", "lake", "chen2019", "ye2020", "triantafillou2020"]
PROTOCOLS = {"omniglot": ("vinyals", "finn", "lake"), "cub": CUB_PROTOCOLS}
"""The splits of the data sets that have several."""


class Named(NamedTuple):
    """What reads a data set from the root, and which settings it takes beside the split."""

    read: Callable[..., LabelledImages]
    takes: tuple[str, ...] = ()


def _glyphs(root: str, split: str) -> LabelledImages:
    return tasks.glyphs(split)  # which come with this package


FILES = ("size", "in_memory")
NAMED = {
    "glyphs": Named(_glyphs),
    "omniglot": Named(tasks.omniglot, ("protocol", "rotations", "download")),
    "mini-imagenet": Named(tasks.mini_imagenet, ("in_memory",)),
    "tiered-imagenet": Named(tasks.tiered_imagenet, FILES),
    "cifar-fs": Named(tasks.cifar_fs, ("download",)),
    "fc100": Named(tasks.fc100, ("download",)),
    "cub": Named(tasks.cub, ("protocol", *FILES)),
    "crop-disease": Named(tasks.crop_disease, FILES),
    "eurosat": Named(tasks.eurosat, ("download", "in_memory")),
    "isic": Named(tasks.isic, FILES),
    "chestx": Named(tasks.chestx, FILES),
}
for _part in PARTS:
    NAMED[f"fewtrans/{_part}"] = Named(partial(tasks.fewtrans, dataset=_part), FILES)
DATASETS = tuple(NAMED)


def load(
    dataset: str,
    split: str,
    root: str,
    *,
    size: int | None = None,
    in_memory: bool = True,
    download: bool = False,
    protocol: str | None = None,
    rotations: bool = True,
    splits: str | None = None,
    split_ratio: Listed | None = None,
) -> LabelledImages:
    """One split of a data set.

    Args:
        dataset: a name, or the path of a folder of class folders or of a data set of Meta-Album.
        split: train, validation or test.
        root: the folder that holds named data sets.
        size: of the images, if their files can be decoded in any size; None for the usual.
        in_memory: False decodes image files as they are drawn.
        download: whether they may be downloaded.
        protocol: the split of the classes of Omniglot or CUB; None for their usual one.
        rotations: whether turned characters of Omniglot are classes.
        splits: for a folder, a CSV file or a folder of them.
        split_ratio: for a folder, the shares of its classes.

    Raises:
        ValueError: there is no such data set, or it is not read from image files but `in_memory` is
            False.
    """
    if dataset in NAMED:
        settings: dict[str, Any] = {
            "size": size,
            "in_memory": in_memory,
            "download": download,
            "protocol": protocol,
            "rotations": rotations,
        }
        read, takes = NAMED[dataset]
        if not in_memory and "in_memory" not in takes:
            raise ValueError(
                f"in_memory=False reads image files as they are drawn, but {dataset} has none;"
                " leave it out"
            )
        given = {name: settings[name] for name in takes if settings[name] is not None}
        return read(root, split=split, **given)
    if is_meta_album(dataset):
        if splits is not None:
            raise ValueError(
                f"--splits={splits} is for a folder of class folders, but {dataset} has the layout"
                " of Meta-Album; divide its classes with --split-ratio"
            )
        given = {} if size is None else {"size": size}
        return tasks.meta_album(
            dataset, split, splits=fractions(split_ratio), in_memory=in_memory, **given
        )
    if Path(dataset).is_dir():
        return tasks.image_folder(
            dataset, split, splits=splits or fractions(split_ratio), in_memory=in_memory
        )
    # A misspelt name, or a folder that is not there.
    matches = difflib.get_close_matches(dataset, DATASETS, n=1)
    hint = f"; did you mean {matches[0]}?" if matches else ""
    raise ValueError(
        f"there is no data set {dataset!r}: it is none of {', '.join(DATASETS)}, and no folder of"
        f" class folders{hint}"
    )


def fractions(ratio: Listed | None) -> tuple[float, ...] | None:
    """A ratio of training, validation and test as fractions; None for None.

    Raises:
        ValueError: the ratio is not three positive numbers.

    Example:
        >>> fractions("64,16,20")
        (0.64, 0.16, 0.2)
    """
    if ratio is None:
        return None
    try:
        shares = [float(share) for share in listed(ratio, "split_ratio")]
    except ValueError as error:
        raise ValueError(f"split_ratio={ratio!r} is not three numbers; write 64,16,20") from error
    if len(shares) != 3 or not 0 < min(shares) <= max(shares) < math.inf:
        raise ValueError(
            f"split_ratio={ratio!r} must be three positive numbers, for training, validation and"
            " test; write 64,16,20"
        )
    return tuple(share / sum(shares) for share in shares)


def converted(images: LabelledImages, channels: int, size: int) -> LabelledImages:
    """The images with another number of channels or another size, which is recorded."""
    own_channels, own_size, _ = images.image_shape
    description = dict(images.description)
    if own_channels != channels:
        description["channels"] = "grey, three times" if channels == 3 else "colour as grey"
    if own_size != size:
        description["resized"] = size
    if description == images.description:
        return images  # nothing changed, so the record does not either
    change = partial(_in_shape, channels=channels, size=size)
    if isinstance(images, ImageFiles):
        return images.changed(change, description)
    return LabelledImages(change(images.images), images.labels, images.names, description)


def _in_shape(pixels: Tensor, channels: int, size: int) -> Tensor:
    """Images (..., channels, height, width) with another number of channels or another size."""
    from torchvision.transforms.functional import resize, rgb_to_grayscale  # takes long to import

    if pixels.shape[-3] != channels:
        if channels == 3:
            pixels = pixels.expand(*pixels.shape[:-3], 3, -1, -1)
        else:
            pixels = rgb_to_grayscale(pixels)  # (..., 3, height, width) -> (..., 1, ...)
    if pixels.shape[-2] != size:
        pixels = resize(pixels, [size, size], antialias=True)
    return pixels
