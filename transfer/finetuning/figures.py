"""The picture of one fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from metalearn.analysis.plotting.style import COLOURS, GRID, INK, LINES, MARKERS, MUTED, STYLE
from transfer.finetuning.scores import words


def training_curve(
    steps: Sequence[int],
    values: Sequence[float],
    losses: Sequence[float],
    *,
    metric: str,
    majority: float,
) -> Figure:
    """Draw the score and the loss of one fine-tuning.

    Args:
        steps: of the evaluations.
        values: (steps,) the score at each of them.
        losses: of every step of training.
        metric: the name of the score.
        majority: the score of the most frequent class; NaN draws none.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.6), layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2)
        left.plot(steps, values, **start_look(0), ms=4.5, lw=1.4)
        draw_majority(left.axhline, majority)
        left.set(title=words(metric), xlabel="steps of fine-tuning", ylabel="on test images")
        right.plot(range(1, len(losses) + 1), losses, color=INK, lw=0.9)
        right.set(title="Loss", xlabel="steps of fine-tuning", ylabel="of the batch")
        for axes in (left, right):
            axes.grid(axis="y", color=GRID, lw=0.8)
            axes.tick_params(length=0, colors=INK)
    return figure


START_COLOURS = (*COLOURS, "#1c2733", "#a8791b", "#3aa0b5")
START_MARKERS = (*MARKERS, "X", "*", "h")


def start_look(i: int) -> dict[str, Any]:
    """Colour, marker and line of the i-th start; no two of the first 40 are alike."""
    round_number = i // len(START_COLOURS)
    return {
        "color": START_COLOURS[i % len(START_COLOURS)],
        # A colour that comes again has another marker.
        "marker": START_MARKERS[(i + round_number) % len(START_MARKERS)],
        "ls": LINES[i % len(LINES)],
    }


def draw_majority(line: Callable[..., Any], score: float) -> None:
    """A line at the score of always predicting the most frequent class."""
    if not math.isnan(score):
        line(score, color=MUTED, lw=1, label="majority class")
