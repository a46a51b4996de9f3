"""Pictures of a comparison of starts.

Each function returns a matplotlib `Figure`; starts differ in marker and line as well as colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.analysis.plotting.style import GRID, INK, MUTED, STYLE
from transfer.finetuning.figures import draw_majority, start_look
from transfer.finetuning.scores import words

from . import statistics

if TYPE_CHECKING:
    from .results import BaselineTest, ComparisonResult

SHOWN = 12  # strategies whose filters fit on a page


def learning_curves(comparison: ComparisonResult) -> Figure:
    """Mean test score over seeds against steps, its interval at the last, and the threshold."""
    return _single(_draw_curves, comparison, 7.6, 4.6)


def final_scores(comparison: ComparisonResult) -> Figure:
    """The final score of every seed, with mean and interval, by strategy."""
    return _single(_draw_finals, comparison, 6.2, _tall(comparison))


def steps_to_threshold(comparison: ComparisonResult) -> Figure:
    """Steps to the threshold of every seed, by strategy; says where it was not reached."""
    return _single(_draw_steps, comparison, 6.2, _tall(comparison))


def what_is_kept(comparison: ComparisonResult) -> Figure:
    """Similarity of every layer at the start and at the end, over the band of what shuffled images
    score.
    """
    return _single(_draw_kept, comparison, 7.6, 4.6)


def filters(comparison: ComparisonResult) -> Figure | None:
    """First-layer filters of the first seed at the start and at the end; None where no network
    begins with a convolution.
    """
    shown = [
        (name, run.filters)
        for name in comparison.strategies
        if (run := comparison.of(name)[0]).filters is not None
    ][:SHOWN]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(9.2, 0.45 * len(shown) + 0.5), layout="constrained", facecolor="white"
        )
        grid = np.atleast_2d(figure.subplots(len(shown), 2))
        for i, (name, both) in enumerate(shown):
            for axes, bank, title in zip(
                grid[i], both, ("at the start", "after training"), strict=True
            ):  # type: ignore[arg-type]
                _draw_filters(axes, bank)
                axes.set_title(title if i == 0 else "", loc="left")
            grid[i, 0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def summary(comparison: ComparisonResult) -> Figure:
    """The four pictures together."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(14, 5 + _tall(comparison)), layout="constrained", facecolor="white"
        )
        drawn: list[Callable[[Axes, ComparisonResult], None]] = [
            _draw_curves,
            _draw_kept,
            _draw_steps,
            _draw_finals,
        ]
        for axes, draw in zip(figure.subplots(2, 2).flat, drawn, strict=True):
            draw(axes, comparison)
    return figure


def _single(
    draw: Callable[[Axes, ComparisonResult], None],
    comparison: ComparisonResult,
    width: float,
    height: float,
) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        draw(figure.subplots(), comparison)
    return figure


def _tall(comparison: ComparisonResult) -> float:
    return 1.5 + 0.36 * len(comparison.strategies)


def _draw_curves(axes: Axes, comparison: ComparisonResult) -> None:
    lowest = []
    for i, name in enumerate(comparison.strategies):
        curves = [run.curve for run in comparison.of(name)]
        steps = sorted({step for curve in curves for step in curve.steps})
        values = np.array([_held(curve.steps, curve.values, curve.best, steps) for curve in curves])
        mean = values.mean(0)
        lowest += list(mean[1:])
        axes.plot(steps, mean, **start_look(i), ms=4.5, lw=1.4, markevery=(i % 3, 3), label=name)
        if len(curves) > 1:
            half, style = (
                statistics.over_seeds(values[:, -1].tolist(), comparison.level).interval,
                start_look(i),
            )
            axes.errorbar(
                steps[-1] * (1.012 + 0.012 * i),
                mean[-1],
                half,
                fmt=style["marker"],
                color=style["color"],
                ms=4.5,
                capsize=2,
            )
    axes.axhline(comparison.threshold, color=MUTED, lw=1, ls=(0, (2, 2)))
    where: dict[str, Any] = {
        "xytext": (3, 3),
        "textcoords": "offset points",
        "color": MUTED,
        "fontsize": 8.5,
    }
    axes.annotate(f"{comparison.threshold:.3f}", (0, comparison.threshold), **where)
    draw_majority(axes.axhline, comparison.majority)
    axes.set(
        title="Learning curves",
        xlabel="steps of fine-tuning",
        ylabel=f"{words(comparison.metric)} on test images, mean over seeds",
    )
    axes.set_ylim(bottom=max(0.0, min(lowest) - 0.02))
    _finish(axes, "y", columns=4, below=-0.2)


