"""Drawings of what a vision transformer does: distances of heads, norms of the stream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import COLOURS, MUTED, finish, layer_axis_width, layer_ticks, look_of, panels


def head_distances(
    layers: Sequence[str], distances: Sequence[np.ndarray], uniform: float
) -> Figure:
    """The mean distance of every head of every layer, beside that of uniform attention."""
    draw = partial(_draw_heads, layers=layers, distances=distances, uniform=uniform)
    return panels([draw], layer_axis_width(len(layers)))


def stream_ratios(
    branches: Sequence[str], class_token: Sequence[float], patches: Sequence[float]
) -> Figure:
    """Norm of the stream over norm of the branch, over depth, on a logarithmic scale."""
    draw = partial(_draw_ratios, branches=branches, class_token=class_token, patches=patches)
    return panels([draw], layer_axis_width(len(branches)))


def shortcut_ratios(blocks: Sequence[str], ratios: Sequence[float]) -> Figure:
    """Norm of the shortcut over norm of the branch, over depth, on a logarithmic scale."""
    draw = partial(_draw_shortcuts, blocks=blocks, ratios=ratios)
    return panels([draw], layer_axis_width(len(blocks)))


def _draw_heads(
    axes: Axes, layers: Sequence[str], distances: Sequence[np.ndarray], uniform: float
) -> None:
    for place, heads in enumerate(distances):
        at = np.full(len(heads), place)
        label = "a head" if place == 0 else None
        axes.scatter(at, np.sort(heads), s=22, color=COLOURS[0], alpha=0.8, label=label)
    axes.axhline(uniform, color=MUTED, ls="--", lw=1, label="uniform attention")
    layer_ticks(axes, layers)
    axes.set(title="How far each head looks", ylabel="mean distance, pixels")
    farthest = max(uniform, *(float(np.nanmax(heads)) for heads in distances))
    axes.set_ylim(0, 1.08 * farthest)
    finish(axes, 2)


def _draw_ratios(
    axes: Axes, branches: Sequence[str], class_token: Sequence[float], patches: Sequence[float]
) -> None:
    x = np.arange(len(branches))
    axes.plot(x, patches, **look_of(0), label="patches")
    if np.isfinite(class_token).any():
        axes.plot(x, class_token, **look_of(1), label="class token")
    axes.set_yscale("log")
    layer_ticks(axes, branches)
    axes.set(title="What the skip connections carry", ylabel="norm of stream / norm of branch")
    finish(axes, 2)


def _draw_shortcuts(axes: Axes, blocks: Sequence[str], ratios: Sequence[float]) -> None:
    axes.plot(np.arange(len(blocks)), ratios, **look_of(0), label="mean over images")
    axes.set_yscale("log")
    layer_ticks(axes, blocks)
    axes.set(title="What the shortcuts carry", ylabel="norm of shortcut / norm of branch")
    finish(axes, 1)
