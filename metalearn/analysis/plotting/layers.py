"""Drawings of one value a layer: similarities, probes, and accuracies with layers frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalearn.analysis.scales import SCALES

from .style import chance_band, finish, layer_axis_width, layer_ticks, look_of, mark, panels


class Chance(Protocol):
    """What unrelated features score: the median and the 95 % quantile."""

    @property
    def median(self) -> float:
        """The median."""
        ...

    @property
    def upper(self) -> float:
        """The 95 % quantile."""
        ...


@dataclass(frozen=True)
class FrozenCurve:
    """A score with the layers frozen from the bottom up: first none, then up to each of `layers`.

    Attributes:
        label: its name in the legend.
        layers: the layers, from the bottom.
        means: (1 + layers,) scores.
        intervals: (1 + layers,) half-widths of their 95 % intervals.
        measure: "accuracy" or "loss".
        look: colour, marker and line, as matplotlib's `plot` takes them.
    """

    label: str
    layers: Sequence[str]
    means: Sequence[float]
    intervals: Sequence[float]
    measure: str
    look: Mapping[str, Any]


def similarities(
    layers: Sequence[str], values: Sequence[float], chance: Sequence[Chance], measure: str
) -> Figure:
    """The similarity of every layer of two networks, with the band of chance.

    A layer whose value is NaN has no point.
    """
    draw = partial(_draw_similarities, layers=layers, values=values, chance=chance, measure=measure)
    return panels([draw], layer_axis_width(len(layers)))


def probe_accuracies(
    layers: Sequence[str], means: Sequence[float], intervals: Sequence[float], chance: float
) -> Figure:
    """The accuracy of a linear probe on every layer, with its interval, and chance."""
    draw = partial(_draw_probes, layers=layers, means=means, intervals=intervals, chance=chance)
    return panels([draw], layer_axis_width(len(layers)))


def frozen_accuracies(curve: FrozenCurve) -> Figure:
    """One score with the layers frozen from the bottom up."""
    ticks = 1 + len(curve.layers)  # "none" comes first
    return panels([partial(draw_frozen, curves=[curve])], layer_axis_width(ticks))


def draw_frozen(axes: Axes, curves: Sequence[FrozenCurve]) -> None:
    """Draw the curves that have the layers of the first one into one panel."""
    first = curves[0]
    scale = SCALES[first.measure]
    ends: list[float] = []
    for curve in curves:
        if list(curve.layers) != list(first.layers):
            continue
        # (1 + layers,), in percent or as losses
        means = scale.factor * np.array(curve.means)
        widths = scale.factor * np.array(curve.intervals)
        x = np.arange(len(means))
        colour = curve.look["color"]
        axes.fill_between(x, means - widths, means + widths, color=colour, alpha=0.12, lw=0)
        axes.plot(x, means, **curve.look, label=curve.label)
        # One task has no interval (NaN), and no band.
        ends.extend(means - np.nan_to_num(widths))
        ends.extend(means + np.nan_to_num(widths))
    layer_ticks(axes, ["none", *first.layers])
    axes.set(
        title=f"{first.measure.capitalize()} with layers frozen",
        xlabel="frozen up to this layer",
        ylabel=scale.axis,
        ylim=_frozen_limits(min(ends), max(ends), first.measure),
    )
    finish(axes, 2)


def _frozen_limits(low: float, high: float, measure: str) -> tuple[float, float]:
    """The ends of the vertical axis; on a narrower one, noise would look like a fall."""
    if measure == "accuracy":
        room = max(0.15 * (high - low), 2.0)
        return max(low - 2 * room, 0), min(high + room, 101)
    room = max(0.15 * (high - low), 0.1 * abs(high))
    return max(low - 2 * room, 0), high + room


def _draw_similarities(
    axes: Axes,
    layers: Sequence[str],
    values: Sequence[float],
    chance: Sequence[Chance],
    measure: str,
) -> None:
    x = np.arange(len(layers))
    chance_band(axes, x, chance, "by chance")
    axes.plot(x, values, **look_of(0), label=measure)
    layer_ticks(axes, layers)
    # The axis begins at 0, or below if a value is negative.
    bottom = float(np.nanmin(np.append(values, 0)))
    axes.set(
        title="How similar each layer is",
        ylabel="similarity",
        xlim=(-0.5, len(x) - 0.5),
        ylim=(max(bottom, -1) - 0.04, 1.05),
    )
    finish(axes, 2)


def _draw_probes(
    axes: Axes,
    layers: Sequence[str],
    means: Sequence[float],
    intervals: Sequence[float],
    chance: float,
) -> None:
    x = np.arange(len(layers))
    percent = 100 * np.array(means)
    widths = 100 * np.array(intervals)
    axes.errorbar(x, percent, widths, **look_of(0), capsize=3, label="linear probe")
    mark(axes, 100 * chance, "chance")
    layer_ticks(axes, layers)
    axes.set(
        title="What a linear readout of each layer knows",
        ylabel="accuracy, %",
        xlim=(-0.5, len(layers) - 0.5),
    )
    finish(axes, 1)
