"""The style of every picture, and how a figure is written to a file."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from metalearn.runtime.files import write_atomically

INK = "#1c2733"
MUTED = "#66717d"
GRID = "#dfe4ea"
BAND = "#c3cad3"

# Curves differ in all three, to be told apart in grey too.
COLOURS = ("#12467f", "#d1711c", "#2f8f6b", "#8f4a9c", "#b8304a", "#6b7280")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))

# Options of `Axes.annotate` for a text to the right of the panel, at a height of its data.
AT_RIGHT: Any = {
    "xycoords": ("axes fraction", "data"),
    "textcoords": "offset points",
    "va": "center",
}

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "metalearn",
}


def save(figure: Figure, path: str | PathLike[str]) -> None:
    """Write a figure, whole or not at all; the ending of `path` is its format.

    Raises:
        ValueError: matplotlib does not write files of this ending.
    """
    write_atomically(path, rendered(figure, check_picture(path)))


def check_picture(path: str | PathLike[str]) -> str:
    """The format of a picture by the ending of its name, to be checked before the work.

    Raises:
        ValueError: matplotlib does not write files of this ending.
    """
    kind = Path(fspath(path)).suffix.lstrip(".").lower()
    if kind not in Figure().canvas.get_supported_filetypes():
        raise ValueError(
            f"{fspath(path)!r} does not end in a kind of picture; use .png, .svg or .pdf"
        )
    return kind


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a file; the same figure gives the same bytes."""
    # The date of writing would make them differ.
    stamp: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=150, metadata=stamp or None)
    return buffer.getvalue()


def panels(
    draws: Sequence[Callable[[Axes], None]],
    width: float,
    *,
    height: float = 4.2,
    share: bool = False,
) -> Figure:
    """A figure with one panel for each drawing, at most three in a row.

    Args:
        draws: functions that draw into an `Axes`.
        width: of the figure, in inches.
        height: of one row of panels, in inches.
        share: whether the panels share their vertical axis.
    """
    columns = min(len(draws), 3)
    rows = -(-len(draws) // columns)  # rounded up
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height * rows), layout="constrained", facecolor="white")
        places = figure.subplots(rows, columns, squeeze=False, sharey=share).flatten()
        for axes, draw in zip(places, draws, strict=False):
            draw(axes)
        for axes in places[len(draws) :]:
            axes.remove()
    return figure


def look_of(i: int) -> dict[str, Any]:
    """Colour, marker and line of the i-th curve, as `Axes.plot` takes them."""
    return {"color": COLOURS[i % 6], "marker": MARKERS[i % 6], "ls": LINES[i % 6], "ms": 6.5}


def beside(x: np.ndarray, i: int, count: int) -> np.ndarray:
    """The places (layers,) of the i-th of `count` curves, a little apart from each other."""
    return x + 0.06 * (i - (count - 1) / 2)


def mark(axes: Axes, y: float, text: str) -> None:
    """A dotted line across, with its name at the right."""
    axes.axhline(y, color=MUTED, lw=1, ls=(0, (2, 2)))
    axes.annotate(text, (1, y), xytext=(3, 0), **AT_RIGHT, color=MUTED, fontsize=8.5)


def chance_band(
    axes: Axes,
    x: np.ndarray,
    levels: Sequence[Any],
    label: str,
    *,
    colour: str = BAND,
    hatch: str = "",
) -> None:
    """A band at each of `x` (layers,), up to the 95 % quantile of what unrelated features score.

    Args:
        axes: the panel.
        x: (layers,) the places of the layers.
        levels: one a layer, with a `median` and an `upper`; NaN draws no band.
        label: the name in the legend.
        colour: of the band.
        hatch: of the band, as matplotlib writes it.
    """
    # A median below zero lowers the band; `minimum` lets NaN through.
    low = np.minimum([level.median for level in levels], 0)
    high = np.array([level.upper for level in levels])
    axes.fill_between(
        x,
        low,
        high,
        facecolor=colour,
        hatch=hatch,
        edgecolor="#9aa4af",
        lw=0.6,
        label=label,
        step="mid",
        alpha=0.9,
    )


def layer_ticks(axes: Axes, names: Sequence[str]) -> None:
    """The names of the layers below the axis, turned if they would touch."""
    # The end of a long name tells layers apart.
    shown = [name if len(name) <= 20 else f"…{name[-19:]}" for name in names]
    turned: Any = {"rotation": 40, "ha": "right"}
    if sum(map(len, shown)) <= 42:
        turned = {"rotation": 0, "ha": "center"}
    axes.set_xticks(range(len(shown)), shown, **turned, rotation_mode="anchor")


def layer_axis_width(layers: int) -> float:
    """The width of a panel with this many layers side by side, in inches."""
    return max(5.6, 0.36 * layers + 1.5)


def say(axes: Axes, text: str) -> None:
    """A text in the middle of an empty panel."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.set(xticks=[], yticks=[])


def finish(axes: Axes, columns: int) -> None:
    """Horizontal grid lines, no ticks, and a legend of so many columns below the labels."""
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.tick_params(length=0)
    turned = [len(label.get_text()) for label in axes.get_xticklabels() if label.get_rotation()]
    below = 0.55 if axes.get_xlabel() else 0.4  # inches
    below += 0.051 * max(turned, default=0)  # the height of a letter turned by 40 degrees
    # (0, 0) is the lower left corner of the panel, moved down by so many inches.
    place = axes.transAxes + ScaledTranslation(0, -below, axes.figure.dpi_scale_trans)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=place,
        ncols=columns,
        borderaxespad=0.2,
    )
