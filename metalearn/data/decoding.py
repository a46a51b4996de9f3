"""Image files -> one uint8 tensor, decoded once, cached beside the images, and shown as it goes."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from metalearn.runtime import files
from metalearn.runtime.progress import progress as shown_progress

T = TypeVar("T")
log = logging.getLogger("metalearn")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
READING = (  # in the keys of caches of people's own images: change it when a file gives other pixels
    "upright, opaque, 8 bits"
)


def split_named(split: str, choices: Iterable[str] = ("train", "validation", "test")) -> str:
    """The split of this name; "val" is another name of "validation".

    Raises:
        ValueError: there is no such split.

    Example:
        >>> split_named("val")
        'validation'
    """
    split = "validation" if split == "val" else split
    choice("split", split, choices)
    return split


def choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError where `value` is none of the choices."""
    if value not in list(choices):  # a value that cannot be hashed is no choice either
        raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}")


def folders_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The visible folders of a folder, by name; none where it does not exist."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return [
            Path(e.path)
            for e in sorted(entries, key=lambda e: e.name)
            if e.is_dir() and not e.name.startswith(".")
        ]


def checked_root(root: str | os.PathLike[str]) -> Path:
    """The folder of a data set as a path. Raises TypeError for what is no path."""
    if not isinstance(root, str | os.PathLike):
        raise TypeError(f"root={root!r} is not a path; name the folder that holds the data set")
    return Path(root)


