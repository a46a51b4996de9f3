"""The task sets of the standard few-shot data sets, by name."""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.data import MetaDataset, Taskset
from metalearn.compat.learn2learn.data.transforms import (
    ConsecutiveLabels,
    FusedNWaysKShots,
    LoadData,
    RemapLabels,
    TaskTransform,
)
from metalearn.data.images import LabelledImages
from metalearn.tasks import cifar_fs, fc100, mini_imagenet, omniglot

from .datasets import TIERED
from .transforms import RandomClassRotation

SPLITS = ("train", "validation", "test")
DatasetsAndTransforms = tuple[list[MetaDataset], list[list[TaskTransform]]]


class BenchmarkTasksets(NamedTuple):
    """The task sets of the three splits."""

    train: Taskset
    validation: Taskset
    test: Taskset


def list_tasksets() -> list[str]:
    """The names of the task sets of `get_tasksets`."""
    return list(_READ)


def get_tasksets(
    name: str,
    train_ways: int = 5,
    train_samples: int = 10,
    test_ways: int = 5,
    test_samples: int = 10,
    num_tasks: int = -1,
    root: str = "~/data",
    device: Any = None,
    data_augmentation: str | None = None,
    download: bool = True,
) -> BenchmarkTasksets:
    """Task sets for training, validation and test, with tasks (data, labels).

    Images are decoded once and kept in memory. Omniglot's characters are split 1,100 / 100 / 423 by
    a fixed seed, and every class of a task is turned by a random multiple of 90 degrees.

    Args:
        name: "omniglot", "mini-imagenet", "fc100" or "cifarfs".
        train_ways: classes per task in training.
        train_samples: examples per class in training, for support and query together.
        test_ways: classes per task in validation and test.
        test_samples: examples per class in validation and test.
        num_tasks: the tasks of each set; -1 for tasks without end.
        root: the folder with the data.
        device: of the images.
        data_augmentation: for miniImageNet, whose values are from 0 to 255 unless it is
            "normalize".
        download: whether torchvision may download missing data, with a note on stderr, as
            learn2learn does. It does not have miniImageNet.

    Raises:
        ValueError: for a name that does not exist; the message has the nearest.
        FileNotFoundError: if the data are missing.
    """
    if name == "tiered-imagenet":
        raise ValueError(f"there are no task sets 'tiered-imagenet': {TIERED}")
    if name not in _READ:
        close = difflib.get_close_matches(name, _READ, n=1, cutoff=0.0)
        raise ValueError(
            f"there are no task sets {name!r}; the nearest is {close[0]!r} of {', '.join(_READ)}"
        )
    _check_augmentation(data_augmentation)
    options: dict[str, Any] = {"download": download}
    if name == "mini-imagenet":
        options = {"data_augmentation": data_augmentation}
    datasets, transforms = _TASKSETS[name](
        train_ways, train_samples, test_ways, test_samples, root, device=device, **options
    )
    pairs = zip(datasets, transforms, strict=True)
    return BenchmarkTasksets(*(Taskset(dataset, steps, num_tasks) for dataset, steps in pairs))


def omniglot_tasksets(
    train_ways: int,
    train_samples: int,
    test_ways: int,
    test_samples: int,
    root: str,
    device: Any = None,
    download: bool = True,
) -> DatasetsAndTransforms:
    """The data sets of Omniglot's three splits, and the transforms that make tasks of each.

    The arguments are those of `get_tasksets`. A further transform changes the tasks:

        datasets, transforms = omniglot_tasksets(5, 2, 5, 2, root)
        tasks = Taskset(datasets[0], [*transforms[0], another])
    """
    datasets = _datasets("omniglot", root, device, download=download)
    transforms = _transforms(datasets, train_ways, train_samples, test_ways, test_samples)
    for dataset, steps in zip(datasets, transforms, strict=True):
        steps.append(RandomClassRotation(dataset, [0.0, 90.0, 180.0, 270.0]))
    return datasets, transforms


def mini_imagenet_tasksets(
    train_ways: int = 5,
    train_samples: int = 10,
    test_ways: int = 5,
    test_samples: int = 10,
    root: str = "~/data",
    data_augmentation: str | None = None,
    device: Any = None,
) -> DatasetsAndTransforms:
    """The data sets and transforms of miniImageNet, as in `omniglot_tasksets`.

    Values are from 0 to 255, or from 0 to 1 with data_augmentation="normalize".

    Raises ValueError for another `data_augmentation`.
    """
    _check_augmentation(data_augmentation)
    in_255 = data_augmentation is None
    datasets = _datasets("mini-imagenet", root, device, download=False, in_255=in_255)
    return datasets, _transforms(datasets, train_ways, train_samples, test_ways, test_samples)


