"""Results of `feature_reuse` as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from metalearn.analysis.checks import check_all
from metalearn.analysis.plotting.page import HALF_PAGE, picture, templates
from metalearn.analysis.scales import SCALES
from metalearn.runtime.files import write_atomically
from metalearn.runtime.tables import Table

from .converged import CRITERION
from .results import ReuseResult
from .tables import (
    cca_table,
    class_table,
    criteria_table,
    flat_settings,
    layer_by_layer,
    overview,
    seed_table,
    settings_table,
    similarity_table,
    weight_table,
)
from .text import conventions, described
from .verdict import BY_CONSTRUCTION, MEANING, RULE, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(
    reuses: Sequence[ReuseResult],
    path: str | PathLike[str],
    *,
    results: Sequence[Mapping[str, Any]] | None = None,
    title: str = "Rapid learning or feature reuse?",
    settings: Mapping[str, Any] | None = None,
    pictures: Mapping[str, Figure] | None = None,
) -> None:
    """Write one HTML page on one or several learners.

    Pictures are embedded, and nothing is loaded from elsewhere.

    Args:
        reuses: the results of `feature_reuse`, best on the same episodes.
        path: the file, written whole or not at all.
        results: a row a learner for the table of all, `{"learner": name, column: value}`. The name
            as in `reuses` adds that learner's answer to the row.
        title: the page's heading.
        settings: of the run as a whole (the command, the data set, times), listed at the end.
        pictures: more figures by their captions, such as a `timeline` of training or a similarity
            map's heatmap.

    Raises:
        ValueError: `reuses` is empty.

    Example:
        >>> import tempfile
        >>> from metalearn import NIL
        >>> from metalearn.analysis import feature_reuse
        >>> from metalearn.models import Conv4
        >>> from metalearn.tasks import FewShot, glyphs
        >>> learner = NIL(Conv4(5, channels=1, hidden=8, size=28))
        >>> tasks = FewShot(glyphs("test"), ways=5, shots=1, queries=5, tasks=2)
        >>> reuse = feature_reuse(learner, tasks, draws=5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report([reuse], f"{folder}/page.html", settings={"data": "glyphs"})
    """
    reuses = check_all(reuses, ReuseResult, "reuses", "pass the result of feature_reuse in a list")
    if not reuses:
        raise ValueError("report() got no learners: pass the result of feature_reuse in a list")
    page = html(reuses, results=results, title=title, settings=settings, pictures=pictures)
    write_atomically(path, page.encode())


def html(
    reuses: Sequence[ReuseResult],
    *,
    results: Sequence[Mapping[str, Any]] | None = None,
    title: str = "Rapid learning or feature reuse?",
    settings: Mapping[str, Any] | None = None,
    pictures: Mapping[str, Figure] | None = None,
) -> str:
    """The page that `report` writes."""
    pages = templates("metalearn.analysis.adaptation")
    several = len(reuses) > 1
    # Each paragraph once, in order.
    measured = list(dict.fromkeys(chain.from_iterable(map(conventions, reuses))))
    about = [*flat_settings(settings or {}), *reuses[0].versions.items()]
    return pages.get_template("report.html").render(
        title=title,
        answers=[_answer(reuse) for reuse in reuses],
        overview=overview(reuses, results or []) if results or several else None,
        analysed=_analysed(reuses, with_score=not results and not several),
        first=_first_pictures(reuses),
        more=[_Picture.of(figure, caption) for caption, figure in (pictures or {}).items()],
        learners=[
            (reuse.name, layer_by_layer(reuse), _details(reuse, with_profile=several))
            for reuse in reuses
        ],
        unit=SCALES[reuses[0].accuracies.measure].difference,
        further=_further_pictures(reuses),
        rule=RULE,
        criterion=CRITERION if any(reuse.decomposition for reuse in reuses) else "",
        frozen=any(reuse.freezing for reuse in reuses),
        measured=measured,
        meaning=MEANING if any(reuse.verdict.criteria for reuse in reuses) else {},
        spread=_spread_in_words(reuses),
        about=settings_table(about),
    )


class _Answer(NamedTuple):
    """The answer on one learner, with its evidence, and notes that add something to it."""

    answer: str
    evidence: str
    notes: Sequence[str]


class _Picture(NamedTuple):
    """An embedded picture; a `wide` one takes the whole width of the page."""

    image: str
    caption: str
    wide: bool

    @classmethod
    def of(cls, figure: Figure, caption: str) -> _Picture:
        return cls(picture(figure), caption, figure.get_figwidth() > HALF_PAGE)


class _Detail(NamedTuple):
    """A part that a click unfolds: a table, pictures, or both."""

    summary: str
    table: Table | None = None
    pictures: Sequence[_Picture] = ()
    kind: str = ""


def _answer(reuse: ReuseResult) -> _Answer:
    notes: Sequence[str] = reuse.notes
    if reuse.verdict.answer == BY_CONSTRUCTION:
        # The verdict says so already.
        notes = [note for note in notes if "by construction" not in note]
    return _Answer(f"{reuse.name}: {reuse.verdict.answer}", reuse.verdict.evidence, notes)


def _analysed(reuses: Sequence[ReuseResult], *, with_score: bool) -> list[str]:
    """The tasks that were analysed: one line for all learners, or one each if they differ.

    Args:
        reuses: the results.
        with_score: whether to say the score of the only learner, because no table has it.
    """
    if with_score:
        # There is one learner, and no table of scores.
        (reuse,) = reuses
        accuracies = reuse.accuracies
        score = f"{accuracies.measure.capitalize()} {percent(accuracies.own, accuracies.measure)}"
        return [f"{score}{', ' if reuse.seeds else ' over '}{described(reuse)}"]
    lines = [f"Analysed: {described(reuse)}" for reuse in reuses]
    # The same tasks for all need one line.
    if len(set(lines)) == 1:
        return lines[:1]
    return [f"{reuse.name}. {line}" for reuse, line in zip(reuses, lines, strict=True)]


def _first_pictures(reuses: Sequence[ReuseResult]) -> list[_Picture]:
    """The pictures of the first screen: what the verdict rests on."""
    from .figures import decomposition_bars, freezing_curve

    measure = reuses[0].accuracies.measure
    frozen = (
        f"{measure.capitalize()} if the inner loop leaves out the layers up to this one. Solid: a"
        " head run to convergence; dashed: the head by its own few steps, the table of Raghu et al."
        f" 2020. The band is {_interval(reuses)}."
    )
    headless = "ridge regression of the support targets on the features that enter it"
    if measure == "accuracy":
        headless = (
            "a query takes the label of the support images whose features point the same way"
            " (cosine)"
        )
    bars = (
        "Bars to the right are better than the learner with nothing frozen, bars to the left"
        f" worse. Without a head, {headless}."
    )
    pictures = [_profile(reuses)]
    if any(reuse.freezing for reuse in reuses):
        pictures.append(_Picture.of(freezing_curve(reuses), frozen))
    if any(reuse.decomposition for reuse in reuses):
        pictures.append(_Picture.of(decomposition_bars(reuses), bars))
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
    """The learners compared in pairs, and what the inner loop does to weights and classes."""
    from .figures import class_cosines, paired_comparison, weights_moved

    details = []
    if len(reuses) > 1:
        caption = (
            "The learners on the same test tasks: the difference in"
            f" {reuses[0].accuracies.measure}, with {_interval(reuses)}."
        )
        compared = _Picture.of(paired_comparison(reuses), caption)
        details.append(_Detail("The learners compared in pairs", pictures=[compared]))
    pictures = []
    if any(layer.has_rate for reuse in reuses for layer in reuse.layers):
        caption = (
            "How far the inner loop moves each layer's weights, and their gradient at its first"
            " step; a layer at zero has no mark."
        )
        pictures.append(_Picture.of(weights_moved(reuses), caption))
    if all(reuse.ways for reuse in reuses):
        caption = "How similar the features of two images are, of one class and of two classes."
        pictures.append(_Picture.of(class_cosines(reuses), caption))
    if pictures:
        details.append(_Detail("Weights, gradients and classes in pictures", pictures=pictures))
    return details


def _details(reuse: ReuseResult, *, with_profile: bool) -> list[_Detail]:
    """The tables that support the answer, and the layer profile if no other picture shows it."""
    profile: list[_Picture] = []
    if with_profile:
        profile = [_profile([reuse])._replace(caption=f"The layers of {reuse.name}.")]
    similarity = similarity_table(reuse)
    details = [_Detail(similarity.title, similarity, profile), _detail(cca_table(reuse))]
    # What the verdict rests on comes first.
    if reuse.verdict.criteria:
        details.insert(0, _detail(criteria_table(reuse.verdict)))
    if reuse.seeds:
        details.append(_detail(seed_table(reuse)))
    details.append(_detail(weight_table(reuse)))
    if reuse.ways:
        details.append(_detail(class_table(reuse)))
    settings = settings_table(flat_settings(reuse.settings))
    details.append(_Detail(settings.title, settings, kind="settings"))
    return details


def _detail(table: Table) -> _Detail:
    return _Detail(table.title, table)


def _interval(reuses: Sequence[ReuseResult]) -> str:
    return f"the 95 % interval over {reuses[0].spread_over}"


def _spread_in_words(reuses: Sequence[ReuseResult]) -> str:
    if reuses[0].seeds:
        return "Student's 95 % interval over seeds: what training again would give."
    return (
        "the 95 % interval over tasks: 1.96 standard errors, or Student's with fewer than 30 tasks;"
        " it does not cover training again with another seed."
    )
