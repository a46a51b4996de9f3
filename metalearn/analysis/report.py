"""What `feature_reuse` found, for people: plain text for a terminal, and one self-contained HTML page."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from ..files import write_atomically
from .similarity import Floor
from .tables import aligned
from .verdict import RULE, number, percent, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .reuse import LayerReuse, Reuse

LAYER_COLUMNS = ("layer", "CKA", "chance (95 %)", "n x d", "CCA", "chance (95 %)", "n x d")

CONVENTION = (
    "CKA: debiased linear, per task on the query images, every image flattened, ± over tasks. CCA: mean canonical correlation, channels as "
    "features, sampled positions of the query images of all tasks pooled, so that one linear map must fit every task. Chance: whole images "
    "(CCA: whole tasks) of one side shuffled, median and 95 %."
)


def text(reuse: Reuse) -> str:
    """The report of one learner as aligned plain text."""
    parts = [
        f"{reuse.name}: {reuse.verdict.answer}\n{reuse.verdict.evidence}",
        f"{described(reuse)}\n{settings_line(reuse.settings)}",
        aligned(LAYER_COLUMNS, layer_rows(reuse)),
        *([str(reuse.freezing)] if reuse.freezing else []),
        aligned(("accuracy %", "before adaptation", "after adaptation"), accuracy_rows(reuse)),
        f"Removing the head costs {points(reuse.accuracies.head_cost)} (paired)." if _known(reuse.accuracies.head_cost.mean) else "",
        "\n".join(f"Note: {note}" for note in reuse.notes),
        f"{CONVENTION}\n{RULE}",
    ]
    return "\n\n".join(part for part in parts if part)


def report(
    reuses: Sequence[Reuse],
    path: str | PathLike[str],
    *,
    results: Sequence[Mapping[str, Any]] | None = None,
    title: str = "Rapid learning or feature reuse?",
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write one HTML page on one or several learners; pictures are embedded, and nothing is loaded from elsewhere.

    Args:
        reuses: what `feature_reuse` returned, best on the same episodes.
        path: the file, written whole or not at all.
        results: rows for a table of results, `{column: value}` with the columns of the first row.
        title: the page's heading.
        settings: of the run as a whole (the command, the data set, times), listed at the end.

    Raises ValueError where there is nothing to report.
    """
    if not reuses:
        raise ValueError("report() got no learners: pass the result of feature_reuse in a list")
    write_atomically(path, html(reuses, results=results, title=title, settings=settings).encode())


