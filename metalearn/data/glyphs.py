"""Glyphs: handwriting in invented alphabets, computed from a seed; nothing is downloaded."""

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
# Neighbouring characters of one alphabet: some alphabets are mostly curves, some mostly angles.
ALPHABET = 20
SKETCHES = 6  # of each character; the least clumsy one is taken
PAPER = 0.8  # the longer side of a large character, as a share of the paper's side

# The kinds of pieces of a stroke, (length, turn in radians), and how often an angular and a curved
# alphabet use each.
PIECES = ((0.75, 0.0), (0.75, 1.0), (0.65, 1.57), (1.0, 3.14), (1.3, 4.71), (0.95, 6.6))
ANGULAR = np.array([0.80, 0.08, 0.03, 0.04, 0.01, 0.04])
CURVED = np.array([0.24, 0.15, 0.14, 0.25, 0.13, 0.09])
# Weights of the directions east, south-east, south, ...: pens tend to go right and down.
DIRECTIONS = (4.0, 1.0, 6.0, 1.0, 0.7, 1.0, 1.0, 1.0)
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
# The errors of one stroke: length, turn and direction of each of up to 4 pieces, 4 for the wobble
# and 4 for its place.
ERRORS = 20

# The streams of random numbers. The stream of a character itself is its index.
ALPHABETS, ERRING, HANDS = (kind << 40 for kind in (1, 2, 3))


class Draws:
    """Random numbers that depend on (seed, stream) alone.

    They are made from raw Philox bits, which NumPy promises not to change between versions.
    """

    def __init__(self, seed: int, stream: int) -> None:
        self.bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))

    def uniform(self, *shape: int) -> Array:
        """Numbers in [0, 1), from 53 bits each."""
        bits = self.bits.random_raw(math.prod(shape)) >> np.uint64(11)
        return bits.reshape(shape) * np.float64(2**-53)

    def bell(self, *shape: int) -> Array:
        """Numbers of mean 0 and variance 1, never beyond 3.5: errors of a hand are bounded."""
        # The sum of 4 uniform numbers has mean 2 and variance 4 / 12.
        return (self.uniform(*shape, 4).sum(-1) - 2) * np.sqrt(3)

    def number(self) -> float:
        """One number in [0, 1)."""
        return (self.bits.random_raw() >> 11) * 2.0**-53

    def choice(self, weights: Sequence[float]) -> int:
        """An index, with probability proportional to its weight."""
        sums = list(accumulate(weights))
        return bisect(sums, self.number() * sums[-1])


class Stroke(NamedTuple):
    """One movement of the pen on the paper, and its place relative to an earlier one."""

    pieces: Array  # (pieces, 3): length, heading at its start, turn along it
    base: int  # the earlier stroke that it is placed on
    along: float  # where the two meet, as a share of the earlier stroke
    at: float  # where the two meet, as a share of this stroke
    gap: Array  # (2,) between them; zero if they touch


def sketch(draws: Draws, curviness: float) -> list[Stroke]:
    """Invent a character of one to four strokes that are joined, cross or lie apart.

    Each stroke has one to four straight or curved pieces.
    """
    count = 1 + draws.choice(STROKES)
    kinds = ((1 - curviness) * ANGULAR + curviness * CURVED).tolist()
    strokes: list[Stroke] = []
    # The order of the draws is fixed: each takes the next number of the stream.
    for k in range(count):
        pieces = movement(draws, 1 + draws.choice(PIECES_PER_STROKE[count - 1]), kinds)
        relation = JOINED
        if k > 0:
            relation = draws.choice(RELATIONS)
        if relation == DOTTED:
            pieces = np.array([(0.07, 1.2, 0.3)])
        side = np.pi / 2 * draws.choice((1, 1, 1, 1))
        gap = 0.3 * np.array([np.cos(side), np.sin(side)]) * (relation in (APART, DOTTED))
        at = 0.5
        if relation != CROSSED:
            at = float(draws.number() < 0.25)
        along = draws.choice((3, 1, 3, 1, 3)) / 4
        base = draws.choice([1] * max(k, 1))
        strokes.append(Stroke(pieces, base, along, at, gap))
    return strokes


