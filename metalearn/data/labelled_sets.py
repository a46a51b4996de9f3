"""Images to fine-tune on: folders of class folders, MedMNIST's files, and torchvision's sets, each
as training and test images.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2
from torchvision.transforms.functional import resize, rgb_to_grayscale

from metalearn.runtime.checks import positive

from .decoding import READING, cached, check_memory, decode_all, fingerprint, folders_in, images_in
from .folders import split_folders
from .glyphs import glyphs
from .images import LabelledImages, _in_memory, number_labels

Path_ = str | os.PathLike[str]
MEDMNIST_SIZES = (28, 64, 128, 224)
MEDMNIST_NAME = re.compile(
    r"([a-z]+mnist(?:3d)?)(?:[_-]?(\d+))?"
)  # pneumoniamnist, pneumoniamnist_64
DEFLATE = 1032  # the most that a byte of zip's usual compression can stand for


class Split(NamedTuple):
    """Images to train on, to choose by (None where a set has none apart), and to test on; the
    classes of all are the same.
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
    """The images of a data set by name or path -> `Split`.

    Args:
        dataset: a MedMNIST file (`path.npz`), a folder of images (see `image_folders`), the name of
            a MedMNIST set ("pneumoniamnist", or "pneumoniamnist_64" for its images of 64 pixels) or
            of a torchvision set ("cifar10"), or "glyphs" (the 80 test characters, drawn; nothing is
            read).
        root: the folder that holds named sets; by default METALEARN_DATA, or else ./data.
        size: height and width in pixels that all images are brought to; None keeps their own.
        channels: 1 (grey) or 3 (colour; grey images are repeated); None keeps their own, and reads
            a folder in colour.
        download: whether torchvision or the medmnist package may download what is not there.
        held_out, seed: the share of each class that is tested on where the set comes undivided, and
            what chooses it.

    Raises FileNotFoundError or ValueError naming the file, and what to do.

    Example:
        >>> load("glyphs").train.images.shape
        torch.Size([1600, 1, 28, 28])
    """
    if size is not None:
        (size,) = positive(size=size)
    top = Path(root or os.environ.get("METALEARN_DATA", "data"))
    name, named = dataset.lower().replace("-", ""), top / dataset.lower()
    if dataset == "glyphs":
        found = divided(glyphs("test", drawers=40), 0.5, seed)
    elif dataset.endswith(".npz"):
        found = medmnist_file(dataset)
    elif Path(dataset).is_dir() or folders_in(named / "train"):
        place = dataset if Path(dataset).is_dir() else named
        return image_folders(
            place,
            size=size,
            channels=channels or 3,
            held_out=held_out,
            seed=seed,
            progress=progress,
        )
    elif name in _torchvision_names():
        found = torchvision_set(
            name, top, size=size, download=download, held_out=held_out, seed=seed
        )
    elif MEDMNIST_NAME.fullmatch(dataset.lower()):
        found = medmnist(dataset, top, download=download)
    else:
        raise ValueError(
            f"there is no data set {dataset!r}: it is no folder of class folders, no MedMNIST file"
            " (.npz), and no set of torchvision's or MedMNIST's by name. `--dataset glyphs` needs"
            " no files"
        )
    return Split(*(None if images is None else sized(images, size, channels) for images in found))  # type: ignore[arg-type]


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
    """The images of `root/{train,val,test}/class/*`, or of `root/class/*` with a share of each
    class held out for the test.

    Unlike `metalearn.tasks.image_folder`, which deals classes, every class is in every part.
    Decoded once, in threads, and kept in `root/.metalearn`. Raises FileNotFoundError where there is
    nothing to read, and ValueError where test and training classes differ.

    Args:
        root, size, channels, cache, progress: as in `metalearn.tasks.image_folder`; `size=None`
            needs images of one size.
        held_out, seed: the share of each class for the test where there are no folders train and
            test, and what chooses it.
    """
    top = Path(root)
    if not top.is_dir():
        raise FileNotFoundError(
            f"there is no folder {top}: put folders of images there, one per class; `--dataset"
            " glyphs` needs no files"
        )
    options: dict[str, Any] = {
        "size": size,
        "channels": channels,
        "cache": cache,
        "progress": progress,
    }
    parts = split_folders(top)
    if "train" not in parts:
        if not folders_in(top):
            raise FileNotFoundError(
                f"{top} has no folders of images, one per class, and no train and test folders of"
                " such"
            )
        return divided(_folder(top, "all", top, **options), held_out, seed)
    if "test" not in parts:
        raise FileNotFoundError(
            f"{top} has a train folder but none for the test: make {top / 'test'} with the same"
            " class folders"
        )
    read = {name: _folder(folder, name, top, **options) for name, folder in parts.items()}
    for name, images in read.items():
        if images.names != read["train"].names:
            odd = sorted(set(images.names) ^ set(read["train"].names))[0]
            raise ValueError(
                f"{parts[name]} and {parts['train']} have other classes ({odd!r} is in one of them"
                " only): give both the same class folders. For classes that training has not seen"
                " there is metalearn.tasks.image_folder"
            )
    return Split(read["train"], read.get("validation"), read["test"])


