"""Pictures of what adaptation changes. Each function returns a matplotlib `Figure`; nothing here touches pyplot or a display.

Learners and measures differ in marker, line and hatch as well as colour, so that a picture reads in grey.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import ScaledTranslation

from metalearn.runtime.files import write_atomically

from .checks import check_all, check_kind
from .freezing import SCALES, Estimate
from .together import differences

if TYPE_CHECKING:
    from .freezing import Freezing
    from .layerwise import Profile
    from .probes import Probes
    from .reuse import LayerReuse, Reuse
    from .similarity_map import SimilarityMap
    from .together import Difference

INK, MUTED, GRID = "#1c2733", "#66717d", "#dfe4ea"
COLOURS = ("#12467f", "#d1711c", "#2f8f6b", "#8f4a9c", "#b8304a", "#6b7280")
MARKERS, LINES = ("o", "s", "^", "D", "v", "P"), ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
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


def layer_profile(reuses: Sequence[Reuse]) -> Figure:
    """Similarity before and after adaptation, layer by layer: one learner with CCA, floors and ceiling, or the CKA of several."""
    return _panels([lambda axes: _draw_profile(axes, reuses)], _width(reuses[0]))


def freezing_curve(reuses: Sequence[Reuse]) -> Figure:
    """Accuracy with the layers frozen from the bottom up, with its interval, of every learner that adapts.

    Solid: under a head run to convergence; dashed: the paper's table, the head by its own steps.
    """
    return _panels([lambda axes: _draw_freezing(axes, reuses)], _width(reuses[0]))


def frozen_accuracies(frozen: Freezing) -> Figure:
    """`freezing_curve` of one table that stands alone."""
    return _panels([lambda axes: _draw_frozen(axes, [("the learner", frozen, _look(0))])], max(5.6, 0.36 * len(frozen.rows) + 1.5))


def similarities(profile: Profile) -> Figure:
    """The similarity of every layer of two networks, with the band of chance; a layer without one is not drawn."""
    return _panels([lambda axes: _draw_similarity(axes, profile)], max(5.6, 0.36 * len(profile.layers) + 1.5))


def probe_accuracies(probes: Probes) -> Figure:
    """The accuracy of a linear probe on every layer, with its interval, and chance."""
    return _panels([lambda axes: _draw_probes(axes, probes)], max(5.6, 0.36 * len(probes.layers) + 1.5))


def decomposition_bars(reuses: Sequence[Reuse]) -> Figure:
    """What every way of adapting gains or loses against nothing frozen, with its interval: a group of bars a learner."""
    return _panels([lambda axes: _draw_decomposition(axes, reuses)], 8.2, height=_decomposition_height(reuses))


def weights_moved(reuses: Sequence[Reuse]) -> Figure:
    """How far the inner loop moves each layer's weights, and how long their first gradient is; a layer without either is not drawn."""
    return _panels([lambda axes: _draw_distances(axes, reuses), lambda axes: _draw_gradients(axes, reuses)], 2 * _width(reuses[0]))


def class_cosines(reuses: Sequence[Reuse]) -> Figure:
    """The mean cosine between query features of one class and of two, before and after adaptation: a panel a learner."""
    width = _width(reuses[0]) if len(reuses) == 1 else max(3.9, 0.3 * len(reuses[0].layers) + 1) * min(len(reuses), 3)
    figure = _panels([partial(_draw_cosines, reuse=reuse) for reuse in reuses], width, share=True)
    low, high = figure.axes[0].get_ylim()
    figure.axes[0].set_ylim(max(low, -1.05), min(high, 1.05))  # two seeds may give an interval of several units
    return figure


def paired_comparison(reuses: Sequence[Reuse]) -> Figure:
    """Every two learners on the same test tasks: the difference in accuracy, in points, with its 95 % interval."""
    found = differences(reuses)
    return _panels([lambda axes: _draw_differences(axes, found)], 6.6, height=1.7 + 0.42 * len(found))


