"""Sequence tasks: labels recomputed from the tokens, chance levels, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.data.images import LabelledImages
from metalearn.data.labelled_sequences import Sequences
from metalearn.data.sequences import (
    bit_memory,
    bit_xor,
    joined,
    patches,
    remote_homology,
    text_windows,
)
from metalearn.tasks import FewShot


def test_remembered_bits_follow_from_the_tokens() -> None:
    data = bit_memory(200, strings=5, bits=40, patch=10, seed=3)
    assert data.inputs.shape == (200, 24, 10) and data.targets.shape == (200, 40)
    rows = data.inputs.view(200, 6, 40)
    strings, query = rows[:, :5], rows[:, 5]
    assert set(strings.unique().tolist()) == {-1, 1} and set(query.unique().tolist()) == {-1, 0, 1}
    signs = 2 * data.targets - 1
    shown = query != 0
    assert torch.equal(query[shown], signs[shown].float())
    # The string that agrees with all shown bits is the answer.
    matches = ((strings == query[:, None]) | ~shown[:, None]).all(2)  # (examples, strings)
    asked = [int(row.nonzero()[0]) for row in matches]
    for example, string in enumerate(asked):
        assert torch.equal(strings[example, string], signs[example].float())
    assert torch.bincount(torch.tensor(asked)).tolist() == [40] * 5
    assert abs(float(shown.float().mean()) - 0.5) < 0.02


def test_chance_of_bit_memory_is_three_quarters() -> None:
    data = bit_memory(2000, bits=40, patch=10)
    query = data.inputs.view(2000, 6, 40)[:, 5]
    # Answers the shown bits, and 0 for the others: no memory of the strings.
    answers = (query > 0).long()
    assert abs(float((answers == data.targets).float().mean()) - 0.75) < 0.005
    # A constant answer has half of them.
    assert abs(float(data.targets.float().mean()) - 0.5) < 0.005


@pytest.mark.parametrize("ids", [False, True])
def test_xor_follows_from_the_tokens_and_is_balanced(ids: bool) -> None:
    data = bit_xor(4000, bits=5, ids=ids, seed=1)
    bits = data.inputs.view(4000, 2, 5).long()
    assert torch.equal(data.targets, (bits.sum(1) == 1).long())
    assert abs(float(data.targets.float().mean()) - 0.5) < 0.02
    # Neither string alone tells the answer.
    for string in range(2):
        assert abs(float((bits[:, string] == data.targets).float().mean()) - 0.5) < 0.02
    assert data.inputs.dtype == (torch.int64 if ids else torch.float32)


def test_the_seed_decides_the_sequences() -> None:
    for task in (lambda seed: bit_memory(5, bits=20, patch=10, seed=seed), bit_xor_of):
        assert torch.equal(task(2).inputs, task(2).inputs)
        assert not torch.equal(task(2).inputs, task(3).inputs)


def bit_xor_of(seed: int) -> Sequences:
    return bit_xor(5, seed=seed)


def pictures(size: int = 8, channels: int = 3) -> LabelledImages:
    pixels = torch.arange(4 * channels * size * size) % 251
    pixels = pixels.view(4, channels, size, size).to(torch.uint8)
    return LabelledImages(pixels, torch.tensor([0, 1, 0, 1]), ("a", "b"))


def test_patches_are_the_pixels_of_the_image() -> None:
    images = pictures()
    data = patches(images, 4)
    assert data.inputs.shape == (4, 4, 48) and data.inputs.dtype == torch.uint8
    corner = images.images[1, :, 4:8, 0:4]  # the third patch in reading order
    assert torch.equal(data.inputs[1, 2], corner.flatten())
    assert torch.equal(joined(data.inputs, 4, 3), images.images)
    assert torch.equal(data[1][0], data.inputs[1].float() / 255)


def test_patches_have_the_sizes_of_the_paper() -> None:
    assert patches(pictures(28, 1), 4).inputs.shape == (4, 49, 16)
    assert patches(pictures(32, 3), 4).inputs.shape == (4, 64, 48)
    grey = patches(pictures(32, 3), 1, grey=True)
    assert grey.inputs.shape == (4, 1024, 1)
    red, green, blue = pictures(32, 3).images[2, :, 0, 5].tolist()
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    assert abs(int(grey.inputs[2, 5, 0]) - luma) <= 0.5


def test_text_is_labelled_by_the_next_character() -> None:
    text = "to be, or not to be"
    data = text_windows(text, 20, length=6)
    letters = sorted(set(text))
    for inputs, targets in zip(data.inputs.tolist(), data.targets.tolist(), strict=True):
        piece = "".join(letters[number] for number in inputs)
        following = "".join(letters[number] for number in targets)
        assert piece + following[-1] in text and following[:-1] == piece[1:]


def test_proteins_are_read_and_padded(tmp_path: Path) -> None:
    path = tmp_path / "remote_homology_train.json"
    path.write_text(json.dumps([{"primary": "MKV", "fold_label": 7, "id": "x"}]))
    data = remote_homology(path, longest=5)
    assert data.inputs.tolist() == [[12, 10, 21, 0, 0]] and data.targets.tolist() == [7]
    assert data.dimensions["padding"] == 0 and data.outputs == 1195
    path.write_text(json.dumps([{"primary": "MK!", "fold_label": 7}]))
    with pytest.raises(ValueError, match="protein 0 is 'MK!'"):
        remote_homology(path)
    path.write_text(json.dumps([{"primary": "MK"}]))
    with pytest.raises(ValueError, match=r"record 0 .*'fold_label'"):
        remote_homology(path)


def test_single_labels_go_into_few_shot_tasks_and_several_are_refused() -> None:
    support, _ = FewShot(patches(pictures(), 4), 2, 1, 1, tasks=1)[0]
    assert support.inputs.shape == (2, 4, 48)
    with pytest.raises(TypeError, match="label of item 0"):
        FewShot(bit_xor(8), 2, 1, 1, tasks=1)


FLOATS = torch.zeros(3, 4, 2)
IDS = torch.zeros(3, 4, dtype=torch.int64)
ONE = torch.tensor([0, 1, 0])
MANY = torch.zeros(3, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((FLOATS, ONE, 1), {}, ValueError, "label 1, but outputs=1"),
        ((FLOATS, ONE.float(), 2), {}, TypeError, "targets must be int64"),
        ((FLOATS, ONE[:2], 2), {}, ValueError, "3 sequences have 2 rows"),
        ((FLOATS.double(), ONE, 2), {}, TypeError, "float32 or uint8"),
        ((IDS, ONE, 2), {}, TypeError, "give vocabulary="),
        ((IDS + 5, ONE, 2), {"vocabulary": 5}, ValueError, "token id 5, but vocabulary=5"),
        ((IDS - 1, ONE, 2), {"vocabulary": 5}, ValueError, "token id -1"),
        ((FLOATS, ONE, 2), {"vocabulary": 5}, TypeError, "token ids must be int64"),
        ((FLOATS, MANY, 2), {"last": 3}, ValueError, "4 labels a sequence cannot be divided"),
        ((FLOATS, MANY, 2), {"last": 5}, ValueError, "last=5 exceeds the 4 tokens"),
        ((FLOATS, ONE, 2), {"padded": True}, ValueError, "give vocabulary= too"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(
    arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Sequences(*arguments, **options)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="patch=7 does not divide bits=40"):
        bit_memory(3, bits=40, patch=7)
    with pytest.raises(ValueError, match="5 x 5 do not divide images of 8 x 8"):
        patches(pictures(), 5)
    with pytest.raises(TypeError, match=r"patches.. takes LabelledImages, not a Tensor"):
        patches(torch.rand(3, 1, 4, 4))
    with pytest.raises(ValueError, match="the text has 3 characters; pieces of length=3 need 4"):
        text_windows("abc", 2, length=3)
    with pytest.raises(ValueError, match="the text has 'c'"):
        text_windows("abcabc", 2, length=3, alphabet="ab")
