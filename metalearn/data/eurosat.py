"""EuroSAT: satellite images of ten kinds of land (Helber et al. 2019, arXiv:1709.00029)."""

from __future__ import annotations

import os
from pathlib import Path

from .images import LabelledImages
from .published import ClassFolders, Published, read_published

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


def _download(root: Path) -> None:
    from torchvision.datasets import EuroSAT  # takes long to import

    EuroSAT(str(root), download=True)


EUROSAT = Published(
    name="eurosat",
    title="EuroSAT",
    # As torchvision has it, or the class folders directly.
    places=("eurosat/2750", "eurosat", "2750", ""),
    layout=ClassFolders(),
    splits={"test": list(CLASSES)},
    put="the ten class folders",
    source=(
        "the folder 2750 of EuroSAT.zip (RGB, 90 MB) of https://github.com/phelber/EuroSAT, which"
        " is universal_computation/data/2750 of https://github.com/kzl/universal-computation too"
    ),
    download=_download,
)


def eurosat(
    root: str | os.PathLike[str],
    split: str = "test",
    *,
    size: int = 64,
    in_memory: bool = True,
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
        in_memory: as in `image_folder`.
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
    return read_published(
        EUROSAT,
        root,
        split,
        size=size,
        in_memory=in_memory,
        download=download,
        cache=cache,
        progress=progress,
    )