def html(
    reuses: Sequence[Reuse],
    *,
    results: Sequence[Mapping[str, Any]] | None = None,
    title: str = "Rapid learning or feature reuse?",
    settings: Mapping[str, Any] | None = None,
) -> str:
    """The page that `report` writes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from .plots import accuracy_bars, freezing_curve, layer_profile

    pictures = Environment(loader=PackageLoader("metalearn.analysis", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    together = (
        [
            (picture(layer_profile(reuses)), "Debiased CKA before and after adaptation of every learner, layer by layer."),
            (
                picture(freezing_curve(reuses)),
                "Accuracy with the layers frozen from the bottom up; the band is the 95 % interval over tasks.",
            ),
            (picture(accuracy_bars(reuses)), "Accuracy with and without the head, before and after adaptation."),
        ]
        if len(reuses) > 1
        else []
    )
    columns = list(results[0]) if results else []
    return pictures.get_template("report.html").render(
        title=title,
        together=together,
        overview=[overview(reuse) for reuse in reuses] if len(reuses) > 1 else [],
        columns=columns,
        results=[[row.get(column, "") for column in columns] for row in results or []],
        learners=[_section(reuse, alone=len(reuses) == 1) for reuse in reuses],
        convention=CONVENTION,
        rule=RULE,
        settings=flat(settings or {}),
        versions=reuses[0].versions,
    )


def _section(reuse: Reuse, alone: bool) -> dict[str, Any]:
    from .plots import accuracy_bars, freezing_curve, layer_profile

    pictures = [
        (
            picture(layer_profile([reuse])),
            "Each layer's output on the query images, before against after adaptation; the bands are what unrelated features score.",
        )
    ]
    if alone:
        pictures += [
            (
                picture(freezing_curve([reuse])),
                "Accuracy with the layers frozen from the bottom up; the band is the 95 % interval over tasks.",
            ),
            (picture(accuracy_bars([reuse])), "Accuracy with and without the head, before and after adaptation."),
        ]
    return {
        "name": reuse.name,
        "verdict": reuse.verdict,
        "plain": in_plain_words(reuse),
        "described": described(reuse),
        "layers": layer_rows(reuse),
        "freezing": freezing_rows(reuse),
        "accuracies": accuracy_rows(reuse),
        "head_cost": points(reuse.accuracies.head_cost) if _known(reuse.accuracies.head_cost.mean) else "",
        "notes": reuse.notes,
        "settings": flat(reuse.settings),
        "pictures": pictures,
    }


PLAIN = {
    "feature reuse": "The features that a new task needs were already there: adaptation leaves the body as it was.",
    "rapid learning": "Adaptation changes the features, or the features alone do not carry the task.",
    "undecided": "The evidence does not settle it at this number of tasks: an interval straddles a bound.",
    "does not adapt": "This learner has no inner loop, so there is no before and after to compare.",
}


def in_plain_words(reuse: Reuse) -> str:
    """The verdict in a sentence for someone who has not read the paper."""
    if reuse.freezing and all(layer.unmoved for layer in reuse.layers if not layer.head):
        return (
            "The inner loop cannot move the body, so its similarity is 1 by construction and freezing it costs nothing. What the evidence "
            "tests is whether the features carry the task without the head."
        )
    return PLAIN[reuse.verdict.answer]


def picture(figure: Figure) -> str:
    """A figure as a data URI: an SVG that needs no font and no network."""
    from .plots import rendered

    return "data:image/svg+xml;base64," + base64.b64encode(rendered(figure, "svg")).decode()


def described(reuse: Reuse) -> str:
    """The tasks in words."""
    counts = f"{reuse.tasks} task{'s' * (reuse.tasks != 1)}, {reuse.ways}-way {reuse.shots}-shot, {reuse.queries} queries per class"
    return f"{counts}; normalisation: {reuse.settings.get('norm', 'not recorded')}"


def settings_line(settings: Mapping[str, Any]) -> str:
    """Settings on one line."""
    return ", ".join(f"{key} {value}" for key, value in flat(settings) if key != "norm")


def overview(reuse: Reuse) -> dict[str, Any]:
    """One learner as one row of the summary table."""
    body = [layer for layer in reuse.layers if not layer.head and _known(layer.cka.mean)]
    least = min(body, key=lambda layer: layer.cka.mean, default=None)
    return {
        "name": reuse.name,
        "answer": reuse.verdict.answer,
        "accuracy": percent(reuse.accuracies.own),
        "least": f"{number(least.cka)} ({'by construction' if least.unmoved else least.layer})" if least else "-",
        "frozen": points(reuse.freezing.rows[-1].cost) if reuse.freezing else "-",
        "headless": points(reuse.accuracies.head_cost) if _known(reuse.accuracies.head_cost.mean) else "-",
    }


def layer_rows(reuse: Reuse) -> list[tuple[str, ...]]:
    """The rows under `LAYER_COLUMNS`."""
    return [_layer_row(layer) for layer in reuse.layers]


def _layer_row(layer: LayerReuse) -> tuple[str, ...]:
    cka = number(layer.cka) if _known(layer.cka.mean) else "-"
    return (
        f"{layer.layer} (head)" if layer.head and layer.layer != "head" else layer.layer,
        f"{cka}, by construction" if layer.unmoved else cka,
        _floor(layer.cka_floor),
        f"{layer.cka_size[0]} x {layer.cka_size[1]}",
        f"{layer.cca:.3f}" if _known(layer.cca) else "-",
        _floor(layer.cca_floor),
        f"{layer.cca_size[0]} x {layer.cca_size[1]}",
    )


def freezing_rows(reuse: Reuse) -> list[tuple[str, str, str]]:
    """Frozen up to, accuracy, paired cost."""
    if reuse.freezing is None:
        return []
    return [
        (f"up to {row.layers[-1]}", percent(row.accuracy), points(row.cost)) if row.layers else ("nothing", percent(row.accuracy), "")
        for row in reuse.freezing.rows
    ]


def accuracy_rows(reuse: Reuse) -> list[tuple[str, str, str]]:
    """With and without the head: before, after."""
    a = reuse.accuracies
    rows = [("with the head", a.head_before, a.head_after), ("without the head", a.headless_before, a.headless_after)]
    found = [(name, percent(before), percent(after)) for name, before, after in rows if _known(before.mean)]
    return found if _known(a.head_after.mean) else [*found, ("the learner itself", "", percent(a.own))]


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (name, value) pairs, names joined by dots; long mappings of one value are folded.

    Example:
        >>> flat({"steps": 5, "lr": {"head": 0.1, "body": 0.1}, "data": {"name": "glyphs"}})
        [('steps', '5'), ('lr', '0.1 for head, body'), ('data.name', 'glyphs')]
    """
    pairs: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            values = {str(item) for item in value.values()}
            if len(value) > 1 and len(values) == 1:
                names = list(value) if len(value) <= 4 else [f"{len(value)} entries"]
                pairs.append((prefix + key, f"{values.pop()} for {', '.join(names)}"))
            else:
                pairs += flat(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + str(key), str(value)))
    return pairs


def _floor(floor: Floor) -> str:
    return f"{floor.median + 0.0:.2f} ({floor.upper:.2f})".replace("-0.00", "0.00") if _known(floor.median) else "-"


def _known(value: float) -> bool:
    return math.isfinite(value)
