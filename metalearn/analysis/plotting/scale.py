"""Drawings of similarity over depth for several amounts of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalearn.analysis.plotting.measure_names import measure_name

from .style import finish, layer_axis_width, layer_ticks, look_of, panels


def similarity_over_depth(
    layers: Sequence[str], lines: Mapping[str, Sequence[float]], measure: str
) -> Figure:
    """A line for each share of the data, over layers."""
    draw = partial(_draw, layers=layers, lines=lines, measure=measure)
    return panels([draw], layer_axis_width(len(layers)))


def _draw(
    axes: Axes, layers: Sequence[str], lines: Mapping[str, Sequence[float]], measure: str
) -> None:
    for place, (label, values) in enumerate(lines.items()):
        axes.plot(np.arange(len(layers)), values, **look_of(place), label=label)
    layer_ticks(axes, layers)
    axes.set(title="Similarity to the network of all data", ylabel=measure_name(measure))
    axes.set_ylim(top=1.03)
    finish(axes, 3)