def timeline(steps: Sequence[int], similarity: Mapping[str, Sequence[Estimate]], accuracy: Sequence[Estimate]) -> Figure:
    """How similar each layer stays through the inner loop, and the accuracy, as training goes on; bands are the intervals.

    Args:
        steps: outer steps at which the learner was looked at, ascending.
        similarity: layer -> one estimate a step, such as `[reuse.layers[0].cka for reuse in reuses]`; layers in order.
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
        raise ValueError("steps is empty; give the outer steps at which the learner was looked at, such as [0, 100]")
    for name, curve in {**similarity, "accuracy": accuracy}.items():
        check_all(curve, Estimate, name, "give one Estimate a step")
        if len(curve) != len(steps):
            raise ValueError(f"{name} has {len(curve)} points for {len(steps)} steps; give one estimate a step")
    return _panels([lambda axes: _draw_similarities(axes, steps, similarity), lambda axes: _draw_learning(axes, steps, accuracy)], 11.4)


def summary(reuses: Sequence[Reuse]) -> Figure:
    """The three pictures side by side, under the name and the verdict."""
    with matplotlib.rc_context(STYLE):
        height = max(4.7, 0.6 + _decomposition_height(reuses))
        figure = Figure(figsize=(18, height), layout=ConstrainedLayoutEngine(wspace=0.06, w_pad=0.1), facecolor="white")
        figure.suptitle("   ".join(f"{r.name}: {r.verdict.answer}" for r in reuses), x=0.01, ha="left", fontsize=14, fontweight="bold")
        for axes, draw in zip(figure.subplots(1, 3), (_draw_profile, _draw_freezing, _draw_decomposition), strict=True):
            draw(axes, reuses)
    return figure


def save(figure: Figure, path: str | PathLike[str]) -> None:
    """Write a figure, whole or not at all; the ending says how. Raises ValueError for an ending that matplotlib does not write."""
    kind = Path(fspath(path)).suffix.lstrip(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise ValueError(f"{fspath(path)!r} does not end in a kind of picture; use .png, .svg or .pdf")
    write_atomically(path, rendered(figure, kind))


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a file; the same figure gives the same bytes."""
    stamp: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=150, metadata=stamp or None)
    return buffer.getvalue()


def _panels(draws: Sequence[Callable[[Axes], None]], width: float, *, height: float = 4.2, share: bool = False) -> Figure:
    """A figure with one panel for each drawing, at most three in a row."""
    columns = min(len(draws), 3)
    rows = -(-len(draws) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height * rows), layout="constrained", facecolor="white")
        panels = figure.subplots(rows, columns, squeeze=False, sharey=share).flatten()
        for axes, draw in zip(panels, draws, strict=False):
            draw(axes)
        for axes in panels[len(draws) :]:
            axes.remove()
    return figure


def _width(reuse: Reuse) -> float:
    return max(5.6, 0.36 * len(reuse.layers) + 1.5)


def _draw_profile(axes: Axes, reuses: Sequence[Reuse]) -> None:
    names = [layer.layer for layer in reuses[0].layers]
    same = [reuse for reuse in reuses if [layer.layer for layer in reuse.layers] == names]
    x = np.arange(len(names))
    bottom = 0.0
    if len(same) == 1:
        layers = same[0].layers
        cca, cca_widths = np.array([layer.cca for layer in layers]).T
        _floor(axes, x, [layer.cca_floor for layer in layers], "CCA by chance", hatch="////", colour="white")
        _floor(axes, x, [layer.cka_floor for layer in layers], "CKA by chance", colour="#c3cad3")
        mean_over = f"(mean over {'seeds' if same[0].seeds else 'tasks'})"
        axes.errorbar(x, cca, cca_widths, **_look(1), capsize=3, label=f"CCA {mean_over}")
        axes.plot(x, [layer.cca_pooled for layer in layers], **_look(2), alpha=0.6, label="CCA (tasks pooled)")
        _draw_ceiling(axes, x, layers)
        curves = [(f"CKA {mean_over}", same[0])]
    else:
        curves = [(reuse.name, reuse) for reuse in same]
        _floor(axes, x, [layer.cka_floor for layer in same[0].layers], "by chance", colour="#c3cad3")
    for i, (label, reuse) in enumerate(curves):
        means, widths = np.array([layer.cka for layer in reuse.layers]).T
        bottom = min(bottom, float(np.nanmin(np.append(means - np.nan_to_num(widths), 0))))
        axes.errorbar(_beside(x, i, len(curves)), means, widths, **_look(i), capsize=3, label=label)
    _mark(axes, 0.9, "0.9")
    _layer_axis(axes, reuses[0])
    axes.set(
        title="How similar each layer stays",
        ylabel="similarity, before and after",
        ylim=(max(bottom, -0.5) - 0.04, 1.05),  # two seeds may give an interval of several units
    )
    _finish(axes, 2)


