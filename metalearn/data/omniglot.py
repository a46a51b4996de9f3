"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each (Lake et al. 2015)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.runtime.checks import positive

from .decoding import (
    NO_FILES,
    cached,
    check_choice,
    checked_root,
    decode_all,
    fingerprint,
    folders_in,
    images_in,
    split_named,
)
from .images import LabelledImages

# The folders of the background and the evaluation alphabets.
PARTS = ("images_background", "images_evaluation")
# Characters for training, validation and test.
COUNTS = {"vinyals": (1028, 172, 423), "finn": (1100, 100, 423), "lake": (813, 151, 659)}
# The lists of Vinyals et al., as published with prototypical networks, are whole alphabets except
# Gurmukhi, which is cut after character41.
VALIDATION = {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}
TEST = {
    "Kannada",
    "Keble",
    "Malayalam",
    "Manipuri",
    "Mongolian",
    "Old_Church_Slavonic_(Cyrillic)",
    "Oriya",
    "Sylheti",
    "Syriac_(Serto)",
    "Tengwar",
    "Tibetan",
    "ULOG",
    *(f"Gurmukhi/character{i}" for i in range(42, 46)),
}


def omniglot(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    protocol: str = "vinyals",
    rotations: bool | None = None,
    size: int = 28,
    download: bool = False,
    cache: bool | str | os.PathLike[str] = True,
    progress: bool = True,
) -> LabelledImages:
    """Omniglot's characters of one split as grey images with ink = 1.

    Images are resized with an antialiased (Lanczos) filter. An existing folder is read as it is,
    without a download and without a checksum of the archive. The images are decoded once and kept
    in `root/.metalearn` (or in the user's cache folder if `root` cannot be written, with a
    warning).

    Args:
        root: the folder that holds `omniglot-py/images_background` and `images_evaluation`, or
            these two, or alphabets directly (alphabet/character/*.png).
        split: "train", "validation" (or "val") or "test".
        protocol: which characters make up a split (training / validation / test characters).
            "vinyals" (1,028 / 172 / 423): the lists published for Vinyals et al. 2016, with which
            prototypical networks report. "finn" (1,100 / 100 / 423): the counts of MAML, Finn et
            al. 2017. Their shuffle follows the order of their file system, so their characters
            cannot be known; these are drawn by a fixed seed. Any other number is divided in the
            same proportions. "lake" (813 / 151 / 659): the data set's own background and evaluation
            alphabets; validation is the last sixth of the background alphabets by name (the paper
            has none).
        rotations: whether the characters turned by 90, 180 and 270 degrees are further classes,
            four for one. None: for training only. Finn et al. turn each class of a task at random
            instead, at test time as well.
        size: the height and width in pixels.
        download: whether torchvision may download missing files (15 MB).
        cache: False keeps no decoded images; a path is another folder to keep them in.
        progress: whether to show progress on stderr while decoding.

    Raises:
        FileNotFoundError: if there is no Omniglot in `root`, or it cannot be downloaded. The
            message says which files to put where.
        ValueError: if the characters do not fit the protocol, or an image is empty or unreadable.

    Example:
        >>> omniglot("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: there is no Omniglot in /nowhere: put the folders images_background and
        images_evaluation of ...
    """
    split = split_named(split)
    check_choice("protocol", protocol, COUNTS)
    (size,) = positive(size=size)
    top = omniglot_folder(checked_root(root), download=download)
    drawings = drawings_by_character(top)
    chosen = _split(list(drawings), top, protocol)[split]
    paths = [path for files in drawings.values() for path in files]
    images = cached(
        f"omniglot-{size}",
        top,
        fingerprint(paths, top, f"inverted {size}"),
        lambda: _decode(paths, size, progress=progress),
        cache=cache,
    )
    if rotations is None:
        rotations = split == "train"
    description = {
        "source": "omniglot",
        "split": split,
        "protocol": protocol,
        "rotations": rotations,
        "characters": len(chosen),
        "size": size,
    }
    # One piece for each character: (drawings, 1, size, size).
    pieces = zip(drawings, images.split([len(files) for files in drawings.values()]), strict=True)
    characters = {name: piece for name, piece in pieces if name in chosen}
    return _with_turns(characters, range(4 if rotations else 1), description)


