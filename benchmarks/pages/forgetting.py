"""The tables of the page on forgetting, drawn from the results of its benchmark."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness.markdown import over_seeds, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import Row, load
from metalearn.runtime.tables import Table
from transfer.continual.anatomy import Anatomy
from transfer.continual.results import ForgettingResult, Run
from transfer.continual.tables import (
    criteria_table,
    layers_table,
    memories_table,
    subspace_table,
)

from .common import Runs, shown_and_superseded

RESULTS = FOLDER / "forgetting.jsonl"
# Two rows that differ in one of these are of different experiments.
SETTING = ("model", "hidden", "norm", "batch", "lr", "each", "tested")
SEMANTICS = (
    "first task; then second",
    "before, %",
    "forgetting, points",
    "overlap of features before",
    "second task, %",
    "run",
)


def anatomy_rows() -> list[Row]:
    """The newest rows of the longest training of one setting: that of the last row."""
    rows = [row for row in load(RESULTS) if row["figure"] == "anatomy"]
    if not rows:
        return []
    last = rows[-1]
    names = ("classes", *SETTING)
    same = [row for row in rows if _agree(row, last, names)]
    shown, _ = shown_and_superseded(
        same, lambda row: (row["memory"], row["seed"]), lambda row: row["steps"]
    )
    return shown


def result_of(rows: list[Row]) -> ForgettingResult:
    """The result that some rows recorded."""
    runs = []
    memories: dict[str, str] = {}
    for row in rows:
        memories[row["memory"]] = row["memory_is"]
        accuracy = [_with_nan(values) for values in row["accuracy"]]
        runs.append(
            Run(
                memory=row["memory"],
                seed=row["seed"],
                accuracy=tuple(accuracy),
                courses=(),
                anatomy=Anatomy.from_dict(row["anatomy"]),
                frozen=tuple(row["frozen"]),
            )
        )
    seeds = tuple(sorted({run.seed for run in runs}))
    layers = tuple(row.layer for row in runs[0].anatomy.layers)
    return ForgettingResult(memories, seeds, len(runs[0].accuracy), layers, tuple(runs))


def drawn(draw: Callable[[ForgettingResult], Table], *columns: str) -> Table:
    """A table of the result; without rows its first columns alone."""
    rows = anatomy_rows()
    return draw(result_of(rows)) if rows else table(columns, [])


def memories() -> Table:
    """What every memory forgets."""
    return drawn(memories_table, "memory", "task 0 before, %", "after, %", "forgetting, points")


def layers() -> Table:
    """Layer by layer, with nothing kept."""
    return drawn(
        lambda result: layers_table(result, result.baseline), "layer", "CKA", "ceiling", "chance"
    )


def subspaces() -> Table:
    """The leading directions, with nothing kept."""
    return drawn(lambda result: subspace_table(result, result.baseline), "layer")


def statements() -> Table:
    """What can be held against the paper."""
    return drawn(criteria_table, "statement", "measured", "holds")


def semantics() -> Table:
    """The forgetting of every pair of tasks."""
    runs = Runs(RESULTS)
    rows = [row for row in load(RESULTS) if row["figure"] == "semantics"]
    if rows:
        last = rows[-1]
        rows = [row for row in rows if _agree(row, last, SETTING)]
    shown, _ = shown_and_superseded(
        rows, lambda row: (row["pair"], row["seed"]), lambda row: row["steps"]
    )
    pairs: dict[str, list[Row]] = {}
    for row in shown:
        pairs.setdefault(row["pair"], []).append(row)
    lines = []
    for pair, of_pair in pairs.items():

        def values(name: str, scale: float, digits: int, of_pair: list[Row] = of_pair) -> str:
            return over_seeds([row[name] for row in of_pair], scale, digits)

        lines.append(
            (
                pair,
                values("before", 100, 1),
                values("forgetting", 100, 1),
                values("overlap", 1, 3),
                values("second", 100, 1),
                runs.of(*of_pair),
            )
        )
    return table(SEMANTICS, lines)


def listing() -> str:
    """The runs behind the tables."""
    return Runs(RESULTS).listing()


def _agree(row: Row, other: Row, names: tuple[str, ...]) -> bool:
    return all(row[name] == other[name] for name in names)


def _with_nan(values: list[float | None]) -> tuple[float, ...]:
    """JSON has no NaN."""
    return tuple(float("nan") if value is None else value for value in values)


TABLES: dict[str, Callable[[], Table | str]] = {
    "forgetting_memories": memories,
    "forgetting_layers": layers,
    "forgetting_subspaces": subspaces,
    "forgetting_statements": statements,
    "forgetting_semantics": semantics,
    "forgetting_runs": listing,
}
