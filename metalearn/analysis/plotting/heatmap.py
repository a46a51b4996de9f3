"""A matrix of similarities as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from metalearn.analysis.plotting.style import INK, MUTED, STYLE


def heatmap(
    values: np.ndarray,
    layers: tuple[Sequence[str], Sequence[str]],
    networks: tuple[str, str],
    chance: float,
) -> Figure:
    """Every layer of one network (upwards) against every layer of another (to the right): darker is
    more similar, hatched has no value.

    The scale is 0 to 1 in every picture, so that two of them compare; the 95 % quantile of chance
    is marked on it.
    """
    rows, columns = values.shape
    cell = max(0.19, 2.6 / max(rows, columns))  # inches, as all that follows
    size = 9 if cell > 0.3 else 7.5
    left, below = (0.5 + 0.0085 * size * max(map(len, names)) for names in layers)
    wide, high, scale = cell * columns, cell * rows, max(cell * rows, 2.0)
    page = left + wide + 1.4, below + scale + 0.15

    def place(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        return x / page[0], y / page[1], width / page[0], height / page[1]

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=page, facecolor="white")
        axes = figure.add_axes(place(left, below, wide, high))
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
        axes.set_xticks(range(columns), layers[1], rotation=90, fontsize=size)
        axes.set_yticks(range(rows), layers[0], fontsize=size)
        axes.tick_params(length=0)
        axes.set(xlabel=f"layers of b ({networks[1]})", ylabel=f"layers of a ({networks[0]})")
        for i, j in np.argwhere(np.isfinite(values)) if max(rows, columns) <= 8 else ():
            value = values[i, j]
            axes.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > 0.5 else INK,
            )
        bar = figure.colorbar(
            image,
            cax=figure.add_axes(place(left + wide + 0.55, below, 0.16, scale)),
            label="debiased minibatch CKA",
        )
        bar.ax.tick_params(length=0)
        if chance > 0:
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
    return figure