def _draw_freezing(axes: Axes, reuses: Sequence[Reuse]) -> None:
    curves = []
    for i, reuse in enumerate(reuses):
        if reuse.decomposition:
            look = _look(i) | {"ls": "-"}
            curves.append((f"{reuse.name}, converged head", reuse.decomposition.converged, look))
        if reuse.freezing:
            look = _look(i) | {"ls": "--", "mfc": "white"}
            curves.append((f"{reuse.name}, own steps (the paper's)", reuse.freezing, look))
    if not curves:
        axes.set(title="With layers frozen")
        return _say(axes, "no inner loop: nothing to freeze")
    return _draw_frozen(axes, curves)


def _draw_frozen(axes: Axes, curves: Sequence[tuple[str, Freezing, dict[str, Any]]]) -> None:
    """The curves of freezing tables, each with its name and its look; those of other layers than the first are left out."""
    first = curves[0][1]
    percent = first.measure == "accuracy"
    factor = SCALES[first.measure].factor
    names = [row.layers for row in first.rows]
    axes.set(title=f"{first.measure.capitalize()} with layers frozen", ylabel="accuracy, %" if percent else "loss")
    ends = []
    for name, frozen, look in curves:
        if [row.layers for row in frozen.rows] != names:
            continue
        means, widths = factor * np.array([row.accuracy for row in frozen.rows]).T
        x = np.arange(len(means))
        axes.fill_between(x, means - widths, means + widths, color=look["color"], alpha=0.12, lw=0)
        axes.plot(x, means, **look, label=name)
        ends += [*(means - np.nan_to_num(widths)), *(means + np.nan_to_num(widths))]
    _layer_ticks(axes, ["none", *(row.layers[-1] for row in first.rows[1:])])
    low, high = min(ends), max(ends)
    room = max(0.15 * (high - low), 2.0 if percent else 0.1 * abs(high))  # on a narrower axis noise would look like a fall
    axes.set(xlabel="frozen up to this layer", ylim=(max(low - 2 * room, 0), min(high + room, 101) if percent else high + room))
    _finish(axes, 2)


def _draw_similarity(axes: Axes, profile: Profile) -> None:
    x = np.arange(len(profile.layers))
    values = np.array([row.similarity for row in profile.layers])
    _floor(axes, x, [row.floor for row in profile.layers], "by chance", colour="#c3cad3")
    axes.plot(x, values, **_look(0), label=profile.measure)
    _layer_ticks(axes, [row.layer for row in profile.layers])
    bottom = float(np.nanmin(np.append(values, 0)))
    axes.set(title="How similar each layer is", ylabel="similarity", ylim=(max(bottom, -1) - 0.04, 1.05))
    axes.set_xlim(-0.5, len(x) - 0.5)
    _finish(axes, 2)


def _draw_probes(axes: Axes, probes: Probes) -> None:
    means, widths = 100 * np.array([row.accuracy for row in probes.layers]).T
    axes.errorbar(np.arange(len(means)), means, widths, **_look(0), capsize=3, label="linear probe")
    _mark(axes, 100 * probes.chance, "chance")
    _layer_ticks(axes, [row.layer for row in probes.layers])
    axes.set(title="What a linear readout of each layer knows", ylabel="accuracy, %", xlim=(-0.5, len(means) - 0.5))
    _finish(axes, 1)


