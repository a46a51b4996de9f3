"""Glyphs: handwriting in invented alphabets, drawn by arithmetic alone, so that few-shot learning can be tried with no download."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from metalearn.tasks.few_shot import LabelledImages

Array = NDArray[np.float64]

SPLITS = {"train": range(0, 256), "val": range(256, 320), "test": range(320, 400)}
ALPHABET = 20  # neighbouring characters that share a hand: some alphabets are mostly curves, some mostly angles
SKETCHES = 4  # characters sketched for each one kept
PAPER = 0.80  # the longer side of a large character, as a share of the paper's side

# What one piece of a stroke can be: its length and its turn, and how often an angular and a curved alphabet use it.
PIECES = np.array([(0.75, 0.0), (0.75, 1.0), (0.65, 1.57), (1.0, 3.14), (1.3, 4.71), (0.95, 6.6)])
ANGULAR = np.array([0.80, 0.08, 0.03, 0.04, 0.01, 0.04])
CURVED = np.array([0.24, 0.15, 0.14, 0.25, 0.13, 0.09])
DIRECTIONS = np.array([4.0, 1.0, 6.0, 1.0, 0.7, 1.0, 1.0, 1.0])  # weights of east, south-east, south, ...: pens go right and down
PIECES_A_STROKE = np.array([(0.0, 0.3, 0.45, 0.25), (0.35, 0.45, 0.2, 0.0), (0.6, 0.35, 0.05, 0.0), (0.75, 0.25, 0.0, 0.0)])
STROKES = np.array([0.24, 0.38, 0.26, 0.12])
JOINED, CROSSED, APART, DOTTED = range(4)
RELATIONS = np.array([0.5, 0.2, 0.18, 0.12])
NOISES = 3 * PIECES_A_STROKE.shape[1] + 8  # what can go otherwise than meant in one stroke


class Draws:
    """Numbers that are a function of (seed, stream) alone: raw Philox bits, which NumPy promises to keep from version to version."""

    def __init__(self, seed: int, stream: int) -> None:
        self.bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))

    def uniform(self, *shape: int) -> Array:
        return (self.bits.random_raw(int(np.prod(shape))) >> np.uint64(11)).reshape(shape) * 2.0**-53

    def bell(self, *shape: int) -> Array:
        """Mean 0, variance 1, never beyond 3.5: a hand errs, but not without bound."""
        return (self.uniform(*shape, 4).sum(-1) - 2) * 3**0.5

    def choice(self, weights: Array) -> int:
        return int(np.searchsorted(np.cumsum(weights), self.uniform(1)[0] * weights.sum(), side="right"))


class Stroke(NamedTuple):
    """One movement of the pen on the paper, and where it lies on the strokes before it."""

    pieces: Array  # (pieces, 3): length, heading at its start, turn along it
    base: int  # the earlier stroke that it refers to
    along: float  # how far along that stroke they meet
    at: float  # how far along itself
    gap: Array  # (2,) from there; zero where the strokes touch


def sketch(draws: Draws, curviness: float) -> list[Stroke]:
    """A character thought up: one to four strokes of one to four straight or curved pieces."""
    strokes: list[Stroke] = []
    count = 1 + draws.choice(STROKES)
    for k in range(count):
        relation = draws.choice(RELATIONS) if k else JOINED
        pieces = []
        heading = toward = draws.choice(DIRECTIONS) * np.pi / 4
        for j in range(1 + draws.choice(PIECES_A_STROKE[count - 1])):
            length, turn = PIECES[draws.choice((1 - curviness) * ANGULAR + curviness * CURVED)]
            turn *= 1 if draws.uniform(1)[0] < 0.5 else -1
            if j == 0 or draws.uniform(1)[0] < 0.65:  # a corner; otherwise the pen goes on as it came
                toward += (np.pi / 4 * np.array([-3, -2, 2, 3]))[draws.choice(np.array([1, 2, 2, 1]))] if j else 0
                heading = toward - (turn / 2 if abs(turn) < 2 else 0)
            pieces.append((length * (0.65 + 0.7 * draws.uniform(1)[0]), heading, turn))
            heading += turn
            toward = np.rint(heading / (np.pi / 4)) * np.pi / 4
        away = np.pi / 2 * draws.choice(np.ones(4))
        gap = 0.3 * np.array([np.cos(away), np.sin(away)]) * (relation in (APART, DOTTED))
        body = np.array([(0.07, 1.2, 0.3)] if relation == DOTTED else pieces)
        along = draws.choice(np.array([3, 1, 3, 1, 3])) / 4
        at = 0.5 if relation == CROSSED else float(draws.uniform(1)[0] < 0.25)
        strokes.append(Stroke(body, draws.choice(np.ones(max(k, 1))), along, at, gap))
    return strokes


def trace(strokes: list[Stroke], noise: Array, spacing: float) -> Array:
    """The points `(drawings, points, 2)` that the pen passes, for noise `(drawings, strokes, NOISES)`; y points down."""
    lines: list[Array] = []
    rows = np.arange(len(noise))
    for k, stroke in enumerate(strokes):
        count = len(stroke.pieces)
        error = noise[:, k]
        steps = np.maximum(2, np.ceil(stroke.pieces[:, 0] / spacing)).astype(int)
        piece = np.repeat(np.arange(count), steps)
        share = np.concatenate([(np.arange(n) + 0.5) / n for n in steps]) - 0.5
        length = stroke.pieces[:, 0] * np.exp(0.17 * error[:, 0:count]) / steps
        turn = stroke.pieces[:, 2] * (1 + 0.10 * error[:, 4 : 4 + count]) + 0.12 * error[:, 4 : 4 + count]
        middle = stroke.pieces[:, 1] + stroke.pieces[:, 2] / 2 + 0.11 * error[:, 8 : 8 + count]
        angle = middle[:, piece] + turn[:, piece] * share
        time = np.linspace(0, 1, len(piece))
        for wave, (size, shift) in enumerate(zip(error[:, 12:14].T, error[:, 14:16].T, strict=True)):
            angle += 0.12 / (1 + wave) * size[:, None] * np.sin(2 * np.pi * (1 + wave) * (time + shift[:, None]))
        moves = length[:, piece, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        points = np.concatenate([np.zeros((len(rows), 1, 2)), moves.cumsum(1)], 1)
        if lines:
            along = np.clip(stroke.along + 0.05 * error[:, 16], 0, 1)
            at = np.clip(stroke.at + 0.06 * error[:, 17], 0, 1)
            base = lines[stroke.base]
            there = base[rows, np.rint(along * (base.shape[1] - 1)).astype(int)]
            here = points[rows, np.rint(at * (points.shape[1] - 1)).astype(int)]
            points = points + (there - here + stroke.gap + 0.03 * error[:, 18:20])[:, None]
        lines.append(points)
    return np.concatenate(lines, 1)


def clumsiness(strokes: list[Stroke]) -> float:
    """How much of a character's ink lies over other ink, how far from square it is, and how many pieces it lacks to be told from others."""
    points = clean(strokes)
    near = ((points[:, None] - points) ** 2).sum(-1) < 0.12**2
    apart = abs(np.subtract.outer(np.arange(len(points)), np.arange(len(points)))) > 6
    width, height = np.ptp(points, axis=0) + 0.15
    lack = 4 - sum(len(stroke.pieces) for stroke in strokes)
    return 4 * float((near & apart).any(1).mean()) + max(0.0, width / height - 1.3, height / width - 1.6) + 0.7 * max(0, lack)


