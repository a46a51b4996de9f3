"""Image files as one uint8 tensor, decoded once and cached beside the images."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from metalearn.runtime import files
from metalearn.runtime.progress import progress as shown_progress

log = logging.getLogger("metalearn")
Path_ = str | os.PathLike[str]
# The formats of Pillow that images of data sets come in.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
# Part of the cache keys of users' own images: change it when decoding yields other pixels.
READING = "upright, opaque, 8 bits"
CURE = "give a smaller size, or read the images as they are drawn (in_memory=False)"
NO_FILES = "`--dataset glyphs` needs no files"  # the last cure of every data set that is missing


def split_named(split: str, choices: Iterable[str] = ("train", "validation", "test")) -> str:
    """Return the name of a split in full: "val" is an alias of "validation".

    Args:
        split: the name as the user wrote it.
        choices: the splits of the data set.

    Raises:
        ValueError: if there is no such split.

    Example:
        >>> split_named("val")
        'validation'
    """
    if split == "val":
        split = "validation"
    check_choice("split", split, choices)
    return split


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError if `value` is none of the choices."""
    if value not in list(
        choices
    ):  # a list, since a value that cannot be hashed is no choice either
        raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}")


def folders_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The visible folders of a folder, by name; none if it does not exist."""
    if not os.path.isdir(folder):
        return []
    return [Path(entry.path) for entry in _visible(folder) if entry.is_dir()]


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, by name. Raises ValueError if it has none."""
    names = [entry for entry in _visible(folder) if entry.name.lower().endswith(SUFFIXES)]
    paths = [Path(entry.path) for entry in names if not entry.is_dir()]
    if not paths:
        raise ValueError(
            f"the class folder {folder} has no images ({', '.join(SUFFIXES)}); fill it or delete it"
        )
    return paths


def _visible(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden, by name."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: entry.name)


def checked_root(root: str | os.PathLike[str]) -> Path:
    """The folder of a data set as a path. Raises TypeError for anything that is no path."""
    if not isinstance(root, str | os.PathLike):
        raise TypeError(f"root={root!r} is not a path; name the folder that holds the data set")
    return Path(root)


def existing_root(root: str | os.PathLike[str]) -> Path:
    """The folder of a user's images as a path. Raises FileNotFoundError if it does not exist."""
    top = checked_root(root)
    if not top.is_dir():
        raise FileNotFoundError(
            f"there is no folder {top}: put folders of images there, one per class; {NO_FILES}"
        )
    return top


def check_memory(needed: int, what: str, cure: str) -> None:
    """Raise ValueError if `needed` bytes exceed this machine's memory, before any is allocated."""
    if not hasattr(os, "sysconf"):  # Windows does not tell
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ValueError(
            f"{what} needs {needed / 1e9:,.1f} GB, but this machine has {memory / 1e9:,.1f} GB of"
            f" memory; {cure}"
        )


def as_tensor(image: Any, name: str) -> Tensor:
    """Convert a PIL image, an array or a tensor to a tensor of uint8, of floats or of token ids.

    A PIL image becomes (channels, height, width): upright, with 1 or 3 channels, and uint8 unless
    it has more than 8 bits a channel. 16-bit values are divided by 65,535, and booleans become 0
    and 1. Integers of other types with fewer than three dimensions, such as (tokens,), are token
    ids, which an embedding takes: they become int64.

    Args:
        image: the image.
        name: what it is called in messages.

    Raises:
        TypeError: if it is anything else, or an image of integers of another width.
        ValueError: if it holds NaN or infinity.

    Example:
        >>> as_tensor(Image.new("RGB", (5, 4)), "photo").shape
        torch.Size([3, 4, 5])
    """
    if isinstance(image, Image.Image):
        if is_deep(image):
            return deep_values(ImageOps.exif_transpose(image), name)[None]
        pixels = torch.from_numpy(np.array(convert(image, None, name)))
        if pixels.dim() == 2:
            return pixels[None]  # (1, height, width)
        return pixels.permute(2, 0, 1).contiguous()  # (3, height, width)
    if not isinstance(image, Tensor | np.ndarray):
        raise TypeError(
            f"{name} is a {type(image).__name__}, not an image, array or tensor; add"
            " transform=ToTensor()"
        )
    values = torch.as_tensor(image)
    # Integers are scaled to [0, 1] by their range, which is only clear for these types.
    if values.dtype == torch.uint16:
        return values.to(torch.float32) / 65535
    if values.dtype == torch.bool:
        return values.to(torch.float32)
    if values.dtype in (torch.int8, torch.int16, torch.int32, torch.int64) and values.ndim < 3:
        return values.long()
    if values.dtype != torch.uint8 and not values.is_floating_point():
        raise TypeError(f"{name} holds {values.dtype}; give uint8 images or floating-point values")
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} holds NaN or infinity; leave it out or replace these values")
    return values


