"""The classification sets of torchvision, by name."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from .decoding import Path_
from .images import LabelledImages, channels_first, in_memory
from .parts import Split, divided


def torchvision_set(
    name: str,
    root: Path_,
    *,
    size: int | None = None,
    download: bool = False,
    held_out: float = 0.2,
    seed: int = 0,
) -> Split:
    """Read a classification set of torchvision's by its name, into memory.

    Args:
        name: torchvision's class, in any case: "cifar10", "fashion-mnist", "svhn", "oxfordiiitpet",
            ...
        root: the folder that torchvision reads it from.
        size: the height and width in pixels; needed if the images differ in size.
        download: whether torchvision may download a missing set.
        held_out: the share of each class to test on, if the set is not divided.
        seed: of that division.

    Raises:
        FileNotFoundError: if the set is missing or could not be downloaded.
    """
    kind = getattr(datasets, torchvision_names()[torchvision_key(name)])
    parameters = inspect.signature(kind).parameters
    # Some classes take train=True, some split="train"; the others are undivided.
    parts: list[dict[str, Any]] = [{}]
    if "train" in parameters:
        parts = [{"train": True}, {"train": False}]
    elif "split" in parameters:
        parts = [{"split": "train"}, {"split": "test"}]
    options: dict[str, Any] = {}
    if "download" in parameters:
        options["download"] = download
    if size:
        options["transform"] = v2.Resize((size, size))
    try:
        sets = [kind(str(root), **part, **options) for part in parts]
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{kind.__name__} could not be read from {root} ({str(error).splitlines()[0]}); put"
            " torchvision's files there, or download them"
        ) from error
    images = []
    for dataset, part in zip(sets, parts, strict=True):
        record = {"source": kind.__name__, "split": str(*part.values())}
        images.append(_as_labelled(dataset, record))
    if len(images) == 2:
        return Split(images[0], None, images[1])
    return divided(images[0], held_out, seed)


def _as_labelled(dataset: Any, record: dict[str, Any]) -> LabelledImages:
    """A data set of torchvision's in memory: its own arrays if it has them, else item by item."""
    raw = getattr(dataset, "data", None)
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    # A transform is applied item by item only, so the raw arrays would miss it.
    has_transform = getattr(dataset, "transform", None) is not None
    if isinstance(raw, np.ndarray | Tensor) and labels is not None and not has_transform:
        names = [str(name) for name in getattr(dataset, "classes", ())]
        return LabelledImages(channels_first(raw), torch.as_tensor(labels).long(), names, record)
    pixels, numbers, classes, record_of_labels = in_memory(dataset)
    if pixels.dtype != torch.uint8:
        raise ValueError(
            f"{type(dataset).__name__} gives {pixels.dtype} images; images of 8 bits are needed"
        )
    return LabelledImages(pixels, numbers, classes, {**record, **record_of_labels})


def torchvision_names() -> dict[str, str]:
    """The classes of torchvision's data sets, by their names in small letters."""
    return {name.lower(): name for name in datasets.__all__}


def torchvision_key(name: str) -> str:
    """A name in small letters without hyphens, as `torchvision_names` has them."""
    return name.lower().replace("-", "")
