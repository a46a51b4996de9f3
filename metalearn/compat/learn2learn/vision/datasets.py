"""The data sets of learn2learn's Omniglot, miniImageNet and ANIL examples, read by
`metalearn.tasks`: from what lies there, no pickles.
"""

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
from metalearn.data.omniglot import _characters, _find
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
        self.images, self.transform, self.target_transform = images, transform, target_transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return _transformed(
            self.image(index), int(self.images.labels[index]), self.transform, self.target_transform
        )

    def image(self, index: int) -> Any:
        """What the transform gets."""
        return to_pil_image(self.images.images[index])


class FC100(_Images):
    """FC100 as PIL images, cut from the CIFAR-100 in `root` (see `metalearn.tasks.fc100`); `mode`
    is train, validation or test.
    """

    def __init__(
        self,
        root: str,
        mode: str = "train",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
    ) -> None:
        super().__init__(
            fc100(Path(root).expanduser(), mode, download=download), transform, target_transform
        )


class CIFARFS(_Images):
    """CIFAR-FS as PIL images, cut from the CIFAR-100 in `root` (see `metalearn.tasks.cifar_fs`);
    `mode` is train, validation or test.
    """

    def __init__(
        self,
        root: str,
        mode: str = "train",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
    ) -> None:
        super().__init__(
            cifar_fs(Path(root).expanduser(), mode, download=download), transform, target_transform
        )


class MiniImagenet(_Images):
    """miniImageNet as float tensors of 0 to 255, which is what learn2learn gives, from the folder
    of images `root`.

    It is read by `metalearn.tasks.mini_imagenet`, which says what has to lie there; nothing is
    downloaded.
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
        return self.images.images[index].float()


class FullOmniglot(Dataset[Any]):
    """All 1,623 characters of Omniglot as PIL images of 105 by 105 pixels with ink = 0; background
    characters first.

    `root` holds `omniglot-py`, as torchvision lays it out; `download` lets torchvision fetch what
    is not there.
    """

    def __init__(
        self,
        root: str,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
    ) -> None:
        self.root = os.path.expanduser(root)
        self.transform, self.target_transform = transform, target_transform
        _, counts, self.paths = _characters(_find(Path(self.root), download))
        self.labels = [label for label, count in enumerate(counts) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int) -> tuple[Any, Any]:
        with Image.open(self.paths[item]) as file:
            return _transformed(
                file.convert("L"), self.labels[item], self.transform, self.target_transform
            )


def _transformed(
    image: Any, label: Any, transform: Transform | None, target_transform: Transform | None
) -> tuple[Any, Any]:
    return image if transform is None else transform(image), (
        label if target_transform is None else target_transform(label)
    )


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