def medmnist_file(path: Path_) -> Split:
    """A file of MedMNIST (Yang et al. 2023) as it is published: an npz with images and labels for
    training, validation and test.

    Labels may be whole numbers or strings of any kind; they are numbered from 0 for all parts
    alike, and `description` has the numbers.

    Raises FileNotFoundError, and ValueError where the file is truncated, lacks an array, claims
    arrays that are larger than its content or than memory, holds volumes, or has several labels
    each.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(
            f"there is no file {place}; MedMNIST's files are at https://medmnist.com"
        )
    arrays = {}
    try:
        if not zipfile.is_zipfile(place):
            raise ValueError("it is no npz archive, or its end is missing")
        with np.load(place, allow_pickle=False) as file:
            wanted = [
                f"{part}_{kind}"
                for part in ("train", "val", "test")
                for kind in ("images", "labels")
            ]
            missing = [
                name for name in wanted if name not in file.files and not name.startswith("val")
            ]
            if missing:
                raise ValueError(
                    f"it lacks {', '.join(missing)}; it has {', '.join(file.files) or 'nothing'}"
                )
            _check_claims(file.zip, place)
            arrays = {name: file[name] for name in wanted if name in file.files}
    except (
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"{place} is not a whole MedMNIST file ({error}); get it again from"
            " https://medmnist.com. One of your own needs uint8 arrays train_images and"
            " test_images (and val_images), with labels, as numpy.savez_compressed writes them"
        ) from error
    counts = {
        part: _medmnist_count(arrays, part, place)
        for part in ("train", "val", "test")
        if f"{part}_images" in arrays
    }
    labels = np.concatenate([arrays[f"{part}_labels"].reshape(-1) for part in counts])
    try:
        numbers, names, record = number_labels(labels, str(place))
    except TypeError as error:
        raise ValueError(f"{place} is not a classification set ({error})") from error
    about = {"source": "medmnist", "file": place.name, **record}
    parts: dict[str, LabelledImages] = {}
    for part, own in zip(counts, numbers.split(list(counts.values())), strict=True):
        parts[part] = LabelledImages(
            _medmnist_images(arrays[f"{part}_images"]), own, names, {**about, "split": part}
        )
    return Split(parts["train"], parts.get("val"), parts["test"])


def _check_claims(archive: zipfile.ZipFile, place: Path) -> None:
    """Raise ValueError, before anything is allocated, where the arrays are larger than the file can
    hold, or than memory.
    """
    total = 0
    for entry in archive.infolist():
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{entry.filename} is compressed in a way that numpy does not write")
        with archive.open(entry) as content:
            version = np.lib.format.read_magic(content)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(content)
            header = content.tell()
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} holds Python objects, which are not read")
        claimed = math.prod(shape) * dtype.itemsize
        if claimed + header != entry.file_size or claimed > DEFLATE * place.stat().st_size:
            raise ValueError(
                f"{entry.filename} claims {claimed:,} bytes as {dtype} {shape}, but the file holds"
                f" {entry.compress_size:,} bytes of it"
            )
        total += claimed
    check_memory(total, f"{place.name} unpacked", "use a smaller set")


def medmnist(name: str, root: Path_, *, download: bool = False) -> Split:
    """A set of MedMNIST by name, from `root/name.npz` or `root/medmnist/name.npz`; the medmnist
    package downloads one that is not there.

    `pneumoniamnist_64` is the set with images of 64 pixels, `pneumoniamnist` (or
    `pneumoniamnist_28`) that with 28; there are 128 and 224 too.

    Raises FileNotFoundError where it is not there, OSError where the download fails, ImportError
    where the package is needed for it and not installed, and ValueError for a name that the package
    does not know.
    """
    matched = MEDMNIST_NAME.fullmatch(name.lower())
    if matched is None:
        raise ValueError(
            f"{name!r} is not a name of MedMNIST's; write pneumoniamnist, or pneumoniamnist_64 for"
            " images of 64 pixels"
        )
    kind, pixels = matched[1], int(matched[2] or MEDMNIST_SIZES[0])
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
    stems = [f"{kind}_{pixels}"] if pixels != MEDMNIST_SIZES[0] else [kind, f"{kind}_{pixels}"]
    places = [Path(root) / folder / f"{stem}.npz" for stem in stems for folder in ("", "medmnist")]
    found = next((place for place in places if place.is_file()), None)
    if found is None and not download:
        raise FileNotFoundError(
            f"there is no {places[0]}; put MedMNIST's file there, or let the medmnist package do so"
            " with download"
        )
    if found is None:
        try:
            import medmnist as package
        except ImportError as error:
            raise ImportError(
                f"downloading {name} needs the extra: pip install 'metalearn-transfer[medmnist]'"
            ) from error
        if kind not in package.INFO:
            raise ValueError(f"MedMNIST has no set {kind!r}; it has {', '.join(package.INFO)}")
        Path(root).mkdir(parents=True, exist_ok=True)
        options = {} if pixels == MEDMNIST_SIZES[0] else {"size": pixels}
        try:
            getattr(package, package.INFO[kind]["python_class"])(
                split="train", root=str(root), download=True, **options
            )
        except RuntimeError as error:  # what the package makes of every failure
            raise OSError(
                f"could not download {name} ({error.__cause__ or 'no network?'}); put MedMNIST's"
                f" file at {places[0]}"
            ) from error
        found = places[0]
    return medmnist_file(found)


def torchvision_set(
    name: str,
    root: Path_,
    *,
    size: int | None = None,
    download: bool = False,
    held_out: float = 0.2,
    seed: int = 0,
) -> Split:
    """A classification set of torchvision's by name, in memory; sets that come undivided are
    divided by `seed`.

    Args:
        name: torchvision's class, in any case: "cifar10", "fashion-mnist", "svhn", "oxfordiiitpet",
            ...
        root, download: torchvision's.
        size: needed where the images differ in size.
        held_out, seed: as in `load`.

    Raises FileNotFoundError, with the cure, where the set is not there or could not be downloaded.
    """
    kind = getattr(datasets, _torchvision_names()[name.lower().replace("-", "")])
    takes = inspect.signature(kind).parameters
    if "train" in takes:
        parts: Sequence[dict[str, Any]] = ({"train": True}, {"train": False})
    else:
        parts = ({"split": "train"}, {"split": "test"}) if "split" in takes else ({},)
    options = {"download": download} if "download" in takes else {}
    shape = {"transform": v2.Resize((size, size))} if size else {}
    try:
        read = [kind(str(root), **part, **options, **shape) for part in parts]
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{kind.__name__} could not be read from {root} ({str(error).splitlines()[0]}); put"
            " torchvision's files there, or download them"
        ) from error
    found = [
        _as_labelled(part, {"source": kind.__name__, "split": str(*how.values())})
        for part, how in zip(read, parts, strict=True)
    ]
    return Split(found[0], None, found[1]) if len(found) == 2 else divided(found[0], held_out, seed)


def divided(images: LabelledImages, held_out: float, seed: int = 0) -> Split:
    """A share `held_out` of each class for the test (at least one image), the rest for training, by
    `seed`.

    Raises ValueError where a class has a single image, or `held_out` is not between 0 and 1.

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
    labels, generator = images.labels.numpy(), np.random.default_rng(seed)
    test = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(images.names):
        members = np.flatnonzero(labels == label)
        if len(members) == 1:
            raise ValueError(
                f"class {name!r} has one image, which cannot be both trained and tested on; add"
                " more"
            )
        test[generator.permutation(members)[: max(1, round(held_out * len(members)))]] = True
    about = {"held_out": held_out, "divided_by_seed": seed}
    parts = [
        _part(images, np.flatnonzero(chosen), {"split": name, **about})
        for name, chosen in (("train", ~test), ("test", test))
    ]
    return Split(parts[0], None, parts[1])


