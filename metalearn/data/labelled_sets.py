"""Images to fine-tune on: class folders, MedMNIST's files and torchvision's sets, in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from metalearn.runtime.checks import positive

from .cross_domain import chestx, crop_disease, isic
from .decoding import NO_FILES, Path_, decode_classes, existing_root, folders_in, images_in
from .eurosat import eurosat
from .folders import split_folders
from .glyphs import glyphs
from .images import LabelledImages
from .medmnist_sets import MEDMNIST_NAME, medmnist, medmnist_file
from .parts import Split, divided, sized
from .torchvision_sets import torchvision_key, torchvision_names, torchvision_set

__all__ = [
    "Split",
    "divided",
    "image_folders",
    "load",
    "medmnist",
    "medmnist_file",
    "sized",
    "torchvision_set",
]
# Sets of another domain than that of training, whose classes are not split.
WHOLE: dict[str, Callable[..., LabelledImages]] = {
    "chestx": chestx,
    "crop-disease": crop_disease,
    "isic": isic,
}


def load(
    dataset: str,
    root: Path_ | None = None,
    *,
    size: int | None = None,
    channels: int | None = None,
    download: bool = False,
    held_out: float = 0.2,
    seed: int = 0,
    progress: bool = True,
) -> Split:
    """Read the images of a data set by its name or path.

    Args:
        dataset: a MedMNIST file (`path.npz`), a folder of images (see `image_folders`), the name of
            a MedMNIST set ("pneumoniamnist", or "pneumoniamnist_64" for its images of 64 pixels) or
            of a torchvision set ("cifar10"), "eurosat", "crop-disease", "isic" or "chestx" (see
            `metalearn.tasks`), or "glyphs" (the 80 test characters; nothing is read).
        root: the folder that holds named sets; by default METALEARN_DATA, or else ./data.
        size: the height and width in pixels of all images; None keeps their own.
        channels: 1 (grey) or 3 (colour; grey images are repeated). None keeps their own, and reads
            a folder in colour.
        download: whether torchvision or the medmnist package may download a missing set.
        held_out: the share of each class to test on, if the set is not divided.
        seed: of that division.
        progress: whether to show progress on stderr while decoding.

    Raises:
        FileNotFoundError: if the set is missing; the message says which files to put where.
        ValueError: if there is no such set, or a file is damaged.

    Example:
        >>> load("glyphs").train.images.shape
        torch.Size([1600, 1, 28, 28])
    """
    if size is not None:
        (size,) = positive(size=size)
    # Files and folders come first, then the names of torchvision, then those of MedMNIST.
    top = Path(root or os.environ.get("METALEARN_DATA", "data"))
    folder = _folder_of(dataset, top)
    if dataset == "glyphs":
        parts = divided(glyphs("test", drawers=40), 0.5, seed)
    elif dataset.lower() == "eurosat":
        images = eurosat(top, download=download, progress=progress)
        parts = divided(images, held_out, seed)
    elif dataset.lower() in WHOLE:
        given = {} if size is None else {"size": size}
        images = WHOLE[dataset.lower()](top, progress=progress, **given)
        parts = divided(images, held_out, seed)
    elif dataset.endswith(".npz"):
        parts = medmnist_file(dataset)
    elif folder is not None:
        return image_folders(
            folder,
            size=size,
            channels=channels or 3,
            held_out=held_out,
            seed=seed,
            progress=progress,
        )
    elif torchvision_key(dataset) in torchvision_names():
        parts = torchvision_set(
            dataset, top, size=size, download=download, held_out=held_out, seed=seed
        )
    elif MEDMNIST_NAME.fullmatch(dataset.lower()):
        parts = medmnist(dataset, top, download=download)
    else:
        raise ValueError(
            f"there is no data set {dataset!r}: it is no folder of class folders, no MedMNIST file"
            " (.npz), and no set of torchvision's or MedMNIST's by name."
            f" {NO_FILES}"
        )
    validation = parts.validation
    if validation is not None:
        validation = sized(validation, size, channels)
    return Split(sized(parts.train, size, channels), validation, sized(parts.test, size, channels))


def _folder_of(dataset: str, top: Path) -> Path | None:
    """The folder of images that a data set's name or path stands for."""
    if Path(dataset).is_dir():
        return Path(dataset)
    named = top / dataset.lower()
    return named if folders_in(named / "train") else None


def image_folders(
    root: Path_,
    *,
    size: int | None = None,
    channels: int = 3,
    held_out: float = 0.2,
    seed: int = 0,
    cache: bool | Path_ = True,
    progress: bool = True,
) -> Split:
    """Read the images of `root/{train,val,test}/class/*`, or divide those of `root/class/*`.

    Every class is in every part, unlike in `metalearn.tasks.image_folder`, which deals the classes
    to the splits. The images are decoded once, in threads, and kept in `root/.metalearn`.

    Args:
        root: the folder.
        size: as in `metalearn.tasks.image_folder`; None needs images of one size.
        channels: as in `metalearn.tasks.image_folder`.
        held_out: the share of each class to test on, if there are no folders train and test.
        seed: of that division.
        cache: as in `metalearn.tasks.image_folder`.
        progress: as in `metalearn.tasks.image_folder`.

    Raises:
        FileNotFoundError: if there is nothing to read.
        ValueError: if the parts have different classes.
    """
    top = existing_root(root)

    def read(folder: Path, part: str) -> LabelledImages:
        classes = {place.name: images_in(place) for place in folders_in(folder)}
        images, labels = decode_classes(
            classes,
            top,
            f"transfer-{part}",
            channels=channels,
            size=size,
            title=str(folder),
            cache=cache,
            progress=progress,
        )
        record = {
            "source": "image_folder",
            "folder": top.resolve().name,
            "split": part,
            "size": size,
        }
        return LabelledImages(images, labels, classes, record)

    folders = split_folders(top)
    if "train" not in folders:
        if not folders_in(top):
            raise FileNotFoundError(
                f"{top} has no folders of images, one per class, and no train and test folders that"
                " hold such folders"
            )
        return divided(read(top, "all"), held_out, seed)
    if "test" not in folders:
        raise FileNotFoundError(
            f"{top} has a train folder but none for the test: make {top / 'test'} with the same"
            " class folders"
        )
    parts = {name: read(folder, name) for name, folder in folders.items()}
    _check_classes(parts, folders)
    return Split(parts["train"], parts.get("validation"), parts["test"])


def _check_classes(parts: dict[str, LabelledImages], folders: dict[str, Path]) -> None:
    """Raise ValueError if the parts have different classes."""
    for name, images in parts.items():
        different = set(images.names) ^ set(parts["train"].names)
        if different:
            raise ValueError(
                f"{folders[name]} and {folders['train']} have other classes ({min(different)!r} is"
                " in one of them only): give both the same class folders. To test on classes that"
                " training has not seen, use metalearn.tasks.image_folder"
            )
