"""The tables of the page on theory, drawn from the results of its benchmark."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

from benchmarks.harness.markdown import NONE, number, over_seeds, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import Row, load
from metalearn.runtime.tables import Table
from metalearn.studies.shared_representation import COLUMNS as LAW

from .common import Runs, device

RESULTS = FOLDER / "theory.jsonl"
SUBSPACE = (
    "learner",
    "condition of the tasks",
    "error of the subspace",
    "loss of new tasks",
    "norm, first to last",
    "condition number, first to last",
    "outer steps",
)
FEW_SHOT = (
    "tasks",
    "learner",
    "kept diverse by",
    "accuracy, %",
    "gain, points",
    "norm, first to last",
    "condition number, first to last",
    "outer steps",
)
# Two rows of images that differ in one of these are of different trainings.
TRAINING = ("figure", "ways", "shots", "learner", "steps", "hidden")


def law_table(rows: Iterable[Row]) -> Table:
    """The joint estimator beside the law."""
    lines = []
    for same in grouped(rows, ("axis", "value")):
        error = [row["error"] for row in same]
        law = [row["law"] for row in same]
        lines.append(
            (
                same[0]["axis"].replace("_", " "),
                f"{same[0]['value']:g}",
                over_seeds(error, 1, 4),
                mean(law, 4),
                number(sum(error) / sum(law), digits=1),
                over_seeds([row["risk"] for row in same], 1, 4),
                over_seeds([row["oracle"] for row in same], 1, 4),
                number(same[0]["exact"], digits=4),
            )
        )
    return table(LAW, lines)


def subspace_table(rows: Iterable[Row]) -> Table:
    """MAML and ANIL on tasks that share a subspace."""
    lines = []
    for same in grouped(rows, ("learner", "condition", "steps")):
        lines.append(
            (
                same[0]["learner"],
                f"{same[0]['condition']:g}",
                over_seeds([row["error"] for row in same]),
                over_seeds([row["loss"] for row in same]),
                first_to_last(same, "norm"),
                first_to_last(same, "condition"),
                f"{same[0]['steps']:,}",
            )
        )
    return table(SUBSPACE, lines)


def few_shot_table(rows: Iterable[Row]) -> Table:
    """Learners on images, with and without what keeps predictors diverse."""
    listed = list(rows)
    names = (*TRAINING, "seed")
    plain = {key_of(row, names): row["accuracy"] for row in listed if row["kept_by"] == "nothing"}
    lines = []
    for same in grouped(listed, (*TRAINING, "kept_by")):
        first = same[0]
        gains = []
        for row in same:
            # The same training and seed, with nothing that keeps predictors diverse.
            before = plain.get(key_of(row, names))
            if before is not None and row["kept_by"] != "nothing":
                gains.append(row["accuracy"] - before)
        lines.append(
            (
                f"{first['figure']} {first['ways']}-way {first['shots']}-shot",
                first["learner"],
                first["kept_by"],
                over_seeds([row["accuracy"] for row in same], 100, 1),
                over_seeds(gains, 100, 1),
                first_to_last(same, "norm"),
                first_to_last(same, "condition"),
                f"{first['steps']:,}, {first['hidden']} channels, {device(first)}",
            )
        )
    return table(FEW_SHOT, lines)


def first_to_last(rows: Sequence[Row], name: str) -> str:
    """A measure of the predictors before training and at its end, means over seeds."""
    ends = [mean([row["course"][place][name] for row in rows], 1) for place in (0, -1)]
    return " to ".join(ends)


def mean(values: Sequence[float | None], digits: int) -> str:
    """The mean of the values that are known; a dash if none is."""
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    return number(sum(known) / len(known), digits=digits)


def key_of(row: Row, names: Sequence[str]) -> Hashable:
    """The values of a row under some names."""
    return tuple(row[name] for name in names)


def grouped(rows: Iterable[Row], names: Sequence[str]) -> list[list[Row]]:
    """Rows that differ in their seed alone, together; the newest of each seed."""
    groups: dict[Hashable, dict[int, Row]] = {}
    for row in rows:
        groups.setdefault(key_of(row, names), {})[row["seed"]] = row
    return [list(by_seed.values()) for by_seed in groups.values()]


def rows_of(*figures: str) -> list[Row]:
    """The rows of some figures."""
    return [row for row in load(RESULTS) if row["figure"] in figures]


def law() -> Table:
    """The joint estimator beside the law."""
    return law_table(rows_of("law"))


def subspace() -> Table:
    """MAML and ANIL on tasks that share a subspace."""
    return subspace_table(rows_of("subspace"))


def few_shot() -> Table:
    """Learners on images."""
    return few_shot_table(rows_of("glyphs", "omniglot"))


def listing() -> str:
    """The runs behind the tables."""
    return Runs(RESULTS).listing()


TABLES: dict[str, Callable[[], Table | str]] = {
    "theory_law": law,
    "theory_subspace": subspace,
    "theory_few_shot": few_shot,
    "theory_runs": listing,
}