def clean(strokes: list[Stroke]) -> Array:
    return trace(strokes, np.zeros((1, len(strokes), NOISES)), 0.06)[0]


def character(seed: int, index: int) -> list[Stroke]:
    """The least clumsy of a few sketches in the style of this character's alphabet."""
    draws = Draws(seed, index)
    curviness = float(Draws(seed, 1 << 40 | index // ALPHABET).uniform(1)[0])
    return min((sketch(draws, curviness) for _ in range(SKETCHES)), key=clumsiness)


class Hand(NamedTuple):
    """The drawers' styles, `(drawers,)` each."""

    loose: Array
    large: Array
    wide: Array
    slant: Array
    rotation: Array
    pen: Array


def hands(seed: int, split: str, drawers: int) -> Hand:
    first = 1 << 41 | list(SPLITS).index(split) << 36
    loose, large, wide, slant, rotation, pen = np.stack([Draws(seed, first + d).bell(6) for d in range(drawers)], 1)
    return Hand(0.85 * np.exp(0.25 * loose), 0.92 * np.exp(0.1 * large), 0.08 * wide, 0.1 + 0.12 * slant, 0.04 * rotation, 0.84 + 0.07 * pen)


def place(points: Array, extent: float, hand: Hand, noise: Array) -> Array:
    """The points in shares of the paper's side, as these drawers would size, slant and place them."""
    scale = PAPER * min(1.0, (extent / 1.6) ** 0.5) / extent * hand.large
    stretch = hand.wide + 0.05 * noise[:, 0]
    x, y = np.moveaxis(points, -1, 0) * scale[:, None] * np.exp(0.07 * noise[:, 1:2])
    x, y = x * np.exp(stretch)[:, None], y * np.exp(-stretch)[:, None]
    x = x - (hand.slant + 0.05 * noise[:, 2])[:, None] * y
    angle = (hand.rotation + 0.05 * noise[:, 3])[:, None]
    points = np.stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y], -1)
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
    points = (points - (low + high) / 2) * np.minimum(1, 0.88 / (high - low).max(-1, keepdims=True))
    room = 0.45 - np.abs(points).max(1)
    return points + 0.5 + np.clip(0.05 * noise[:, 4:6], -room, room)[:, None]


