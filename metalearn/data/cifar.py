"""CIFAR-FS and FC100: the two published splits of CIFAR-100's classes for few-shot learning."""

from __future__ import annotations

import os

import numpy as np
import torch

from .decoding import NO_FILES, checked_root, split_named
from .images import LabelledImages

# The 20 superclasses of CIFAR-100 and their classes (Krizhevsky 2009).
SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
ALL = sorted(" ".join(SUPERCLASSES.values()).split())


def _splits(validation: str, test: str) -> dict[str, list[str]]:
    """The classes of each split; those that are not held out are for training."""
    held_out = {"validation": sorted(validation.split()), "test": sorted(test.split())}
    training = set(ALL).difference(*held_out.values())
    return {"train": sorted(training), **held_out}


def _within(*superclasses: str) -> str:
    """The classes of these superclasses."""
    return " ".join(SUPERCLASSES[superclass] for superclass in superclasses)


# Bertinetto et al. 2019 drew the classes of each split at random.
CIFAR_FS = _splits(
    validation=(
        "beaver otter flatfish shark lamp television beetle butterfly sea camel cattle crab"
        " crocodile maple_tree motorcycle tractor"
    ),
    test=(
        "whale poppy rose sweet_pepper telephone bed table wardrobe leopard plain chimpanzee fox"
        " snail worm baby man woman bicycle pickup_truck rocket"
    ),
)
# Oreshkin et al. 2018 split by superclass, so test classes differ more from those of training.
FC100 = _splits(
    validation=_within(
        "large_carnivores",
        "large_omnivores_and_herbivores",
        "non-insect_invertebrates",
        "small_mammals",
    ),
    test=_within("aquatic_mammals", "insects", "medium_mammals", "people"),
)


def cifar_fs(
    root: str | os.PathLike[str], split: str = "train", *, download: bool = False
) -> LabelledImages:
    """CIFAR-FS (Bertinetto et al. 2019): CIFAR-100 in 64 / 16 / 20 classes of 600 images each.

    Args:
        root: the folder that torchvision reads `cifar-100-python` from, or downloads it to.
        split: "train", "validation" (or "val") or "test".
        download: whether torchvision may download CIFAR-100 (169 MB) if it is missing.

    Raises:
        FileNotFoundError: if CIFAR-100 is missing or incomplete, or cannot be downloaded. The
            message says which files to put where.

    Example:
        >>> cifar_fs("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: CIFAR-100 could not be read from /nowhere ...
    """
    return _load(root, split, "cifar_fs", CIFAR_FS, download=download)


def fc100(
    root: str | os.PathLike[str], split: str = "train", *, download: bool = False
) -> LabelledImages:
    """FC100 (Oreshkin et al. 2018): CIFAR-100 in 60 / 20 / 20 classes of 600 images each.

    The splits share no superclass: they have 12 / 4 / 4 of them.

    Args:
        root: as in `cifar_fs`.
        split: as in `cifar_fs`.
        download: as in `cifar_fs`.

    Raises:
        FileNotFoundError: as `cifar_fs` does.

    Example:
        >>> fc100("/nowhere", "val")
        Traceback (most recent call last):
        FileNotFoundError: CIFAR-100 could not be read from /nowhere ...
    """
    return _load(root, split, "fc100", FC100, download=download)


def _load(
    root: str | os.PathLike[str],
    split: str,
    source: str,
    splits: dict[str, list[str]],
    *,
    download: bool,
) -> LabelledImages:
    """The images of both halves of CIFAR-100 whose classes are in this split."""
    split = split_named(split, splits)
    top = checked_root(root)
    from torchvision.datasets import CIFAR100

    try:
        halves = [CIFAR100(str(top), train=train, download=download) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        attempt = "downloaded to" if download else "read from"
        raise FileNotFoundError(
            f"CIFAR-100 could not be {attempt} {root} ({error}): unpack cifar-100-python.tar.gz of"
            f" https://www.cs.toronto.edu/~kriz/cifar.html into {root}, or pass download=True;"
            f" {NO_FILES}"
        ) from error
    pixels = np.concatenate([half.data for half in halves])  # (images, height, width, channels)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    # Few-shot splits cut between classes, so they use CIFAR's training and test images together.
    labels = torch.cat([torch.tensor(half.targets) for half in halves])
    whole = LabelledImages(images, labels, halves[0].classes, {"source": source})
    return whole.classes([halves[0].class_to_idx[name] for name in splits[split]], split=split)
