"""Pictures of what adaptation changes, each a matplotlib `Figure`.

Nothing here touches pyplot or a display. Learners and measures differ in marker, line and hatch as
well as in colour, to be told apart in grey too.
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
    AT_RIGHT,
    GRID,
    INK,
    MUTED,
    STYLE,
    beside,
    chance_band,
    finish,
    layer_axis_width,
    layer_ticks,
    look_of,
    mark,
    panels,
    say,
)
from metalearn.analysis.scales import SCALES, Scale
from metalearn.runtime.statistics import Estimate

from .over_seeds import differences
from .verdict import SIMILARITY_BOUND

if TYPE_CHECKING:
    from .decomposition import Condition
    from .over_seeds import Difference
    from .results import LayerReuse, ReuseResult


def layer_profile(reuses: Sequence[ReuseResult]) -> Figure:
    """Similarity before and after adaptation, layer by layer.

    Of one learner CKA, CCA, chance and the similarity to another seed; of several their CKA.
    """
    return panels([lambda axes: _draw_profile(axes, reuses)], _width(reuses[0]))


def freezing_curve(reuses: Sequence[ReuseResult]) -> Figure:
    """Accuracy with the layers frozen from the bottom up, of every learner that adapts.

    Solid: under a head run to convergence; dashed: the paper's table, the head by its own steps.
    """
    return panels([lambda axes: _draw_freezing(axes, reuses)], _width(reuses[0]))


def decomposition_bars(reuses: Sequence[ReuseResult]) -> Figure:
    """The gain or loss of every way of adapting against nothing frozen, a bar each."""
    height = _decomposition_height(reuses)
    return panels([lambda axes: _draw_decomposition(axes, reuses)], 8.2, height=height)


def weights_moved(reuses: Sequence[ReuseResult]) -> Figure:
    """How far the inner loop moves each layer's weights, and how long their first gradient is.

    A layer at zero is not drawn.
    """
    return panels(
        [lambda axes: _draw_distances(axes, reuses), lambda axes: _draw_gradients(axes, reuses)],
        2 * _width(reuses[0]),
    )


def class_cosines(reuses: Sequence[ReuseResult]) -> Figure:
    """The mean cosine between query features of one class and of two: a panel a learner."""
    width = _width(reuses[0])
    # Several panels are narrower, and at most three are in a row.
    if len(reuses) > 1:
        width = max(3.9, 0.3 * len(reuses[0].layers) + 1) * min(len(reuses), 3)
    figure = panels([partial(_draw_cosines, reuse=reuse) for reuse in reuses], width, share=True)
    low, high = figure.axes[0].get_ylim()
    # Two seeds may give an interval of several units.
    figure.axes[0].set_ylim(max(low, -1.05), min(high, 1.05))
    return figure


def paired_comparison(reuses: Sequence[ReuseResult]) -> Figure:
    """Every two learners on the same test tasks: the difference in accuracy, with its interval."""
    compared = differences(reuses)
    height = 1.7 + 0.42 * len(compared)
    return panels([lambda axes: _draw_differences(axes, compared)], 6.6, height=height)


def timeline(
    steps: Sequence[int], similarity: Mapping[str, Sequence[Estimate]], accuracy: Sequence[Estimate]
) -> Figure:
    """How similar each layer stays through the inner loop, and the accuracy, during training.

    Bands are the intervals.

    Args:
        steps: the outer steps at which the learner was analysed, ascending.
        similarity: layer -> one estimate a step, such as `[reuse.layers[0].cka for reuse in
            reuses]`; layers in order.
        accuracy: one estimate a step, as fractions.

    Raises:
        ValueError: a curve has another number of points than there are steps.

    Example:
        >>> from metalearn.analysis import Estimate
        >>> figure = timeline(
        ...     [0, 100],
        ...     {"conv1": [Estimate(1.0, 0.0), Estimate(0.98, 0.01)]},
        ...     [Estimate(0.2, 0.01), Estimate(0.8, 0.01)],
        ... )
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['outer steps', 'outer steps']
    """
    check_kind(similarity, Mapping, "similarity", "give {layer: [one Estimate a step]}")
    if not check_all(steps, int, "steps", "give the outer steps, such as [0, 100]"):
        raise ValueError(
            "steps is empty; give the outer steps at which the learner was analysed, such as"
            " [0, 100]"
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
    height = max(4.7, 0.6 + _decomposition_height(reuses))
    title = "   ".join(f"{reuse.name}: {reuse.verdict.answer}" for reuse in reuses)
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(18, height),
            layout=ConstrainedLayoutEngine(wspace=0.06, w_pad=0.1),
            facecolor="white",
        )
        figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
        profile, frozen, bars = figure.subplots(1, 3)
        _draw_profile(profile, reuses)
        _draw_freezing(frozen, reuses)
        _draw_decomposition(bars, reuses)
    return figure


def _width(reuse: ReuseResult) -> float:
    return layer_axis_width(len(reuse.layers))


# The layer profile


def _draw_profile(axes: Axes, reuses: Sequence[ReuseResult]) -> None:
    names = reuses[0].layer_names
    # Learners with other layers cannot share the axis.
    same = [reuse for reuse in reuses if reuse.layer_names == names]
    x = np.arange(len(names))
    if len(same) == 1:
        over = same[0].spread_over
        _draw_cca(axes, x, same[0].layers, over)
        labels = [f"CKA (mean over {over})"]
    else:
        levels = [layer.cka_floor for layer in same[0].layers]
        chance_band(axes, x, levels, "by chance")
        labels = [reuse.name for reuse in same]
    lowest = 0.0
    for i, reuse in enumerate(same):
        # (layers, mean and interval) -> (layers,) each
        means, widths = np.array([layer.cka for layer in reuse.layers]).T
        places = beside(x, i, len(same))
        axes.errorbar(places, means, widths, **look_of(i), capsize=3, label=labels[i])
        # One task has no interval (NaN), and its bar no length.
        ends = means - np.nan_to_num(widths)
        lowest = min(lowest, float(np.nanmin(np.append(ends, 0))))
    mark(axes, SIMILARITY_BOUND, str(SIMILARITY_BOUND))
    _layer_axis(axes, reuses[0])
    axes.set(
        title="How similar each layer stays",
        ylabel="similarity, before and after",
        ylim=(max(lowest, -0.5) - 0.04, 1.05),  # two seeds may give an interval of several units
    )
    finish(axes, 2)


def _draw_cca(axes: Axes, x: np.ndarray, layers: Sequence[LayerReuse], over: str) -> None:
    """Chance, CCA and the similarity to another seed of one learner, for CKA to be drawn over."""
    # The hatched band lies behind the grey one.
    levels = [layer.cca_floor for layer in layers]
    chance_band(axes, x, levels, "CCA by chance", hatch="////", colour="white")
    chance_band(axes, x, [layer.cka_floor for layer in layers], "CKA by chance")
    means, widths = np.array([layer.cca for layer in layers]).T
    axes.errorbar(x, means, widths, **look_of(1), capsize=3, label=f"CCA (mean over {over})")
    # Of the pooled tasks there is one number, without an interval.
    pooled = [layer.cca_pooled for layer in layers]
    axes.plot(x, pooled, **look_of(2), alpha=0.6, label="CCA (tasks pooled)")
    others = [layer.other_seed for layer in layers if layer.other_seed]
    if others:
        _draw_other_seed(axes, x, [other.cka for other in others])


def _draw_other_seed(axes: Axes, x: np.ndarray, similarity: Sequence[Estimate]) -> None:
    """A dash at the similarity of every layer to another seed's network."""
    means, widths = np.array(similarity).T  # (layers,)
    axes.errorbar(
        x,
        means,
        widths,
        color=MUTED,
        marker="_",
        ms=15,
        mew=2,
        ls="",
        capsize=3,
        lw=1,
        label="CKA with another seed's network",
    )


