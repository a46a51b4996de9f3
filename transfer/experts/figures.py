"""Drawings of predicted disagreement and of the division of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalearn.analysis.plotting.style import (
    MUTED,
    beside,
    finish,
    layer_axis_width,
    layer_ticks,
    look_of,
    mark,
    panels,
)
from metalearn.runtime.statistics import Interval

WAYS = ("direct", "via")
WAY_NAMES = {"direct": "direct", "via": "via the votes"}


def layer_contests(
    layers: Sequence[str], scores: Mapping[str, Mapping[str, Sequence[Interval]]]
) -> Figure:
    """Scores of every layer, predicted directly and via the votes.

    Args:
        layers: their names.
        scores: {title: {"direct" or "via": a score for each layer}}.
    """
    draws = [
        partial(_draw_contests, layers=layers, title=title, ways=ways)
        for title, ways in scores.items()
    ]
    return panels(draws, 2 * layer_axis_width(len(layers)))


def _draw_contests(
    axes: Axes, layers: Sequence[str], title: str, ways: Mapping[str, Sequence[Interval]]
) -> None:
    x = np.arange(len(layers))
    for i, way in enumerate(WAYS):
        values = ways[way]
        middle = np.array([value.value for value in values])
        ends = np.array([(value.low, value.high) for value in values]).T  # (2, layers)
        # A value may lie outside its interval by rounding.
        bars = np.maximum(np.abs(ends - middle), 0)
        axes.errorbar(
            beside(x, i, len(WAYS)),
            middle,
            None if np.isnan(bars).any() else bars,
            **look_of(i),
            lw=1.3,
            capsize=2,
            elinewidth=0.8,
            label=WAY_NAMES[way],
        )
    layer_ticks(axes, layers)
    axes.set(title=title)
    if "AUC" in title:
        mark(axes, 0.5, "no order")
    finish(axes, len(WAYS))


def triage_curves(
    shares: np.ndarray, curves: Mapping[str, np.ndarray], chosen: tuple[float, float], items: int
) -> Figure:
    """The mean loss against the share that is automated, a line for each ranking.

    Args:
        shares: (points,) shares that are automated.
        curves: {ranking: (points,) total losses}.
        chosen: share and total loss of the plan.
        items: how many items there are.
    """

    def draw(axes: Axes) -> None:
        for i, (name, totals) in enumerate(curves.items()):
            look = look_of(i)
            axes.plot(shares, totals / items, color=look["color"], ls=look["ls"], label=name)
        share, total = chosen
        axes.plot([share], [total / items], marker="o", ms=8, mfc="none", mec=MUTED, ls="")
        axes.annotate(
            "plan",
            (share, total / items),
            xytext=(6, -12),
            textcoords="offset points",
            color=MUTED,
            fontsize=8.5,
        )
        axes.set(
            title="Who decides", xlabel="share decided by the algorithm", ylabel="mean loss an item"
        )
        axes.set_ylim(bottom=0)
        finish(axes, 2)  # long names, one below the other

    return panels([draw], 6.4, height=5.2)