def sized(images: LabelledImages, size: int | None, channels: int | None) -> LabelledImages:
    """The images brought to a size (antialiased) and a number of channels; None leaves either as it
    is.
    """
    pixels, about = images.images, dict(images.description)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels} must be 3 (colour) or 1 (grey)")
    if channels and pixels.shape[1] != channels:
        pixels = pixels.expand(-1, 3, -1, -1) if channels == 3 else rgb_to_grayscale(pixels)
        about["channels"] = "grey, three times" if channels == 3 else "colour as grey"
    if size and pixels.shape[2:] != (size, size):
        pixels = resize(pixels, [size, size], antialias=True)
        about["resized"] = size
    return LabelledImages(pixels.contiguous(), images.labels, images.names, about)


def _folder(
    folder: Path,
    part: str,
    top: Path,
    *,
    size: int | None,
    channels: int,
    cache: bool | Path_,
    progress: bool,
) -> LabelledImages:
    classes = {place.name: images_in(place) for place in folders_in(folder)}
    paths = [path for images in classes.values() for path in images]
    images = cached(
        f"transfer-{part}-{size or 'own'}-{channels}",
        top,
        fingerprint(paths, top, f"{READING} {size} {channels}"),
        lambda: decode_all(
            paths, channels, size, f"decoding {len(paths)} images of {folder}", progress
        ),
        cache,
    )
    labels = torch.arange(len(classes)).repeat_interleave(
        torch.tensor([len(images) for images in classes.values()])
    )
    return LabelledImages(
        images,
        labels,
        classes,
        {"source": "image_folder", "folder": top.resolve().name, "split": part, "size": size},
    )


