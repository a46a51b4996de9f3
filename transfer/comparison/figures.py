"""Pictures of a comparison of starts.

Each function returns a matplotlib `Figure`; starts differ in marker and line as well as colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.analysis import Estimate
from metalearn.analysis.plotting.measure_names import measure_name
from metalearn.analysis.plotting.style import GRID, INK, MUTED, STYLE
from transfer.comparison.tables import not_reached
from transfer.finetuning.figures import draw_majority, start_look
from transfer.finetuning.scores import words

from . import statistics

if TYPE_CHECKING:
    from transfer.finetuning.curve import Curve

    from .results import BaselineTest, ComparisonResult

SHOWN = 12  # strategies whose filters fit on a page


def learning_curves(comparison: ComparisonResult) -> Figure:
    """Mean test score over seeds against steps, its interval at the last, and the threshold."""
    return _single(_draw_curves, comparison, 7.6, 4.6)


def final_scores(comparison: ComparisonResult) -> Figure:
    """The final score of every seed, with mean and interval, by strategy."""
    return _single(_draw_finals, comparison, 6.2, _height(comparison))


def steps_to_threshold(comparison: ComparisonResult) -> Figure:
    """Steps to the threshold of every seed, by strategy; says where it was not reached."""
    return _single(_draw_steps, comparison, 6.2, _height(comparison))


def what_is_kept(comparison: ComparisonResult) -> Figure:
    """Similarity of every layer at the start and at the end, over the band of chance levels."""
    return _single(_draw_kept, comparison, 7.6, 4.6)


def filters(comparison: ComparisonResult) -> Figure | None:
    """First-layer filters of the first seed at the start and at the end.

    None if no network begins with a convolution.
    """
    banks: dict[str, Tensor] = {}
    for name in comparison.strategies:
        bank = comparison.of(name)[0].filters
        if bank is not None and len(banks) < SHOWN:
            banks[name] = bank  # (2, filters, channels, height, width)
    if not banks:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(9.2, 0.45 * len(banks) + 0.5), layout="constrained", facecolor="white"
        )
        grid = np.atleast_2d(figure.subplots(len(banks), 2))
        for (left, right), (name, bank) in zip(grid, banks.items(), strict=True):
            _draw_filters(left, bank[0])
            _draw_filters(right, bank[1])
            left.set_ylabel(name, rotation=0, ha="right", va="center")
        grid[0, 0].set_title("at the start", loc="left")
        grid[0, 1].set_title("after training", loc="left")
    return figure


def summary(comparison: ComparisonResult) -> Figure:
    """The four pictures together."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(14, 5 + _height(comparison)), layout="constrained", facecolor="white"
        )
        top, bottom = figure.subplots(2, 2)
        _draw_curves(top[0], comparison)
        _draw_kept(top[1], comparison)
        _draw_steps(bottom[0], comparison)
        _draw_finals(bottom[1], comparison)
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


def _height(comparison: ComparisonResult) -> float:
    return 1.5 + 0.36 * len(comparison.strategies)


def _draw_curves(axes: Axes, comparison: ComparisonResult) -> None:
    lowest = []
    for i, name in enumerate(comparison.strategies):
        curves = [run.curve for run in comparison.of(name)]
        steps = _all_steps(curves)
        values = np.array([_values_at(curve, steps) for curve in curves])  # (seeds, steps)
        mean = values.mean(0)
        lowest += list(mean[1:])
        axes.plot(steps, mean, **start_look(i), ms=4.5, lw=1.4, markevery=(i % 3, 3), label=name)
        if len(curves) > 1:
            last = Estimate(
                mean[-1], statistics.over_seeds(values[:, -1].tolist(), comparison.level).interval
            )
            # Bars stand side by side to the right of the last step.
            _draw_estimate(axes, i, last, x=steps[-1] * (1.012 + 0.012 * i))
    axes.axhline(comparison.threshold, color=MUTED, lw=1, ls=(0, (2, 2)))
    axes.annotate(
        f"{comparison.threshold:.3f}",
        (0, comparison.threshold),
        xytext=(3, 3),
        textcoords="offset points",
        color=MUTED,
        fontsize=8.5,
    )
    draw_majority(axes.axhline, comparison.majority)
    axes.set(
        title="Learning curves",
        xlabel="steps of fine-tuning",
        ylabel=f"{words(comparison.metric)} on test images, mean over seeds",
    )
    axes.set_ylim(bottom=max(0.0, min(lowest) - 0.02))
    _finish(axes, "y", columns=4, below=-0.2)


def _draw_estimate(axes: Axes, i: int, estimate: Estimate, x: float) -> None:
    look = start_look(i)
    axes.errorbar(
        x,
        estimate.mean,
        estimate.interval,
        fmt=look["marker"],
        color=look["color"],
        ms=4.5,
        capsize=2,
    )


def _draw_finals(axes: Axes, comparison: ComparisonResult) -> None:
    for i, row in enumerate(comparison.finals):
        _draw_seeds(axes, i, [run.curve.final for run in comparison.of(row.strategy)])
    _draw_rows(axes, comparison.finals)
    draw_majority(axes.axvline, comparison.majority)
    axes.set(
        title="Final score",
        xlabel=(
            f"{words(comparison.metric)} on test images; open: one seed, bar: interval of the mean"
        ),
    )


