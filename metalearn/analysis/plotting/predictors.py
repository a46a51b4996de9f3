"""Drawings of the norms and condition numbers of tasks' predictors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import finish, panels

Line = tuple[Sequence[int], Sequence[float], Sequence[float]]
"""Steps, norms and condition numbers of one training."""


def predictor_lines(lines: Mapping[str, Line]) -> Figure:
    """Two panels over outer steps: norms, and condition numbers on a logarithmic scale."""
    norms = {name: (steps, values) for name, (steps, values, _) in lines.items()}
    conditions = {name: (steps, values) for name, (steps, _, values) in lines.items()}
    return panels(
        [
            partial(_draw, lines=norms, label="norm of a task's predictor", scale="linear"),
            partial(_draw, lines=conditions, label="condition number", scale="log"),
        ],
        9.2,
    )


def _draw(
    axes: Axes, lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], label: str, scale: str
) -> None:
    for name, (steps, values) in lines.items():
        axes.plot(steps, values, marker="o", ms=3.5, label=name)
    axes.set_yscale(scale)
    axes.set(title=label.capitalize(), xlabel="outer step", ylabel=label)
    if len(lines) > 1:
        finish(axes, 1)
