"""Pictures of what adaptation changes. Each function returns a matplotlib `Figure`; nothing here touches pyplot or a display.

Learners and measures differ in marker, line and hatch as well as colour, so that a picture reads in grey.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..files import write_atomically

if TYPE_CHECKING:
    from .freezing import Estimate
    from .reuse import Reuse

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
    """Similarity before and after adaptation, layer by layer: one learner with CCA and both floors, or the CKA of several."""
    return _single(lambda axes: _draw_profile(axes, reuses), _width(reuses[0]))


def freezing_curve(reuses: Sequence[Reuse]) -> Figure:
    """Accuracy with the layers frozen from the bottom up, with its interval, of every learner that adapts."""
    return _single(lambda axes: _draw_freezing(axes, reuses), _width(reuses[0]))


def accuracy_bars(reuses: Sequence[Reuse]) -> Figure:
    """Accuracy with and without the head, before and after adaptation: four bars a learner, with intervals and the chance line."""
    return _single(lambda axes: _draw_accuracies(axes, reuses), max(5.6, 2.6 * len(reuses) + 1))


def summary(reuses: Sequence[Reuse]) -> Figure:
    """The three pictures side by side, under the name and the verdict."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(15.5, 4.7), layout=ConstrainedLayoutEngine(wspace=0.06, w_pad=0.1), facecolor="white")
        figure.suptitle("   ".join(f"{r.name}: {r.verdict.answer}" for r in reuses), x=0.01, ha="left", fontsize=14, fontweight="bold")
        for axes, draw in zip(figure.subplots(1, 3), (_draw_profile, _draw_freezing, _draw_accuracies), strict=True):
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


def _single(draw: Callable[[Axes], None], width: float) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 4.2), layout="constrained", facecolor="white")
        draw(figure.subplots())
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
        cca = np.array([layer.cca for layer in layers])
        _floor(axes, x, [layer.cca_floor for layer in layers], "CCA by chance", hatch="////", colour="white")
        _floor(axes, x, [layer.cka_floor for layer in layers], "CKA by chance", colour="#c3cad3")
        axes.plot(x, cca, LINES[1], color=COLOURS[1], marker=MARKERS[1], markersize=6, label="CCA (tasks pooled)")
        curves = [("CKA (mean over tasks)", same[0])]
    else:
        curves = [(reuse.name, reuse) for reuse in same]
        _floor(axes, x, [layer.cka_floor for layer in same[0].layers], "by chance", colour="#c3cad3")
    for i, (label, reuse) in enumerate(curves):
        means, widths = np.array([layer.cka for layer in reuse.layers]).T
        bottom = min(bottom, float(np.nanmin(np.append(means - np.nan_to_num(widths), 0))))
        colour, which = COLOURS[i], i if len(curves) > 1 else 0
        axes.errorbar(
            x + 0.06 * (i - (len(curves) - 1) / 2),
            means,
            widths,
            fmt=MARKERS[which],
            ls=LINES[which],
            color=colour,
            ms=6.5,
            capsize=3,
            label=label,
        )
    axes.axhline(0.9, color=MUTED, lw=1, ls=(0, (2, 2)))
    axes.annotate(
        "0.9",
        (1, 0.9),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        color=MUTED,
        fontsize=8.5,
    )
    heads = [i for i, layer in enumerate(reuses[0].layers) if layer.head]
    if heads:
        axes.axvspan(heads[0] - 0.5, len(names) - 0.5, color="#f3f5f8", zorder=-1, lw=0)
    _layer_ticks(axes, names)
    axes.set(
        title="How similar each layer stays",
        ylabel="similarity, before and after",
        ylim=(bottom - 0.04, 1.05),
        xlim=(-0.5, len(names) - 0.5),
    )
    _finish(axes, 2)