def is_deep(image: Image.Image) -> bool:
    """Whether a PIL image has more than 8 bits a channel."""
    return image.mode.startswith(("I", "F"))


def deep_values(image: Image.Image, name: str) -> Tensor:
    """Convert a grey image of 16-bit or floating-point values to float32 (height, width).

    16-bit values are divided by 65,535.

    Raises:
        ValueError: if integers do not fit 16 bits, since their range is not known, or if a value is
            NaN or infinite.
    """
    values = np.array(image)  # (height, width)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity; replace these values")
    if image.mode == "F":
        return torch.from_numpy(values.astype(np.float32))
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise ValueError(
            f"{name} has values from {lowest} to {highest}, which do not fit 16 bits; convert it to"
            " 8 or 16 bits first"
        )
    return torch.from_numpy(values.astype(np.float32) / 65535)


def convert(image: Image.Image, channels: int | None, name: str) -> Image.Image:
    """Make an image upright (by its EXIF orientation), opaque (on white) and 8 bits deep.

    Args:
        image: the image.
        channels: 1 for grey, 3 for RGB, None to keep whichever it is.
        name: what it is called in messages.

    Raises:
        ValueError: for floating-point values outside 0 to 1, and for a colour space that Pillow
            does not convert.
    """
    upright = ImageOps.exif_transpose(image)
    if is_deep(upright):
        values = deep_values(upright, name)
        lowest, highest = map(float, values.aminmax())
        if not 0 <= lowest <= highest <= 1:
            raise ValueError(
                f"{name} has floating-point values from {lowest:g} to {highest:g}; bring them to"
                " the range 0 to 1, or convert the image to 8 bits"
            )
        upright = Image.fromarray(values.mul(255).round().to(torch.uint8).numpy())
    # "1" is black and white, "L" grey, "LA" and "La" grey with transparency.
    grey = channels == 1 or (channels is None and upright.mode in ("1", "L", "LA", "La"))
    try:
        if upright.mode.endswith(("A", "a")) or "transparency" in upright.info:
            visible = upright.convert("RGBA")  # whatever the mode and its kind of transparency
            upright = Image.alpha_composite(Image.new("RGBA", visible.size, "white"), visible)
        return upright.convert("L" if grey else "RGB")
    except ValueError as error:
        raise ValueError(
            f"{name} is in the colour space {image.mode} ({error}); convert it to RGB first"
        ) from error


