"""TieredImageNet and CUB-200-2011: images of one folder per class, with published class splits."""

from __future__ import annotations

import os

from .decoding import check_choice
from .images import LabelledImages
from .published import ClassFolders, Published, class_table, read_published

TIERED_IMAGENET = Published(
    name="tiered-imagenet",
    title="tieredImageNet",
    places=("tiered_imagenet", "tiered-imagenet", "imagenet", ""),
    # train comes first: in a folder of ImageNet, val has images of all classes, but not these.
    layout=ClassFolders(("train", "val", "validation", "test", "images", "")),
    splits=class_table("tiered_imagenet.csv", "split"),
    put="one folder per class (n01530575, ...), all in one folder or in train, val and test,",
    source=(
        "ImageNet's training images (https://image-net.org, ILSVRC2012_img_train.tar), or of a copy"
        " of tieredImageNet as images; the .pkl files of its authors are not read, since unpickling"
        " can run code"
    ),
)
CUB_PROTOCOLS = ("chen2019", "ye2020", "triantafillou2020")
CUB_SOURCE = "CUB_200_2011.tgz (1.2 GB, https://data.caltech.edu/records/65de6-vp158)"


def tiered_imagenet(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    size: int = 84,
    in_memory: bool = True,
    cache: bool | str | os.PathLike[str] = True,
    progress: bool = True,
) -> LabelledImages:
    """TieredImageNet (Ren et al. 2018, arXiv:1803.00676): 608 classes of ImageNet.

    It has 351 / 97 / 160 classes for training, validation and test, which are all classes of 20 / 6
    / 8 categories higher up in WordNet, so that test classes differ more from those of training
    than miniImageNet's. The list of the classes comes with this package, so ImageNet's own folder
    of training images is enough. A folder with fewer images is read as it is; `description` has the
    smallest number of images per class.

    All training images at 84 x 84 pixels need 9.5 GB of memory; `in_memory=False` decodes the
    images of a task when it is drawn.

    Args:
        root: a folder that holds `tiered_imagenet/{train,val,test}/<class>/*`,
            `tiered_imagenet/<class>/*` or `imagenet/train/<class>/*`, or one of these folders.
        split: "train", "validation" (or "val") or "test".
        size: as in `image_folder`.
        in_memory: as in `image_folder`.
        cache: as in `image_folder`.
        progress: as in `image_folder`.

    Raises:
        FileNotFoundError: if there is no tieredImageNet in `root`; the message says what to put
            where.
        ValueError: if a class is missing or has no images.

    Example:
        >>> tiered_imagenet("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: there is no tieredImageNet in /nowhere: put one folder per class ...
    """
    return read_published(
        TIERED_IMAGENET,
        root,
        split,
        size=size,
        in_memory=in_memory,
        cache=cache,
        progress=progress,
    )


def cub(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    protocol: str = "chen2019",
    size: int = 84,
    in_memory: bool = True,
    cache: bool | str | os.PathLike[str] = True,
    progress: bool = True,
) -> LabelledImages:
    """CUB-200-2011 (Wah et al. 2011): 200 species of birds, 11,788 images.

    The images are read whole, as in Chen et al. (2019). Some papers cut them to the published
    boxes, which changes accuracies.

    Args:
        root: a folder that holds `CUB_200_2011/images/<class>/*.jpg`, as the archive is unpacked;
            or one of these folders.
        split: "train", "validation" (or "val") or "test".
        protocol: which classes are for which split, since three are common. "chen2019" (Chen et
            al. 2019, arXiv:1904.04232) has 100 / 50 / 50: of the numbers 1 to 200 the odd ones
            for training, and of the even ones every other for validation and for the test.
            "ye2020" (Ye et al. 2020, arXiv:1812.03664, FEAT) has 100 / 50 / 50 others, drawn at
            random. "triantafillou2020" (arXiv:1903.03096, Meta-Dataset) has 140 / 30 / 30.
        size: as in `image_folder`.
        in_memory: as in `image_folder`.
        cache: as in `image_folder`.
        progress: as in `image_folder`.

    Raises:
        FileNotFoundError: if there is no CUB-200-2011 in `root`; the message says what to put
            where.
        ValueError: if a class is missing or has no images, or there is no such protocol.

    Example:
        >>> cub("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: there is no CUB-200-2011 in /nowhere: put the folder images of ...
    """
    check_choice("protocol", protocol, CUB_PROTOCOLS)
    published = Published(
        name="cub",
        title="CUB-200-2011",
        places=("CUB_200_2011", "cub", ""),
        layout=ClassFolders(("images", "")),
        splits=class_table("cub.csv", protocol),
        put="the folder images",
        source=CUB_SOURCE,
    )
    return read_published(
        published,
        root,
        split,
        size=size,
        in_memory=in_memory,
        cache=cache,
        progress=progress,
        protocol=protocol,
    )