def _with_turns(
    characters: dict[str, Tensor], turns: range, description: dict[str, Any]
) -> LabelledImages:
    """The drawings of these characters; each number of quarter turns makes further classes."""
    upright = torch.cat(list(characters.values()))
    counts = torch.tensor([len(piece) for piece in characters.values()])
    labels = torch.arange(len(characters)).repeat_interleave(counts)
    names: list[str] = []
    for k in turns:
        suffix = f" turned {90 * k}" if k else ""
        names += [name + suffix for name in characters]
    return LabelledImages(
        torch.cat([upright.rot90(k, (2, 3)) for k in turns]),
        torch.cat([labels + k * len(characters) for k in turns]),
        names,
        description,
    )


def _decode(paths: list[Path], size: int, *, progress: bool) -> Tensor:
    """The drawings (n, 1, size, size) uint8, with ink = 255."""
    title = f"decoding Omniglot at {size}x{size}"
    return 255 - decode_all(paths, 1, size, title, progress=progress)


def omniglot_folder(root: Path, *, download: bool) -> Path:
    """The folder that holds Omniglot's parts or alphabets, downloaded if it may be."""
    for top in (root / "omniglot-py", root):
        has_parts = any((top / part).is_dir() for part in PARTS)
        if has_parts or any(map(folders_in, folders_in(top))):
            return top
    cure = (
        "put the folders images_background and images_evaluation of"
        f" https://github.com/brendenlake/omniglot into {root}/omniglot-py"
    )
    if not download:
        raise FileNotFoundError(
            f"there is no Omniglot in {root}: {cure}, or pass download=True; {NO_FILES}"
        )
    from torchvision.datasets import Omniglot

    try:
        for background in (True, False):
            Omniglot(str(root), background=background, download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"Omniglot could not be downloaded ({error}): {cure}; {NO_FILES}"
        ) from error
    return root / "omniglot-py"


def drawings_by_character(top: Path) -> dict[str, list[Path]]:
    """The drawings of every character, by alphabet/character."""
    parts = [top / part for part in PARTS if (top / part).is_dir()] or [top]
    drawings: dict[str, list[Path]] = {}
    for part in parts:
        for alphabet in folders_in(part):
            for character in folders_in(alphabet):
                name = f"{alphabet.name}/{character.name}"
                drawings.setdefault(name, []).extend(images_in(character))
    if not drawings:
        raise ValueError(
            f"{top} has no characters: Omniglot's folders are alphabet/character/*.png"
        )
    return drawings


def _split(names: list[str], top: Path, protocol: str) -> dict[str, set[str]]:
    """The characters of each split."""
    if protocol == "finn":
        shuffled = [names[i] for i in np.random.default_rng(1).permutation(len(names))]
        # The proportions of 1,100 : 100 : 423 for any number of characters.
        first, second = (round(len(names) * count / 1623) for count in (1100, 1200))
        validation = set(shuffled[first:second])
        test = set(shuffled[second:])
    elif protocol == "lake":
        background = [folder.name for folder in folders_in(top / PARTS[0])]
        evaluation = [folder.name for folder in folders_in(top / PARTS[1])]
        last_sixth = background[len(background) - len(background) // 6 :]
        validation = _select(names, set(last_sixth))
        test = _select(names, set(evaluation))
    else:
        validation = _select(names, VALIDATION)
        test = _select(names, TEST)
    splits = {"train": set(names) - validation - test, "validation": validation, "test": test}
    counts = tuple(len(characters) for characters in splits.values())
    if (protocol != "finn" and counts != COUNTS[protocol]) or not all(counts):
        raise ValueError(
            f"{top} has {len(names)} characters, which protocol={protocol!r} splits into {counts}"
            f" and not {COUNTS[protocol]}; complete the folder to Omniglot's 1,623 characters, or"
            " divide whatever is there by seed with protocol='finn' (20 characters at least)"
        )
    return splits


def _select(names: list[str], wanted: set[str]) -> set[str]:
    """The characters that are listed by their own name or by that of their alphabet."""
    return {name for name in names if name in wanted or name.split("/")[0] in wanted}
