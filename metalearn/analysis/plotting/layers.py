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

from .style import chance_band, finish, layer_ticks, look_of, mark, panels


class Chance(Protocol):
    """What unrelated features score: the median and the 95 % quantile."""

    @property
    def median(self) -> float: ...

    @property
    def upper(self) -> float: ...


@dataclass(frozen=True)
class FrozenCurve:
    """A score with the layers frozen from the bottom up: first with none, then up to each of
    `layers`.

    Attributes:
        label: what the legend calls it.
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
    """The similarity of every layer of two networks, with the band of chance; a layer without one
    is not drawn.
    """
    return panels(
        [partial(_draw_similarities, layers=layers, values=values, chance=chance, measure=measure)],
        width_for(layers),
    )


def probe_accuracies(
    layers: Sequence[str], means: Sequence[float], intervals: Sequence[float], chance: float
) -> Figure:
    """The accuracy of a linear probe on every layer, with its interval, and chance."""
    return panels(
        [partial(_draw_probes, layers=layers, means=means, intervals=intervals, chance=chance)],
        width_for(layers),
    )


def frozen_accuracies(curve: FrozenCurve) -> Figure:
    """One score with the layers frozen from the bottom up."""
    return panels([partial(draw_frozen, curves=[curve])], width_for([*curve.layers, "none"]))


def width_for(layers: Sequence[str]) -> float:
    """Inches that a picture of so many layers needs."""
    return max(5.6, 0.36 * len(layers) + 1.5)


def draw_frozen(axes: Axes, curves: Sequence[FrozenCurve]) -> None:
    """The curves into one panel; those of other layers than the first are left out."""
    first = curves[0]
    percent = first.measure == "accuracy"
    factor = SCALES[first.measure].factor
    axes.set(
        title=f"{first.measure.capitalize()} with layers frozen",
        ylabel="accuracy, %" if percent else "loss",
    )
    ends: list[float] = []
    for curve in curves:
        if list(curve.layers) != list(first.layers):
            continue
        means = factor * np.array(curve.means)
        widths = factor * np.array(curve.intervals)
        x = np.arange(len(means))
        axes.fill_between(
            x, means - widths, means + widths, color=curve.look["color"], alpha=0.12, lw=0
        )
        axes.plot(x, means, **curve.look, label=curve.label)
        ends.extend(means - np.nan_to_num(widths))
        ends.extend(means + np.nan_to_num(widths))
    layer_ticks(axes, ["none", *first.layers])
    low, high = min(ends), max(ends)
    # On a narrower axis noise would look like a fall.
    room = max(0.15 * (high - low), 2.0 if percent else 0.1 * abs(high))
    top = min(high + room, 101) if percent else high + room
    axes.set(xlabel="frozen up to this layer", ylim=(max(low - 2 * room, 0), top))
    finish(axes, 2)


def _draw_similarities(
    axes: Axes,
    layers: Sequence[str],
    values: Sequence[float],
    chance: Sequence[Chance],
    measure: str,
) -> None:
    x = np.arange(len(layers))
    chance_band(axes, x, chance, "by chance", colour="#c3cad3")
    axes.plot(x, values, **look_of(0), label=measure)
    layer_ticks(axes, layers)
    bottom = float(np.nanmin(np.append(values, 0)))
    axes.set(
        title="How similar each layer is", ylabel="similarity", ylim=(max(bottom, -1) - 0.04, 1.05)
    )
    axes.set_xlim(-0.5, len(x) - 0.5)
    finish(axes, 2)


def _draw_probes(
    axes: Axes,
    layers: Sequence[str],
    means: Sequence[float],
    intervals: Sequence[float],
    chance: float,
) -> None:
    x = np.arange(len(layers))
    axes.errorbar(
        x,
        100 * np.array(means),
        100 * np.array(intervals),
        **look_of(0),
        capsize=3,
        label="linear probe",
    )
    mark(axes, 100 * chance, "chance")
    layer_ticks(axes, layers)
    axes.set(
        title="What a linear readout of each layer knows",
        ylabel="accuracy, %",
        xlim=(-0.5, len(layers) - 0.5),
    )
    finish(axes, 1)
