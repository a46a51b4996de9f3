"""Images to learn from, and tasks cut from them, under the names of `metalearn.data`."""

from metalearn.data.class_tasks import (
    MINI_IMAGENET_SHIFT,
    alphabet_superclasses,
    cifar100_superclasses,
    mini_imagenet_shift,
    mixed,
    shifted,
    split_classes,
)
from metalearn.data.labelled_sets import Split, divided, load

__all__ = [
    "MINI_IMAGENET_SHIFT",
    "Split",
    "alphabet_superclasses",
    "cifar100_superclasses",
    "divided",
    "load",
    "mini_imagenet_shift",
    "mixed",
    "shifted",
    "split_classes",
]
