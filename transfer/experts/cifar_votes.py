"""CIFAR-10 with human votes: three raters an image to train on, about 51 to test on.

CIFAR-10N (Wei et al. 2022, arXiv:2110.12088) has the labels of three raters for each training
image, CIFAR-10H (Peterson et al. 2019, arXiv:1908.07086) 47 to 63 votes for each test image. Both
are in the official order of the images.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from metalearn.data.labelled_sets import load
from metalearn.runtime.npz import array_header
from transfer.experts.votes import check_counts, counts_of_raters

CLASSES = 10
TRAIN_FILES = ("cifar10n.npz", "CIFAR-10_human.pt")
TEST_VOTES = "cifar10h-counts.npy"
TEST_LABELS = "cifar10-test-labels.npy"
RATERS = ("random_label1", "random_label2", "random_label3")  # in CIFAR-10_human.pt
SOURCES = {
    TEST_VOTES: "github.com/jcpeterson/cifar-10h, data/cifar10h-counts.npy",
    TEST_LABELS: (
        "github.com/cleanlab/label-errors,"
        " original_test_labels/cifar10_test_set_original_labels.npy"
    ),
    "CIFAR-10_human.pt": "github.com/UCSC-REAL/cifar-10-100n, data/CIFAR-10_human.pt",
}
LARGEST = 2**26  # bytes that an array of votes may claim


class VotedImages(TensorDataset):
    """Images with votes: `[i]` gives an image and how many raters chose each class.

    Args:
        images: (n, channels, height, width) uint8.
        counts: (n, classes) votes.
        labels: (n,) the true classes.
    """

    def __init__(self, images: Tensor, counts: Tensor, labels: Tensor) -> None:
        super().__init__(images, counts)
        self.images = images
        self.counts = counts
        self.labels = labels

    def part(self, indices: Tensor) -> VotedImages:
        """Some of the images."""
        return VotedImages(self.images[indices], self.counts[indices], self.labels[indices])


class VotedSplit(NamedTuple):
    """Images to train and to test on, with votes."""

    train: VotedImages
    test: VotedImages


def cifar10_votes(
    root: str | os.PathLike[str] | None = None, *, progress: bool = True
) -> VotedSplit:
    """CIFAR-10 with the votes of CIFAR-10N (training) and CIFAR-10H (test).

    The images are those of `load("cifar10", root)`, in any order that keeps the official one within
    each class, as torchvision's files and the usual folders of images do. The votes are in
    `root/votes`: CIFAR-10_human.pt, or cifar10n.npz with its arrays `clean` and `raters`;
    cifar10h-counts.npy; and the official test labels, cifar10-test-labels.npy.

    Args:
        root: by default METALEARN_DATA, or else ./data.
        progress: whether to show progress while images are decoded.

    Raises:
        FileNotFoundError: A file is missing; the message names its source.
        ValueError: A file is damaged, or the images of a class are not as many as its labels.
    """
    top = Path(root or os.environ.get("METALEARN_DATA", "data"))
    folder = top / "votes"
    train_labels, raters = _train_votes(folder)
    test_labels = _array(folder / TEST_LABELS)
    counts = check_counts(_array(folder / TEST_VOTES), "votes of the test set").long()
    images = load("cifar10", top, progress=progress)
    order = official_order(images.train.labels, train_labels)
    train = counts_of_raters(raters, CLASSES)[order]
    test_order = official_order(images.test.labels, test_labels)
    return VotedSplit(
        VotedImages(images.train.images, train, images.train.labels),
        VotedImages(images.test.images, counts[test_order], images.test.labels),
    )


def official_order(labels: Any, official: Any) -> Tensor:
    """Where each image is in the official list, if both have the same order within each class.

    The k-th image of a class is the k-th of that class in the official list.

    Args:
        labels: (images,) classes of the images.
        official: (images,) classes in the official order.

    Returns:
        (images,) positions in the official list.

    Raises:
        ValueError: a class has another number of images than in the list.

    Example:
        >>> official_order([0, 0, 1, 1], official=[1, 0, 1, 0])
        tensor([1, 3, 0, 2])
    """
    given = np.asarray(labels).astype(np.int64)
    listed = np.asarray(official).astype(np.int64)
    for label in np.union1d(given, listed):
        images = int((given == label).sum())
        expected = int((listed == label).sum())
        if images != expected:
            raise ValueError(
                f"class {label} has {images} images and {expected} labels in the official list;"
                " votes and images are matched only if both are complete"
            )
    order = np.empty(len(given), dtype=np.int64)
    # Sorted stably, both list class after class, each in the order that they share.
    order[np.argsort(given, kind="stable")] = np.argsort(listed, kind="stable")
    return torch.from_numpy(order)


def _train_votes(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels (images,) and the raters' labels (images, raters) of CIFAR-10N."""
    archive, original = (folder / name for name in TRAIN_FILES)
    if archive.is_file():
        return _array(archive, "clean"), _array(archive, "raters")
    arrays = _tensors(original)
    missing = [name for name in ("clean_label", *RATERS) if name not in arrays]
    if missing:
        raise ValueError(f"{original} has no {missing[0]!r}; get it again from {_source(original)}")
    return arrays["clean_label"], np.stack([arrays[name] for name in RATERS], 1)


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of `torch.save`, without running code from it."""
    _check_there(path)
    reconstruct: Any = np.empty(0).__reduce__()[0]  # numpy's own way to restore an array
    kinds = [type(np.dtype(kind)) for kind in ("u1", "i4", "i8", "f8")]
    try:
        with torch.serialization.safe_globals([reconstruct, np.ndarray, np.dtype, *kinds]):
            stored = torch.load(path, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is no dictionary of arrays ({str(error).splitlines()[0]}); get it again from"
            f" {_source(path)}"
        ) from error
    return {str(name): np.asarray(value) for name, value in dict(stored).items()}


def _array(path: Path, name: str | None = None) -> np.ndarray:
    """An array from a file of numpy's, without running code from it."""
    _check_there(path)
    try:
        if name is None:
            return np.load(path, allow_pickle=False)
        with zipfile.ZipFile(path) as archive:
            if array_header(archive, f"{name}.npy").claimed > LARGEST:
                raise ValueError(f"its array {name!r} claims more than {LARGEST:,} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}); get it again") from error


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; get it from {_source(path)}")


def _source(path: Path) -> str:
    return SOURCES.get(path.name, "its source")