def _draw_decomposition(axes: Axes, reuses: Sequence[Reuse]) -> None:
    """Bars to the right are better than with nothing frozen, to the left worse; the numbers stand beside them."""
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
            gain, width = -scale.factor * condition.cost.mean, scale.factor * np.nan_to_num(condition.cost.interval)
            axes.barh(y, gain, 0.64, xerr=width, color=_look(i)["color"], error_kw={"ecolor": INK, "capsize": 2.5, "lw": 1.1})
            place: Any = {"xycoords": ("axes fraction", "data"), "xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(scale.against(condition.cost), (1, y), **place, fontsize=8.5)
            ticks.append((y, condition.name))
            y += 1
        y += 0.3
    if not ticks:
        return _say(axes, "no inner loop and head to take apart")
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


def _decomposition_height(reuses: Sequence[Reuse]) -> float:
    """Inches: a line for every condition and every name."""
    lines = [len(reuse.decomposition.conditions) + 0.3 for reuse in reuses if reuse.decomposition]
    return max(1.1 + 0.235 * sum(lines), 2.4)


def _draw_ceiling(axes: Axes, x: np.ndarray, layers: Sequence[LayerReuse]) -> None:
    found = [layer.ceiling for layer in layers if layer.ceiling]
    if found:
        means, widths = np.array([one.cka for one in found]).T
        look: Any = {"color": MUTED, "marker": "_", "ms": 15, "mew": 2, "ls": "", "capsize": 3, "lw": 1}
        axes.errorbar(x, means, widths, **look, label="CKA with another seed's network")


def _draw_distances(axes: Axes, reuses: Sequence[Reuse]) -> None:
    axes.set(title="How far each layer's weights move", ylabel="distance / norm before")
    _draw_lengths(axes, reuses, lambda layer: layer.relative_distance, "no layer moves")


def _draw_gradients(axes: Axes, reuses: Sequence[Reuse]) -> None:
    axes.set(title="The first inner gradient", ylabel="norm")
    _draw_lengths(axes, reuses, lambda layer: layer.gradient, "no layer has a rate")


def _draw_lengths(axes: Axes, reuses: Sequence[Reuse], pick: Callable[[LayerReuse], Estimate], none: str) -> None:
    """Lengths span decades, so that the axis is logarithmic and a length of zero is left out."""
    shown = False
    for i, reuse in enumerate(reuses):
        means, widths = np.array([pick(layer) for layer in reuse.layers]).T
        drawn = means > 0
        if drawn.any():
            x = _beside(np.arange(len(means)), i, len(reuses))
            axes.errorbar(x, np.where(drawn, means, np.nan), widths, **_look(i), capsize=3, label=reuse.name)
            shown = True
    if not shown:
        return _say(axes, none)
    axes.set_yscale("log", nonpositive="clip")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.get_ylim()
    read = "123456789" if high < 4 * low else "1235" if high < 40 * low else "1"  # so many ticks that one can read by them
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in read else ""))
    _layer_axis(axes, reuses[0])
    _finish(axes, 3)
    return None


def _draw_cosines(axes: Axes, reuse: Reuse) -> None:
    kinds: list[tuple[str, Callable[[LayerReuse], Estimate], int, bool]] = [
        ("one class, before", lambda layer: layer.intra.before, 0, False),
        ("one class, after", lambda layer: layer.intra.after, 0, True),
        ("two classes, before", lambda layer: layer.inter.before, 1, False),
        ("two classes, after", lambda layer: layer.inter.after, 1, True),
    ]
    for label, pick, i, after in kinds:
        means, widths = np.array([pick(layer) for layer in reuse.layers]).T
        look = _look(i) | ({"ls": "-"} if after else {"ls": ":", "mfc": "white", "ms": 9})
        axes.errorbar(np.arange(len(means)), means, widths, **look, capsize=3, label=label)
    _layer_axis(axes, reuse)
    axes.set(title=f"{reuse.name}: query features", ylabel="mean cosine")
    axes.label_outer()
    axes.xaxis.set_tick_params(labelbottom=True)
    _finish(axes, 2)


