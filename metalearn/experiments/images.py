"""The images of an experiment: a data set by name or path, in its size and channels."""

from __future__ import annotations

import difflib
import math
from pathlib import Path

from metalearn import tasks
from metalearn.data.images import LabelledImages
from metalearn.runtime.options import Listed, listed

DATASETS = ("glyphs", "omniglot", "mini-imagenet", "cifar-fs", "fc100", "eurosat")


def load(
    dataset: str,
    split: str,
    root: str,
    *,
    download: bool = False,
    protocol: str = "vinyals",
    rotations: bool = True,
    splits: str | None = None,
    split_ratio: Listed | None = None,
) -> LabelledImages:
    """One split of a data set.

    Args:
        dataset: a name, or the path of a folder of class folders.
        split: train, validation or test.
        root: the folder that holds named data sets.
        download: whether they may be downloaded.
        protocol: the split of Omniglot's characters.
        rotations: whether turned characters of Omniglot are classes.
        splits: for a folder, a CSV file or a folder of them.
        split_ratio: for a folder, the shares of its classes.

    Raises:
        ValueError: there is no such data set.
    """
    if dataset == "glyphs":
        return tasks.glyphs(split)
    if dataset == "omniglot":
        return tasks.omniglot(
            root, split, protocol=protocol, rotations=rotations, download=download
        )
    if dataset == "mini-imagenet":
        return tasks.mini_imagenet(root, split)
    if dataset == "cifar-fs":
        return tasks.cifar_fs(root, split, download=download)
    if dataset == "fc100":
        return tasks.fc100(root, split, download=download)
    if dataset == "eurosat":
        return tasks.eurosat(root, split, download=download)
    if Path(dataset).is_dir():
        return tasks.image_folder(dataset, split, splits=splits or fractions(split_ratio))
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
    from torchvision.transforms.functional import resize, rgb_to_grayscale  # takes long to import

    pixels = images.images  # (images, channels, height, width)
    description = dict(images.description)
    if pixels.shape[1] != channels:
        if channels == 3:
            pixels = pixels.expand(-1, 3, -1, -1)
            description["channels"] = "grey, three times"
        else:
            pixels = rgb_to_grayscale(pixels)
            description["channels"] = "colour as grey"
    if pixels.shape[2] != size:
        pixels = resize(pixels, [size, size], antialias=True)
        description["resized"] = size
    if pixels is images.images:
        return images  # nothing changed, so the record does not either
    return LabelledImages(pixels, images.labels, images.names, description)