def _draw_freezing(axes: Axes, reuses: Sequence[Reuse]) -> None:
    adapting = [(i, reuse.freezing) for i, reuse in enumerate(reuses) if reuse.freezing is not None]
    axes.set(title="What freezing layers costs", ylabel="accuracy, %")
    if not adapting:
        return _say(axes, "no inner loop: nothing to freeze")
    ends = []
    for i, frozen in adapting:
        means, widths = 100 * np.array([row.accuracy for row in frozen.rows]).T
        x = np.arange(len(means))
        axes.fill_between(x, means - widths, means + widths, color=COLOURS[i], alpha=0.16, lw=0)
        axes.plot(x, means, ls=LINES[i], color=COLOURS[i], marker=MARKERS[i], ms=6.5, label=reuses[i].name)
        ends += [*(means - np.nan_to_num(widths)), *(means + np.nan_to_num(widths))]
    _layer_ticks(axes, ["none", *(row.layers[-1] for row in adapting[0][1].rows[1:])])
    low, high = min(ends), max(ends)
    room = max(0.15 * (high - low), 2.0)  # an axis of tenths of a point would make noise look like a fall
    axes.set(xlabel="frozen up to this layer", ylim=(max(low - 2 * room, 0), min(high + room, 101)))
    _finish(axes, 3)
    return None


def _draw_accuracies(axes: Axes, reuses: Sequence[Reuse]) -> None:
    kinds: list[tuple[str, Callable[[Reuse], Estimate], str, str]] = [
        ("with head, before", lambda r: r.accuracies.head_before, "#cfdcec", ""),
        ("with head, after", lambda r: r.accuracies.head_after, "#12467f", ""),
        ("without head, before", lambda r: r.accuracies.headless_before, "#fbe6d3", "////"),
        ("without head, after", lambda r: r.accuracies.headless_after, "#d1711c", "////"),
    ]
    for j, (label, pick, colour, hatch) in enumerate(kinds):
        estimates = 100 * np.array([pick(reuse) for reuse in reuses])
        x = np.arange(len(reuses)) + 0.21 * (j - 1.5)
        errors = {"ecolor": INK, "capsize": 3, "lw": 1.1}
        axes.bar(
            x, estimates[:, 0], 0.19, yerr=estimates[:, 1], color=colour, hatch=hatch, edgecolor=INK, lw=0.7, error_kw=errors, label=label
        )
        for position, (mean, width) in zip(x, estimates, strict=True):
            text, height = (f"{mean:.1f}", mean + np.nan_to_num(width)) if np.isfinite(mean) else ("none", 0.0)
            axes.annotate(text, (position, height), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8.5)
    chance = 100 * reuses[0].accuracies.chance
    axes.axhline(chance, color=MUTED, lw=1, ls=(0, (2, 2)))
    axes.annotate(
        "chance",
        (1, chance),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        color=MUTED,
        fontsize=8.5,
    )
    axes.set_xticks(range(len(reuses)), [reuse.name for reuse in reuses])
    axes.set(title="With and without a head", ylabel="accuracy, %", ylim=(0, 108), yticks=range(0, 101, 20), xlim=(-0.5, len(reuses) - 0.5))
    _finish(axes, 2)


def _floor(axes: Axes, x: np.ndarray, floors: Sequence[Any], label: str, *, colour: str, hatch: str = "") -> None:
    low = np.array([min(floor.median, 0) if np.isfinite(floor.median) else np.nan for floor in floors])
    high = np.array([floor.upper for floor in floors])
    axes.fill_between(x, low, high, facecolor=colour, hatch=hatch, edgecolor="#9aa4af", lw=0.6, label=label, step="mid", alpha=0.9)


def _layer_ticks(axes: Axes, names: Sequence[str]) -> None:
    crowded = sum(map(len, names)) > 42
    axes.set_xticks(range(len(names)), names, rotation=40 if crowded else 0, ha="right" if crowded else "center", rotation_mode="anchor")


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.set(xticks=[], yticks=[])


def _finish(axes: Axes, columns: int) -> None:
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.tick_params(length=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16 if not axes.get_xlabel() else -0.2), ncols=columns, borderaxespad=0.2)