def _draw_differences(axes: Axes, found: Sequence[Difference]) -> None:
    names = [f"{one.first} minus {one.second}" for one in found]
    for y, one in enumerate(found):
        if one.note:
            axes.annotate(f"not comparable: {one.note.split(';')[0].split(':')[0]}", (0, y), va="center", fontsize=8.5, color=MUTED)
            continue
        factor = SCALES[one.measure].factor
        mean, width = factor * one.estimate.mean, factor * one.estimate.interval
        axes.errorbar(mean, y, xerr=width, **_look(0), capsize=4)
        form = ".1f" if one.measure == "accuracy" else ".3g"
        label = f"{mean:+{form}} ± {width:{form}}" if np.isfinite(width) else f"{mean:+{form}}"
        axes.annotate(label, (mean, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8.5)
    axes.axvline(0, color=MUTED, lw=1, ls=(0, (2, 2)))
    axes.set_yticks(range(len(names)), names)
    over = ", ".join(dict.fromkeys(f"{one.pairs} {one.unit}s" for one in found if one.pairs))
    kind = "loss" if any(one.measure == "loss" for one in found) else "accuracy, points"
    axes.set(title="Compared in pairs", xlabel=f"difference in {kind} (paired over {over})", ylim=(len(names) - 0.5, -0.7))
    axes.grid(axis="x", color=GRID, lw=0.8)
    axes.tick_params(length=0)


def _draw_similarities(axes: Axes, steps: Sequence[int], similarity: Mapping[str, Sequence[Estimate]]) -> None:
    # Layers are an order, so that they go from dark to light.
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.82, len(similarity)))
    for i, (name, curve) in enumerate(similarity.items()):
        _band(axes, steps, np.array(curve), name, **(_look(i) | {"color": shades[i]}))
    _mark(axes, 0.9, "0.9")
    axes.set(title="How similar each layer stays", ylabel="similarity, before and after adaptation")
    _step_axis(axes, steps)
    _finish(axes, 4)


def _draw_learning(axes: Axes, steps: Sequence[int], accuracy: Sequence[Estimate]) -> None:
    _band(axes, steps, 100 * np.array(accuracy), "on test tasks", **_look(0))
    axes.set(title="Accuracy", ylabel="accuracy, %")
    _step_axis(axes, steps)
    _finish(axes, 1)


def _band(axes: Axes, x: Sequence[int], estimates: np.ndarray, label: str, **look: Any) -> None:
    means, widths = estimates.T
    axes.fill_between(x, means - widths, means + widths, color=look["color"], alpha=0.16, lw=0)
    axes.plot(x, means, **look, label=label)


def _step_axis(axes: Axes, steps: Sequence[int]) -> None:
    positive = [step for step in steps if step > 0]
    if positive and max(positive) >= 20 * min(positive):  # points at 0, 100 and 10,000 steps would fall on each other
        axes.set_xscale("symlog", linthresh=min(positive))
    if min(steps) < max(steps):
        axes.set_xlim(min(steps), max(steps))
        ends = axes.transData.inverted().transform(axes.transAxes.transform([(-0.05, 0), (1.05, 0)]))  # a margin on any scale
        axes.set_xlim(float(ends[0, 0]), float(ends[1, 0]))
    axes.set_xticks(steps, [f"{step:,}" for step in steps])
    axes.minorticks_off()
    axes.set_xlabel("outer steps")


def _look(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % 6], "marker": MARKERS[i % 6], "ls": LINES[i % 6], "ms": 6.5}


def _beside(x: np.ndarray, i: int, count: int) -> np.ndarray:
    return x + 0.06 * (i - (count - 1) / 2)