def _medmnist_count(arrays: dict[str, np.ndarray], part: str, path: Path) -> int:
    """How many images a part has.

    Raises ValueError where its arrays are not images with one label each.
    """
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    if (
        images.dtype != np.uint8
        or images.ndim not in (3, 4)
        or (images.ndim == 4 and images.shape[-1] != 3)
    ):
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


def _medmnist_images(images: np.ndarray) -> Tensor:
    """(n, height, width) or (n, height, width, 3) -> (n, channels, height, width)."""
    pixels = torch.from_numpy(images)
    return pixels[:, None] if images.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def _as_labelled(dataset: Any, about: dict[str, Any]) -> LabelledImages:
    raw = getattr(dataset, "data", None)
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    names = [str(name) for name in getattr(dataset, "classes", ())]
    if (
        isinstance(raw, np.ndarray | torch.Tensor)
        and labels is not None
        and getattr(dataset, "transform", None) is None
    ):
        pixels = torch.as_tensor(raw)
        channels_last = pixels.ndim == 4 and pixels.shape[-1] == 3
        pixels = (
            pixels[:, None]
            if pixels.ndim == 3
            else pixels.permute(0, 3, 1, 2).contiguous()
            if channels_last
            else pixels
        )
        return LabelledImages(pixels, torch.as_tensor(labels).long(), names, about)
    pixels, numbers, classes, record = _in_memory(dataset)
    if pixels.dtype != torch.uint8:
        raise ValueError(
            f"{type(dataset).__name__} gives {pixels.dtype} images; images of 8 bits are needed"
        )
    return LabelledImages(pixels, numbers, classes, {**about, **record})


def _part(images: LabelledImages, indices: np.ndarray, about: dict[str, Any]) -> LabelledImages:
    chosen = torch.from_numpy(indices)
    return LabelledImages(
        images.images[chosen], images.labels[chosen], images.names, {**images.description, **about}
    )


def _torchvision_names() -> dict[str, str]:
    return {name.lower(): name for name in datasets.__all__}
