"""MedMNIST (Yang et al. 2023): its files, read as they are published."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from metalearn.runtime.npz import array_header

from .decoding import Path_, check_memory
from .images import LabelledImages, channels_first
from .items import number_labels
from .parts import Split

MEDMNIST_SIZES = (28, 64, 128, 224)
MEDMNIST_NAME = re.compile(r"([a-z]+mnist(?:3d)?)(?:[_-]?(\d+))?")  # pneumoniamnist_64
MEDMNIST_PARTS = {"train": "train", "val": "validation", "test": "test"}  # name -> split
DEFLATE = 1032  # the most that a byte of zip's usual compression can stand for


def medmnist_file(path: Path_) -> Split:
    """Read a file of MedMNIST (Yang et al. 2023) as it is published.

    It is an npz archive with images and labels for training, validation and test. Labels may be
    whole numbers or strings of any kind. They are numbered from 0, in the same way for all parts,
    and `description` has the numbers.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, lacks an array, claims arrays that are larger than its
            content or than memory, holds volumes, or has several labels an image.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(
            f"there is no file {place}; MedMNIST's files are at https://medmnist.com"
        )
    try:
        arrays = _medmnist_arrays(place)
    except (
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"{place} is not a complete MedMNIST file ({error}); download it again from"
            " https://medmnist.com. A file of your own needs uint8 arrays train_images and"
            " test_images (and val_images), with labels, as numpy.savez_compressed writes them"
        ) from error
    published = [part for part in MEDMNIST_PARTS if f"{part}_images" in arrays]
    counts = [_medmnist_count(arrays, part, place) for part in published]
    # One numbering for all parts: a class may be missing from one of them.
    labels = np.concatenate([arrays[f"{part}_labels"].reshape(-1) for part in published])
    try:
        numbers, names, record = number_labels(labels, str(place))
    except TypeError as error:
        raise ValueError(f"{place} is not a classification set ({error})") from error
    parts: dict[str, LabelledImages] = {}
    for part, numbers_of_part in zip(published, numbers.split(counts), strict=True):
        split = MEDMNIST_PARTS[part]
        parts[split] = LabelledImages(
            channels_first(arrays[f"{part}_images"]),
            numbers_of_part,
            names,
            {"source": "medmnist", "file": place.name, **record, "split": split},
        )
    return Split(parts["train"], parts.get("validation"), parts["test"])


def _medmnist_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, by the names that MedMNIST gives them."""
    # numpy would take most other files for a pickle, with a message about allow_pickle.
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no npz archive, or its end is missing")
    with np.load(path, allow_pickle=False) as file:
        names: list[str] = []
        for part in MEDMNIST_PARTS:
            names += [f"{part}_images", f"{part}_labels"]
        present = [name for name in names if name in file.files]
        missing = [name for name in names if name not in present and not name.startswith("val")]
        if missing:
            raise ValueError(
                f"it lacks {', '.join(missing)}; it has {', '.join(file.files) or 'nothing'}"
            )
        _check_claims(file.zip, path)
        return {name: file[name] for name in present}


def _check_claims(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise ValueError if the arrays are larger than the file can hold, or than memory.

    Nothing is allocated before.
    """
    total = 0  # bytes
    for entry in archive.infolist():
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{entry.filename} is compressed in a way that numpy does not write")
        header = array_header(archive, entry.filename)
        if header.dtype.hasobject:
            raise ValueError(f"{entry.filename} holds Python objects, which are not read")
        fits_entry = header.claimed + header.length == entry.file_size
        if not fits_entry or header.claimed > DEFLATE * path.stat().st_size:
            raise ValueError(
                f"{entry.filename} claims {header.claimed:,} bytes as {header.dtype}"
                f" {header.shape}, but the file holds {entry.compress_size:,} bytes of it"
            )
        total += header.claimed
    check_memory(total, f"{path.name} unpacked", "use a smaller set")