def movement(draws: Draws, count: int, kinds: Sequence[float]) -> Array:
    """The pieces `(count, 3)` of a stroke.

    Headings start on one of eight directions, so bars are level and stems upright.
    """
    eighth = np.pi / 4
    toward = heading = draws.choice(DIRECTIONS) * eighth
    pieces = []
    for j in range(count):
        length, turn = PIECES[draws.choice(kinds)]
        if draws.number() >= 0.5:
            turn = -turn
        # A corner, or else the pen continues in its present heading.
        if j == 0 or draws.number() < 0.65:
            corner = math.radians(CORNERS[draws.choice((1, 2, 2, 1))])
            if j > 0:
                toward += corner
            heading = toward
            if abs(turn) < 2:  # the ends of an open arc lie on the direction
                heading -= turn / 2
        pieces.append((length * (0.65 + 0.7 * draws.number()), heading, turn))
        heading += turn
        toward = round(heading / eighth) * eighth
    return np.array(pieces)


def trace(strokes: list[Stroke], errors: Array, spacing: float) -> Array:
    """The points that the pen passes, `(drawings, points, 2)`; y points down.

    Args:
        strokes: the character.
        errors: by how much each drawing misses what was meant, `(drawings, strokes, ERRORS)`.
        spacing: the distance between two points.
    """
    lines: list[Array] = []
    for k, stroke in enumerate(strokes):
        points = _pen_path(stroke, errors[:, k], spacing)
        if lines:
            points += _offset(stroke, lines[stroke.base], points, errors[:, k])[:, None]
        lines.append(points)
    return np.concatenate(lines, 1)


