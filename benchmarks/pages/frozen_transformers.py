"""The tables of the page on frozen transformers, drawn from the results of its benchmark."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness.markdown import mean_std, percent, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import load
from metalearn.runtime.tables import Table

from .common import Runs, shown_and_superseded

RESULTS = FOLDER / "frozen_transformers.jsonl"
COLUMNS = (
    "body, task",
    "chance, %",
    "start of the body",
    "trained parameters",
    "test accuracy, %",
    "each seed",
    "rate, of those tried",
    "steps",
    "run",
)


def frozen_transformers() -> Table:
    """The accuracy of every start on every task, at the rate that validation chose."""
    runs = Runs(RESULTS)
    rows, _ = shown_and_superseded(
        load(RESULTS),
        lambda row: (row["body"]["name"], row["task"], row["start"]),
        lambda row: row["steps"],
    )
    lines: list[tuple[str, ...]] = []
    for row in rows:
        edge = ", at the edge" if row["at_edge"] else ""
        lines.append(
            (
                f"{row['body']['name']}, {row['task']}",
                f"{100 * row['chance']:.0f}",
                row["start"],
                f"{row['trained_parameters']:,} of {row['parameters']:,}",
                mean_std(row["test"], 100, 1),
                ", ".join(map(percent, row["tests"])),
                f"{row['rate']:g} of {', '.join(row['validation'])}{edge}",
                f"{row['steps']:,} x {row['batch']}",
                runs.of(row),
            )
        )
    return table(COLUMNS, lines)


def listing() -> str:
    """The runs behind the table."""
    return Runs(RESULTS).listing()


TABLES: dict[str, Callable[[], Table | str]] = {
    "frozen_transformers": frozen_transformers,
    "frozen_transformers_runs": listing,
}
