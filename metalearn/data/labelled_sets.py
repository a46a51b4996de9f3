"""Images to fine-tune on: class folders, MedMNIST's files and torchvision's sets, in memory."""

from __future__ import annotations

import inspect
import os
import re
import zipfile
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2
from torchvision.transforms.functional import resize, rgb_to_grayscale

from metalearn.runtime.checks import positive
from metalearn.runtime.npz import array_header

from .decoding import NO_FILES, check_memory, decode_classes, existing_root, folders_in, images_in
from .eurosat import eurosat
from .folders import split_folders
from .glyphs import glyphs
from .images import LabelledImages, in_memory
from .items import number_labels

Path_ = str | os.PathLike[str]
MEDMNIST_SIZES = (28, 64, 128, 224)
MEDMNIST_NAME = re.compile(r"([a-z]+mnist(?:3d)?)(?:[_-]?(\d+))?")  # pneumoniamnist_64
MEDMNIST_PARTS = {"train": "train", "val": "validation", "test": "test"}  # name -> split
DEFLATE = 1032  # the most that a byte of zip's usual compression can stand for


class Split(NamedTuple):
    """Images to train on, to choose by, and to test on, of the same classes.

    `validation` is None if the set has no such part.
    """

    train: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages


def load(
    dataset: str,
    root: Path_ | None = None,
    *,
    size: int | None = None,
    channels: int | None = None,
    download: bool = False,
    held_out: float = 0.2,
    seed: int = 0,
    progress: bool = True,
) -> Split:
    """Read the images of a data set by its name or path.

    Args:
        dataset: a MedMNIST file (`path.npz`), a folder of images (see `image_folders`), the name of
            a MedMNIST set ("pneumoniamnist", or "pneumoniamnist_64" for its images of 64 pixels) or
            of a torchvision set ("cifar10"), "eurosat" (see `metalearn.tasks.eurosat`), or "glyphs"
            (the 80 test characters; nothing is read).
        root: the folder that holds named sets; by default METALEARN_DATA, or else ./data.
        size: the height and width in pixels of all images; None keeps their own.
        channels: 1 (grey) or 3 (colour; grey images are repeated). None keeps their own, and reads
            a folder in colour.
        download: whether torchvision or the medmnist package may download a missing set.
        held_out: the share of each class to test on, if the set is not divided.
        seed: of that division.
        progress: whether to show progress on stderr while decoding.

    Raises:
        FileNotFoundError: if the set is missing; the message says which files to put where.
        ValueError: if there is no such set, or a file is damaged.

    Example:
        >>> load("glyphs").train.images.shape
        torch.Size([1600, 1, 28, 28])
    """
    if size is not None:
        (size,) = positive(size=size)
    # Files and folders come first, then the names of torchvision, then those of MedMNIST.
    top = Path(root or os.environ.get("METALEARN_DATA", "data"))
    folder = _folder_of(dataset, top)
    if dataset == "glyphs":
        parts = divided(glyphs("test", drawers=40), 0.5, seed)
    elif dataset.lower() == "eurosat":
        images = eurosat(top, download=download, progress=progress)
        parts = divided(images, held_out, seed)
    elif dataset.endswith(".npz"):
        parts = medmnist_file(dataset)
    elif folder is not None:
        return image_folders(
            folder,
            size=size,
            channels=channels or 3,
            held_out=held_out,
            seed=seed,
            progress=progress,
        )
    elif _torchvision_key(dataset) in _torchvision_names():
        parts = torchvision_set(
            dataset, top, size=size, download=download, held_out=held_out, seed=seed
        )
    elif MEDMNIST_NAME.fullmatch(dataset.lower()):
        parts = medmnist(dataset, top, download=download)
    else:
        raise ValueError(
            f"there is no data set {dataset!r}: it is no folder of class folders, no MedMNIST file"
            " (.npz), and no set of torchvision's or MedMNIST's by name."
            f" {NO_FILES}"
        )
    validation = parts.validation
    if validation is not None:
        validation = sized(validation, size, channels)
    return Split(sized(parts.train, size, channels), validation, sized(parts.test, size, channels))


def _folder_of(dataset: str, top: Path) -> Path | None:
    """The folder of images that a data set's name or path stands for."""
    if Path(dataset).is_dir():
        return Path(dataset)
    named = top / dataset.lower()
    return named if folders_in(named / "train") else None


def image_folders(
    root: Path_,
    *,
    size: int | None = None,
    channels: int = 3,
    held_out: float = 0.2,
    seed: int = 0,
    cache: bool | Path_ = True,
    progress: bool = True,
) -> Split:
    """Read the images of `root/{train,val,test}/class/*`, or divide those of `root/class/*`.

    Every class is in every part, unlike in `metalearn.tasks.image_folder`, which deals the classes
    to the splits. The images are decoded once, in threads, and kept in `root/.metalearn`.

    Args:
        root: the folder.
        size: as in `metalearn.tasks.image_folder`; None needs images of one size.
        channels: as in `metalearn.tasks.image_folder`.
        held_out: the share of each class to test on, if there are no folders train and test.
        seed: of that division.
        cache: as in `metalearn.tasks.image_folder`.
        progress: as in `metalearn.tasks.image_folder`.

    Raises:
        FileNotFoundError: if there is nothing to read.
        ValueError: if the parts have different classes.
    """
    top = existing_root(root)

    def read(folder: Path, part: str) -> LabelledImages:
        classes = {place.name: images_in(place) for place in folders_in(folder)}
        images, labels = decode_classes(
            classes,
            top,
            f"transfer-{part}",
            channels=channels,
            size=size,
            title=str(folder),
            cache=cache,
            progress=progress,
        )
        record = {
            "source": "image_folder",
            "folder": top.resolve().name,
            "split": part,
            "size": size,
        }
        return LabelledImages(images, labels, classes, record)

    folders = split_folders(top)
    if "train" not in folders:
        if not folders_in(top):
            raise FileNotFoundError(
                f"{top} has no folders of images, one per class, and no train and test folders that"
                " hold such folders"
            )
        return divided(read(top, "all"), held_out, seed)
    if "test" not in folders:
        raise FileNotFoundError(
            f"{top} has a train folder but none for the test: make {top / 'test'} with the same"
            " class folders"
        )
    parts = {name: read(folder, name) for name, folder in folders.items()}
    _check_classes(parts, folders)
    return Split(parts["train"], parts.get("validation"), parts["test"])