# Freezing, and the accuracy taken apart


def _draw_freezing(axes: Axes, reuses: Sequence[ReuseResult]) -> None:
    curves = []
    for i, reuse in enumerate(reuses):
        # One colour and marker a learner, one line a head.
        solid = look_of(i) | {"ls": "-"}
        dashed = look_of(i) | {"ls": "--", "mfc": "white"}
        if reuse.decomposition:
            table = reuse.decomposition.converged
            curves.append(table.curve(f"{reuse.name}, converged head", solid))
        if reuse.freezing:
            curves.append(reuse.freezing.curve(f"{reuse.name}, own steps (the paper's)", dashed))
    if curves:
        draw_frozen(axes, curves)
    else:
        axes.set(title="With layers frozen")
        say(axes, "no inner loop: nothing to freeze")


def _draw_decomposition(axes: Axes, reuses: Sequence[ReuseResult]) -> None:
    """Bars to the right are better than with nothing frozen; the numbers stand beside them."""
    axes.set(title="What each way of adapting gains or loses")
    scale = SCALES[reuses[0].accuracies.measure]
    ticks = []
    y = 0.0
    for i, reuse in enumerate(reuses):
        if reuse.decomposition is None:
            continue
        ticks.append((y, reuse.name))
        y += 1
        for condition in reuse.decomposition.conditions[1:]:
            _draw_bar(axes, y, condition, scale, look_of(i)["color"])
            ticks.append((y, condition.name))
            y += 1
        y += 0.3  # a gap between learners
    if not ticks:
        say(axes, "no inner loop and head to take apart")
        return
    axes.axvline(0, color=INK, lw=1)
    axes.set_yticks([tick for tick, _ in ticks], [name for _, name in ticks])
    # The names of learners are the headings of their groups.
    names = {reuse.name for reuse in reuses}
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in names else "normal")
    axes.set(
        xlabel=f"{scale.difference}, against nothing frozen (right is better)",
        ylim=(y - 0.4, -0.6),
    )
    axes.grid(axis="x", color=GRID, lw=0.8)
    axes.tick_params(length=0)


