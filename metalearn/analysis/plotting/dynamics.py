"""Drawings of how representations settle during training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalearn.analysis.plotting.measure_names import measure_name

from .style import MUTED, finish, panels


def convergences(
    steps: Sequence[int],
    layers: Sequence[str],
    values: np.ndarray,
    other: np.ndarray | None,
    measure: str,
) -> Figure:
    """Similarity to the end over steps, a line a layer from light (low) to dark (high)."""
    draw = partial(_draw, steps=steps, layers=layers, values=values, other=other, measure=measure)
    return panels([draw], 6.4)


def _draw(
    axes: Axes,
    steps: Sequence[int],
    layers: Sequence[str],
    values: np.ndarray,
    other: np.ndarray | None,
    measure: str,
) -> None:
    colours = matplotlib.colormaps["viridis_r"](np.linspace(0.1, 1, len(layers)))
    places = np.arange(len(steps))
    for name, row, colour in zip(layers, values, colours, strict=True):
        axes.plot(places, row, color=colour, marker="o", ms=3.5, label=name)
    if other is not None:
        label = "to another seed's end (mean)"
        axes.plot(places, np.nanmean(other, 0), color=MUTED, ls="--", label=label)
    axes.set_xticks(places, [f"{step:,}" for step in steps])
    axes.set(
        title="How layers near their end", xlabel="training step", ylabel=measure_name(measure)
    )
    axes.set_ylim(top=1.03)
    finish(axes, 3)