def _draw_steps(axes: Axes, comparison: ComparisonResult) -> None:
    for i, row in enumerate(comparison.steps):
        curves = [run.curve for run in comparison.of(row.strategy)]
        steps = [curve.steps_to(comparison.threshold) for curve in curves]
        _draw_seeds(axes, i, [value for value in steps if value is not None])
    _draw_rows(axes, comparison.steps)
    axes.set(
        title=f"Steps to {comparison.threshold:.3f}",
        xlabel="steps of fine-tuning; open: one seed, bar: interval of the mean",
    )
    axes.set_xlim(left=0)


def _draw_seeds(axes: Axes, i: int, values: list[float]) -> None:
    """An open mark for each seed, in row `i`."""
    look = start_look(i)
    axes.plot(
        values,
        [i] * len(values),
        ls="",
        marker=look["marker"],
        ms=5,
        mfc="none",
        mec=look["color"],
        alpha=0.75,
    )


def _draw_rows(axes: Axes, rows: Sequence[BaselineTest]) -> None:
    """The mean of each row with its interval, or that the threshold is not reached."""
    for i, row in enumerate(rows):
        if row.estimate is None:
            _write(axes, i, not_reached(row))
            continue
        look = start_look(i)
        half_width = row.estimate.interval
        axes.errorbar(
            row.estimate.mean,
            i,
            xerr=None if math.isnan(half_width) else half_width,
            fmt=look["marker"],
            color=look["color"],
            ms=7,
            capsize=3,
            lw=1.6,
        )
    axes.set_yticks(range(len(rows)), [row.strategy for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    axes.grid(axis="x", color=GRID, lw=0.8)
    axes.tick_params(length=0)


def _write(axes: Axes, i: int, text: str) -> None:
    """Text at the right end of row `i`."""
    axes.annotate(
        text,
        (0.99, i),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="center",
        color=MUTED,
        fontsize=8.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )


def _draw_kept(axes: Axes, comparison: ComparisonResult) -> None:
    kept = {name: comparison.kept(name) for name in comparison.strategies}
    layers = list(kept[comparison.strategies[0]])
    # A start with a network of its own has other layers.
    kept = {name: rows for name, rows in kept.items() if list(rows) == layers}
    x = np.arange(len(layers))
    axes.fill_between(
        x,
        0,
        [max(rows[layer][1] for rows in kept.values()) for layer in layers],
        facecolor="#c3cad3",
        edgecolor="#9aa4af",
        lw=0.6,
        step="mid",
        alpha=0.9,
        label="by chance (95 %)",
    )
    for name, rows in kept.items():
        i = comparison.strategies.index(name)
        shift = 0.05 * (i - (len(kept) - 1) / 2)  # marks of different starts stand side by side
        axes.errorbar(
            x + shift,
            [rows[layer][0].mean for layer in layers],
            [rows[layer][0].interval for layer in layers],
            **start_look(i),
            ms=5.5,
            lw=1.3,
            capsize=2,
            elinewidth=0.8,
            label=name,
        )
    crowded = sum(map(len, layers)) > 42
    axes.set_xticks(
        x,
        layers,
        rotation=40 if crowded else 0,
        ha="right" if crowded else "center",
        rotation_mode="anchor",
    )
    axes.set(
        title="What each layer keeps of its start",
        ylabel=f"{measure_name(comparison.measure)} of start and end",
        ylim=(-0.02, 1.04),
    )
    _finish(axes, "y", columns=4, below=-0.3 if crowded else -0.12)


def _draw_filters(axes: Axes, bank: Tensor) -> None:
    """The filters (filters, channels, height, width) side by side."""
    count, channels, height, width = bank.shape
    values = bank.float().numpy().transpose(0, 2, 3, 1)  # (filters, height, width, channels)
    if channels != 3:
        values = values.mean(-1, keepdims=True).repeat(3, -1)  # grey
    # Each filter is scaled by its own largest weight, and zero is grey.
    largest = np.abs(values).max((1, 2, 3), keepdims=True)
    tiles = 0.5 + 0.5 * values / np.where(largest > 0, largest, 1)
    row = np.ones((height, count * (width + 1) - 1, 3))
    for i, tile in enumerate(tiles):
        left = i * (width + 1)  # a white column between two filters
        row[:, left : left + width] = tile
    axes.imshow(row, interpolation="nearest", aspect="equal")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _all_steps(curves: Sequence[Curve]) -> list[int]:
    """The steps at which any curve was evaluated."""
    steps: set[int] = set()
    for curve in curves:
        steps |= set(curve.steps)
    return sorted(steps)


def _values_at(curve: Curve, steps: Sequence[int]) -> list[float]:
    """The values at these steps; a curve that stopped early keeps its best value."""
    known = dict(zip(curve.steps, curve.values, strict=True))
    return [known.get(step, curve.final) for step in steps]


def _finish(axes: Axes, grid: str, *, columns: int, below: float) -> None:
    axes.grid(axis=grid, color=GRID, lw=0.8)  # type: ignore[arg-type]
    axes.tick_params(length=0, colors=INK)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, below), ncols=columns, borderaxespad=0.2)