def decode(
    path: Path | zipfile.Path, channels: int, size: int | None, notes: list[str] | None = None
) -> Tensor:
    """Decode one image file to uint8 (channels, size, size).

    The image is upright, transparent parts are white, and the first frame of an animation is taken.

    Args:
        path: the file, on disk or in an archive.
        channels: 1 for grey, 3 for RGB.
        size: the height and width, reached with the antialiased Lanczos filter; None keeps its own.
        notes: a list that receives a phrase about everything that decoding drops.

    Raises:
        ValueError: naming the file, if it is empty, unreadable, or larger than
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    content = path.read_bytes()
    if not content:
        raise ValueError(f"{path} is empty (0 bytes); replace it or delete it")
    try:
        with Image.open(io.BytesIO(content)) as opened:
            _check_pixels(opened)
            opened.load()
            image = convert(opened, channels, str(path))
            lost = _lost(opened)
    except Exception as error:  # PIL's readers raise errors of any kind for a broken file
        if isinstance(error, ValueError) and str(path) in str(error):
            raise  # the message names the file and the fault already
        raise ValueError(_fault(path, error)) from error
    if notes is not None and lost:
        notes.append(lost)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return as_tensor(image, str(path))


def _check_pixels(image: Image.Image) -> None:
    """Raise DecompressionBombError beyond Pillow's limit, at which Pillow itself only warns."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(f"it has {image.width:,} x {image.height:,} pixels")


