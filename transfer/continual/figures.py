"""The pictures of `forgetting`."""

from __future__ import annotations

from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalearn.analysis.plotting.style import (
    beside,
    finish,
    layer_axis_width,
    layer_ticks,
    look_of,
    mark,
    panels,
)
from metalearn.runtime.statistics import MeanStd
from transfer.continual.anatomy import COMPARISONS
from transfer.continual.results import ForgettingResult


def summary(result: ForgettingResult) -> Figure:
    """The courses, the similarities, the resets and the memories, in one figure."""
    base = result.baseline
    draws = [
        partial(_courses, result=result),
        partial(_similarities, result=result, memory=base),
        partial(_resets, result=result, memory=base),
        partial(_subspaces, result=result, memory=base),
    ]
    if any(run.frozen for run in result.runs):
        draws.append(partial(_freezing, result=result))
    if len(result.memories) > 1:
        draws.append(partial(_memories, result=result))
    return panels(draws, 16, height=4.4)


def courses(result: ForgettingResult) -> Figure:
    """Accuracy on the first task while the last one is learned, by memory."""
    return panels([partial(_courses, result=result)], 6.2)


def similarities(result: ForgettingResult, memory: str) -> Figure:
    """CKA of every layer before and after, with ceiling and chance."""
    width = layer_axis_width(len(result.layers))
    return panels([partial(_similarities, result=result, memory=memory)], width)


def resets(result: ForgettingResult, memory: str) -> Figure:
    """The accuracy on the first task with layers put back."""
    width = layer_axis_width(len(result.layers))
    return panels([partial(_resets, result=result, memory=memory)], width)


def subspaces(result: ForgettingResult, memory: str) -> Figure:
    """The four comparisons of leading directions."""
    width = layer_axis_width(len(result.layers))
    return panels([partial(_subspaces, result=result, memory=memory)], width)


def freezing(result: ForgettingResult) -> Figure:
    """The accuracy on the last task with layers frozen."""
    width = layer_axis_width(1 + len(result.layers))
    return panels([partial(_freezing, result=result)], width)


def memories(result: ForgettingResult) -> Figure:
    """Forgetting against the similarity of the top layer, a point for each memory."""
    return panels([partial(_memories, result=result)], 6.2)


def _courses(axes: Axes, result: ForgettingResult) -> None:
    for number, name in enumerate(result.memories):
        runs = result.of(name)
        steps = sorted(set.intersection(*(set(run.courses[-1]) for run in runs)))
        if not steps:
            continue
        means = [result.course(name, step) for step in steps]
        look = look_of(number)
        axes.plot(steps, [100 * mean.mean for mean in means], **look, label=name)
        if len(runs) > 1:
            low = [100 * (mean.mean - mean.std) for mean in means]
            high = [100 * (mean.mean + mean.std) for mean in means]
            axes.fill_between(steps, low, high, color=look["color"], alpha=0.12, lw=0)
    axes.set(
        title="The first task while the last is learned",
        xlabel="steps of the last task",
        ylabel="accuracy on the first task, %",
    )
    finish(axes, 3)


def _similarities(axes: Axes, result: ForgettingResult, memory: str) -> None:
    x = np.arange(len(result.layers))
    curves = {
        "CKA before and after": [result.layer(memory, n, lambda r: r.cka) for n in result.layers],
        "ceiling": [result.layer(memory, n, lambda r: r.ceiling) for n in result.layers],
        "95 % by chance": [result.layer(memory, n, lambda r: r.floor) for n in result.layers],
    }
    for number, (label, values) in enumerate(curves.items()):
        _errorbars(axes, x, values, number, len(curves), label, 1)
    layer_ticks(axes, result.layers)
    axes.set(title="How far each layer changed", ylabel="CKA", xlim=(-0.5, len(x) - 0.5))
    finish(axes, 2)


def _subspaces(axes: Axes, result: ForgettingResult, memory: str) -> None:
    x = np.arange(len(result.layers))
    for number, name in enumerate(COMPARISONS):
        values = [result.subspace(memory, layer, name) for layer in result.layers]
        _errorbars(axes, x, values, number, len(COMPARISONS), name, 1)
    layer_ticks(axes, result.layers)
    axes.set(
        title=f"The {result.k} leading directions", ylabel="similarity", xlim=(-0.5, len(x) - 0.5)
    )
    finish(axes, 2)


def _resets(axes: Axes, result: ForgettingResult, memory: str) -> None:
    x = np.arange(len(result.layers))
    kinds = {
        "reset_top": "this layer and all above put back",
        "reset_bottom": "this layer and all below",
        "reset_single": "this layer alone",
    }
    for number, (kind, label) in enumerate(kinds.items()):
        values = [result.reset(memory, layer, kind) for layer in result.layers]
        _errorbars(axes, x, values, number, len(kinds), label, 100)
    mark(axes, 100 * result.over_seeds(memory, lambda run: run.anatomy.before).mean, "before")
    mark(axes, 100 * result.over_seeds(memory, lambda run: run.anatomy.after).mean, "after")
    layer_ticks(axes, result.layers)
    axes.set(
        title="Layers put back",
        ylabel="accuracy on the first task, %",
        xlim=(-0.5, len(x) - 0.5),
    )
    finish(axes, 2)


def _freezing(axes: Axes, result: ForgettingResult) -> None:
    runs = [run for run in result.of(result.baseline) if run.frozen]
    ticks = ["none", *result.layers]
    x = np.arange(len(ticks))
    values = []
    for place in range(len(ticks)):
        values.append(MeanStd.of([run.frozen[place] for run in runs]))
    _errorbars(axes, x, values, 0, 1, "last task", 100)
    layer_ticks(axes, ticks)
    axes.set(
        title="The last task with layers frozen",
        xlabel="frozen up to this layer",
        ylabel="accuracy on the last task, %",
        xlim=(-0.5, len(x) - 0.5),
    )
    finish(axes, 1)


def _memories(axes: Axes, result: ForgettingResult) -> None:
    top = result.layers[-1]
    for number, name in enumerate(result.memories):
        alike = result.layer(name, top, lambda row: row.cka)
        lost = result.forgetting(name)
        look = look_of(number) | {"ls": "none"}
        axes.errorbar(
            [alike.mean],
            [100 * lost.mean],
            yerr=[100 * np.nan_to_num(lost.interval)],
            capsize=3,
            label=name,
            **look,
        )
    axes.set(
        title=f"Forgetting against what {top} keeps",
        xlabel=f"CKA of {top}",
        ylabel="forgetting, points",
    )
    finish(axes, 3)


def _errorbars(
    axes: Axes,
    x: np.ndarray,
    values: list[MeanStd],
    number: int,
    count: int,
    label: str,
    scale: float,
) -> None:
    means = scale * np.array([value.mean for value in values])
    if np.isnan(means).all():
        return
    widths = scale * np.nan_to_num([value.std for value in values])
    look = look_of(number)
    axes.errorbar(beside(x, number, count), means, widths, **look, capsize=3, label=label)