def fc100_tasksets(
    train_ways: int = 5,
    train_samples: int = 10,
    test_ways: int = 5,
    test_samples: int = 10,
    root: str = "~/data",
    device: Any = None,
    download: bool = True,
) -> DatasetsAndTransforms:
    """The data sets and transforms of FC100, as in `omniglot_tasksets`."""
    datasets = _datasets("fc100", root, device, download=download)
    return datasets, _transforms(datasets, train_ways, train_samples, test_ways, test_samples)


def cifarfs_tasksets(
    train_ways: int = 5,
    train_samples: int = 10,
    test_ways: int = 5,
    test_samples: int = 10,
    root: str = "~/data",
    device: Any = None,
    download: bool = True,
) -> DatasetsAndTransforms:
    """The data sets and transforms of CIFAR-FS, as in `omniglot_tasksets`."""
    datasets = _datasets("cifarfs", root, device, download=download)
    return datasets, _transforms(datasets, train_ways, train_samples, test_ways, test_samples)


class _In255(Dataset[Any]):
    """Images as float tensors from 0 to 255, and their labels."""

    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images.images[index].float(), int(self.images.labels[index])


def _check_augmentation(name: str | None) -> None:
    if name not in (None, "normalize"):
        raise ValueError(
            f"data_augmentation={name!r} is not offered; leave it out, or give 'normalize'"
        )


def _datasets(
    name: str, root: str, device: Any, *, download: bool, in_255: bool = False
) -> list[MetaDataset]:
    """The data sets of the three splits."""
    datasets = []
    for split in SPLITS:
        images = _read(name, Path(root).expanduser(), split, download=download)
        if device is not None:
            images.images = images.images.to(device)
        # The labels are known, so no image is loaded to read them.
        labels = dict(enumerate(images.labels.tolist()))
        dataset = _In255(images) if in_255 else images
        datasets.append(MetaDataset(dataset, indices_to_labels=labels))
    return datasets


def _transforms(
    datasets: list[MetaDataset],
    train_ways: int,
    train_samples: int,
    test_ways: int,
    test_samples: int,
) -> list[list[TaskTransform]]:
    """The transforms that make tasks of each split."""
    train, *held_out = datasets
    return [
        _transforms_of(train, train_ways, train_samples),
        *(_transforms_of(dataset, test_ways, test_samples) for dataset in held_out),
    ]


def _transforms_of(dataset: MetaDataset, ways: int, samples: int) -> list[TaskTransform]:
    """The transforms that make tasks of one data set."""
    return [
        FusedNWaysKShots(dataset, ways, samples),
        LoadData(dataset),
        RemapLabels(dataset),
        ConsecutiveLabels(dataset),
    ]


def _read(name: str, root: Path, split: str, *, download: bool) -> LabelledImages:
    """The images of a split, downloaded if they are missing and may be."""
    read, options = _READ[name]
    try:
        return read(root, split, **options)
    except FileNotFoundError:
        if not download or name == "mini-imagenet":
            raise
    print(f"{name} is not in {root}: downloading it (prevent with download=False)", file=sys.stderr)
    root.mkdir(parents=True, exist_ok=True)
    return read(root, split, download=True, **options)


_READ: dict[str, tuple[Any, dict[str, Any]]] = {
    "omniglot": (omniglot, {"protocol": "finn", "rotations": False}),
    "mini-imagenet": (mini_imagenet, {}),
    "fc100": (fc100, {}),
    "cifarfs": (cifar_fs, {}),
}

_TASKSETS: dict[str, Callable[..., DatasetsAndTransforms]] = {
    "omniglot": omniglot_tasksets,
    "mini-imagenet": mini_imagenet_tasksets,
    "fc100": fc100_tasksets,
    "cifarfs": cifarfs_tasksets,
}

__getattr__ = nearest(
    __name__,
    [
        "BenchmarkTasksets",
        "cifarfs_tasksets",
        "fc100_tasksets",
        "get_tasksets",
        "list_tasksets",
        "mini_imagenet_tasksets",
        "omniglot_tasksets",
    ],
    instead={"tiered_imagenet_tasksets": TIERED},
)
