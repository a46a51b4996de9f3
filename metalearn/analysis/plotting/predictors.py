"""Drawings of the norms and condition numbers of tasks' predictors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .style import finish, panels

Line = tuple[Sequence[int], Sequence[float], Sequence[float]]
"""Steps, norms and condition numbers of one training."""


def predictor_lines(lines: Mapping[str, Line]) -> dict[str, Figure]:
    """Norms and condition numbers over outer steps, a line for each training, by caption."""
    norms = {name: (steps, values) for name, (steps, values, _) in lines.items()}
    conditions = {name: (steps, values) for name, (steps, _, values) in lines.items()}
    measures = {"Norm of a task's predictor": norms, "Condition number": conditions}
    return {
        caption: panels([partial(_draw, lines=values, label=caption)], 6.4)
        for caption, values in measures.items()
    }


def _draw(
    axes: Axes, lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], label: str
) -> None:
    for name, (steps, values) in lines.items():
        axes.plot(steps, values, marker="o", ms=3.5, label=name)
    axes.set(title=label, xlabel="outer step", ylabel=label.lower())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    finish(axes, 3)
