"""Drawings of the first principal components of layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import finish, layer_axis_width, layer_ticks, look_of, panels


def component_shares(
    layers: Sequence[str],
    shares: Sequence[float],
    agreement: Sequence[float],
    carriers: Sequence[float],
) -> Figure:
    """Over depth: share of the variance, agreement with the next layer, share of images."""
    lines = {
        "share of the variance": shares,
        "cos² with the next layer": agreement,
        "share of images that carry it": carriers,
    }
    return panels([partial(_draw, layers=layers, lines=lines)], layer_axis_width(len(layers)))


def _draw(axes: Axes, layers: Sequence[str], lines: dict[str, Sequence[float]]) -> None:
    for place, (label, values) in enumerate(lines.items()):
        axes.plot(np.arange(len(layers)), values, **look_of(place), label=label)
    layer_ticks(axes, layers)
    axes.set(title="The first principal component of each layer", ylim=(-0.04, 1.05))
    finish(axes, 3)