def medmnist(name: str, root: Path_, *, download: bool = False) -> Split:
    """Read a set of MedMNIST by its name, from `root/name.npz` or `root/medmnist/name.npz`.

    Args:
        name: "pneumoniamnist" (or "pneumoniamnist_28") for images of 28 pixels, "pneumoniamnist_64"
            for 64; there are 128 and 224 too.
        root: the folder.
        download: whether the medmnist package may download a missing set.

    Raises:
        FileNotFoundError: if the set is missing.
        OSError: if the download fails.
        ImportError: if the package is needed for it and not installed.
        ValueError: if MedMNIST has no such set.
    """
    match = MEDMNIST_NAME.fullmatch(name.lower())
    if match is None:
        raise ValueError(
            f"{name!r} is not a name of MedMNIST's; write pneumoniamnist, or pneumoniamnist_64 for"
            " images of 64 pixels"
        )
    kind, pixels = match[1], int(match[2] or MEDMNIST_SIZES[0])
    if kind.endswith("3d"):
        raise ValueError(
            f"{name!r} holds volumes, which are not read here; choose one of MedMNIST's sets of"
            " images"
        )
    if pixels not in MEDMNIST_SIZES:
        raise ValueError(
            f"{name!r}: MedMNIST's images have {', '.join(map(str, MEDMNIST_SIZES))} pixels; write"
            f" {kind}_64"
        )
    stems = [f"{kind}_{pixels}"]
    if pixels == MEDMNIST_SIZES[0]:
        stems.insert(0, kind)  # the smallest images have no size in their name
    for stem in stems:
        for path in (Path(root) / f"{stem}.npz", Path(root) / "medmnist" / f"{stem}.npz"):
            if path.is_file():
                return medmnist_file(path)
    path = Path(root) / f"{stems[0]}.npz"
    if not download:
        raise FileNotFoundError(
            f"there is no {path}; put MedMNIST's file there, or let the medmnist package do so with"
            " download"
        )
    _download_medmnist(name, kind, pixels, path)
    return medmnist_file(path)


def _download_medmnist(name: str, kind: str, pixels: int, path: Path) -> None:
    """Let the medmnist package download a set to `path`."""
    package = _medmnist_package(name)
    if kind not in package.INFO:
        raise ValueError(f"MedMNIST has no set {kind!r}; it has {', '.join(package.INFO)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"split": "train", "root": str(path.parent), "download": True}
    if pixels != MEDMNIST_SIZES[0]:
        options["size"] = pixels
    try:
        getattr(package, package.INFO[kind]["python_class"])(**options)
    except RuntimeError as error:  # the package turns every failure into one
        raise OSError(
            f"could not download {name} ({error.__cause__ or 'no network?'}); put MedMNIST's"
            f" file at {path}"
        ) from error


def _medmnist_package(name: str) -> ModuleType:
    try:
        import medmnist as package
    except ImportError as error:
        raise ImportError(
            f"downloading {name} needs the extra: pip install 'metalearn-transfer[medmnist]'"
        ) from error
    return package


def _medmnist_count(arrays: dict[str, np.ndarray], part: str, path: Path) -> int:
    """The number of images of a part.

    Raises ValueError if its arrays are not images with one label each.
    """
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    is_grey = images.ndim == 3
    is_colour = images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (is_grey or is_colour):
        raise ValueError(
            f"{path}: {part}_images is {images.dtype} {images.shape}, not uint8 images, grey or in"
            " colour; volumes are not read"
        )
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise ValueError(
            f"{path}: {part}_labels has {labels.shape[1]} labels an image; only sets with one are"
            " read here"
        )
    if labels.size != len(images):
        raise ValueError(
            f"{path}: {part}_labels is {labels.dtype} {labels.shape}, not one integer for each of"
            f" {len(images)} images"
        )
    if not len(images):
        raise ValueError(
            f"{path}: {part}_images is empty; give it at least one image of each class"
        )
    return len(images)
