"""The data sets of learn2learn's Omniglot, miniImageNet and ANIL examples.

They are read by `metalearn.tasks`, from folders of images; no pickles are read.
"""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image

from metalearn.compat.learn2learn._missing import nearest
from metalearn.data.images import LabelledImages
from metalearn.data.omniglot import drawings_by_character, omniglot_folder
from metalearn.tasks import cifar_fs, fc100, mini_imagenet

Transform = Callable[[Any], Any]


class _Images(Dataset[Any]):
    """PIL images and labels, with a transform of each."""

    def __init__(
        self,
        images: LabelledImages,
        transform: Transform | None,
        target_transform: Transform | None,
    ) -> None:
        self.images = images
        self.transform = transform
        self.target_transform = target_transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image = _transform(self.image(index), self.transform)
        return image, _transform(int(self.images.labels[index]), self.target_transform)

    def image(self, index: int) -> Any:
        """The image that the transform receives."""
        return to_pil_image(self.images.images[index])


class FC100(_Images):
    """FC100 as PIL images, from the CIFAR-100 in `root` (see `metalearn.tasks.fc100`).

    `mode` is "train", "validation" or "test".
    """

    def __init__(
        self,
        root: str,
        mode: str = "train",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
    ) -> None:
        images = fc100(Path(root).expanduser(), mode, download=download)
        super().__init__(images, transform, target_transform)


class CIFARFS(_Images):
    """CIFAR-FS as PIL images, from the CIFAR-100 in `root` (see `metalearn.tasks.cifar_fs`).

    `mode` is "train", "validation" or "test".
    """

    def __init__(
        self,
        root: str,
        mode: str = "train",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
    ) -> None:
        images = cifar_fs(Path(root).expanduser(), mode, download=download)
        super().__init__(images, transform, target_transform)


class MiniImagenet(_Images):
    """MiniImageNet as float tensors from 0 to 255, as in learn2learn.

    The folder `root` is read by `metalearn.tasks.mini_imagenet`, whose documentation describes it.
    Nothing is downloaded.
    """

    def __init__(
        self,
        root: str,
        mode: str = "train",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
    ) -> None:
        super().__init__(mini_imagenet(Path(root).expanduser(), mode), transform, target_transform)

    def image(self, index: int) -> Any:
        """(3, 84, 84), with values from 0 to 255."""
        return self.images.images[index].float()


class FullOmniglot(Dataset[Any]):
    """All 1,623 characters of Omniglot as PIL images of 105 by 105 pixels with ink = 0.

    The characters of the background alphabets come first. `root` holds torchvision's folder
    `omniglot-py`; with `download` torchvision may download it.
    """

    def __init__(
        self,
        root: str,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
    ) -> None:
        self.root = os.path.expanduser(root)
        self.transform = transform
        self.target_transform = target_transform
        folder = omniglot_folder(Path(self.root), download=download)
        # All drawings of the first character, then of the second, ...
        self.paths: list[Path] = []
        self.labels: list[int] = []
        for label, drawings in enumerate(drawings_by_character(folder).values()):
            self.paths += drawings
            self.labels += [label] * len(drawings)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int) -> tuple[Any, Any]:
        with Image.open(self.paths[item]) as file:
            image = _transform(file.convert("L"), self.transform)
        return image, _transform(self.labels[item], self.target_transform)


def _transform(value: Any, transform: Transform | None) -> Any:
    return value if transform is None else transform(value)


_BY_CLASS = "wrap {} in l2l.data.MetaDataset; FilteredMetaDataset cuts it by class"
_FOLDERS = (
    "it is not read; put its images in a folder for each class, and wrap"
    " metalearn.tasks.image_folder(root, split) in l2l.data.MetaDataset"
)
TIERED = (
    "its published files are pickles, which are not read; put its images in folders"
    " {train,val,test}/CLASS, and wrap metalearn.tasks.image_folder(root, split) in"
    " l2l.data.MetaDataset"
)
__getattr__ = nearest(
    __name__,
    ["CIFARFS", "FC100", "FullOmniglot", "MiniImagenet"],
    instead={
        "CUBirds200": _FOLDERS,
        "DescribableTextures": _BY_CLASS.format("torchvision.datasets.DTD"),
        "FGVCAircraft": _BY_CLASS.format("torchvision.datasets.FGVCAircraft"),
        "FGVCFungi": _FOLDERS,
        "Quickdraw": _FOLDERS,
        "TieredImagenet": TIERED,
        "VGGFlower102": _BY_CLASS.format("torchvision.datasets.Flowers102"),
    },
)
