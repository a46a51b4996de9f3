"""EuroSAT: satellite images of ten kinds of land (Helber et al. 2019, arXiv:1709.00029)."""

from __future__ import annotations

import os
from pathlib import Path

from metalearn.runtime.checks import positive

from .decoding import NO_FILES, checked_root, decode_classes, folders_in, images_in, split_named
from .images import LabelledImages

CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
# Where class folders may be in the root: as torchvision has them, or directly.
PLACES = ("eurosat/2750", "eurosat", "2750", "")
SOURCE = (
    "the folder 2750 of EuroSAT.zip (RGB, 90 MB) of https://github.com/phelber/EuroSAT, which is"
    " universal_computation/data/2750 of https://github.com/kzl/universal-computation too"
)


def eurosat(
    root: str | os.PathLike[str],
    split: str = "test",
    *,
    size: int = 64,
    download: bool = False,
    cache: bool | str | os.PathLike[str] = True,
    progress: bool = True,
) -> LabelledImages:
    """EuroSAT's RGB images of 64 x 64 pixels: ten classes, 27,000 images in the full set.

    In few-shot learning all ten are test classes of another domain: train on another data set, and
    adapt to tasks of these. A folder with fewer images is read as it is; `description` has the
    smallest number of images per class. The images are decoded once and kept in `.metalearn` beside
    the class folders (or in the user's cache folder, if that cannot be written).

    Args:
        root: the folder that holds `eurosat/2750/<class>/*.jpg` (torchvision's layout) or
            `eurosat/<class>/*.jpg`; or the class folders. The full set is in EuroSAT.zip of
            https://github.com/phelber/EuroSAT; the same files are in
            https://github.com/kzl/universal-computation at commit b14a9d2cd18d, under
            universal_computation/data/2750.
        split: "test"; there are no classes for training or validation.
        size: the height and width in pixels.
        download: whether torchvision may download a missing set (90 MB).
        cache: False keeps no decoded images; a path is another folder to keep them in.
        progress: whether to show progress on stderr while decoding.

    Raises:
        FileNotFoundError: if there is no EuroSAT in `root`, or it cannot be downloaded. The message
            says which files to put where.
        ValueError: if another split is wanted, or a class folder is missing or has no images.

    Example:
        >>> eurosat("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: there is no EuroSAT in /nowhere: put the ten class folders of ...
    """
    split = split_named(split)
    if split != "test":
        raise ValueError(
            f"split={split!r}: EuroSAT's ten classes are all for the test, in another domain than"
            " that of training. Train on another data set, and test with metalearn evaluate"
            " --dataset eurosat; or divide the classes with --dataset PATH of their folder"
        )
    (size,) = positive(size=size)
    top = eurosat_folder(root, download=download)
    classes = {name: images_in(top / name) for name in CLASSES}
    images, labels = decode_classes(
        classes,
        top,
        "eurosat",
        channels=3,
        size=size,
        title="EuroSAT",
        cache=cache,
        progress=progress,
    )
    description = {
        "source": "eurosat",
        "split": split,
        "size": size,
        "images_per_class": min(map(len, classes.values())),
    }
    return LabelledImages(images, labels, classes, description)


def eurosat_folder(root: str | os.PathLike[str], *, download: bool = False) -> Path:
    """The folder of EuroSAT's class folders.

    Args:
        root: as in `eurosat`.
        download: whether torchvision may download a missing set.

    Raises:
        FileNotFoundError: there is none, or it cannot be downloaded.
        ValueError: some of the class folders are missing.
    """
    top = checked_root(root)
    found = _existing(top)
    if found is not None:
        return found
    cure = f"put the ten class folders of {SOURCE}, into {top / 'eurosat' / '2750'}"
    if not download:
        raise FileNotFoundError(
            f"there is no EuroSAT in {root}: {cure}, or pass download=True; {NO_FILES}"
        )
    from torchvision.datasets import EuroSAT

    try:
        EuroSAT(str(top), download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"EuroSAT could not be downloaded ({error}): {cure}; {NO_FILES}"
        ) from error
    return top / "eurosat" / "2750"


def _existing(root: Path) -> Path | None:
    """The first place with class folders. Raises ValueError if it has only some of the ten."""
    for place in PLACES:
        folder = root / place
        present = {path.name for path in folders_in(folder)}.intersection(CLASSES)
        missing = sorted(set(CLASSES) - present)
        if not missing:
            return folder
        if present:
            raise ValueError(
                f"{folder} has {len(present)} of EuroSAT's ten class folders, without"
                f" {', '.join(missing)}; complete it from {SOURCE}"
            )
    return None
