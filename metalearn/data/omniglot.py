"""Omniglot: 1,623 handwritten characters from 50 alphabets, 20 drawings each (Lake, Salakhutdinov
and Tenenbaum 2015).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metalearn.runtime.checks import positive

from .decoding import (
    cached,
    checked_root,
    choice,
    decode_all,
    fingerprint,
    folders_in,
    images_in,
    split_named,
)
from .images import LabelledImages

PARTS = ("images_background", "images_evaluation")
COUNTS = {"vinyals": (1028, 172, 423), "finn": (1100, 100, 423), "lake": (813, 151, 659)}
# Vinyals' lists, as published with prototypical networks, are whole alphabets but for Gurmukhi,
# which is cut after character41.
VALIDATION = {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}
TEST = {
    *(
        "Kannada",
        "Keble",
        "Malayalam",
        "Manipuri",
        "Mongolian",
        "Old_Church_Slavonic_(Cyrillic)",
        "Oriya",
        "Sylheti",
        "Syriac_(Serto)",
    ),
    *("Tengwar", "Tibetan", "ULOG", *(f"Gurmukhi/character{i}" for i in range(42, 46))),
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
    """Omniglot's characters of one split as grey images with ink = 1, resized to `size` with an
    antialiased (Lanczos) filter.

    A folder that exists is read as it lies, without a download and without a checksum of the
    archive. The images are decoded once and kept in `root/.metalearn` (or in the user's cache
    folder where `root` cannot be written, which is said).

    Args:
        root: the folder that holds `omniglot-py/images_background` and `images_evaluation`, or
            these two, or alphabets directly (alphabet/character/*.png).
        split: "train", "validation" or "test".
        protocol: which characters make up a split (training / validation / test characters).
            "vinyals" (1,028 / 172 / 423): the lists published for Vinyals et al. 2016, with which
            prototypical networks report. "finn" (1,100 / 100 / 423): the counts of MAML, Finn et
            al. 2017. Their shuffle follows the order of their file system, so the characters
            themselves cannot be known; these are drawn by a fixed seed. Any other number is cut in
            the same proportions. "lake" (813 / 151 / 659): the data set's own background and
            evaluation alphabets; validation is the last sixth of the background alphabets by name
            (the paper has none).
        rotations: whether the characters turned by 90, 180 and 270 degrees are classes of their
            own, four for one. By default for training only. Finn et al. turn each class of a task
            at random instead, at test time as well.
        size: the height and width in pixels.
        download: whether torchvision may download what is not there (15 MB).
        cache: False decodes anew; a folder keeps the decoded images there.
        progress: whether to show progress on stderr while decoding.

    Raises FileNotFoundError where nothing is there or cannot be downloaded, ValueError for
    characters that do not fit the protocol or an image that is empty or unreadable; the message
    says what to put where.

    Example:
        >>> omniglot("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: there is no Omniglot in /nowhere: put the folders images_background and
        images_evaluation of ...
    """
    split = split_named(split)
    choice("protocol", protocol, COUNTS)
    (size,) = positive(size=size)
    top = _find(checked_root(root), download)
    names, counts, paths = _characters(top)
    chosen = _split(names, top, protocol)[split]

    def make() -> Tensor:
        return 255 - decode_all(paths, 1, size, f"decoding Omniglot at {size}x{size}", progress)

    images = cached(
        f"omniglot-{size}", top, fingerprint(paths, top, f"inverted {size}"), make, cache
    )
    turned = rotations if rotations is not None else split == "train"
    pieces = [piece for k, piece in enumerate(images.split(counts)) if names[k] in chosen]
    kept, upright = [name for name in names if name in chosen], torch.cat(pieces)
    labels = torch.repeat_interleave(
        torch.arange(len(kept)), torch.tensor([len(piece) for piece in pieces])
    )
    turns = range(4 if turned else 1)
    return LabelledImages(
        torch.cat([upright.rot90(k, (2, 3)) for k in turns]),
        torch.cat([labels + k * len(kept) for k in turns]),
        [name + (f" turned {90 * k}" if k else "") for k in turns for name in kept],
        {
            "source": "omniglot",
            "split": split,
            "protocol": protocol,
            "rotations": turned,
            "characters": len(kept),
            "size": size,
        },
    )


def _find(root: Path, download: bool) -> Path:
    for top in (root / "omniglot-py", root):
        if any((top / part).is_dir() for part in PARTS) or any(
            folders_in(alphabet) for alphabet in folders_in(top)
        ):
            return top
    place = (
        "put the folders images_background and images_evaluation of"
        f" https://github.com/brendenlake/omniglot into {root}/omniglot-py"
    )
    if not download:
        raise FileNotFoundError(
            f"there is no Omniglot in {root}: {place}, or pass download=True; `--dataset glyphs`"
            " needs no files"
        )
    from torchvision.datasets import Omniglot

    try:
        for background in (True, False):
            Omniglot(str(root), background=background, download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"Omniglot could not be downloaded ({error}): {place}; `--dataset glyphs` needs no"
            " files"
        ) from error
    return root / "omniglot-py"


def _characters(top: Path) -> tuple[list[str], list[int], list[Path]]:
    """Every character by name, its number of drawings, and all drawings in that order."""
    tops = [top / part for part in PARTS if (top / part).is_dir()] or [top]
    characters = [
        character
        for part in tops
        for alphabet in folders_in(part)
        for character in folders_in(alphabet)
    ]
    drawings = [images_in(character) for character in characters]
    if not characters:
        raise ValueError(
            f"{top} has no characters: Omniglot's folders are alphabet/character/*.png"
        )
    names = [f"{character.parent.name}/{character.name}" for character in characters]
    return names, [len(paths) for paths in drawings], [path for paths in drawings for path in paths]


def _split(names: list[str], top: Path, protocol: str) -> dict[str, set[str]]:
    if protocol == "finn":
        shuffled = [names[i] for i in np.random.default_rng(1).permutation(len(names))]
        first, second = (round(len(names) * count / 1623) for count in (1100, 1200))
        validation, test = set(shuffled[first:second]), set(shuffled[second:])
    elif protocol == "lake":
        background, evaluation = (
            [folder.name for folder in folders_in(top / part)] for part in PARTS
        )
        validation = _among(names, set(background[len(background) - len(background) // 6 :]))
        test = _among(names, set(evaluation))
    else:
        validation, test = _among(names, VALIDATION), _among(names, TEST)
    parts = {"train": set(names) - validation - test, "validation": validation, "test": test}
    found = tuple(len(part) for part in parts.values())
    if (protocol != "finn" and found != COUNTS[protocol]) or not all(found):
        raise ValueError(
            f"{top} has {len(names)} characters, which protocol={protocol!r} splits into {found}"
            f" and not {COUNTS[protocol]}; complete the folder to Omniglot's 1,623 characters, or"
            " cut whatever is there by seed with protocol='finn' (20 characters at least)"
        )
    return parts


def _among(names: list[str], wanted: set[str]) -> set[str]:
    """The characters that are wanted by their own name or by their alphabet's."""
    return {name for name in names if name in wanted or name.split("/")[0] in wanted}
