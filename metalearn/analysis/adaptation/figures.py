"""Pictures of what adaptation changes. Each function returns a matplotlib `Figure`; nothing here
touches pyplot or a display.

Learners and measures differ in marker, line and hatch as well as colour, so that a picture reads in
grey.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from metalearn.analysis.checks import check_all, check_kind
from metalearn.analysis.plotting.layers import draw_frozen
from metalearn.analysis.plotting.style import (
    GRID,
    INK,
    MUTED,
    STYLE,
    beside,
    chance_band,
    finish,
    layer_ticks,
    look_of,
    mark,
    panels,
    say,
)
from metalearn.analysis.scales import SCALES
from metalearn.runtime.statistics import Estimate

from .over_seeds import differences

if TYPE_CHECKING:
    from .over_seeds import Difference
    from .results import LayerReuse, ReuseResult


def layer_profile(reuses: Sequence[ReuseResult]) -> Figure:
    """Similarity before and after adaptation, layer by layer: one learner with CCA, floors and
    ceiling, or the CKA of several.
    """
    return panels([lambda axes: _draw_profile(axes, reuses)], _width(reuses[0]))


def freezing_curve(reuses: Sequence[ReuseResult]) -> Figure:
    """Accuracy with the layers frozen from the bottom up, with its interval, of every learner that
    adapts.

    Solid: under a head run to convergence; dashed: the paper's table, the head by its own steps.
    """
    return panels([lambda axes: _draw_freezing(axes, reuses)], _width(reuses[0]))


def decomposition_bars(reuses: Sequence[ReuseResult]) -> Figure:
    """What every way of adapting gains or loses against nothing frozen, with its interval: a group
    of bars a learner.
    """
    return panels(
        [lambda axes: _draw_decomposition(axes, reuses)], 8.2, height=_decomposition_height(reuses)
    )


def weights_moved(reuses: Sequence[ReuseResult]) -> Figure:
    """How far the inner loop moves each layer's weights, and how long their first gradient is; a
    layer without either is not drawn.
    """
    return panels(
        [lambda axes: _draw_distances(axes, reuses), lambda axes: _draw_gradients(axes, reuses)],
        2 * _width(reuses[0]),
    )


def class_cosines(reuses: Sequence[ReuseResult]) -> Figure:
    """The mean cosine between query features of one class and of two, before and after adaptation:
    a panel a learner.
    """
    width = (
        _width(reuses[0])
        if len(reuses) == 1
        else max(3.9, 0.3 * len(reuses[0].layers) + 1) * min(len(reuses), 3)
    )
    figure = panels([partial(_draw_cosines, reuse=reuse) for reuse in reuses], width, share=True)
    low, high = figure.axes[0].get_ylim()
    figure.axes[0].set_ylim(
        max(low, -1.05), min(high, 1.05)
    )  # two seeds may give an interval of several units
    return figure


def paired_comparison(reuses: Sequence[ReuseResult]) -> Figure:
    """Every two learners on the same test tasks: the difference in accuracy, in points, with its 95
    % interval.
    """
    found = differences(reuses)
    return panels(
        [lambda axes: _draw_differences(axes, found)], 6.6, height=1.7 + 0.42 * len(found)
    )


def timeline(
    steps: Sequence[int], similarity: Mapping[str, Sequence[Estimate]], accuracy: Sequence[Estimate]
) -> Figure:
    """How similar each layer stays through the inner loop, and the accuracy, as training goes on;
    bands are the intervals.

    Args:
        steps: outer steps at which the learner was looked at, ascending.
        similarity: layer -> one estimate a step, such as `[reuse.layers[0].cka for reuse in
            reuses]`; layers in order.
        accuracy: one estimate a step, as fractions.

    Raises ValueError where a curve has another number of points than there are steps.

    Example:
        >>> from metalearn.analysis import Estimate
        >>> figure = timeline([0, 100], {"conv1": [Estimate(1.0, 0.0), Estimate(0.98, 0.01)]}, [Estimate(0.2, 0.01), Estimate(0.8, 0.01)])
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['outer steps', 'outer steps']
    """
    check_kind(similarity, Mapping, "similarity", "give {layer: [one Estimate a step]}")
    if not check_all(steps, int, "steps", "give the outer steps, such as [0, 100]"):
        raise ValueError(
            "steps is empty; give the outer steps at which the learner was looked at, such as [0,"
            " 100]"
        )
    for name, curve in {**similarity, "accuracy": accuracy}.items():
        check_all(curve, Estimate, name, "give one Estimate a step")
        if len(curve) != len(steps):
            raise ValueError(
                f"{name} has {len(curve)} points for {len(steps)} steps; give one estimate a step"
            )
    return panels(
        [
            lambda axes: _draw_similarities(axes, steps, similarity),
            lambda axes: _draw_learning(axes, steps, accuracy),
        ],
        11.4,
    )


def summary(reuses: Sequence[ReuseResult]) -> Figure:
    """The three pictures side by side, under the name and the verdict."""
    with matplotlib.rc_context(STYLE):
        height = max(4.7, 0.6 + _decomposition_height(reuses))
        figure = Figure(
            figsize=(18, height),
            layout=ConstrainedLayoutEngine(wspace=0.06, w_pad=0.1),
            facecolor="white",
        )
        figure.suptitle(
            "   ".join(f"{r.name}: {r.verdict.answer}" for r in reuses),
            x=0.01,
            ha="left",
            fontsize=14,
            fontweight="bold",
        )
        for axes, draw in zip(
            figure.subplots(1, 3), (_draw_profile, _draw_freezing, _draw_decomposition), strict=True
        ):
            draw(axes, reuses)
    return figure


def _width(reuse: ReuseResult) -> float:
    return max(5.6, 0.36 * len(reuse.layers) + 1.5)


def _draw_profile(axes: Axes, reuses: Sequence[ReuseResult]) -> None:
    names = [layer.layer for layer in reuses[0].layers]
    same = [reuse for reuse in reuses if [layer.layer for layer in reuse.layers] == names]
    x = np.arange(len(names))
    bottom = 0.0
    if len(same) == 1:
        layers = same[0].layers
        cca, cca_widths = np.array([layer.cca for layer in layers]).T
        chance_band(
            axes,
            x,
            [layer.cca_floor for layer in layers],
            "CCA by chance",
            hatch="////",
            colour="white",
        )
        chance_band(
            axes, x, [layer.cka_floor for layer in layers], "CKA by chance", colour="#c3cad3"
        )
        mean_over = f"(mean over {'seeds' if same[0].seeds else 'tasks'})"
        axes.errorbar(x, cca, cca_widths, **look_of(1), capsize=3, label=f"CCA {mean_over}")
        axes.plot(
            x,
            [layer.cca_pooled for layer in layers],
            **look_of(2),
            alpha=0.6,
            label="CCA (tasks pooled)",
        )
        _draw_ceiling(axes, x, layers)
        curves = [(f"CKA {mean_over}", same[0])]
    else:
        curves = [(reuse.name, reuse) for reuse in same]
        chance_band(
            axes, x, [layer.cka_floor for layer in same[0].layers], "by chance", colour="#c3cad3"
        )
    for i, (label, reuse) in enumerate(curves):
        means, widths = np.array([layer.cka for layer in reuse.layers]).T
        bottom = min(bottom, float(np.nanmin(np.append(means - np.nan_to_num(widths), 0))))
        axes.errorbar(
            beside(x, i, len(curves)), means, widths, **look_of(i), capsize=3, label=label
        )
    mark(axes, 0.9, "0.9")
    _layer_axis(axes, reuses[0])
    axes.set(
        title="How similar each layer stays",
        ylabel="similarity, before and after",
        ylim=(max(bottom, -0.5) - 0.04, 1.05),  # two seeds may give an interval of several units
    )
    finish(axes, 2)


def _draw_freezing(axes: Axes, reuses: Sequence[ReuseResult]) -> None:
    curves = []
    for i, reuse in enumerate(reuses):
        if reuse.decomposition:
            solid = look_of(i) | {"ls": "-"}
            curves.append(
                reuse.decomposition.converged.curve(f"{reuse.name}, converged head", solid)
            )
        if reuse.freezing:
            dashed = look_of(i) | {"ls": "--", "mfc": "white"}
            curves.append(reuse.freezing.curve(f"{reuse.name}, own steps (the paper's)", dashed))
    if not curves:
        axes.set(title="With layers frozen")
        return say(axes, "no inner loop: nothing to freeze")
    return draw_frozen(axes, curves)


def _draw_decomposition(axes: Axes, reuses: Sequence[ReuseResult]) -> None:
    """Bars to the right are better than with nothing frozen, to the left worse; the numbers stand
    beside them.
    """
    axes.set(title="What each way of adapting gains or loses")
    ticks = []
    y = 0.0
    scale = SCALES[reuses[0].accuracies.measure]
    for i, reuse in enumerate(reuses):
        if reuse.decomposition is None:
            continue
        ticks.append((y, reuse.name))
        y += 1
        for condition in reuse.decomposition.conditions[1:]:
            gain, width = (
                -scale.factor * condition.cost.mean,
                scale.factor * np.nan_to_num(condition.cost.interval),
            )
            axes.barh(
                y,
                gain,
                0.64,
                xerr=width,
                color=look_of(i)["color"],
                error_kw={"ecolor": INK, "capsize": 2.5, "lw": 1.1},
            )
            place: Any = {
                "xycoords": ("axes fraction", "data"),
                "xytext": (6, 0),
                "textcoords": "offset points",
                "va": "center",
            }
            axes.annotate(scale.against(condition.cost), (1, y), **place, fontsize=8.5)
            ticks.append((y, condition.name))
            y += 1
        y += 0.3
    if not ticks:
        return say(axes, "no inner loop and head to take apart")
    axes.axvline(0, color=INK, lw=1)
    axes.set_yticks([tick for tick, _ in ticks], [name for _, name in ticks])
    names = {reuse.name for reuse in reuses}
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in names else "normal")
    of = "accuracy, points" if scale.factor == 100 else "loss"
    axes.set(xlabel=f"{of}, against nothing frozen (right is better)", ylim=(y - 0.4, -0.6))
    axes.grid(axis="x", color=GRID, lw=0.8)
    axes.tick_params(length=0)
    return None


def _decomposition_height(reuses: Sequence[ReuseResult]) -> float:
    """Inches: a line for every condition and every name."""
    lines = [len(reuse.decomposition.conditions) + 0.3 for reuse in reuses if reuse.decomposition]
    return max(1.1 + 0.235 * sum(lines), 2.4)


def _draw_ceiling(axes: Axes, x: np.ndarray, layers: Sequence[LayerReuse]) -> None:
    found = [layer.ceiling for layer in layers if layer.ceiling]
    if found:
        means, widths = np.array([one.cka for one in found]).T
        look: Any = {
            "color": MUTED,
            "marker": "_",
            "ms": 15,
            "mew": 2,
            "ls": "",
            "capsize": 3,
            "lw": 1,
        }
        axes.errorbar(x, means, widths, **look, label="CKA with another seed's network")


def _draw_distances(axes: Axes, reuses: Sequence[ReuseResult]) -> None:
    axes.set(title="How far each layer's weights move", ylabel="distance / norm before")
    _draw_lengths(axes, reuses, lambda layer: layer.relative_distance, "no layer moves")


def _draw_gradients(axes: Axes, reuses: Sequence[ReuseResult]) -> None:
    axes.set(title="The first inner gradient", ylabel="norm")
    _draw_lengths(axes, reuses, lambda layer: layer.gradient, "no layer has a rate")


def _draw_lengths(
    axes: Axes, reuses: Sequence[ReuseResult], pick: Callable[[LayerReuse], Estimate], none: str
) -> None:
    """Lengths span decades, so that the axis is logarithmic and a length of zero is left out."""
    shown = False
    for i, reuse in enumerate(reuses):
        means, widths = np.array([pick(layer) for layer in reuse.layers]).T
        drawn = means > 0
        if drawn.any():
            x = beside(np.arange(len(means)), i, len(reuses))
            axes.errorbar(
                x, np.where(drawn, means, np.nan), widths, **look_of(i), capsize=3, label=reuse.name
            )
            shown = True
    if not shown:
        return say(axes, none)
    axes.set_yscale("log", nonpositive="clip")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.get_ylim()
    read = (
        "123456789" if high < 4 * low else "1235" if high < 40 * low else "1"
    )  # so many ticks that one can read by them
    axes.yaxis.set_minor_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in read else "")
    )
    _layer_axis(axes, reuses[0])
    finish(axes, 3)
    return None


def _draw_cosines(axes: Axes, reuse: ReuseResult) -> None:
    kinds: list[tuple[str, Callable[[LayerReuse], Estimate], int, bool]] = [
        ("one class, before", lambda layer: layer.intra.before, 0, False),
        ("one class, after", lambda layer: layer.intra.after, 0, True),
        ("two classes, before", lambda layer: layer.inter.before, 1, False),
        ("two classes, after", lambda layer: layer.inter.after, 1, True),
    ]
    for label, pick, i, after in kinds:
        means, widths = np.array([pick(layer) for layer in reuse.layers]).T
        look = look_of(i) | ({"ls": "-"} if after else {"ls": ":", "mfc": "white", "ms": 9})
        axes.errorbar(np.arange(len(means)), means, widths, **look, capsize=3, label=label)
    _layer_axis(axes, reuse)
    axes.set(title=f"{reuse.name}: query features", ylabel="mean cosine")
    axes.label_outer()
    axes.xaxis.set_tick_params(labelbottom=True)
    finish(axes, 2)


def _draw_differences(axes: Axes, found: Sequence[Difference]) -> None:
    names = [f"{one.first} minus {one.second}" for one in found]
    for y, one in enumerate(found):
        if one.note:
            axes.annotate(
                f"not comparable: {one.note.split(';')[0].split(':')[0]}",
                (0, y),
                va="center",
                fontsize=8.5,
                color=MUTED,
            )
            continue
        factor = SCALES[one.measure].factor
        mean, width = factor * one.estimate.mean, factor * one.estimate.interval
        axes.errorbar(mean, y, xerr=width, **look_of(0), capsize=4)
        form = ".1f" if one.measure == "accuracy" else ".3g"
        label = f"{mean:+{form}} ± {width:{form}}" if np.isfinite(width) else f"{mean:+{form}}"
        axes.annotate(
            label, (mean, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8.5
        )
    axes.axvline(0, color=MUTED, lw=1, ls=(0, (2, 2)))
    axes.set_yticks(range(len(names)), names)
    over = ", ".join(dict.fromkeys(f"{one.pairs} {one.unit}s" for one in found if one.pairs))
    kind = "loss" if any(one.measure == "loss" for one in found) else "accuracy, points"
    axes.set(
        title="Compared in pairs",
        xlabel=f"difference in {kind} (paired over {over})",
        ylim=(len(names) - 0.5, -0.7),
    )
    axes.grid(axis="x", color=GRID, lw=0.8)
    axes.tick_params(length=0)


def _draw_similarities(
    axes: Axes, steps: Sequence[int], similarity: Mapping[str, Sequence[Estimate]]
) -> None:
    # Layers are an order, so that they go from dark to light.
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.82, len(similarity)))
    for i, (name, curve) in enumerate(similarity.items()):
        _band(axes, steps, np.array(curve), name, **(look_of(i) | {"color": shades[i]}))
    mark(axes, 0.9, "0.9")
    axes.set(title="How similar each layer stays", ylabel="similarity, before and after adaptation")
    _step_axis(axes, steps)
    finish(axes, 4)


def _draw_learning(axes: Axes, steps: Sequence[int], accuracy: Sequence[Estimate]) -> None:
    _band(axes, steps, 100 * np.array(accuracy), "on test tasks", **look_of(0))
    axes.set(title="Accuracy", ylabel="accuracy, %")
    _step_axis(axes, steps)
    finish(axes, 1)


def _band(axes: Axes, x: Sequence[int], estimates: np.ndarray, label: str, **look: Any) -> None:
    means, widths = estimates.T
    axes.fill_between(x, means - widths, means + widths, color=look["color"], alpha=0.16, lw=0)
    axes.plot(x, means, **look, label=label)


def _step_axis(axes: Axes, steps: Sequence[int]) -> None:
    positive = [step for step in steps if step > 0]
    if positive and max(positive) >= 20 * min(
        positive
    ):  # points at 0, 100 and 10,000 steps would fall on each other
        axes.set_xscale("symlog", linthresh=min(positive))
    if min(steps) < max(steps):
        axes.set_xlim(min(steps), max(steps))
        ends = axes.transData.inverted().transform(
            axes.transAxes.transform([(-0.05, 0), (1.05, 0)])
        )  # a margin on any scale
        axes.set_xlim(float(ends[0, 0]), float(ends[1, 0]))
    axes.set_xticks(steps, [f"{step:,}" for step in steps])
    axes.minorticks_off()
    axes.set_xlabel("outer steps")


def _layer_axis(axes: Axes, reuse: ReuseResult) -> None:
    names = [layer.layer for layer in reuse.layers]
    heads = [i for i, layer in enumerate(reuse.layers) if layer.head]
    if heads:
        axes.axvspan(heads[0] - 0.5, len(names) - 0.5, color="#f3f5f8", zorder=-1, lw=0)
    layer_ticks(axes, names)
    axes.set_xlim(-0.5, len(names) - 0.5)