def _fault(path: Path | zipfile.Path, error: Exception) -> str:
    """The message for an image file that Pillow cannot read."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return (
            f"{path} is too large ({error}; the limit is {Image.MAX_IMAGE_PIXELS:,}); make it"
            " smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        )
    reason = str(error)
    if isinstance(error, UnidentifiedImageError):
        reason = "its format is not known"
    return f"{path} is not a readable image ({reason}); replace it or delete it"


def _lost(image: Image.Image) -> str:
    """What decoding an image file drops, as a phrase for a warning."""
    # An MPO file is a photo with its previews: a single image.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return "have several frames, of which the first is read"
    if is_deep(image):
        return (
            "have more than 8 bits a channel: their whole range is brought to 8, which leaves dark"
            " images darker than a viewer shows them"
        )
    return ""


def decode_all(
    paths: Sequence[Path], channels: int, size: int | None, title: str, *, progress: bool = True
) -> Tensor:
    """Decode image files in threads to uint8 (n, channels, height, width).

    Args:
        paths: the files, at least one.
        channels: 1 for grey, 3 for RGB.
        size: the height and width; None keeps that of the files, which must then agree.
        title: the title of the progress bar.
        progress: whether to show one.

    Raises:
        ValueError: naming the file that cannot be read or has another size, or if the images exceed
            this machine's memory.
    """
    # Twice: before anything is read, as far as the size is known, and with the size of the files.
    if size is not None:
        check_memory(len(paths) * channels * size**2, f"{title} at size={size}", CURE)
    notes: list[str] = []
    # The first image decides the shape of all, and shows an error before the threads start.
    first = decode(paths[0], channels, size)
    check_memory(len(paths) * first.numel(), title, CURE)
    # (n, channels, height, width)
    images = torch.empty(len(paths), *first.shape, dtype=torch.uint8)

    def fill(i: int) -> None:
        image = decode(paths[i], channels, size, notes)
        check_same_size(image, paths[i], first, paths[0])
        images[i] = image

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            with shown_progress(title, len(paths), unit="image", shown=progress) as advance:
                for _ in pool.map(fill, range(len(paths))):
                    advance()
        except BaseException:  # an interrupt too: the images still in the queue are not decoded
            pool.shutdown(cancel_futures=True)
            raise
    for note, count in Counter(notes).items():
        log.warning("%d of %d images %s", count, len(paths), note)
    return images


def check_same_size(image: Tensor, path: Path, first: Tensor, first_path: Path) -> None:
    """Raise ValueError if two decoded images (channels, height, width) have different sizes."""
    if image.shape != first.shape:
        raise ValueError(
            f"{path} is {image.shape[2]}x{image.shape[1]} pixels but {first_path} is"
            f" {first.shape[2]}x{first.shape[1]}; give size= to bring all images to one size"
        )


def decode_classes(
    classes: Mapping[str, Sequence[Path]],
    top: Path,
    cache_name: str,
    *,
    channels: int,
    size: int | None,
    title: str,
    cache: bool | str | os.PathLike[str],
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """Decode the images of every class, or read them from the cache.

    Args:
        classes: the image files of each class.
        top: the folder that holds them, and the cache.
        cache_name: the start of the name of the cache's file.
        channels: as in `decode_all`.
        size: as in `decode_all`.
        title: follows "decoding ... images of" in the title of the progress bar.
        cache: as in `cached`.
        progress: as in `decode_all`.

    Returns:
        Images (n, channels, height, width) uint8 and labels (n,) int64, class by class.
    """
    paths = [path for images in classes.values() for path in images]
    images = cached(
        f"{cache_name}-{size or 'own'}-{channels}",
        top,
        fingerprint(paths, top, f"{READING} {size} {channels}"),
        lambda: decode_all(
            paths,
            channels,
            size,
            f"decoding {len(paths)} images of {title}",
            progress=progress,
        ),
        cache=cache,
    )
    counts = torch.tensor([len(images) for images in classes.values()])
    return images, torch.arange(len(classes)).repeat_interleave(counts)


def fingerprint(paths: Iterable[Path], root: Path, settings: str) -> str:
    """A digest of the settings and of the name, size and modification time of every file.

    It is the key of a cache: a folder that has changed is decoded again.

    Raises:
        FileNotFoundError: for a link to a file that does not exist.
    """
    # Names are relative to the root: a folder that is moved as a whole keeps its cache.
    digest = hashlib.sha256(settings.encode())
    skipped = len(str(root))
    for path in map(str, paths):
        try:
            status = os.stat(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path} is a link to a file that does not exist; restore that file, or delete the"
                " link"
            ) from error
        digest.update(f"{path[skipped:]}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def cached(
    name: str,
    root: Path,
    key: str,
    make: Callable[[], Tensor],
    *,
    cache: bool | str | os.PathLike[str] = True,
) -> Tensor:
    """The result of `make()`, kept in `root/.metalearn/NAME.safetensors`.

    A file that is damaged or has another key is reported, made again and replaced. Writing is
    atomic, so several processes may start together.

    Args:
        name: of the file, without its suffix.
        root: the folder of the data set. If it cannot be written, the user's cache folder is used,
            with a warning.
        key: what the images depend on (see `fingerprint`).
        make: computes the images.
        cache: another folder to keep the file in; False keeps nothing.
    """
    if cache is False:
        return make()
    folders = _default_folders(root) if cache is True else [Path(cache)]
    for folder in folders:
        images = _read(folder / f"{name}.safetensors", key)
        if images is not None:
            return images
    images = make()
    for folder in folders:
        path = folder / f"{name}.safetensors"
        try:
            files.save(path, {"images": images}, {"key": key})
        except OSError as error:
            if cache is not True:
                raise
            log.warning(
                "could not write the decoded images to %s (%s)", path, error.strerror or error
            )
        else:
            if folder != folders[0]:
                log.warning("the decoded images are kept in %s instead", path)
            return images
    log.warning(
        "the decoded images are not kept, so the next start decodes them again; name a folder that"
        " can be written with cache="
    )
    return images


def _default_folders(root: Path) -> list[Path]:
    """Where decoded images are kept: beside the data, or in the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # All data sets share the user's cache folder, so each has a subfolder there.
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return [root / ".metalearn", home / "metalearn" / digest]


def _read(path: Path, key: str) -> Tensor | None:
    """The images of a cache file, or None if it cannot serve."""
    try:
        tensors, record = files.load(path)
    except FileNotFoundError:
        return None
    except files.Damaged as error:
        log.warning("the cache is damaged, so the images are decoded again: %s", error)
        return None
    # The key covers the names, sizes and times of all files, and the settings.
    if record.get("key") != key or "images" not in tensors:
        log.warning(
            "the images have changed since %s was made (or this version reads them differently),"
            " so they are decoded again",
            path,
        )
        return None
    return tensors["images"]
