"""The picture of a grid of pointer value retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalearn.analysis.plotting.style import finish, look_of, panels

CHANCE = 10  # percent
Lines = Mapping[str, Mapping[int, tuple[float, float]]]


def accuracies(lines: Lines) -> Figure:
    """Accuracy in percent against training examples: iid on the left, adversarial on the right.

    Args:
        lines: {problem: {training examples: (iid, adversarial) accuracy, NaN without}}.
    """
    titles = ("Test inputs like those of training", "Held-out windows")
    draws = [partial(_draw, lines=lines, column=i, title=title) for i, title in enumerate(titles)]
    return panels(draws, 11.0, share=True)


def _draw(axes: Axes, lines: Lines, column: int, title: str) -> None:
    for number, (problem, points) in enumerate(lines.items()):
        values = np.array([100 * point[column] for point in points.values()])
        # Complexity 0 has no held-out windows.
        if not np.isnan(values).all():
            axes.plot(list(points), values, label=problem, **look_of(number))
    axes.axhline(CHANCE, color="grey", lw=0.8, ls=":")
    axes.set(title=title, xlabel="training examples", ylabel="accuracy, %", ylim=(0, 104))
    axes.set_xscale("log")
    finish(axes, 3)
