"""The image files of some classes: decoded once into memory, or each time they are drawn."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.runtime.files import Record

from .decoding import check_same_size, decode, decode_all, decode_classes
from .images import LabelledImages

Classes = dict[str, list[Path]]
"""The image files of each class, by its name."""


class ImageFiles(LabelledImages):
    """Labelled image files that are decoded each time they are drawn, if memory cannot hold them.

    Tasks that `FewShot` draws are the same as those of the images in memory. Only `images`, which
    other calls may use, decodes all of them at once.

    Args:
        files: the image files of each class, by its name; labels number the classes in this order.
        channels: 1 for grey, 3 for RGB.
        size: the height and width in pixels; None keeps those of the files.
        description: as in `LabelledImages`.

    Example:
        >>> images = ImageFiles({"cat": [Path("cat.png")], "dog": [Path("dog.png")]}, size=28)
        >>> len(images), images.names, images.labels.tolist()
        (2, ('cat', 'dog'), [0, 1])
    """

    def __init__(
        self,
        files: Mapping[str, Sequence[Path]],
        *,
        channels: int = 3,
        size: int | None = None,
        description: Record | None = None,
    ) -> None:
        self.paths = list(chain.from_iterable(files.values()))
        counts = torch.tensor([len(paths) for paths in files.values()])
        self.labels = torch.arange(len(counts)).repeat_interleave(counts)
        self.names = tuple(files)
        self.channels = channels
        self.size = size
        self.description: Record = dict(description or {})
        self.changes: tuple[Callable[[Tensor], Tensor], ...] = ()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.take(torch.tensor([index]))[0].float() / 255, int(self.labels[index])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of an image: (channels, height, width)."""
        return tuple(self.take(torch.tensor([0])).shape[1:])

    @property
    def images(self) -> Tensor:  # type: ignore[override]
        """All images, decoded into memory: (images, channels, height, width), uint8.

        Raises:
            ValueError: if this machine has too little memory.
        """
        title = f"decoding {len(self)} images into memory"
        return self._changed(decode_all(self.paths, self.channels, self.size, title))

    def take(self, rows: Tensor) -> Tensor:
        """The images of these rows: (rows, channels, height, width), uint8.

        Raises:
            ValueError: naming the file that cannot be read.
        """
        paths = [self.paths[row] for row in rows.tolist()]
        read = partial(decode, channels=self.channels, size=self.size)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            images = list(pool.map(read, paths))
        for path, image in zip(paths, images, strict=True):
            check_same_size(image, path, images[0], paths[0])
        return self._changed(torch.stack(images))

    def classes(self, indices: Iterable[int], **description: Any) -> ImageFiles:
        """The images of some classes; see `LabelledImages.classes`."""
        chosen = self._checked(indices)
        rows, labels = self._relabelled(chosen)
        part = copy.copy(self)
        part.paths = [self.paths[row] for row in rows.tolist()]
        part.labels = labels
        part.names = tuple(self.names[i] for i in chosen)
        part.description = {**self.description, **description}
        return part

    def changed(self, change: Callable[[Tensor], Tensor], description: Record) -> ImageFiles:
        """The same files with a change of the decoded images.

        Args:
            change: from decoded images (images, channels, height, width) to those that are drawn.
            description: of the images after it.
        """
        whole = copy.copy(self)
        whole.changes = (*self.changes, change)
        whole.description = description
        return whole

    def _changed(self, images: Tensor) -> Tensor:
        for change in self.changes:
            images = change(images)
        return images


def read_images(
    classes: Mapping[str, Sequence[Path]],
    top: Path,
    cache_name: str,
    description: Record,
    *,
    channels: int,
    size: int | None,
    title: str,
    in_memory: bool,
    cache: bool | str | os.PathLike[str],
    progress: bool,
) -> LabelledImages:
    """The images of some classes, in memory or decoded as they are drawn.

    Args:
        classes: the image files of each class.
        top: the folder that holds them, and the cache.
        cache_name: the start of the name of the cache's file.
        description: as in `LabelledImages`.
        channels: 1 for grey, 3 for RGB.
        size: the height and width in pixels; None keeps those of the files.
        title: what they are called in messages.
        in_memory: False decodes images as they are drawn, and keeps nothing.
        cache: as in `decoding.cached`.
        progress: whether to show progress while decoding into memory.

    Raises:
        ValueError: naming the file that cannot be read or has another size, or if the images exceed
            this machine's memory.
    """
    if not in_memory:
        return ImageFiles(classes, channels=channels, size=size, description=description)
    images, labels = decode_classes(
        classes,
        top,
        cache_name,
        channels=channels,
        size=size,
        title=title,
        cache=cache,
        progress=progress,
    )
    return LabelledImages(images, labels, classes, description)
