"""What `feature_reuse` found, for people: plain text for a terminal, and one self-contained HTML
page.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from metalearn.analysis.checks import check_all
from metalearn.analysis.measures.chance import Floor
from metalearn.analysis.networks.profile import corrected, shown_p
from metalearn.analysis.scales import SCALES
from metalearn.runtime.files import write_atomically
from metalearn.runtime.statistics import Estimate, MeanStd, holm
from metalearn.runtime.tables import aligned

from .converged import CRITERION
from .freezing import Frozen
from .over_seeds import difference
from .results import LayerReuse, ReuseResult
from .verdict import BY_CONSTRUCTION, MEANING, RULE, percent, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYER_COLUMNS = ("layer", "CKA", "chance (95 %)", "p", "n x d")
CCA_COLUMNS = ("layer", "CCA", "chance (95 %)", "n x d", "CCA, pooled", "chance (95 %)", "n x d")
CEILING_COLUMNS = ("CKA, other seed",)
CCA_CEILING_COLUMNS = ("CCA, other seed", "pooled, other seed")
CRITERIA_COLUMNS = ("criterion of feature reuse", "status")
ANSWER_COLUMNS = ("adapting the body is worth", "verdict")
WEIGHT_COLUMNS = ("layer", "weights", "move by", "of their norm", "first gradient")
CLASS_COLUMNS = ("layer", "one class, before", "after", "two classes, before", "after")
SEED_COLUMNS = ("layer", "CKA", "CCA", "CCA, pooled", "move by", "first gradient")

CONVENTION = (
    "CKA: debiased linear, per task on the query images, every image flattened, ± over tasks. CCA:"
    " mean canonical correlation, channels as features and positions of the query images as"
    " examples (n in a task), per task as in Raghu et al. 2020, ± over tasks. CCA, pooled: sampled"
    " positions of all tasks together, so that one linear map must fit every task; not comparable"
    " with theirs. Chance: whole images (pooled: whole tasks) of one side shuffled, median and"
    " 95 %; "
)
CEILING = (
    "Other seed: the same measures between this network and one trained from another seed, both"
    " before adaptation."
)
WEIGHT_CONVENTION = (
    "Move by: Euclidean norm of adapted minus initial weights, all of the layer in one, mean over"
    " tasks. First gradient: norm of the gradient of the inner loss on the support set by those of"
    " them that have a rate, at the meta-initialisation; 0 where none has."
)
CLASS_CONVENTION = (
    "Mean cosine between the features of two query images of one class, and of two classes, within"
    " a task: every image flattened, not centred, n x d as for CKA; mean over tasks."
)


def text(reuse: ReuseResult) -> str:
    """The report of one learner as aligned plain text, the answer first."""
    parts = reuse.decomposition
    blocks = [
        f"{reuse.name}: {reuse.verdict.answer}\n{reuse.verdict.evidence}",
        f"{described(reuse)}\n{settings_line(reuse.settings)}",
    ]
    if parts:
        blocks += [str(parts), str(parts.converged)]
    else:
        blocks.append(
            aligned(
                (SCALES[reuse.accuracies.measure].label, "before adaptation", "after adaptation"),
                accuracy_rows(reuse),
            )
        )
    if reuse.freezing:
        blocks.append(str(reuse.freezing))
    blocks.append(aligned(layer_columns(reuse), layer_rows(reuse)))
    blocks.append(aligned(cca_columns(reuse), cca_rows(reuse)))
    if reuse.seeds:
        blocks.append(f"{spread_line(reuse)}\n{aligned(SEED_COLUMNS, seed_rows(reuse))}")
    blocks.append(aligned(WEIGHT_COLUMNS, weight_rows(reuse)))
    if reuse.ways:
        blocks.append(f"cosine of query features\n{aligned(CLASS_COLUMNS, class_rows(reuse))}")
    if reuse.verdict.criteria:
        criteria = [(criterion.text, criterion.status) for criterion in reuse.verdict.criteria]
        blocks.append(aligned(CRITERIA_COLUMNS, criteria))
    blocks += [f"Note: {note}" for note in reuse.notes]
    cosine = f"Cosine: {CLASS_CONVENTION[0].lower()}{CLASS_CONVENTION[1:]}"
    explained = [*conventions(reuse), WEIGHT_CONVENTION, *([cosine] if reuse.ways else [])]
    if parts:
        explained.append(CRITERION)
    blocks.append("\n".join([*explained, RULE]))
    return "\n\n".join(blocks)


def report(
    reuses: Sequence[ReuseResult],
    path: str | PathLike[str],
    *,
    results: Sequence[Mapping[str, Any]] | None = None,
    title: str = "Rapid learning or feature reuse?",
    settings: Mapping[str, Any] | None = None,
    pictures: Mapping[str, Figure] | None = None,
) -> None:
    """Write one HTML page on one or several learners; pictures are embedded, and nothing is loaded
    from elsewhere.

    Args:
        reuses: what `feature_reuse` returned, best on the same episodes.
        path: the file, written whole or not at all.
        results: a row a learner for the table of all, `{"learner": name, column: value}`. The name
            as in `reuses` adds that learner's answer to the row.
        title: the page's heading.
        settings: of the run as a whole (the command, the data set, times), listed at the end.
        pictures: more figures by their captions, such as a `timeline` of training or a similarity
            map's heatmap.

    Raises ValueError where there is nothing to report.
    """
    reuses = check_all(reuses, ReuseResult, "reuses", "pass the result of feature_reuse in a list")
    if not reuses:
        raise ValueError("report() got no learners: pass the result of feature_reuse in a list")
    write_atomically(
        path,
        html(reuses, results=results, title=title, settings=settings, pictures=pictures).encode(),
    )


def html(
    reuses: Sequence[ReuseResult],
    *,
    results: Sequence[Mapping[str, Any]] | None = None,
    title: str = "Rapid learning or feature reuse?",
    settings: Mapping[str, Any] | None = None,
    pictures: Mapping[str, Figure] | None = None,
) -> str:
    """The page that `report` writes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("metalearn.analysis.adaptation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    measured = [line for reuse in reuses for line in conventions(reuse)]
    measured += [WEIGHT_CONVENTION, *([CLASS_CONVENTION] if reuses[0].ways else [])]
    about = [*flat(settings or {}), *reuses[0].versions.items()]
    return pages.get_template("report.html").render(
        title=title,
        answers=[
            (f"{reuse.name}: {reuse.verdict.answer}", reuse.verdict.evidence, _further_notes(reuse))
            for reuse in reuses
        ],
        overview=overview(reuses, results or []) if results or len(reuses) > 1 else None,
        analysed=_analysed(reuses, accuracy=not results and len(reuses) == 1),
        first=_first_pictures(reuses),
        more=[_Picture.of(figure, caption) for caption, figure in (pictures or {}).items()],
        learners=[
            (reuse.name, layer_by_layer(reuse), _details(reuse, alone=len(reuses) == 1))
            for reuse in reuses
        ],
        unit=(
            f"{reuses[0].accuracies.measure}{', in points' * (reuses[0].accuracies.measure == 'accuracy')}"
        ),
        further=_further_pictures(reuses),
        rule=RULE,
        criterion=CRITERION if any(reuse.decomposition for reuse in reuses) else "",
        frozen=any(reuse.freezing for reuse in reuses),
        measured=list(dict.fromkeys(measured)),
        meaning=MEANING if any(reuse.verdict.criteria for reuse in reuses) else {},
        spread=_spread_in_words(reuses),
        about=about,
    )


class _Picture(NamedTuple):
    """An embedded picture; a `wide` one takes the whole width of the page."""

    image: str
    caption: str
    wide: bool

    @classmethod
    def of(cls, figure: Figure, caption: str) -> _Picture:
        return cls(picture(figure), caption, figure.get_figwidth() > 6.5)


class _Detail(NamedTuple):
    """What is unfolded by a click: a table, a picture, or both."""

    summary: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    pictures: Sequence[_Picture] = ()
    note: str = ""
    kind: str = ""


def _further_notes(reuse: ReuseResult) -> list[str]:
    """The notes that say more than the verdict does."""
    stated = reuse.verdict.answer == BY_CONSTRUCTION
    return [note for note in reuse.notes if not (stated and "by construction" in note)]


def _analysed(reuses: Sequence[ReuseResult], accuracy: bool) -> list[str]:
    """The tasks that the learners were analysed on, in a line for all or one each, with the
    accuracy if it stands nowhere else.
    """
    lines = [f"Analysed: {described(reuse)}" for reuse in reuses]
    if accuracy:
        reuse = reuses[0]
        score = (
            f"{_capital(reuse.accuracies.measure)}"
            f" {percent(reuse.accuracies.own, reuse.accuracies.measure)}"
        )
        lines = [f"{score}{', ' if reuse.seeds else ' over '}{described(reuse)}"]
    if len(set(lines)) == 1:
        return lines[:1]
    return [f"{reuse.name}. {line}" for reuse, line in zip(reuses, lines, strict=True)]


def own_score(reuse: ReuseResult) -> str:
    """The learner's accuracy, or loss, with the number of tasks."""
    seeds = f"{len(reuse.seeds)} seed{'s' * (len(reuse.seeds) != 1)}, " if reuse.seeds else ""
    score = percent(reuse.accuracies.own, reuse.accuracies.measure)
    return f"{score} ({seeds}{reuse.tasks} task{'s' * (reuse.tasks != 1)})"


def overview(
    reuses: Sequence[ReuseResult], results: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """The table of all learners, its columns and rows: `results`, and a row for each learner that
    these do not name.
    """
    remaining = list(reuses)
    rows = []
    for row in results:
        named = next((reuse for reuse in remaining if reuse.name == row.get("learner")), None)
        remaining = [reuse for reuse in remaining if reuse is not named]
        rows.append(_answer(named) | dict(row))
    rows += [_answer(reuse) | _scored(reuse, reuses[0]) for reuse in remaining]
    names = dict.fromkeys(
        name for row in rows for name in row if name not in (*ANSWER_COLUMNS, "training")
    )
    last = ["training"] if any("training" in row for row in rows) else []
    columns = [*names, *ANSWER_COLUMNS, *last]
    return columns, [[str(row.get(name, "")) for name in columns] for row in rows]


def _answer(reuse: ReuseResult | None) -> dict[str, Any]:
    """What the analysis says of a learner; None if it was not analysed."""
    worth = (
        points(reuse.decomposition.worth, reuse.accuracies.measure)
        if reuse and reuse.decomposition
        else "-"
    )
    return dict(zip(ANSWER_COLUMNS, (worth, reuse.verdict.answer if reuse else "-"), strict=True))


def _scored(reuse: ReuseResult, first: ReuseResult) -> dict[str, Any]:
    """A learner's score on the tasks analysed, and how it compares with the first learner."""
    row = {"learner": reuse.name, f"{reuse.accuracies.measure}, tasks analysed": own_score(reuse)}
    if reuse is not first:
        compared = difference(reuse, first)
        scale = SCALES[compared.measure]
        shown = compared.estimate.shown(f"+{scale.cost_form}", scale.factor)
        row[f"minus {first.name}, paired"] = "not comparable" if compared.note else shown
    return row


def _first_pictures(reuses: Sequence[ReuseResult]) -> list[_Picture]:
    """The pictures of the first screen, with captions: what the verdict stands on."""
    from .figures import decomposition_bars, freezing_curve

    score = reuses[0].accuracies.measure
    frozen = (
        f"{_capital(score)} if the inner loop leaves out the layers up to this one. Solid: a head"
        " run to convergence; dashed: the head by its own few steps, the table of Raghu et al."
        f" 2020. The band is {_interval(reuses)}."
    )
    headless = "ridge regression of the support targets on the features that enter it"
    if score == "accuracy":
        headless = (
            "a query takes the label of the support images whose features point the same way"
            " (cosine)"
        )
    apart = (
        "Bars to the right are better than the learner with nothing frozen, bars to the left"
        f" worse. Without a head, {headless}."
    )
    pictures = [_profile(reuses)]
    if any(reuse.freezing for reuse in reuses):
        pictures.append(_Picture.of(freezing_curve(reuses), frozen))
    if any(reuse.decomposition for reuse in reuses):
        pictures.append(_Picture.of(decomposition_bars(reuses), apart))
    return pictures


def _profile(reuses: Sequence[ReuseResult]) -> _Picture:
    from .figures import layer_profile

    caption = (
        "Each layer's output on the query images, before against after adaptation; the bands are"
        " what unrelated features score."
    )
    if len(reuses) > 1:
        caption = (
            "CKA of every learner's layers before and after adaptation; the band is what unrelated"
            " features score."
        )
    return _Picture.of(layer_profile(reuses), caption)


def _further_pictures(reuses: Sequence[ReuseResult]) -> list[_Detail]:
    """What the inner loop does to weights and classes, and the learners compared in pairs."""
    from .figures import class_cosines, paired_comparison, weights_moved

    score = reuses[0].accuracies.measure
    details = []
    if len(reuses) > 1:
        caption = (
            f"The learners on the same test tasks: the difference in {score}, with"
            f" {_interval(reuses)}."
        )
        details.append(
            _Detail(
                "The learners compared in pairs",
                (),
                (),
                [_Picture.of(paired_comparison(reuses), caption)],
            )
        )
    drawn = []
    if any(layer.has_rate for reuse in reuses for layer in reuse.layers):
        moved = (
            "How far the inner loop moves each layer's weights, and their gradient at its first"
            " step; a layer at zero has no mark."
        )
        drawn.append(_Picture.of(weights_moved(reuses), moved))
    if all(reuse.ways for reuse in reuses):
        drawn.append(
            _Picture.of(
                class_cosines(reuses),
                "How similar the features of two images are, of one class and of two classes.",
            )
        )
    if drawn:
        details.append(_Detail("Weights, gradients and classes in pictures", (), (), drawn))
    return details


def _interval(reuses: Sequence[ReuseResult]) -> str:
    return f"the 95 % interval over {'seeds' if reuses[0].seeds else 'tasks'}"


def _details(reuse: ReuseResult, alone: bool) -> list[_Detail]:
    """What supports the answer; the layer profile too, unless it is the page's first picture."""
    profile = [] if alone else [_profile([reuse])._replace(caption=f"The layers of {reuse.name}.")]
    details = []
    if reuse.verdict.criteria:
        rows = [(criterion.text, criterion.status) for criterion in reuse.verdict.criteria]
        details.append(_Detail("The criteria of feature reuse", CRITERIA_COLUMNS, rows))
    details.append(_Detail("Similarity in full", layer_columns(reuse), layer_rows(reuse), profile))
    details.append(_Detail("CCA, a task and pooled", cca_columns(reuse), cca_rows(reuse)))
    if reuse.seeds:
        details.append(
            _Detail("Over seeds", SEED_COLUMNS, seed_rows(reuse), note=f"{_over_seeds(reuse)}.")
        )
    details.append(_Detail("How far the weights move", WEIGHT_COLUMNS, weight_rows(reuse)))
    if reuse.ways:
        details.append(_Detail("Cosines of one class and of two", CLASS_COLUMNS, class_rows(reuse)))
    details.append(_Detail("Settings", ("setting", "value"), flat(reuse.settings), kind="settings"))
    return details


def picture(figure: Figure) -> str:
    """A figure as a data URI: an SVG that needs no font and no network."""
    from metalearn.analysis.plotting.style import rendered

    return "data:image/svg+xml;base64," + base64.b64encode(rendered(figure, "svg")).decode()


def described(reuse: ReuseResult) -> str:
    """The tasks in words."""
    kind = f"{reuse.ways}-way {reuse.shots}-shot, {reuse.queries} queries per class"
    kind = (
        kind if reuse.ways else f"regression from {reuse.shots} examples, {reuse.queries} queries"
    )
    counts = f"{reuse.tasks} task{'s' * (reuse.tasks != 1)}, {kind}"
    seeds = (
        f"mean over {len(reuse.seeds)} seed{'s' * (len(reuse.seeds) != 1)}; " if reuse.seeds else ""
    )
    return f"{seeds}{counts}; normalisation: {reuse.settings.get('norm', 'not recorded')}"


def conventions(reuse: ReuseResult) -> list[str]:
    """How the similarities were taken: the measures, what ± is over, and the ceiling where there is
    one.
    """
    said = (
        CONVENTION.replace("± over tasks", "mean over tasks, then over seeds, ± over seeds")
        if reuse.seeds
        else CONVENTION
    )
    said += _draws_in_words(reuse)
    return [said, *([CEILING] if any(layer.ceiling for layer in reuse.layers) else [])]


def _draws_in_words(reuse: ReuseResult) -> str:
    """How often each floor shuffled, and what the p values are."""
    floors = [
        (layer.cka_floor.draws, layer.cca_floor.draws, layer.cca_pooled_floor.draws)
        for layer in reuse.layers
    ]
    cka, cca, pooled = map(max, zip(*floors, strict=True))
    largest = ", the largest of any seed" if reuse.seeds else ""
    return f"draws: CKA {cka}, CCA {cca}, pooled {pooled}. p of CKA: {corrected(cka)}{largest}."


def spread_line(reuse: ReuseResult) -> str:
    """What the table over seeds holds, and the accuracy as the papers write it."""
    scale = SCALES[reuse.accuracies.measure]
    own = MeanStd.of([one.accuracies.own.mean for one in reuse.seeds]).text(
        scale.factor, 2 if scale.unit else 4
    )
    return f"{_over_seeds(reuse)}; {reuse.accuracies.measure} {own}{scale.unit}"


def _over_seeds(reuse: ReuseResult) -> str:
    return (
        f"Mean ± standard deviation over {len(reuse.seeds)} seed{'s' * (len(reuse.seeds) != 1)}, as"
        " the papers write it"
    )


def _spread_in_words(reuses: Sequence[ReuseResult]) -> str:
    if reuses[0].seeds:
        return "Student's 95 % interval over seeds: what training again would give."
    return (
        "the 95 % interval over tasks: 1.96 standard errors, or Student's with fewer than 30 tasks;"
        " it does not cover training again with another seed."
    )


def settings_line(settings: Mapping[str, Any]) -> str:
    """Settings on one line."""
    return ", ".join(f"{key} {value}" for key, value in flat(settings) if key != "norm")


def layer_columns(reuse: ReuseResult) -> tuple[str, ...]:
    """The columns of `layer_rows`: `LAYER_COLUMNS`, and the ceiling's where there is one."""
    return (
        *LAYER_COLUMNS,
        *(CEILING_COLUMNS if any(layer.ceiling for layer in reuse.layers) else ()),
    )


def layer_rows(reuse: ReuseResult) -> list[tuple[str, ...]]:
    """The rows under `layer_columns`; p is corrected over the layers."""
    adjusted = holm([layer.cka_p for layer in reuse.layers])
    return [_layer_row(layer, p) for layer, p in zip(reuse.layers, adjusted, strict=True)]


def cca_columns(reuse: ReuseResult) -> tuple[str, ...]:
    """The columns of `cca_rows`: `CCA_COLUMNS`, and the ceiling's where there is one."""
    return (
        *CCA_COLUMNS,
        *(CCA_CEILING_COLUMNS if any(layer.ceiling for layer in reuse.layers) else ()),
    )


def cca_rows(reuse: ReuseResult) -> list[tuple[str, ...]]:
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


def weight_rows(reuse: ReuseResult) -> list[tuple[str, ...]]:
    """The rows under `WEIGHT_COLUMNS`: how far each layer's weights move, and the norm of their
    first gradient.
    """
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


def class_rows(reuse: ReuseResult) -> list[tuple[str, ...]]:
    """The rows under `CLASS_COLUMNS`."""
    return [
        (_name(layer), *(_shown(one) for pair in (layer.intra, layer.inter) for one in pair))
        for layer in reuse.layers
    ]


def seed_rows(reuse: ReuseResult) -> list[tuple[str, ...]]:
    """The rows under `SEED_COLUMNS`, mean ± standard deviation over seeds; none where no seeds were
    pooled.
    """

    def shown(values: list[float], digits: int = 3) -> str:
        return MeanStd.of(values).text(digits=digits) if all(map(_known, values)) else "-"

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


def layer_by_layer(reuse: ReuseResult) -> tuple[list[str], list[tuple[str, ...]]]:
    """The table of one learner, its columns and rows: every layer's similarity, and what freezing
    up to it gains or loses.
    """
    scale = SCALES[reuse.accuracies.measure]
    columns = ["layer", "CKA, before and after", "chance (95 %)"]
    similar = {
        layer.layer: (_name(layer), _cka(layer), _floor(layer.cka_floor)) for layer in reuse.layers
    }
    converged: dict[str, Frozen] = {}
    paper: dict[str, Frozen] = {}
    if reuse.decomposition:
        columns += ["frozen up to here, head converged", "of that, this layer"]
        converged = {row.layers[-1]: row for row in reuse.decomposition.converged.rows[1:]}
    if reuse.freezing:
        columns.append("frozen up to here, head by its own steps (the paper's)")
        paper = {row.layers[-1]: row for row in reuse.freezing.rows[1:]}
    rows = []
    for name in dict.fromkeys(
        [*converged, *paper, *similar]
    ):  # the body from the bottom, then the head
        cells = [*similar.get(name, (name, "-", "-"))]
        if reuse.decomposition:
            row = converged.get(name)
            cells += [scale.against(row.cost), scale.against(row.added)] if row else ["-", "-"]
        if reuse.freezing:
            cells.append(scale.against(paper[name].cost) if name in paper else "-")
        rows.append(tuple(cells))
    return columns, rows


def accuracy_rows(reuse: ReuseResult) -> list[tuple[str, str, str]]:
    """With and without the head: before, after."""
    a = reuse.accuracies
    rows = [
        ("with the head", a.head_before, a.head_after),
        ("without the head", a.headless_before, a.headless_after),
    ]
    found = [
        (name, percent(before, a.measure), percent(after, a.measure))
        for name, before, after in rows
        if _known(before.mean)
    ]
    return (
        found
        if _known(a.head_after.mean)
        else [*found, ("the learner itself", "", percent(a.own, a.measure))]
    )


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (name, value) pairs, names joined by dots; long mappings of one value are
    folded.

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


def _cka(layer: LayerReuse) -> str:
    return "1 by construction" if layer.unmoved and _known(layer.cka.mean) else _shown(layer.cka)


def _floor(floor: Floor) -> str:
    return (
        f"{floor.median + 0.0:.2f} ({floor.upper:.2f})".replace("-0.00", "0.00")
        if _known(floor.median)
        else "-"
    )


def _name(layer: LayerReuse) -> str:
    return f"{layer.layer} (head)" if layer.head and layer.layer != "head" else layer.layer


def _shown(value: Estimate, form: str = ".3f") -> str:
    return value.shown(form) if _known(value.mean) else "-"


def _single(value: float) -> str:
    return f"{value:.3f}" if _known(value) else "-"


def _length(value: Estimate) -> str:
    return _shown(
        value, ".3f" if value.mean >= 0.1 else ".4f" if value.mean >= 0.001 else ".2g"
    )  # lengths span decades


def _capital(word: str) -> str:
    return word[0].upper() + word[1:]


def _known(value: float) -> bool:
    return math.isfinite(value)
