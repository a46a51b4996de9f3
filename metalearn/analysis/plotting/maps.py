"""Several small maps or images beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .style import STYLE

MOST_COLUMNS = 8


def strip(maps: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """Maps (height, width), or images (height, width, 3), in equal rows of at most eight.

    Each map has a scale of its own, from 0 to its largest value.
    """
    rows = -(-len(maps) // MOST_COLUMNS)
    columns = -(-len(maps) // rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.5 * columns, 1.9 * rows), facecolor="white")
        for place, (values, title) in enumerate(zip(maps, titles, strict=True), 1):
            axes = figure.add_subplot(rows, columns, place)
            if values.ndim == 3:
                axes.imshow(np.clip(values, 0, 1), interpolation="nearest")
            else:
                axes.imshow(values, cmap="magma", vmin=0, interpolation="nearest")
            axes.set_title(title, fontsize=7.5, fontweight="normal", loc="center", pad=4)
            axes.set_axis_off()
        figure.tight_layout(pad=0.6)
    return figure
