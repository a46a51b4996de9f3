"""`get_tasksets`: the task sets of the standard few-shot data sets, by name."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from metalearn.tasks import cifar_fs, fc100, mini_imagenet, omniglot
from metalearn.tasks.few_shot import LabelledImages

from .._missing import nearest
from ..data import MetaDataset, Taskset
from ..data.transforms import ConsecutiveLabels, FusedNWaysKShots, LoadData, RemapLabels
from .transforms import RandomClassRotation

SPLITS = ("train", "validation", "test")


class BenchmarkTasksets(NamedTuple):
    """The task sets of the three splits."""

    train: Taskset
    validation: Taskset
    test: Taskset


def list_tasksets() -> list[str]:
    """The names that `get_tasksets` knows."""
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
    """Task sets for training, validation and test, of tasks (data, labels) with `samples` examples for each of `ways` classes.

    Images are decoded once and kept in memory. What is not in `root` is downloaded, and said, where torchvision has it, as learn2learn
    does (miniImageNet has to be there). Omniglot's characters are cut 1,100 / 100 / 423 by a fixed seed, and every class of a task is
    turned by a random multiple of 90 degrees.

    Arguments:
        name: "omniglot", "mini-imagenet", "fc100" or "cifarfs".
        train_ways, test_ways: classes per task; the latter holds for validation too.
        train_samples, test_samples: examples per class, for support and query together.
        num_tasks: the tasks of each set; -1 for tasks without end.
        root: the folder with the data.
        device: where the images are kept.
        data_augmentation: for miniImageNet, whose values run from 0 to 255 unless it is "normalize".
        download: False to download nothing.
    Raises ValueError, naming the nearest, for a name that is not there, and FileNotFoundError where the data are not.
    """
    if name not in _READ:
        close = difflib.get_close_matches(name, _READ, n=1, cutoff=0.0)
        raise ValueError(f"there are no task sets {name!r}; the nearest is {close[0]!r} of {', '.join(_READ)}")
    if data_augmentation not in (None, "normalize"):
        raise ValueError(f"data_augmentation={data_augmentation!r} is not offered; leave it out, or give 'normalize'")
    sets = []
    for split in SPLITS:
        images = _read(name, Path(root).expanduser(), split, download)
        if device is not None:
            images.images = images.images.to(device)
        scaled = name == "mini-imagenet" and data_augmentation is None
        dataset = MetaDataset(_In255(images) if scaled else images, indices_to_labels=dict(enumerate(images.labels.tolist())))
        ways, samples = (train_ways, train_samples) if split == "train" else (test_ways, test_samples)
        steps = [FusedNWaysKShots(dataset, ways, samples), LoadData(dataset), RemapLabels(dataset), ConsecutiveLabels(dataset)]
        sets.append(Taskset(dataset, [*steps, RandomClassRotation(dataset, _TURNS)] if name == "omniglot" else steps, num_tasks))
    return BenchmarkTasksets(*sets)


class _In255(Dataset[Any]):
    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images.images[index].float(), int(self.images.labels[index])


def _read(name: str, root: Path, split: str, download: bool) -> LabelledImages:
    read, options = _READ[name]
    try:
        return read(root, split, **options)
    except FileNotFoundError:
        if not download or name == "mini-imagenet":
            raise
    print(f"{name} is not in {root}: downloading it (download=False would not)", file=sys.stderr)
    root.mkdir(parents=True, exist_ok=True)
    return read(root, split, download=True, **options)


_TURNS = [0.0, 90.0, 180.0, 270.0]
_READ: dict[str, tuple[Any, dict[str, Any]]] = {
    "omniglot": (omniglot, {"protocol": "finn", "rotations": False}),
    "mini-imagenet": (mini_imagenet, {}),
    "fc100": (fc100, {}),
    "cifarfs": (cifar_fs, {}),
}

__getattr__ = nearest(__name__, ["BenchmarkTasksets", "get_tasksets", "list_tasksets"])