def render(points: Array, radius: Array) -> NDArray[np.uint8]:
    raise NotImplementedError


def ink(points: Array, pen: Array, size: int) -> NDArray[np.uint8]:
    """White on black `(drawings, size, size)`: anti-aliased by each pixel's distance to the nearest of the pen's points, in pixels."""
    squared = (points[..., None] - np.arange(size)).astype(np.float32) ** 2
    nearest = np.full((len(points), size, size), np.inf, dtype=np.float32)
    for x, y in squared.swapaxes(0, 1).swapaxes(1, 2):
        np.minimum(nearest, y[:, :, None] + x[:, None, :], out=nearest)
    cover = np.clip(pen.astype(np.float32)[:, None, None] + np.float32(0.5) - np.sqrt(nearest), 0, 1)
    return np.rint(cover * 255).astype(np.uint8)


@lru_cache(maxsize=8)
def drawings(split: str, classes: int, drawers: int, size: int, seed: int) -> NDArray[np.uint8]:
    hand = hands(seed, split, drawers)
    images = np.empty((classes, drawers, size, size), dtype=np.uint8)
    for k, index in enumerate(SPLITS[split][:classes]):
        strokes = character(seed, index)
        noise = Draws(seed, 1 << 42 | index).bell(drawers, len(STROKES) + 1, NOISES)
        extent = float(np.ptp(trace(strokes, np.zeros((1, len(strokes), NOISES)), 0.06)[0], axis=0).max())
        points = trace(strokes, noise * hand.loose[:, None, None], 0.6 * max(extent,1) / (PAPER * size))
        points = place(points, extent, hand, noise[:, -1])
        images[k] = ink(points * size - 0.5, hand.pen * size / 28, size)
    return images


def glyphs(split: str = "train", *, classes: int | None = None, drawers: int = 20, size: int = 28, seed: int = 0) -> LabelledImages:
    images = torch.tensor(drawings(split, classes or len(SPLITS[split]), drawers, size, seed))
    return LabelledImages(images.view(-1, 1, size, size), torch.arange(len(images)).repeat_interleave(drawers), (f"glyph{i:03}" for i in SPLITS[split]))