def check_memory(needed: int, what: str, cure: str) -> None:
    """Raise ValueError, before anything is allocated, if `needed` bytes are more than this
    machine's memory.
    """
    if not hasattr(os, "sysconf"):  # Windows does not say
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ValueError(
            f"{what} needs {needed / 1e9:,.1f} GB, but this machine has {memory / 1e9:,.1f} GB of"
            f" memory; {cure}"
        )


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, by name. Raises ValueError where it has none."""
    with os.scandir(folder) as entries:
        files_by_name = [
            Path(e.path)
            for e in sorted(entries, key=lambda e: e.name)
            if not e.is_dir() and not e.name.startswith(".")
        ]
    paths = [path for path in files_by_name if path.name.lower().endswith(SUFFIXES)]
    if not paths:
        raise ValueError(
            f"the class folder {folder} has no images ({', '.join(SUFFIXES)}); fill it or delete it"
        )
    return paths


def as_tensor(image: Any, name: str) -> Tensor:
    """A PIL image, an array or a tensor -> a tensor of uint8, or of floating values.

    A PIL image becomes (channels, height, width): upright, with 1 channel or 3, and uint8 unless it
    has more than 8 bits a channel. Numbers of 16 bits are divided by 65,535, and booleans become 0
    and 1.

    Raises TypeError, naming `name`, for anything else.
    """
    if isinstance(image, Image.Image):
        if is_deep(image):
            return deep_values(ImageOps.exif_transpose(image), name)[None]
        pixels = torch.from_numpy(np.array(convert(image, None, name)))
        # (height, width) or (height, width, 3) -> (channels, height, width)
        return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()
    if not isinstance(image, Tensor | np.ndarray):
        raise TypeError(
            f"{name} is a {type(image).__name__}, not an image, array or tensor; add"
            " transform=ToTensor()"
        )
    values = torch.as_tensor(image)
    if values.dtype == torch.uint16:
        return values.to(torch.float32) / 65535
    if values.dtype == torch.bool:
        return values.to(torch.float32)
    if values.dtype != torch.uint8 and not values.is_floating_point():
        raise TypeError(f"{name} holds {values.dtype}; give uint8 images or floating-point values")
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} holds NaN or infinity; leave it out or replace these values")
    return values


def is_deep(image: Image.Image) -> bool:
    """Whether a PIL image has more than 8 bits a channel."""
    return image.mode.startswith(("I", "F"))


def deep_values(image: Image.Image, name: str) -> Tensor:
    """A grey image of 16 bits or of floating-point numbers -> float32 (height, width); 16 bits are
    divided by 65,535.

    Raises ValueError for whole numbers that do not fit 16 bits: their range is not known.
    """
    values = np.array(image)
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
    """The image upright (its EXIF orientation), opaque (on white), with 8 bits, in grey (1
    channel), RGB (3), or its own (None).

    Raises ValueError, naming `name`, for floating-point values outside of 0 to 1, and for a colour
    space that Pillow does not convert.
    """
    upright = ImageOps.exif_transpose(image)
    if is_deep(upright):
        values = deep_values(upright, name)
        if not 0 <= float(values.min()) <= float(values.max()) <= 1:
            raise ValueError(
                f"{name} has floating-point values from {float(values.min()):g} to"
                f" {float(values.max()):g}; bring them to the range 0 to 1, or convert the image to"
                " 8 bits"
            )
        upright = Image.fromarray(values.mul(255).round().to(torch.uint8).numpy())
    grey = channels == 1 or (channels is None and upright.mode in ("1", "L", "LA", "La"))
    try:
        if upright.mode.endswith(("A", "a")) or "transparency" in upright.info:
            visible = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", visible.size, "white"), visible)
        return upright.convert("L" if grey else "RGB")
    except ValueError as error:
        raise ValueError(
            f"{name} is in the colour space {image.mode} ({error}); convert it to RGB first"
        ) from error


def decode(
    path: Path | zipfile.Path, channels: int, size: int | None, notes: list[str] | None = None
) -> Tensor:
    """One image file -> uint8 (channels, size, size), resized with the antialiased Lanczos filter;
    `size=None` keeps its own.

    The image is upright, and what is transparent is white. Of an animation the first frame is
    taken. What is lost so is added to `notes`.

    Raises ValueError naming the file where it is empty, unreadable, or larger than
    `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    content = path.read_bytes()
    if not content:
        raise ValueError(f"{path} is empty (0 bytes); replace it or delete it")
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if (
                Image.MAX_IMAGE_PIXELS is not None
                and opened.width * opened.height > Image.MAX_IMAGE_PIXELS
            ):
                raise Image.DecompressionBombError(
                    f"it has {opened.width:,} x {opened.height:,} pixels"
                )
            opened.load()
            image = convert(opened, channels, str(path))
            lost = _lost(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{path} is too large ({error}; the limit is {Image.MAX_IMAGE_PIXELS:,}); make it"
            " smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{path} is not a readable image (its format is not known); replace it or delete it"
        ) from error
    except ValueError as error:
        if str(path) in str(error):  # it says what is wrong already
            raise
        raise ValueError(
            f"{path} is not a readable image ({error}); replace it or delete it"
        ) from error
    except Exception as error:  # PIL's readers raise whatever a broken file makes them
        raise ValueError(
            f"{path} is not a readable image ({error}); replace it or delete it"
        ) from error
    if notes is not None and lost:
        notes.append(lost)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return as_tensor(image, str(path))


def _lost(image: Image.Image) -> str:
    """What reading an image file leaves out."""
    if (
        getattr(image, "is_animated", False) and image.format != "MPO"
    ):  # a photo with previews is a single image
        return "have several frames, of which the first is read"
    if is_deep(image):
        return (
            "have more than 8 bits a channel: their whole range is brought to 8, which leaves dark"
            " images darker than a viewer shows them"
        )
    return ""


def decode_all(
    paths: Sequence[Path], channels: int, size: int | None, title: str, progress: bool = True
) -> Tensor:
    """Image files -> uint8 (n, channels, height, width), decoded in threads.

    Raises ValueError naming the file that does not fit.
    """
    if size is not None:
        check_memory(
            len(paths) * channels * size**2, f"{title} at size={size}", "give a smaller size"
        )
    notes: list[str] = []
    first = decode(paths[0], channels, size)
    check_memory(len(paths) * first.numel(), title, "give a smaller size=")
    images = torch.empty(len(paths), *first.shape, dtype=torch.uint8)

    def fill(i: int) -> None:
        image = decode(paths[i], channels, size, notes)
        if image.shape != first.shape:
            raise ValueError(
                f"{paths[i]} is {image.shape[2]}x{image.shape[1]} pixels but {paths[0]} is"
                f" {first.shape[2]}x{first.shape[1]}; give size= to bring all images to one size"
            )
        images[i] = image

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            with shown_progress(title, len(paths), unit="image", shown=progress) as advance:
                for _ in pool.map(fill, range(len(paths))):
                    advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for note, count in Counter(notes).items():
        log.warning("%d of %d images %s", count, len(paths), note)
    return images


def fingerprint(paths: Iterable[Path], root: Path, settings: str) -> str:
    """A digest of the settings and of every file's name, size and time of change, so that a changed
    folder is decoded anew.
    """
    digest, skipped = hashlib.sha256(settings.encode()), len(str(root))
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
    cache: bool | str | os.PathLike[str] = True,
) -> Tensor:
    """The tensor that `make()` gives, kept in `root/.metalearn/name.safetensors` under `key` (see
    `fingerprint`).

    Where `root` cannot be written, the user's cache folder is taken and said; `cache` may be a
    folder instead, or False. A file that is damaged or belongs to another key is reported, made
    again and replaced. Writing is atomic, so processes may start together.
    """
    if cache is False:
        return make()
    if cache is True:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metalearn"
        folders = [
            root / ".metalearn",
            home / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16],
        ]
    else:
        folders = [Path(cache)]
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
                "could not keep the decoded images in %s (%s)", path, error.strerror or error
            )
        else:
            if folder != folders[0]:
                log.warning("the decoded images are kept in %s instead", path)
            return images
    log.warning(
        "the decoded images are not kept: the next start decodes them again; name a folder that can"
        " be written with cache="
    )
    return images


def _read(path: Path, key: str) -> Tensor | None:
    try:
        tensors, record = files.load(path)
    except FileNotFoundError:
        return None
    except files.Damaged as error:
        log.warning("the cache is damaged, so the images are decoded again: %s", error)
        return None
    if record.get("key") != key or "images" not in tensors:
        log.warning(
            "the images have changed since %s was made (or are read in another way now), so they"
            " are decoded again",
            path,
        )
        return None
    return tensors["images"]