def _check_classes(parts: dict[str, LabelledImages], folders: dict[str, Path]) -> None:
    """Raise ValueError if the parts have different classes."""
    for name, images in parts.items():
        different = set(images.names) ^ set(parts["train"].names)
        if different:
            raise ValueError(
                f"{folders[name]} and {folders['train']} have other classes ({min(different)!r} is"
                " in one of them only): give both the same class folders. To test on classes that"
                " training has not seen, use metalearn.tasks.image_folder"
            )


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
            _channels_first(arrays[f"{part}_images"]),
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
    kind = getattr(datasets, _torchvision_names()[_torchvision_key(name)])
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


def divided(images: LabelledImages, held_out: float, seed: int = 0) -> Split:
    """Divide the images of each class into training and test.

    Args:
        images: the images.
        held_out: the share of each class to test on; at least one image.
        seed: of the division.

    Raises:
        ValueError: if a class has a single image, or `held_out` is not between 0 and 1.

    Example:
        >>> parts = divided(glyphs("test", classes=3, drawers=10), 0.2)
        >>> len(parts.train), len(parts.test)
        (24, 6)
    """
    if not 0 < held_out < 1:
        raise ValueError(
            f"held_out={held_out} must lie between 0 and 1: it is the share of each class that is"
            " tested on"
        )
    labels = images.labels.numpy()
    generator = np.random.default_rng(seed)
    is_test = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(images.names):
        members = np.flatnonzero(labels == label)  # rows of this class
        if len(members) == 1:
            raise ValueError(
                f"class {name!r} has one image, which cannot be both trained and tested on; add"
                " more"
            )
        count = max(1, round(held_out * len(members)))
        is_test[generator.permutation(members)[:count]] = True

    def part(rows: np.ndarray, split: str) -> LabelledImages:
        chosen = torch.from_numpy(np.flatnonzero(rows))
        record = {"split": split, "held_out": held_out, "divided_by_seed": seed}
        return LabelledImages(
            images.images[chosen],
            images.labels[chosen],
            images.names,
            {**images.description, **record},
        )

    return Split(part(~is_test, "train"), None, part(is_test, "test"))


def sized(images: LabelledImages, size: int | None, channels: int | None) -> LabelledImages:
    """Bring images to a size and a number of channels.

    Args:
        images: the images.
        size: the height and width in pixels, reached with antialiasing; None keeps their own.
        channels: 1 (grey) or 3 (colour; grey images are repeated); None keeps their own.

    Raises:
        ValueError: for another number of channels.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels} must be 3 (colour) or 1 (grey)")
    pixels = images.images  # (images, channels, height, width)
    record = dict(images.description)
    if channels and pixels.shape[1] != channels:
        if channels == 3:
            pixels = pixels.expand(-1, 3, -1, -1)  # (images, 1, ...) -> (images, 3, ...)
            record["channels"] = "grey, three times"
        else:
            pixels = rgb_to_grayscale(pixels)  # (images, 3, ...) -> (images, 1, ...)
            record["channels"] = "colour as grey"
    if size and pixels.shape[2:] != (size, size):
        pixels = resize(pixels, [size, size], antialias=True)
        record["resized"] = size
    return LabelledImages(pixels.contiguous(), images.labels, images.names, record)


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


def _channels_first(images: np.ndarray | Tensor) -> Tensor:
    """Images, grey or with colours last, as (n, channels, height, width)."""
    pixels = torch.as_tensor(images)
    if pixels.ndim == 3:
        return pixels[:, None]  # (n, height, width) -> (n, 1, height, width)
    if pixels.ndim == 4 and pixels.shape[-1] == 3:
        return pixels.permute(0, 3, 1, 2).contiguous()
    return pixels


def _as_labelled(dataset: Any, record: dict[str, Any]) -> LabelledImages:
    """A data set of torchvision's in memory: its own arrays if it has them, else item by item."""
    raw = getattr(dataset, "data", None)
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    # A transform is applied item by item only, so the raw arrays would miss it.
    has_transform = getattr(dataset, "transform", None) is not None
    if isinstance(raw, np.ndarray | Tensor) and labels is not None and not has_transform:
        names = [str(name) for name in getattr(dataset, "classes", ())]
        return LabelledImages(_channels_first(raw), torch.as_tensor(labels).long(), names, record)
    pixels, numbers, classes, record_of_labels = in_memory(dataset)
    if pixels.dtype != torch.uint8:
        raise ValueError(
            f"{type(dataset).__name__} gives {pixels.dtype} images; images of 8 bits are needed"
        )
    return LabelledImages(pixels, numbers, classes, {**record, **record_of_labels})


def _torchvision_names() -> dict[str, str]:
    """The classes of torchvision's data sets, by their names in small letters."""
    return {name.lower(): name for name in datasets.__all__}


def _torchvision_key(name: str) -> str:
    return name.lower().replace("-", "")
