"""Glyphs: handwriting in invented alphabets, drawn by arithmetic alone, so that few-shot learning
can be tried with no download.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from metalearn.runtime.checks import whole_number

from .decoding import split_named
from .images import LabelledImages

Array = NDArray[np.float64]

SPLITS = {"train": range(0, 256), "validation": range(256, 320), "test": range(320, 400)}
ALPHABET = 20  # neighbouring characters of one alphabet: some alphabets are mostly curves, some mostly angles
SKETCHES = 6  # characters sketched for each one kept
PAPER = 0.8  # the longer side of a large character, as a share of the paper's side

# What a piece of a stroke can be, length and turn in radians, and how often an angular and a curved
# alphabet use it.
PIECES = ((0.75, 0.0), (0.75, 1.0), (0.65, 1.57), (1.0, 3.14), (1.3, 4.71), (0.95, 6.6))
ANGULAR = np.array([0.80, 0.08, 0.03, 0.04, 0.01, 0.04])
CURVED = np.array([0.24, 0.15, 0.14, 0.25, 0.13, 0.09])
DIRECTIONS = (
    4.0,
    1.0,
    6.0,
    1.0,
    0.7,
    1.0,
    1.0,
    1.0,
)  # weights of east, south-east, south, ...: pens like to go right and down
CORNERS = (-135, -90, 90, 135)  # degrees
STROKES = (0.24, 0.38, 0.26, 0.12)  # weights of one to four strokes
PIECES_PER_STROKE = (
    (0.0, 0.3, 0.45, 0.25),
    (0.35, 0.45, 0.2, 0.0),
    (0.6, 0.35, 0.05, 0.0),
    (0.75, 0.25, 0.0, 0.0),
)
JOINED, CROSSED, APART, DOTTED = range(4)
RELATIONS = (0.5, 0.2, 0.18, 0.12)
ERRORS = 20  # what can come out otherwise than meant in one stroke: 3 numbers for each of up to 4 pieces, 4 for wobble, 4 for where it lies

ALPHABETS, ERRING, HANDS = (
    kind << 40 for kind in (1, 2, 3)
)  # streams of random numbers; a character's own is its index


class Draws:
    """Random numbers that are a function of (seed, stream) alone: raw Philox bits, which NumPy
    promises to keep from version to version.
    """

    def __init__(self, seed: int, stream: int) -> None:
        self.bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))

    def uniform(self, *shape: int) -> Array:
        return (self.bits.random_raw(math.prod(shape)) >> np.uint64(11)).reshape(
            shape
        ) * np.float64(2**-53)

    def bell(self, *shape: int) -> Array:
        """Mean 0, variance 1, never beyond 3.5: a hand errs, but not without bound."""
        return (self.uniform(*shape, 4).sum(-1) - 2) * np.sqrt(3)

    def one(self) -> float:
        return (self.bits.random_raw() >> 11) * 2.0**-53

    def choice(self, weights: Sequence[float]) -> int:
        sums = list(accumulate(weights))
        return bisect(sums, self.one() * sums[-1])


class Stroke(NamedTuple):
    """One movement of the pen on the paper, and where it lies on an earlier one."""

    pieces: Array  # (pieces, 3): length, heading at its start, turn along it
    base: int  # the earlier stroke that it refers to
    along: float  # how far along that stroke the two meet
    at: float  # how far along itself
    gap: Array  # (2,) between them; zero where they touch


def sketch(draws: Draws, curviness: float) -> list[Stroke]:
    """A character thought up: one to four strokes, each of one to four straight or curved pieces,
    joined, crossing or apart.
    """
    count = 1 + draws.choice(STROKES)
    strokes: list[Stroke] = []
    for k in range(count):
        pieces = movement(
            draws,
            1 + draws.choice(PIECES_PER_STROKE[count - 1]),
            ((1 - curviness) * ANGULAR + curviness * CURVED).tolist(),
        )
        relation = draws.choice(RELATIONS) if k else JOINED
        if relation == DOTTED:
            pieces = np.array([(0.07, 1.2, 0.3)])
        side = np.pi / 2 * draws.choice((1, 1, 1, 1))
        gap = 0.3 * np.array([np.cos(side), np.sin(side)]) * (relation in (APART, DOTTED))
        at = 0.5 if relation == CROSSED else float(draws.one() < 0.25)
        along = draws.choice((3, 1, 3, 1, 3)) / 4
        strokes.append(Stroke(pieces, draws.choice([1] * max(k, 1)), along, at, gap))
    return strokes


def movement(draws: Draws, count: int, kinds: Sequence[float]) -> Array:
    """The pieces `(count, 3)` of a stroke.

    Headings start on one of eight directions, so that bars are level and stems upright.
    """
    eighth = np.pi / 4
    toward = heading = draws.choice(DIRECTIONS) * eighth
    pieces = []
    for j in range(count):
        length, turn = PIECES[draws.choice(kinds)]
        turn *= 1 if draws.one() < 0.5 else -1
        if j == 0 or draws.one() < 0.65:  # a corner; otherwise the pen goes on as it came
            corner = math.radians(CORNERS[draws.choice((1, 2, 2, 1))])
            toward += corner if j else 0
            heading = toward - (
                turn / 2 if abs(turn) < 2 else 0
            )  # an open arc's ends lie on the direction
        pieces.append((length * (0.65 + 0.7 * draws.one()), heading, turn))
        heading += turn
        toward = round(heading / eighth) * eighth
    return np.array(pieces)


def trace(strokes: list[Stroke], errors: Array, spacing: float) -> Array:
    """The points `(drawings, points, 2)` that the pen passes when it errs by `errors` `(drawings,
    strokes, ERRORS)`; y points down.
    """
    lines: list[Array] = []
    rows = np.arange(len(errors))
    for k, stroke in enumerate(strokes):
        count, error = len(stroke.pieces), errors[:, k]
        steps = np.maximum(2, np.ceil(stroke.pieces[:, 0] / spacing)).astype(int)
        piece = np.repeat(np.arange(count), steps)
        share = np.concatenate([(np.arange(n) + 0.5) / n for n in steps]) - 0.5
        length = stroke.pieces[:, 0] * np.exp(0.17 * error[:, 0:count]) / steps
        turn = (
            stroke.pieces[:, 2] * (1 + 0.10 * error[:, 4 : 4 + count])
            + 0.12 * error[:, 4 : 4 + count]
        )
        # The error is in a piece's own direction and not in the corner before it, so that errors do
        # not add up: hands keep upright upright.
        middle = stroke.pieces[:, 1] + stroke.pieces[:, 2] / 2 + 0.11 * error[:, 8 : 8 + count]
        angle = middle[:, piece] + turn[:, piece] * share
        time = np.linspace(0, 1, len(piece))
        for wave in (1, 2):
            wobble, shift = error[:, 11 + wave, None], error[:, 13 + wave, None]
            angle += 0.12 / wave * wobble * np.sin(2 * np.pi * wave * (time + shift))
        moves = length[:, piece, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        points = np.concatenate([np.zeros((len(rows), 1, 2)), moves.cumsum(1)], 1)
        if lines:
            base = lines[stroke.base]
            along = np.clip(stroke.along + 0.05 * error[:, 16], 0, 1) * (base.shape[1] - 1)
            at = np.clip(stroke.at + 0.06 * error[:, 17], 0, 1) * (points.shape[1] - 1)
            there, here = (
                base[rows, np.rint(along).astype(int)],
                points[rows, np.rint(at).astype(int)],
            )
            points += (there - here + stroke.gap + 0.03 * error[:, 18:20])[:, None]
        lines.append(points)
    return np.concatenate(lines, 1)


def template(strokes: list[Stroke]) -> Array:
    """The points `(points, 2)` of the character as it is meant."""
    return trace(strokes, np.zeros((1, len(strokes), ERRORS)), 0.06)[0]


def clumsiness(strokes: list[Stroke]) -> float:
    """How much ink lies over other ink, how far from square the character is, and how many pieces
    it lacks to stand out from others.
    """
    points = template(strokes)
    order = np.arange(len(points))
    near = ((points[:, None] - points) ** 2).sum(-1) < 0.12**2
    later = abs(order[:, None] - order) > 6
    width, height = np.ptp(points, axis=0) + 0.15
    lack = 4 - sum(len(stroke.pieces) for stroke in strokes)
    return (
        4 * float((near & later).any(1).mean())
        + max(0.0, width / height - 1.3, height / width - 1.6)
        + 0.7 * max(0, lack)
    )


def character(seed: int, index: int) -> list[Stroke]:
    """The least clumsy of a few sketches in the manner of this character's alphabet."""
    draws = Draws(seed, index)
    curviness = Draws(seed, ALPHABETS | index // ALPHABET).one()
    return min((sketch(draws, curviness) for _ in range(SKETCHES)), key=clumsiness)


class Hand(NamedTuple):
    """How each drawer writes, `(drawers,)` each."""

    loose: Array  # factor on all errors
    large: Array  # factor on the size
    wide: Array  # log of the stretch
    slant: Array  # x gained per y
    rotation: Array  # radians
    pen: Array  # half the width of the ink, in pixels of a 28-pixel paper


def hands(seed: int, split: str, drawers: int) -> Hand:
    """The style of every drawer of a split: each field (drawers,)."""
    first = HANDS | SPLITS[split].start << 24  # every split has drawers of its own
    loose, large, wide, slant, rotation, pen = np.stack(
        [Draws(seed, first + i).bell(6) for i in range(drawers)], 1
    )
    loose, large = 0.85 * np.exp(0.25 * loose), 0.92 * np.exp(0.1 * large)
    return Hand(loose, large, 0.08 * wide, 0.1 + 0.12 * slant, 0.04 * rotation, 0.84 + 0.07 * pen)


def place(points: Array, hand: Hand, error: Array) -> Array:
    """The points as these drawers would size, slant, turn and place them, in shares of the paper's
    side, all on the paper.
    """
    points = points * (hand.large * np.exp(0.07 * error[:, 0]))[:, None, None]
    stretch = hand.wide + 0.05 * error[:, 1]
    slant = hand.slant + 0.05 * error[:, 2]
    angle = (hand.rotation + 0.05 * error[:, 3])[:, None]
    x, y = points[..., 0] * np.exp(stretch)[:, None], points[..., 1] * np.exp(-stretch)[:, None]
    x = x - slant[:, None] * y
    points = np.stack(
        [np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y], -1
    )
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
    points = (points - (low + high) / 2) * np.minimum(1, 0.84 / (high - low).max(-1, keepdims=True))
    room = 0.42 - np.abs(points).max(1)
    return points + 0.5 + np.clip(0.05 * error[:, 4:6], -room, room)[:, None]


def ink(points: Array, pen: Array, size: int) -> NDArray[np.uint8]:
    """White on black `(drawings, size, size)`: the distance in pixels from each pixel to the
    nearest point, its edge anti-aliased.
    """
    squared = (points[..., None] - np.arange(size)).astype(
        np.float32
    ) ** 2  # (drawings, points, 2, size)
    nearest = np.full((len(points), size, size), np.inf, dtype=np.float32)
    for i in range(points.shape[1]):
        np.minimum(nearest, squared[:, i, 1, :, None] + squared[:, i, 0, None, :], out=nearest)
    cover = np.clip(
        pen.astype(np.float32)[:, None, None] + np.float32(0.5) - np.sqrt(nearest), 0, 1
    )
    return np.rint(255 * cover).astype(np.uint8)


@lru_cache(maxsize=8)
def drawings(split: str, classes: int, drawers: int, size: int, seed: int) -> NDArray[np.uint8]:
    """All drawings `(classes, drawers, size, size)`.

    Each depends on seed, character and drawer alone, so fewer are the first of more.
    """
    hand = hands(seed, split, drawers)
    images = np.empty((classes, drawers, size, size), dtype=np.uint8)
    for k, index in enumerate(SPLITS[split][:classes]):
        strokes = character(seed, index)
        extent = float(np.ptp(template(strokes), axis=0).max())
        scale = (
            PAPER * min(1.0, (extent / 1.6) ** 0.5) / extent
        )  # a slight character stays somewhat smaller
        errors = Draws(seed, ERRING | index).bell(drawers, len(STROKES) + 1, ERRORS)
        points = scale * trace(
            strokes, errors * hand.loose[:, None, None], spacing=0.5 / (scale * size)
        )
        images[k] = ink(place(points, hand, errors[:, -1]) * size - 0.5, hand.pen * size / 28, size)
    return images


def glyphs(
    split: str = "train",
    *,
    classes: int | None = None,
    drawers: int = 20,
    size: int = 28,
    seed: int = 0,
) -> LabelledImages:
    """Characters of invented alphabets, each drawn once by every drawer: white ink on black paper,
    made on the spot from `seed` alone.

    A stand-in for Omniglot; a character is a program of pen strokes, as in Lake, Salakhutdinov and
    Tenenbaum (Science 2015). What differs between its drawings is the drawer (size, slant, stretch,
    pen, looseness: the same in all that one drawer writes) and by how much the lengths, directions,
    bends and joins of the strokes miss what was meant. Splits share no character and no drawer.

    Args:
        split: "train" (256 characters), "validation" (64) or "test" (80).
        classes: Only the first so many characters of the split; None for all.
        drawers: Drawings of each character; they are adjacent, in the order of the drawers.
        size: Side of the images in pixels, at least 8; the same drawings at any size.
        seed: Other seeds give other alphabets and other drawers.

    Raises:
        ValueError: There is no such split, or a number is out of its range.

    Example:
        >>> images = glyphs("test", classes=5, drawers=3)
        >>> images.images.shape, images.names[0], images.labels.tolist()
        (torch.Size([15, 1, 28, 28]), 'glyph320', [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4])
    """
    split = split_named(split, SPLITS)
    indices = SPLITS[split]
    classes = len(indices) if classes is None else classes
    for name, value, least, most in (
        ("classes", classes, 1, len(indices)),
        ("drawers", drawers, 1, 1 << 16),
        ("size", size, 8, 1024),
        ("seed", seed, 0, 2**64 - 1),
    ):
        if not least <= whole_number(name, value, least=None) <= most:
            raise ValueError(
                f"{name}={value} is out of range for the {split!r} glyphs; choose {least} to {most}"
            )
    images = torch.tensor(drawings(split, classes, drawers, size, seed)).flatten(0, 1)[:, None]
    labels = torch.arange(classes).repeat_interleave(drawers)
    description = {
        "source": "glyphs",
        "split": split,
        "classes": classes,
        "drawers": drawers,
        "size": size,
        "seed": seed,
    }
    return LabelledImages(images, labels, [f"glyph{i:03d}" for i in indices[:classes]], description)
