"""What `feature_reuse` found, for people: plain text for a terminal, and one self-contained HTML page."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from ..files import write_atomically
from .checks import check_all
from .converged import CRITERION
from .freezing import SCALES, Estimate
from .layerwise import corrected, shown_p
from .reuse import LayerReuse, Reuse
from .seeds import Spread
from .similarity import Floor, holm
from .tables import aligned
from .verdict import RULE, number, percent, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYER_COLUMNS = ("layer", "CKA", "chance (95 %)", "p", "n x d")
CCA_COLUMNS = ("layer", "CCA", "chance (95 %)", "n x d", "CCA, pooled", "chance (95 %)", "n x d")
CEILING_COLUMNS = ("CKA, other seed",)
CCA_CEILING_COLUMNS = ("CCA, other seed", "pooled, other seed")
WEIGHT_COLUMNS = ("layer", "weights", "move by", "of their norm", "first gradient")
CLASS_COLUMNS = ("layer", "one class, before", "after", "two classes, before", "after")
SEED_COLUMNS = ("layer", "CKA", "CCA", "CCA, pooled", "move by", "first gradient")

CONVENTION = (
    "CKA: debiased linear, per task on the query images, every image flattened, ± over tasks. CCA: mean canonical correlation, channels as "
    "features and positions of the query images as examples (n in a task), per task as in Raghu et al. 2020, ± over tasks. CCA, pooled: "
    "sampled positions of all tasks together, so that one linear map must fit every task; not comparable with theirs. Chance: whole images "
    "(pooled: whole tasks) of one side shuffled, median and 95 %; "
)
CEILING = "Other seed: the same measures between this network and one trained from another seed, both before adaptation."
WEIGHT_CONVENTION = (
    "Move by: Euclidean norm of adapted minus initial weights, all of the layer in one, mean over tasks. First gradient: norm of the "
    "gradient of the inner loss on the support set by those of them that have a rate, at the meta-initialisation; 0 where none has."
)
CLASS_CONVENTION = (
    "Mean cosine between the features of two query images of one class, and of two classes, within a task: every image flattened, not "
    "centred, n x d as for CKA; mean over tasks."
)


def text(reuse: Reuse) -> str:
    """The report of one learner as aligned plain text, the answer first."""
    parts = reuse.decomposition
    blocks = [
        f"{reuse.name}: {reuse.verdict.answer}\n{reuse.verdict.evidence}",
        f"{described(reuse)}\n{settings_line(reuse.settings)}",
    ]
    if parts:
        blocks += [str(parts), str(parts.converged)]
    else:
        blocks.append(aligned((SCALES[reuse.accuracies.measure].label, "before adaptation", "after adaptation"), accuracy_rows(reuse)))
    if reuse.freezing:
        blocks.append(str(reuse.freezing))
    blocks.append(aligned(layer_columns(reuse), layer_rows(reuse)))
    blocks.append(aligned(cca_columns(reuse), cca_rows(reuse)))
    if reuse.seeds:
        blocks.append(f"{spread_line(reuse)}\n{aligned(SEED_COLUMNS, seed_rows(reuse))}")
    blocks.append(aligned(WEIGHT_COLUMNS, weight_rows(reuse)))
    if reuse.ways:
        blocks.append(f"cosine of query features\n{aligned(CLASS_COLUMNS, class_rows(reuse))}")
    blocks += [f"Note: {note}" for note in reuse.notes]
    cosine = f"Cosine: {CLASS_CONVENTION[0].lower()}{CLASS_CONVENTION[1:]}"
    explained = [*conventions(reuse), WEIGHT_CONVENTION, *([cosine] if reuse.ways else [])]
    if parts:
        explained.append(CRITERION)
    blocks.append("\n".join([*explained, RULE]))
    return "\n\n".join(blocks)


def report(
    reuses: Sequence[Reuse],
    path: str | PathLike[str],
    *,
    results: Sequence[Mapping[str, Any]] | None = None,
    title: str = "Rapid learning or feature reuse?",
    settings: Mapping[str, Any] | None = None,
    pictures: Mapping[str, Figure] | None = None,
) -> None:
    """Write one HTML page on one or several learners; pictures are embedded, and nothing is loaded from elsewhere.

    Args:
        reuses: what `feature_reuse` returned, best on the same episodes.
        path: the file, written whole or not at all.
        results: rows for a table of results, `{column: value}` with the columns of the first row.
        title: the page's heading.
        settings: of the run as a whole (the command, the data set, times), listed at the end.
        pictures: more figures by their captions, such as a `timeline` of training or a similarity map's heatmap.

    Raises ValueError where there is nothing to report.
    """
    reuses = check_all(reuses, Reuse, "reuses", "pass the result of feature_reuse in a list")
    if not reuses:
        raise ValueError("report() got no learners: pass the result of feature_reuse in a list")
    write_atomically(path, html(reuses, results=results, title=title, settings=settings, pictures=pictures).encode())


def html(
    reuses: Sequence[Reuse],
    *,
    results: Sequence[Mapping[str, Any]] | None = None,
    title: str = "Rapid learning or feature reuse?",
    settings: Mapping[str, Any] | None = None,
    pictures: Mapping[str, Figure] | None = None,
) -> str:
    """The page that `report` writes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(loader=PackageLoader("metalearn.analysis", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    several = len(reuses) > 1
    columns = list(results[0]) if results else []
    return pages.get_template("report.html").render(
        title=title,
        together=_first_pictures(reuses) if several else [],
        beneath=_further_pictures(reuses) if several else [],
        more=[(picture(figure), caption) for caption, figure in (pictures or {}).items()],
        overview=[overview(reuse) for reuse in reuses] if several else [],
        columns=columns,
        results=[[row.get(column, "") for column in columns] for row in results or []],
        learners=[_section(reuse, alone=not several) for reuse in reuses],
        weight_columns=WEIGHT_COLUMNS,
        weight_convention=WEIGHT_CONVENTION,
        class_columns=CLASS_COLUMNS,
        class_convention=CLASS_CONVENTION,
        seed_columns=SEED_COLUMNS,
        rule=RULE,
        settings=flat(settings or {}),
        versions=reuses[0].versions,
        spread=_spread_in_words(reuses),
    )


def _first_pictures(reuses: Sequence[Reuse]) -> list[tuple[str, str]]:
    """The pictures of the first screen, with captions: what the verdict stands on."""
    from .plots import accuracy_bars, freezing_curve

    score = reuses[0].accuracies.measure.capitalize()
    return [
        _profile(reuses),
        (picture(freezing_curve(reuses)), f"{score} with the layers frozen from the bottom up; the band is {_interval(reuses)}."),
        (picture(accuracy_bars(reuses)), f"{score} with and without the head, before and after adaptation."),
    ]


def _profile(reuses: Sequence[Reuse]) -> tuple[str, str]:
    from .plots import layer_profile

    one = "Each layer's output on the query images, before against after adaptation; the bands are what unrelated features score."
    many = "Debiased CKA before and after adaptation of every learner, layer by layer; the band is what unrelated features score."
    return picture(layer_profile(reuses)), one if len(reuses) == 1 else many


def _further_pictures(reuses: Sequence[Reuse]) -> list[tuple[str, str]]:
    """What the inner loop does to weights and classes, and the learners compared in pairs, with captions."""
    from .plots import class_cosines, paired_comparison, weights_moved

    moved = "How far the inner loop moves each layer's weights, and their gradient at its first step; a layer at zero has no mark."
    classes = all(reuse.ways for reuse in reuses)
    compared = f"The learners on the same test tasks: the difference in {reuses[0].accuracies.measure}, with {_interval(reuses)}."
    return [
        *([(picture(paired_comparison(reuses)), compared)] if len(reuses) > 1 else []),
        *([(picture(weights_moved(reuses)), moved)] if any(layer.has_rate for reuse in reuses for layer in reuse.layers) else []),
        *([(picture(class_cosines(reuses)), "How alike the features of two images are, of one class and of two classes.")] * classes),
    ]


def _interval(reuses: Sequence[Reuse]) -> str:
    return f"the 95 % interval over {'seeds' if reuses[0].seeds else 'tasks'}"


def _section(reuse: Reuse, alone: bool) -> dict[str, Any]:
    return {
        "name": reuse.name,
        "verdict": reuse.verdict,
        "described": described(reuse),
        "layer_columns": layer_columns(reuse),
        "layers": layer_rows(reuse),
        "cca_columns": cca_columns(reuse),
        "cca": cca_rows(reuse),
        "conventions": " ".join(conventions(reuse)),
        "weights": weight_rows(reuse),
        "classes": class_rows(reuse),
        "seeds": seed_rows(reuse),
        "spread": spread_line(reuse) if reuse.seeds else "",
        "freezing": freezing_rows(reuse),
        "accuracies": accuracy_rows(reuse),
        "measure": reuse.accuracies.measure,
        "head_cost": points(reuse.accuracies.head_cost, reuse.accuracies.measure) if _known(reuse.accuracies.head_cost.mean) else "",
        "notes": reuse.notes,
        "settings": flat(reuse.settings),
        "pictures": _first_pictures([reuse]) if alone else [_profile([reuse])],
        "further": _further_pictures([reuse]) if alone else [],
    }


def picture(figure: Figure) -> str:
    """A figure as a data URI: an SVG that needs no font and no network."""
    from .plots import rendered

    return "data:image/svg+xml;base64," + base64.b64encode(rendered(figure, "svg")).decode()


def described(reuse: Reuse) -> str:
    """The tasks in words."""
    kind = f"{reuse.ways}-way {reuse.shots}-shot, {reuse.queries} queries per class"
    kind = kind if reuse.ways else f"regression from {reuse.shots} examples, {reuse.queries} queries"
    counts = f"{reuse.tasks} task{'s' * (reuse.tasks != 1)}, {kind}"
    seeds = f"mean over {len(reuse.seeds)} seed{'s' * (len(reuse.seeds) != 1)}; " if reuse.seeds else ""
    return f"{seeds}{counts}; normalisation: {reuse.settings.get('norm', 'not recorded')}"


def conventions(reuse: Reuse) -> list[str]:
    """How the similarities were taken: the measures, what ± is over, and the ceiling where there is one."""
    said = CONVENTION.replace("± over tasks", "mean over tasks, then over seeds, ± over seeds") if reuse.seeds else CONVENTION
    said += _draws_in_words(reuse)
    return [said, *([CEILING] if any(layer.ceiling for layer in reuse.layers) else [])]


def _draws_in_words(reuse: Reuse) -> str:
    """How often each floor shuffled, and what the p values are."""
    floors = [(layer.cka_floor.draws, layer.cca_floor.draws, layer.cca_pooled_floor.draws) for layer in reuse.layers]
    cka, cca, pooled = map(max, zip(*floors, strict=True))
    largest = ", the largest of any seed" if reuse.seeds else ""
    return f"draws: CKA {cka}, CCA {cca}, pooled {pooled}. p of CKA: {corrected(cka)}{largest}."


def spread_line(reuse: Reuse) -> str:
    """What the table over seeds holds, and the accuracy as the papers write it."""
    scale = SCALES[reuse.accuracies.measure]
    own = Spread.of([one.accuracies.own.mean for one in reuse.seeds]).text(scale.factor, 2 if scale.unit else 4)
    seeds = f"{len(reuse.seeds)} seed{'s' * (len(reuse.seeds) != 1)}"
    return f"Mean ± standard deviation over {seeds}, as the papers write it; {reuse.accuracies.measure} {own}{scale.unit}"


def _spread_in_words(reuses: Sequence[Reuse]) -> str:
    if reuses[0].seeds:
        return "Student's 95 % interval over seeds: what training again would give. The standard deviation stands in a table of its own."
    return (
        "The 95 % interval over tasks: 1.96 standard errors, or Student's with fewer than 30 tasks; "
        "it does not cover training again with another seed."
    )


def settings_line(settings: Mapping[str, Any]) -> str:
    """Settings on one line."""
    return ", ".join(f"{key} {value}" for key, value in flat(settings) if key != "norm")


def overview(reuse: Reuse) -> dict[str, Any]:
    """One learner as one row of the summary table."""
    body = [layer for layer in reuse.layers if not layer.head and _known(layer.cka.mean)]
    measure = reuse.accuracies.measure
    least = min(body, key=lambda layer: layer.cka.mean, default=None)
    return {
        "name": reuse.name,
        "answer": reuse.verdict.answer,
        "accuracy": percent(reuse.accuracies.own, measure),
        "least": f"{number(least.cka)} ({'by construction' if least.unmoved else least.layer})" if least else "-",
        "frozen": points(reuse.freezing.rows[-1].cost, measure) if reuse.freezing else "-",
        "headless": points(reuse.accuracies.head_cost, measure) if _known(reuse.accuracies.head_cost.mean) else "-",
    }


def layer_columns(reuse: Reuse) -> tuple[str, ...]:
    """The columns of `layer_rows`: `LAYER_COLUMNS`, and the ceiling's where there is one."""
    return (*LAYER_COLUMNS, *(CEILING_COLUMNS if any(layer.ceiling for layer in reuse.layers) else ()))


def layer_rows(reuse: Reuse) -> list[tuple[str, ...]]:
    """The rows under `layer_columns`; p is corrected over the layers."""
    adjusted = holm([layer.cka_p for layer in reuse.layers])
    return [_layer_row(layer, p) for layer, p in zip(reuse.layers, adjusted, strict=True)]


def cca_columns(reuse: Reuse) -> tuple[str, ...]:
    """The columns of `cca_rows`: `CCA_COLUMNS`, and the ceiling's where there is one."""
    return (*CCA_COLUMNS, *(CCA_CEILING_COLUMNS if any(layer.ceiling for layer in reuse.layers) else ()))


def cca_rows(reuse: Reuse) -> list[tuple[str, ...]]:
    """The rows under `cca_columns`: CCA per task, and of the pooled tasks."""
    return [_cca_row(layer) for layer in reuse.layers]


def _layer_row(layer: LayerReuse, p: float) -> tuple[str, ...]:
    return (
        _name(layer),
        "1 by construction" if layer.unmoved and _known(layer.cka.mean) else _shown(layer.cka),
        _floor(layer.cka_floor),
        shown_p(p),
        f"{layer.cka_size[0]} x {layer.cka_size[1]}",
        *((_shown(layer.ceiling.cka),) if layer.ceiling else ()),
    )


def _cca_row(layer: LayerReuse) -> tuple[str, ...]:
    return (
        _name(layer),
        "1 by construction" if layer.unmoved and _known(layer.cca.mean) else _shown(layer.cca),
        _floor(layer.cca_floor),
        f"{layer.cca_size[0]} x {layer.cca_size[1]}",
        _single(layer.cca_pooled),
        _floor(layer.cca_pooled_floor),
        f"{layer.cca_pooled_size[0]} x {layer.cca_pooled_size[1]}",
        *((_shown(layer.ceiling.cca), _single(layer.ceiling.cca_pooled)) if layer.ceiling else ()),
    )


def weight_rows(reuse: Reuse) -> list[tuple[str, ...]]:
    """The rows under `WEIGHT_COLUMNS`: how far each layer's weights move, and the norm of their first gradient."""
    return [
        (
            _name(layer),
            f"{layer.weights:,}",
            _length(layer.distance),
            _length(layer.relative_distance),
            _length(layer.gradient) if layer.has_rate or layer.gradient.mean else "0, no rate",
        )
        for layer in reuse.layers
    ]


def class_rows(reuse: Reuse) -> list[tuple[str, ...]]:
    """The rows under `CLASS_COLUMNS`."""
    return [(_name(layer), *(_shown(one) for pair in (layer.intra, layer.inter) for one in pair)) for layer in reuse.layers]


def seed_rows(reuse: Reuse) -> list[tuple[str, ...]]:
    """The rows under `SEED_COLUMNS`, mean ± standard deviation over seeds; none where no seeds were pooled."""

    def shown(values: list[float], digits: int = 3) -> str:
        return Spread.of(values).text(digits=digits) if all(map(_known, values)) else "-"

    together = list(zip(*(one.layers for one in reuse.seeds), strict=True))
    return [
        (
            _name(layers[0]),
            shown([layer.cka.mean for layer in layers]),
            shown([layer.cca.mean for layer in layers]),
            shown([layer.cca_pooled for layer in layers]),
            shown([layer.distance.mean for layer in layers], 4),
            shown([layer.gradient.mean for layer in layers], 4),
        )
        for layers in together
    ]


def freezing_rows(reuse: Reuse) -> list[tuple[str, str, str]]:
    """Frozen up to, accuracy, paired cost."""
    if reuse.freezing is None:
        return []
    measure = reuse.freezing.measure
    return [
        (
            f"up to {row.layers[-1]}" if row.layers else "nothing",
            percent(row.accuracy, measure),
            points(row.cost, measure) * bool(row.layers),
        )
        for row in reuse.freezing.rows
    ]


def accuracy_rows(reuse: Reuse) -> list[tuple[str, str, str]]:
    """With and without the head: before, after."""
    a = reuse.accuracies
    rows = [("with the head", a.head_before, a.head_after), ("without the head", a.headless_before, a.headless_after)]
    found = [(name, percent(before, a.measure), percent(after, a.measure)) for name, before, after in rows if _known(before.mean)]
    return found if _known(a.head_after.mean) else [*found, ("the learner itself", "", percent(a.own, a.measure))]


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


def _name(layer: LayerReuse) -> str:
    return f"{layer.layer} (head)" if layer.head and layer.layer != "head" else layer.layer


def _shown(value: Estimate, form: str = ".3f") -> str:
    return value.shown(form) if _known(value.mean) else "-"


def _single(value: float) -> str:
    return f"{value:.3f}" if _known(value) else "-"


def _length(value: Estimate) -> str:
    return _shown(value, ".3f" if value.mean >= 0.1 else ".4f" if value.mean >= 0.001 else ".2g")  # lengths span decades


def _known(value: float) -> bool:
    return math.isfinite(value)
