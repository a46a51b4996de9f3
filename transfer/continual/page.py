"""The result of `forgetting` as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from metalearn.analysis.adaptation.tables import flat_settings
from metalearn.analysis.plotting.page import Section, write_page
from metalearn.runtime.tables import Table
from transfer.continual.results import ForgettingResult
from transfer.continual.tables import (
    criteria_table,
    layers_table,
    matrix_table,
    memories_table,
    statistics_table,
    subspace_table,
)
from transfer.continual.text import answer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(
    result: ForgettingResult,
    path: str | PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write the page; pictures are embedded, and nothing is loaded from elsewhere."""
    from . import figures

    base = result.baseline
    pictures: dict[str, Figure] = {
        "The accuracy on the first task while the last one is learned": figures.courses(result)
    }
    if len(result.memories) > 1:
        pictures["A point for each memory, its interval upright"] = figures.memories(result)
    sections = [
        Section(
            "What is forgotten",
            tables=[memories_table(result), matrix_table(result, base)],
            pictures=pictures,
        ),
        Section("Where", [WHERE], _where_tables(result), _where_pictures(result)),
        Section(
            "Which directions",
            [DIRECTIONS],
            [subspace_table(result, base)],
            {"Similarity of leading directions": figures.subspaces(result, base)},
        ),
    ]
    statistics = statistics_table(result)
    if statistics is not None:
        sections.append(Section("Running statistics", [STATISTICS], [statistics]))
    sections.append(Section("Statements", [STATEMENTS], [criteria_table(result)]))
    for name in result.memories:
        if name != base:
            tables = [layers_table(result, name), subspace_table(result, name)]
            sections.append(Section(f"Memory: {name}", [result.memories[name]], tables))
    rows = [(str(name), str(value)) for name, value in flat_settings(dict(settings or {}))]
    rows += [("seeds", ", ".join(map(str, result.seeds)))]
    rows += [("heads", "shared" if result.shared else "one for each task")]
    sections.append(Section("Settings", tables=[Table(("setting", "value"), rows)]))
    write_page(path, "What does a network forget, and where?", answer(result), sections)


WHERE = (
    "CKA compares each layer on test images of the first task before and after the later ones. Read"
    " it between the ceiling, which is the same network after as many more steps on the first task,"
    " and chance. Put back: a layer has the weights from before again; nothing is trained to fit."
)
DIRECTIONS = (
    "Leading directions are the first principal components of a layer's channels. If those of both"
    " tasks are alike after the last one, the tasks are stored in one place; if those of the first"
    " task before are alike those of the last after, the first was overwritten."
)
STATISTICS = (
    "Batch norm's running statistics follow the last task, though nothing is learned about them."
    " Measured anew on training images of the first task, with all weights as they are, they tell"
    " how much of the forgetting is only theirs."
)
STATEMENTS = (
    "What Ramasesh, Dyer and Raghu 2021 (arXiv:2007.07400) report, as statements with thresholds of"
    " this package's own. The paper's numbers are in plots and are not repeated here."
)


def _where_tables(result: ForgettingResult) -> list[Table]:
    return [layers_table(result, result.baseline)]


def _where_pictures(result: ForgettingResult) -> dict[str, Figure]:
    from . import figures

    base = result.baseline
    pictures = {
        "How far each layer changed": figures.similarities(result, base),
        "Accuracy on the first task with layers put back": figures.resets(result, base),
    }
    if any(run.frozen for run in result.runs):
        pictures["Accuracy on the last task with layers frozen"] = figures.freezing(result)
    return pictures
