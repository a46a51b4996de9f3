"""CIFAR-FS and FC100: the two published splits of CIFAR-100's classes for few-shot learning."""

from __future__ import annotations

import os

import numpy as np
import torch

from .decoding import checked_root, split_named
from .images import LabelledImages

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
ALL = sorted(name for names in SUPERCLASSES.values() for name in names.split())


def _splits(validation: str, test: str) -> dict[str, list[str]]:
    held = {"validation": sorted(validation.split()), "test": sorted(test.split())}
    return {
        "train": [name for name in ALL if name not in held["validation"] + held["test"]],
        **held,
    }


def _within(*superclasses: str) -> str:
    return " ".join(SUPERCLASSES[superclass] for superclass in superclasses)


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
    """CIFAR-FS (Bertinetto et al. 2019): CIFAR-100 with 64 / 16 / 20 of its classes for training,
    validation and test, 600 images each.

    Args:
        root: torchvision's folder, the one that holds or is to hold `cifar-100-python`.
        split: "train", "validation" or "test".
        download: whether torchvision may download what is not there (169 MB).

    Raises FileNotFoundError where CIFAR-100 is not there, is not whole or cannot be downloaded; the
    message says what to put where.
    """
    return _load(root, split, download, "cifar_fs", CIFAR_FS)


def fc100(
    root: str | os.PathLike[str], split: str = "train", *, download: bool = False
) -> LabelledImages:
    """FC100 (Oreshkin et al. 2018): CIFAR-100 cut between superclasses, 12 / 4 / 4 of them, so 60 /
    20 / 20 classes, 600 images each.

    Arguments and errors are those of `cifar_fs`.
    """
    return _load(root, split, download, "fc100", FC100)


def _load(
    root: str | os.PathLike[str],
    split: str,
    download: bool,
    source: str,
    splits: dict[str, list[str]],
) -> LabelledImages:
    split = split_named(split, splits)
    top = checked_root(root)
    from torchvision.datasets import CIFAR100

    try:
        halves = [CIFAR100(str(top), train=train, download=download) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"CIFAR-100 could not be {'downloaded to' if download else 'read from'} {root}"
            f" ({error}): unpack cifar-100-python.tar.gz of"
            f" https://www.cs.toronto.edu/~kriz/cifar.html into {root}, or pass download=True;"
            " `--dataset glyphs` needs no files"
        ) from error
    images = (
        torch.from_numpy(np.concatenate([half.data for half in halves]))
        .permute(0, 3, 1, 2)
        .contiguous()
    )
    labels = torch.tensor([label for half in halves for label in half.targets])
    whole = LabelledImages(images, labels, halves[0].classes, {"source": source})
    return whole.classes([halves[0].class_to_idx[name] for name in splits[split]], split=split)
