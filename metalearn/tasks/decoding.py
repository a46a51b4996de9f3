"""Image files -> one uint8 tensor, decoded once, cached beside the images, and shown as it goes."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metalearn import files
from metalearn.progress import progress as shown_progress

T = TypeVar("T")
log = logging.getLogger("metalearn")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError where `value` is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}")


def folders_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The visible folders of a folder, by name; none where it does not exist."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return [Path(e.path) for e in sorted(entries, key=lambda e: e.name) if e.is_dir() and not e.name.startswith(".")]


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, by name. Raises ValueError where it has none."""
    paths = [folder / name for name in sorted(os.listdir(folder)) if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    if not paths:
        raise ValueError(f"the class folder {folder} has no images ({', '.join(SUFFIXES)}); fill it or delete it")
    return paths


def as_tensor(image: Any, name: str) -> Tensor:
    """A PIL image -> uint8 (channels, height, width); an array or tensor -> a tensor of its uint8 or floating values.

    Raises TypeError, naming `name`, for what is neither.
    """
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB"):
            image = convert(image, 1 if image.mode in ("1", "LA") else 3, name)
        pixels = torch.from_numpy(np.array(image))
        return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()
    if not isinstance(image, Tensor | np.ndarray):
        raise TypeError(f"{name} is a {type(image).__name__}, not an image, array or tensor; add transform=ToTensor()")
    values = torch.as_tensor(image)
    if values.dtype != torch.uint8 and not values.is_floating_point():
        raise TypeError(f"{name} holds {values.dtype}; give uint8 images or floating-point values")
    return values


def convert(image: Image.Image, channels: int, name: str) -> Image.Image:
    """The image in grey (1 channel) or RGB (3). Raises ValueError for more than 8 bits a channel, which PIL would cut off."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{name} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first")
    return image.convert("L" if channels == 1 else "RGB")


def decode(path: Path, channels: int, size: int | None) -> Tensor:
    """One image file -> uint8 (channels, size, size), resized with the antialiased Lanczos filter; `size=None` keeps its own.

    Raises ValueError naming the file where it is empty or unreadable.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); replace it or delete it")
    try:
        with Image.open(path) as opened:
            opened.load()
    except Exception as error:  # PIL's readers raise whatever a broken file makes them
        raise ValueError(f"{path} is not a readable image ({error}); replace it or delete it") from error
    image = convert(opened, channels, str(path))
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return as_tensor(image, str(path))


def decode_all(paths: Sequence[Path], channels: int, size: int | None, title: str, progress: bool = True) -> Tensor:
    """Image files -> uint8 (n, channels, height, width), decoded in threads. Raises ValueError naming the file that does not fit."""
    first = decode(paths[0], channels, size)
    images = torch.empty(len(paths), *first.shape, dtype=torch.uint8)

    def fill(i: int) -> None:
        image = decode(paths[i], channels, size)
        if image.shape != first.shape:
            raise ValueError(
                f"{paths[i]} is {image.shape[2]}x{image.shape[1]} pixels but {paths[0]} is {first.shape[2]}x{first.shape[1]}; "
                f"give size= to bring all images to one size"
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
    return images


def fingerprint(paths: Iterable[Path], root: Path, settings: str) -> str:
    """A digest of the settings and of every file's name, size and time of change, so that a changed folder is decoded anew."""
    digest, skipped = hashlib.sha256(settings.encode()), len(str(root))
    for path in map(str, paths):
        status = os.stat(path)
        digest.update(f"{path[skipped:]}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def cached(name: str, root: Path, key: str, make: Callable[[], Tensor], cache: bool | str | os.PathLike[str] = True) -> Tensor:
    """The tensor that `make()` gives, kept in `root/.metalearn/name.safetensors` under `key` (see `fingerprint`).

    Where `root` cannot be written, the user's cache folder is taken and said; `cache` may be a folder instead, or False. A file that is
    damaged or belongs to another key is reported, made again and replaced. Writing is atomic, so processes may start together.
    """
    if cache is False:
        return make()
    if cache is True:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metalearn"
        folders = [root / ".metalearn", home / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]]
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
            log.warning("could not keep the decoded images in %s (%s)", path, error.strerror or error)
        else:
            if folder != folders[0]:
                log.warning("the decoded images are kept in %s instead", path)
            return images
    log.warning("the decoded images are not kept: the next start decodes them again; name a folder that can be written with cache=")
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
        log.warning("the images have changed since %s was made, so they are decoded again", path)
        return None
    return tensors["images"]
