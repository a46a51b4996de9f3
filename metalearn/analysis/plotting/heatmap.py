"""A matrix of similarities as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure

from metalearn.analysis.plotting.style import INK, MUTED, STYLE

# The largest matrix whose values are written into its cells.
MOST_LABELLED = 8


def heatmap(
    values: np.ndarray,
    layers: tuple[Sequence[str], Sequence[str]],
    networks: tuple[str, str],
    chance: float,
) -> Figure:
    """Every layer of one network (upwards) against every layer of another (to the right).

    Darker is more similar; a hatched cell has no value. The scale is 0 to 1 in every picture, to
    make pictures comparable. The 95 % quantile of chance is marked on it.

    Args:
        values: (layers of a, layers of b) similarities.
        layers: the names of the layers of a and of b.
        networks: the names of a and b.
        chance: the 95 % quantile of chance; 0 or less is not marked.
    """
    rows, columns = values.shape
    # All lengths are in inches.
    cell = max(0.19, 2.6 / max(rows, columns))
    font = 9 if cell > 0.3 else 7.5
    left, below = (0.5 + 0.0085 * font * max(map(len, names)) for names in layers)
    wide = cell * columns
    high = cell * rows
    bar_height = max(high, 2.0)
    page = (left + wide + 1.4, below + bar_height + 0.15)

    def place(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        """A rectangle as fractions of the page."""
        return x / page[0], y / page[1], width / page[0], height / page[1]

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=page, facecolor="white")
        axes = figure.add_axes(place(left, below, wide, high))
        # Seen where the image is transparent: at NaN.
        axes.patch.set(hatch="////", edgecolor=MUTED)
        image = axes.imshow(
            values,
            cmap="magma_r",
            vmin=0,
            vmax=1,
            origin="lower",
            interpolation="nearest",
            aspect="auto",
        )
        axes.set_xticks(range(columns), layers[1], rotation=90, fontsize=font)
        axes.set_yticks(range(rows), layers[0], fontsize=font)
        axes.tick_params(length=0)
        axes.set(xlabel=f"layers of b ({networks[1]})", ylabel=f"layers of a ({networks[0]})")
        if max(rows, columns) <= MOST_LABELLED:
            _write_values(axes, values)
        # The scale stands to the right of the matrix, and is at least 2 inches high.
        bar_axes = figure.add_axes(place(left + wide + 0.55, below, 0.16, bar_height))
        bar = figure.colorbar(image, cax=bar_axes, label="debiased minibatch CKA")
        bar.ax.tick_params(length=0)
        if chance > 0:
            _mark_chance(bar, chance)
    return figure


def _write_values(axes: Axes, values: np.ndarray) -> None:
    """The numbers in their cells; a cell without a value stays empty."""
    for i, j in np.argwhere(np.isfinite(values)):
        # Dark cells need light letters.
        colour = "white" if values[i, j] > 0.5 else INK
        text = f"{values[i, j]:.2f}"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)


def _mark_chance(bar: Colorbar, chance: float) -> None:
    bar.ax.axhline(chance, color=INK, lw=1)
    bar.ax.annotate(
        "by\nchance",
        (0, chance),
        xytext=(-3, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=7,
    )