def _pen_path(stroke: Stroke, error: Array, spacing: float) -> Array:
    """The points of one stroke from the origin `(drawings, points, 2)`."""
    count = len(stroke.pieces)
    meant_length, heading, meant_turn = stroke.pieces.T
    steps = np.maximum(2, np.ceil(meant_length / spacing)).astype(int)
    piece = np.repeat(np.arange(count), steps)  # (points,): the piece of each point
    share = np.concatenate([(np.arange(n) + 0.5) / n for n in steps]) - 0.5  # -0.5 to 0.5 along it
    length = meant_length * np.exp(0.17 * error[:, 0:count]) / steps  # (drawings, pieces)
    turn_error = error[:, 4 : 4 + count]
    turn = meant_turn * (1 + 0.10 * turn_error) + 0.12 * turn_error
    # The error is in the direction of the piece itself and not in the corner before it, so errors
    # do not accumulate: hands keep upright strokes upright.
    middle = heading + meant_turn / 2 + 0.11 * error[:, 8 : 8 + count]
    angle = middle[:, piece] + turn[:, piece] * share  # (drawings, points)
    time = np.linspace(0, 1, len(piece))
    for wave in (1, 2):
        wobble = error[:, 11 + wave, None]
        shift = error[:, 13 + wave, None]
        angle += 0.12 / wave * wobble * np.sin(2 * np.pi * wave * (time + shift))
    moves = length[:, piece, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    return np.concatenate([np.zeros((len(error), 1, 2)), moves.cumsum(1)], 1)


def _offset(stroke: Stroke, base: Array, points: Array, error: Array) -> Array:
    """The move `(drawings, 2)` that brings a stroke to its place on an earlier one."""
    rows = np.arange(len(points))
    along = np.clip(stroke.along + 0.05 * error[:, 16], 0, 1) * (base.shape[1] - 1)
    at = np.clip(stroke.at + 0.06 * error[:, 17], 0, 1) * (points.shape[1] - 1)
    goal = base[rows, np.rint(along).astype(int)]
    start = points[rows, np.rint(at).astype(int)]
    return goal - start + stroke.gap + 0.03 * error[:, 18:20]


def template(strokes: list[Stroke]) -> Array:
    """The points `(points, 2)` of the character as it is meant."""
    return trace(strokes, np.zeros((1, len(strokes), ERRORS)), 0.06)[0]


def clumsiness(strokes: list[Stroke]) -> float:
    """A penalty for ink over other ink, for a shape far from square, and for too few pieces."""
    points = template(strokes)  # (points, 2)
    # Ink over ink: points that are close in space but not neighbours along the strokes.
    order = np.arange(len(points))
    near = ((points[:, None] - points) ** 2).sum(-1) < 0.12**2  # (points, points)
    later = abs(order[:, None] - order) > 6
    overlap = float((near & later).any(1).mean())
    width, height = np.ptp(points, axis=0) + 0.15
    elongation = max(0.0, width / height - 1.3, height / width - 1.6)
    missing = max(0, 4 - sum(len(stroke.pieces) for stroke in strokes))
    return 4 * overlap + elongation + 0.7 * missing


def character(seed: int, index: int) -> list[Stroke]:
    """The least clumsy of a few sketches in the manner of this character's alphabet."""
    draws = Draws(seed, index)
    curviness = Draws(seed, ALPHABETS | index // ALPHABET).number()
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
    return Hand(
        loose=0.85 * np.exp(0.25 * loose),
        large=0.92 * np.exp(0.1 * large),
        wide=0.08 * wide,
        slant=0.1 + 0.12 * slant,
        rotation=0.04 * rotation,
        pen=0.84 + 0.07 * pen,
    )


def place(points: Array, hand: Hand, error: Array) -> Array:
    """Size, slant, turn and place the points as each drawer would.

    Args:
        points: `(drawings, points, 2)`.
        hand: the style of the drawer of each drawing.
        error: by how much each drawing misses that style, `(drawings, ERRORS)`.

    Returns:
        The points in shares of the paper's side, all on the paper.
    """
    points = points * (hand.large * np.exp(0.07 * error[:, 0]))[:, None, None]
    stretch = (hand.wide + 0.05 * error[:, 1])[:, None]
    slant = (hand.slant + 0.05 * error[:, 2])[:, None]
    angle = (hand.rotation + 0.05 * error[:, 3])[:, None]
    y = points[..., 1] * np.exp(-stretch)
    x = points[..., 0] * np.exp(stretch) - slant * y
    rotated = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    points = np.stack(rotated, -1)
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
    points = (points - (low + high) / 2) * np.minimum(1, 0.84 / (high - low).max(-1, keepdims=True))
    room = 0.42 - np.abs(points).max(1)  # (drawings, 2): how far the drawing may move
    return points + 0.5 + np.clip(0.05 * error[:, 4:6], -room, room)[:, None]


def ink(points: Array, pen: Array, size: int) -> NDArray[np.uint8]:
    """Draw white on black `(drawings, size, size)`, with anti-aliased edges.

    The brightness of a pixel depends on its distance to the nearest point, in pixels.
    """
    # (drawings, points, 2, size): squared distances along x and along y
    squared = (points[..., None] - np.arange(size)).astype(np.float32) ** 2
    nearest = np.full((len(points), size, size), np.inf, dtype=np.float32)
    for i in range(points.shape[1]):
        np.minimum(nearest, squared[:, i, 1, :, None] + squared[:, i, 0, None, :], out=nearest)
    half_width = pen.astype(np.float32)[:, None, None]
    cover = np.clip(half_width + np.float32(0.5) - np.sqrt(nearest), 0, 1)
    return np.rint(255 * cover).astype(np.uint8)


@lru_cache(maxsize=8)
def drawings(split: str, classes: int, drawers: int, size: int, seed: int) -> NDArray[np.uint8]:
    """All drawings `(classes, drawers, size, size)`.

    Each depends on seed, character and drawer alone: a smaller set is the start of a larger one.
    """
    hand = hands(seed, split, drawers)
    images = np.empty((classes, drawers, size, size), dtype=np.uint8)
    for k, index in enumerate(SPLITS[split][:classes]):
        strokes = character(seed, index)
        extent = float(np.ptp(template(strokes), axis=0).max())
        # A slight character stays somewhat smaller.
        scale = PAPER * min(1.0, (extent / 1.6) ** 0.5) / extent
        # (drawers, strokes + 1, ERRORS): the last row is the error of the placement
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
    """Characters of invented alphabets in white ink on black paper, computed from `seed`.

    A stand-in for Omniglot that needs no files. Every drawer draws each character once. A character
    is a program of pen strokes, as in Lake, Salakhutdinov and Tenenbaum (Science 2015). Its
    drawings differ by the drawer (size, slant, stretch, pen and looseness, which all characters of
    one drawer share) and by errors in the lengths, directions, bends and joins of the strokes.
    Splits share no character and no drawer.

    Args:
        split: "train" (256 characters), "validation" (or "val", 64) or "test" (80).
        classes: the number of characters to take from the start of the split; None for all.
        drawers: drawings of each character. They are adjacent, in the order of the drawers.
        size: the height and width in pixels, at least 8. The drawings are the same at any size.
        seed: another seed gives other alphabets and other drawers.

    Raises:
        ValueError: if there is no such split, or a number is out of its range.

    Example:
        >>> images = glyphs("test", classes=5, drawers=3)
        >>> images.images.shape, images.names[0], images.labels.tolist()
        (torch.Size([15, 1, 28, 28]), 'glyph320', [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4])
    """
    split = split_named(split, SPLITS)
    indices = SPLITS[split]
    if classes is None:
        classes = len(indices)
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
    images = torch.tensor(drawings(split, classes, drawers, size, seed))
    images = images.flatten(0, 1)[:, None]  # (classes * drawers, 1, size, size)
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