def _draw_bar(axes: Axes, y: float, condition: Condition, scale: Scale, colour: str) -> None:
    # A cost is a loss of accuracy, so its negative is the gain.
    gain = -scale.factor * condition.cost.mean
    width = scale.factor * np.nan_to_num(condition.cost.interval)
    whisker = {"ecolor": INK, "capsize": 2.5, "lw": 1.1}
    axes.barh(y, gain, 0.64, xerr=width, color=colour, error_kw=whisker)
    axes.annotate(scale.against(condition.cost), (1, y), xytext=(6, 0), **AT_RIGHT, fontsize=8.5)


def _decomposition_height(reuses: Sequence[ReuseResult]) -> float:
    """Inches: a line for every condition and every name."""
    lines = [len(reuse.decomposition.conditions) + 0.3 for reuse in reuses if reuse.decomposition]
    return max(1.1 + 0.235 * sum(lines), 2.4)


# Weights, gradients and classes


def _draw_distances(axes: Axes, reuses: Sequence[ReuseResult]) -> None:
    axes.set(title="How far each layer's weights move", ylabel="distance / norm before")
    _draw_lengths(axes, reuses, lambda layer: layer.relative_distance, "no layer moves")


def _draw_gradients(axes: Axes, reuses: Sequence[ReuseResult]) -> None:
    axes.set(title="The first inner gradient", ylabel="norm")
    _draw_lengths(axes, reuses, lambda layer: layer.gradient, "no layer has a rate")


def _draw_lengths(
    axes: Axes, reuses: Sequence[ReuseResult], pick: Callable[[LayerReuse], Estimate], none: str
) -> None:
    """One length a layer, on a logarithmic axis: lengths span decades. Zero is left out."""
    empty = True
    for i, reuse in enumerate(reuses):
        means, widths = np.array([pick(layer) for layer in reuse.layers]).T
        # A logarithmic axis has no zero.
        positive = np.where(means > 0, means, np.nan)
        if np.isnan(positive).all():
            continue
        x = beside(np.arange(len(means)), i, len(reuses))
        axes.errorbar(x, positive, widths, **look_of(i), capsize=3, label=reuse.name)
        empty = False
    if empty:
        say(axes, none)
        return
    axes.set_yscale("log", nonpositive="clip")
    _label_decades(axes)
    _layer_axis(axes, reuses[0])
    finish(axes, 3)


def _label_decades(axes: Axes) -> None:
    """Numbers beside a logarithmic axis: the fewer decades it spans, the more digits have one."""
    low, high = axes.get_ylim()
    digits = "1"
    if high < 4 * low:
        digits = "123456789"
    elif high < 40 * low:
        digits = "1235"

    def minor(value: float, _: int) -> str:
        first_digit = f"{value:e}"[0]
        return f"{value:g}" if first_digit in digits else ""

    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(minor))


def _draw_cosines(axes: Axes, reuse: ReuseResult) -> None:
    x = np.arange(len(reuse.layers))
    pairs = {
        "one class": [layer.intra for layer in reuse.layers],
        "two classes": [layer.inter for layer in reuse.layers],
    }
    for i, (kind, cosines) in enumerate(pairs.items()):
        before, before_widths = np.array([cosine.before for cosine in cosines]).T
        after, after_widths = np.array([cosine.after for cosine in cosines]).T
        dotted = look_of(i) | {"ls": ":", "mfc": "white", "ms": 9}
        solid = look_of(i) | {"ls": "-"}
        axes.errorbar(x, before, before_widths, **dotted, capsize=3, label=f"{kind}, before")
        axes.errorbar(x, after, after_widths, **solid, capsize=3, label=f"{kind}, after")
    _layer_axis(axes, reuse)
    axes.set(title=f"{reuse.name}: query features", ylabel="mean cosine")
    # Panels share the scale, and each has its layers below it.
    axes.label_outer()
    axes.xaxis.set_tick_params(labelbottom=True)
    finish(axes, 2)