def _mark(axes: Axes, y: float, text: str) -> None:
    """A dotted line across, with its name at the right."""
    axes.axhline(y, color=MUTED, lw=1, ls=(0, (2, 2)))
    place: Any = {"xycoords": ("axes fraction", "data"), "xytext": (3, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(text, (1, y), **place, color=MUTED, fontsize=8.5)


def _floor(axes: Axes, x: np.ndarray, floors: Sequence[Any], label: str, *, colour: str, hatch: str = "") -> None:
    low = np.array([min(floor.median, 0) if np.isfinite(floor.median) else np.nan for floor in floors])
    high = np.array([floor.upper for floor in floors])
    axes.fill_between(x, low, high, facecolor=colour, hatch=hatch, edgecolor="#9aa4af", lw=0.6, label=label, step="mid", alpha=0.9)


def _layer_axis(axes: Axes, reuse: Reuse) -> None:
    names = [layer.layer for layer in reuse.layers]
    heads = [i for i, layer in enumerate(reuse.layers) if layer.head]
    if heads:
        axes.axvspan(heads[0] - 0.5, len(names) - 0.5, color="#f3f5f8", zorder=-1, lw=0)
    _layer_ticks(axes, names)
    axes.set_xlim(-0.5, len(names) - 0.5)


def _layer_ticks(axes: Axes, names: Sequence[str]) -> None:
    shown = [name if len(name) <= 20 else f"…{name[-19:]}" for name in names]  # the end tells layers apart
    crowded = sum(map(len, shown)) > 42
    axes.set_xticks(range(len(shown)), shown, rotation=40 if crowded else 0, ha="right" if crowded else "center", rotation_mode="anchor")


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.set(xticks=[], yticks=[])


def _finish(axes: Axes, columns: int) -> None:
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.tick_params(length=0)
    inches = 0.55 if axes.get_xlabel() else 0.4
    rotated = [len(label.get_text()) for label in axes.get_xticklabels() if label.get_rotation()]
    inches += 0.051 * max(rotated, default=0)  # the height of a letter in a label turned by 40 degrees
    below = axes.transAxes + ScaledTranslation(0, -inches, axes.figure.dpi_scale_trans)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, ncols=columns, borderaxespad=0.2)


def heatmap(found: SimilarityMap) -> Figure:
    """Every layer of one network (upwards) against every layer of another (to the right): darker is more similar, hatched has no value.

    The scale is 0 to 1 in every picture, so that two of them compare; the 95 % quantile of chance is marked on it.
    """
    rows, columns = found.values.shape
    cell = max(0.19, 2.6 / max(rows, columns))  # inches, as all that follows
    size = 9 if cell > 0.3 else 7.5
    left, below = (0.5 + 0.0085 * size * max(map(len, layers)) for layers in (found.layers_a, found.layers_b))
    wide, high, scale = cell * columns, cell * rows, max(cell * rows, 2.0)
    page = left + wide + 1.4, below + scale + 0.15

    def place(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        return x / page[0], y / page[1], width / page[0], height / page[1]

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=page, facecolor="white")
        axes = figure.add_axes(place(left, below, wide, high))
        axes.patch.set(hatch="////", edgecolor=MUTED)
        image = axes.imshow(found.values, cmap="magma_r", vmin=0, vmax=1, origin="lower", interpolation="nearest", aspect="auto")
        axes.set_xticks(range(columns), found.layers_b, rotation=90, fontsize=size)
        axes.set_yticks(range(rows), found.layers_a, fontsize=size)
        axes.tick_params(length=0)
        axes.set(xlabel=f"layers of b ({found.networks[1]})", ylabel=f"layers of a ({found.networks[0]})")
        for i, j in np.argwhere(np.isfinite(found.values)) if max(rows, columns) <= 8 else ():
            value = found.values[i, j]
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.5 else INK)
        bar = figure.colorbar(image, cax=figure.add_axes(place(left + wide + 0.55, below, 0.16, scale)), label="debiased minibatch CKA")
        bar.ax.tick_params(length=0)
        chance = found.floor.upper
        if chance > 0:
            bar.ax.axhline(chance, color=INK, lw=1)
            bar.ax.annotate("by\nchance", (0, chance), xytext=(-3, 0), textcoords="offset points", ha="right", va="center", fontsize=7)
    return figure
