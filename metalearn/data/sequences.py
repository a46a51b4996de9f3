"""Sequence tasks: remembered bits, xor, ListOps, images as rows of patches, proteins, text.

The tasks of frozen pretrained transformers (Lu et al. 2021, arXiv:2103.05247).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn.data.images import LabelledImages
from metalearn.data.labelled_sequences import PADDING, Sequences
from metalearn.data.listops import listops
from metalearn.runtime.checks import positive, whole_number
from metalearn.runtime.files import open_file

__all__ = [
    "Sequences",
    "bit_memory",
    "bit_xor",
    "joined",
    "listops",
    "patches",
    "remote_homology",
    "text_windows",
]

AMINO_ACIDS = "ABCDEFGHIKLMNOPQRSTUVWXYZ"
FOLDS = 1195


def bit_memory(
    count: int, *, strings: int = 5, bits: int = 1000, patch: int = 50, seed: int = 0
) -> Sequences:
    """Remember bit strings, and complete one of them of which a random half is shown.

    The strings in {-1, 1} come first, then one of them, each bit of which is 0 with probability
    1/2. The labels are all bits of that string. The shown ones need no memory, so answering them
    and guessing the others gives an accuracy of 75 %, which is the chance level. Lu et al. 2021
    have the sizes of the defaults: 120 tokens of 50 bits.

    Args:
        count: how many sequences.
        strings: how many strings are shown. Each is asked for equally often.
        bits: of a string.
        patch: bits of a token.
        seed: of the strings.

    Returns:
        Features (count, (strings + 1) * bits / patch, patch) and labels (count, bits). The answer
        is read from the last bits / patch tokens.

    Raises:
        ValueError: `patch` does not divide `bits`.

    Example:
        >>> data = bit_memory(10, bits=40, patch=10)
        >>> data.inputs.shape, data.targets.shape, data.last
        (torch.Size([10, 24, 10]), torch.Size([10, 40]), 4)
    """
    count, strings, bits, patch = positive(count=count, strings=strings, bits=bits, patch=patch)
    if bits % patch:
        raise ValueError(f"patch={patch} does not divide bits={bits}; choose a divisor")
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 2, (count, strings, bits), generator=generator)
    # Each string is asked for equally often, in random order.
    asked = (torch.arange(count) % strings)[torch.randperm(count, generator=generator)]
    targets = values[torch.arange(count), asked]  # (count, bits)
    shown = torch.randint(0, 2, (count, bits), generator=generator)
    query = shown * (2 * targets - 1)  # (count, bits) in {-1, 0, 1}
    rows = torch.cat([2 * values - 1, query[:, None]], 1)  # (count, strings + 1, bits)
    inputs = rows.view(count, -1, patch).float()  # (count, tokens, patch)
    record = {"source": "bit_memory", "strings": strings, "bits": bits, "seed": seed}
    return Sequences(inputs, targets, 2, last=bits // patch, description=record)


def bit_xor(count: int, *, bits: int = 5, ids: bool = False, seed: int = 0) -> Sequences:
    """The exclusive or of two bit strings, bit by bit.

    The strings follow each other, one bit a token. The answer is read from the tokens of the
    second. Half of the labels are 1 on average.

    Args:
        count: how many sequences.
        bits: of a string.
        ids: whether tokens are ids of an embedding, 0 or 1; otherwise they are a feature, 0 or 1.
        seed: of the strings.

    Returns:
        Features (count, 2 * bits, 1) or token ids (count, 2 * bits), and labels (count, bits).

    Example:
        >>> data = bit_xor(3, ids=True)
        >>> data.inputs.shape, torch.equal(data.targets, data.inputs[:, :5] ^ data.inputs[:, 5:])
        (torch.Size([3, 10]), True)
    """
    count, bits = positive(count=count, bits=bits)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 2, (count, 2 * bits), generator=generator)
    targets = values[:, :bits] ^ values[:, bits:]  # (count, bits)
    record = {"source": "bit_xor", "bits": bits, "ids": ids, "seed": seed}
    if ids:
        return Sequences(values, targets, 2, vocabulary=2, last=bits, description=record)
    return Sequences(values[..., None].float(), targets, 2, last=bits, description=record)


def patches(images: LabelledImages, size: int = 4, *, grey: bool = False) -> Sequences:
    """Images as sequences of square patches, in reading order.

    Lu et al. 2021 take patches of 4 x 4 pixels: MNIST is 49 x 16, CIFAR-10 is 64 x 48. Long Range
    Arena's images are `size=1, grey=True`: CIFAR-10 is 1,024 x 1.

    Args:
        images: of one size.
        size: height and width of a patch; it divides both of the image.
        grey: whether colours are averaged, with ITU-R 601-2's weights.

    Returns:
        Features (images, patches, channels * size * size), as uint8: `finetune` divides them by
        255. Within a patch the order is channel, row, column.

    Raises:
        TypeError: `images` are no `LabelledImages`.
        ValueError: `size` does not divide the images.

    Example:
        >>> pixels = torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4)
        >>> images = LabelledImages(pixels, torch.tensor([0, 1]), ("a", "b"))
        >>> patches(images, 2).inputs[0].tolist()
        [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """
    if not isinstance(images, LabelledImages):
        raise TypeError(
            f"patches() takes LabelledImages, not a {type(images).__name__}; use"
            " metalearn.data.labelled_sets.load('cifar10').train"
        )
    (size,) = positive(size=size)
    pixels = images.images
    if grey and pixels.shape[1] == 3:
        # Luma of ITU-R 601-2, as Pillow's conversion to grey.
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        pixels = (pixels * weights).sum(1, keepdim=True).round().to(torch.uint8)
    height, width = pixels.shape[-2:]
    if height % size or width % size:
        raise ValueError(
            f"patches of {size} x {size} do not divide images of {height} x {width} pixels; choose"
            " another size, or resize the images: load(name, size=32)"
        )
    record = {**images.description, "patch": size, "grey": grey}
    return Sequences(cut(pixels, size), images.labels, len(images.names), description=record)


def cut(images: Tensor, size: int) -> Tensor:
    """(images, channels, height, width) -> (images, patches, channels * size * size)."""
    count, channels, height, width = images.shape
    # (images, channels, rows, size, columns, size)
    grid = images.reshape(count, channels, height // size, size, width // size, size)
    # (images, rows, columns, channels, size, size) -> (images, patches, features)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * size * size)


def joined(tokens: Tensor, size: int, channels: int) -> Tensor:
    """Square images of the patches that `cut` made, to augment them, for example.

    Args:
        tokens: (images, patches, channels * size * size).
        size: height and width of a patch.
        channels: of the images.

    Returns:
        (images, channels, height, height).

    Example:
        >>> images = torch.rand(2, 3, 8, 8)
        >>> torch.equal(joined(cut(images, 4), 4, 3), images)
        True
    """
    side = round(tokens.shape[1] ** 0.5)
    # (images, rows, columns, channels, size, size) -> (images, channels, rows, size, columns, size)
    grid = tokens.view(len(tokens), side, side, channels, size, size).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(len(tokens), channels, side * size, side * size)


def text_windows(
    text: str, count: int, *, length: int = 64, alphabet: str | None = None, seed: int = 0
) -> Sequences:
    """Pieces of a text, to train a language model: the label of a character is the next one.

    Args:
        text: the text.
        count: how many pieces, from random places.
        length: characters of a piece.
        alphabet: the characters in the order of their ids; by default those of the text.
        seed: of the places.

    Returns:
        Token ids (count, length) and labels (count, length).

    Raises:
        ValueError: the text is too short, or has a character outside of the alphabet.

    Example:
        >>> data = text_windows("abcabc", 2, length=3)
        >>> torch.equal((data.inputs + 1) % 3, data.targets)
        True
    """
    count, length = positive(count=count, length=length)
    if len(text) <= length:
        raise ValueError(
            f"the text has {len(text)} characters; pieces of length={length} need {length + 1}"
        )
    letters = "".join(sorted(set(text))) if alphabet is None else alphabet
    numbers = {letter: number for number, letter in enumerate(letters)}
    outside = sorted(set(text) - set(letters))
    if outside:
        raise ValueError(f"the text has {outside[0]!r}, which the alphabet does not have")
    ids = torch.tensor([numbers[letter] for letter in text])
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(text) - length, (count, 1), generator=generator)
    windows = ids[starts + torch.arange(length + 1)]  # (count, length + 1)
    record = {"source": "text", "characters": len(text), "seed": seed}
    return Sequences(
        windows[:, :-1],
        windows[:, 1:].contiguous(),
        len(letters),
        vocabulary=len(letters),
        last=length,
        description=record,
    )


def remote_homology(path: str | os.PathLike[str], *, longest: int = 1024) -> Sequences:
    """Proteins and their folds, from a JSON file of TAPE (Rao et al. 2019, arXiv:1906.08230).

    The file is a list of records with "primary" (amino acids, a letter each) and "fold_label". No
    copy of the published files was at hand, so this was tested on files of that format alone.

    Args:
        path: such as remote_homology_train.json.
        longest: amino acids of a sequence, at most; the rest of longer ones is cut off.

    Returns:
        Token ids (proteins, longest), padded with 0, and labels of 1,195 classes.

    Raises:
        ValueError: the file has another content; names the record.
    """
    longest = whole_number("longest", longest)
    with open_file(path) as file:
        try:
            records = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is no JSON file ({error}); give one of TAPE's") from error
    if not isinstance(records, list) or not records:
        raise ValueError(f"{path} holds no list of proteins; give one of TAPE's JSON files")
    inputs = torch.full((len(records), longest), PADDING)
    labels: list[int] = []
    for place, record in enumerate(records):
        if not isinstance(record, dict) or {"primary", "fold_label"} - record.keys():
            raise ValueError(f"record {place} of {path} needs 'primary' and 'fold_label'")
        ids = _amino_acids(record["primary"], place)[:longest]
        inputs[place, : len(ids)] = torch.tensor(ids)
        labels.append(whole_number(f"fold_label of record {place}", record["fold_label"], least=0))
    return Sequences(
        inputs,
        torch.tensor(labels),
        FOLDS,
        vocabulary=len(AMINO_ACIDS) + 1,
        padded=True,
        description={"source": "remote_homology", "file": os.path.basename(path)},
    )


def _amino_acids(letters: Sequence[str], place: int) -> list[int]:
    """The ids of a protein's letters, from 1."""
    outside = sorted(set(letters) - set(AMINO_ACIDS))
    if outside or not letters:
        raise ValueError(
            f"protein {place} is {letters!r:.40}; its letters must be among {AMINO_ACIDS}"
        )
    return [AMINO_ACIDS.index(letter) + 1 for letter in letters]