# Learners compared in pairs


def _draw_differences(axes: Axes, compared: Sequence[Difference]) -> None:
    for y, pair in enumerate(compared):
        if pair.note:
            # The note without its cure, which would not fit.
            reason = pair.note.split(";")[0].split(":")[0]
            text = f"not comparable: {reason}"
            axes.annotate(text, (0, y), va="center", fontsize=8.5, color=MUTED)
        else:
            _draw_difference(axes, y, pair)
    axes.axvline(0, color=MUTED, lw=1, ls=(0, (2, 2)))
    names = [f"{pair.first} minus {pair.second}" for pair in compared]
    axes.set_yticks(range(len(names)), names)
    # Each number of pairs once, such as "60 tasks".
    over = ", ".join(dict.fromkeys(f"{pair.pairs} {pair.unit}s" for pair in compared if pair.pairs))
    measure = "accuracy"
    if any(pair.measure == "loss" for pair in compared):
        measure = "loss"
    axes.set(
        title="Compared in pairs",
        xlabel=f"difference in {SCALES[measure].difference} (paired over {over})",
        ylim=(len(names) - 0.5, -0.7),
    )
    axes.grid(axis="x", color=GRID, lw=0.8)
    axes.tick_params(length=0)


def _draw_difference(axes: Axes, y: int, pair: Difference) -> None:
    factor = SCALES[pair.measure].factor
    mean = factor * pair.estimate.mean
    width = factor * pair.estimate.interval
    axes.errorbar(mean, y, xerr=width, **look_of(0), capsize=4)
    form = ".1f" if pair.measure == "accuracy" else ".3g"
    label = f"{mean:+{form}}"
    if np.isfinite(width):
        label += f" ± {width:{form}}"
    axes.annotate(
        label, (mean, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8.5
    )


# Training


def _draw_similarities(
    axes: Axes, steps: Sequence[int], similarity: Mapping[str, Sequence[Estimate]]
) -> None:
    # Layers are ordered, and so are their shades from dark to light.
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.82, len(similarity)))
    for i, (name, curve) in enumerate(similarity.items()):
        _draw_band(axes, steps, np.array(curve), name, look_of(i) | {"color": shades[i]})
    mark(axes, SIMILARITY_BOUND, str(SIMILARITY_BOUND))
    axes.set(title="How similar each layer stays", ylabel="similarity, before and after adaptation")
    _step_axis(axes, steps)
    finish(axes, 4)


def _draw_learning(axes: Axes, steps: Sequence[int], accuracy: Sequence[Estimate]) -> None:
    _draw_band(axes, steps, 100 * np.array(accuracy), "on test tasks", look_of(0))
    axes.set(title="Accuracy", ylabel="accuracy, %")
    _step_axis(axes, steps)
    finish(axes, 1)


def _draw_band(
    axes: Axes, x: Sequence[int], estimates: np.ndarray, label: str, look: Mapping[str, Any]
) -> None:
    """A curve through the means of `estimates` (points, 2), in the band of their intervals."""
    means, widths = estimates.T  # (points,)
    axes.fill_between(x, means - widths, means + widths, color=look["color"], alpha=0.16, lw=0)
    axes.plot(x, means, **look, label=label)


def _step_axis(axes: Axes, steps: Sequence[int]) -> None:
    positive = [step for step in steps if step > 0]
    # On a linear axis, points at 0, 100 and 10,000 steps would fall on each other.
    if positive and max(positive) >= 20 * min(positive):
        axes.set_xscale("symlog", linthresh=min(positive))
    if min(steps) < max(steps):
        axes.set_xlim(min(steps), max(steps))
        # A margin of 5 % of the panel, on any scale.
        margins = axes.transAxes.transform([(-0.05, 0), (1.05, 0)])
        ends = axes.transData.inverted().transform(margins)  # (2 ends, x and y)
        axes.set_xlim(float(ends[0, 0]), float(ends[1, 0]))
    axes.set_xticks(steps, [f"{step:,}" for step in steps])
    axes.minorticks_off()
    axes.set_xlabel("outer steps")


def _layer_axis(axes: Axes, reuse: ReuseResult) -> None:
    """The layers from left to right; the head has a grey ground."""
    names = reuse.layer_names
    heads = [i for i, layer in enumerate(reuse.layers) if layer.head]
    if heads:
        axes.axvspan(heads[0] - 0.5, len(names) - 0.5, color="#f3f5f8", zorder=-1, lw=0)
    layer_ticks(axes, names)
    axes.set_xlim(-0.5, len(names) - 0.5)