def _draw_finals(axes: Axes, comparison: ComparisonResult) -> None:
    values = {
        name: [run.curve.final for run in comparison.of(name)] for name in comparison.strategies
    }
    _dots(axes, values, comparison.finals)
    draw_majority(axes.axvline, comparison.majority)
    axes.set(
        title="Final score",
        xlabel=(
            f"{words(comparison.metric)} on test images; open: one seed, bar: interval of the mean"
        ),
    )


def _draw_steps(axes: Axes, comparison: ComparisonResult) -> None:
    values = {
        name: [run.curve.steps_to(comparison.threshold) for run in comparison.of(name)]
        for name in comparison.strategies
    }
    _dots(axes, values, comparison.steps)
    axes.set(
        title=f"Steps to {comparison.threshold:.3f}",
        xlabel="steps of fine-tuning; open: one seed, bar: interval of the mean",
    )
    axes.set_xlim(left=0)


def _dots(axes: Axes, values: dict[str, list[Any]], rows: Sequence[BaselineTest]) -> None:
    for i, row in enumerate(rows):
        known = [value for value in values[row.strategy] if value is not None]
        style = start_look(i)
        axes.plot(
            known,
            [i] * len(known),
            ls="",
            marker=style["marker"],
            ms=5,
            mfc="none",
            mec=style["color"],
            alpha=0.75,
        )
        if row.estimate is not None:
            half = row.estimate.interval
            bar = None if math.isnan(half) else half
            axes.errorbar(
                row.estimate.mean,
                i,
                xerr=bar,
                fmt=style["marker"],
                color=style["color"],
                ms=7,
                capsize=3,
                lw=1.6,
            )
        else:
            text, box = (
                f"not reached by {row.seeds - row.reached} of {row.seeds}",
                {
                    "facecolor": "white",
                    "edgecolor": "none",
                    "pad": 1.5,
                },
            )
            axes.annotate(
                text,
                (0.99, i),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
                color=MUTED,
                fontsize=8.5,
                bbox=box,
            )
    axes.set_yticks(range(len(rows)), [row.strategy for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", color=GRID, lw=0.8)
    axes.tick_params(length=0)


def _draw_kept(axes: Axes, comparison: ComparisonResult) -> None:
    names = list(comparison.kept(comparison.strategies[0]))
    same = [name for name in comparison.strategies if list(comparison.kept(name)) == names]
    x = np.arange(len(names))
    floor = np.array([max(comparison.kept(name)[layer][1] for name in same) for layer in names])
    axes.fill_between(
        x,
        0,
        floor,
        facecolor="#c3cad3",
        edgecolor="#9aa4af",
        lw=0.6,
        step="mid",
        alpha=0.9,
        label="by chance (95 %)",
    )
    for name in same:
        i = comparison.strategies.index(name)
        means, halves = np.array([comparison.kept(name)[layer][0] for layer in names]).T
        shift = 0.05 * (i - (len(same) - 1) / 2)
        axes.errorbar(
            x + shift,
            means,
            halves,
            **start_look(i),
            ms=5.5,
            lw=1.3,
            capsize=2,
            elinewidth=0.8,
            label=name,
        )
    crowded = sum(map(len, names)) > 42
    axes.set_xticks(
        x,
        names,
        rotation=40 if crowded else 0,
        ha="right" if crowded else "center",
        rotation_mode="anchor",
    )
    measure = comparison.measure.removeprefix("linear_").upper()
    axes.set(
        title="What each layer keeps of its start",
        ylabel=f"{measure} of start and end",
        ylim=(-0.02, 1.04),
    )
    _finish(axes, "y", columns=4, below=-0.3 if crowded else -0.12)


def _draw_filters(axes: Axes, bank: Tensor) -> None:
    count, channels, height, width = bank.shape
    values = bank.float().numpy().transpose(0, 2, 3, 1)
    values = values if channels == 3 else values.mean(-1, keepdims=True).repeat(3, -1)
    most = np.abs(values).max((1, 2, 3), keepdims=True)
    tiles = 0.5 + 0.5 * values / np.where(most > 0, most, 1)
    row = np.ones((height, count * (width + 1) - 1, 3))
    for i, tile in enumerate(tiles):
        row[:, i * (width + 1) : i * (width + 1) + width] = tile
    axes.imshow(row, interpolation="nearest", aspect="equal")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _held(
    steps: Sequence[int], values: Sequence[float], best: int, wanted: Sequence[int]
) -> list[float]:
    """The values at the wanted steps; a curve that stopped early holds what it went back to."""
    known = dict(zip(steps, values, strict=True))
    return [known.get(step, values[best]) for step in wanted]


def _finish(axes: Axes, grid: str, *, columns: int, below: float) -> None:
    axes.grid(axis=grid, color=GRID, lw=0.8)  # type: ignore[arg-type]
    axes.tick_params(length=0, colors=INK)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, below), ncols=columns, borderaxespad=0.2)
