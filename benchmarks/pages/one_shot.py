"""The table of the page on one-shot classification, drawn from the results of its benchmark."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness.markdown import estimate, percent, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import load
from benchmarks.papers.figures import LAKE, ONE_SHOT
from metalearn.runtime.progress import duration
from metalearn.runtime.tables import Table

from .common import Runs, device, shown_and_superseded

RESULTS = FOLDER / "one_shot.jsonl"
COLUMNS = (
    "learner",
    "error, % (± 95 % over 20 runs)",
    "each seed",
    "trained on",
    "at test",
    "outer steps",
    "training of a seed",
    "run",
)


def one_shot() -> Table:
    """The error rate of every learner on Lake et al.'s runs, then of people and of their models."""
    runs = Runs(RESULTS)
    rows, _ = shown_and_superseded(
        load(RESULTS),
        lambda row: (row["algorithm"], row["preset"]),
        lambda row: row["trained_steps"][0],
    )
    lines: list[tuple[str, ...]] = []
    for row in rows:
        split = row["split"]
        seconds = row["training_seconds"]
        lines.append(
            (
                row["algorithm"],
                estimate({"mean": row["error"], "interval": row["interval"]}, 100, 2),
                ", ".join(map(percent, row["error_per_seed"])),
                f"{split['characters']} characters of {split['protocol']}'s background alphabets"
                " and their turns",
                f"{row['queries']} query a class, {row['norm']}",
                f"{row['trained_steps'][0]:,} x {row['meta_batch']} tasks",
                f"{duration(sum(seconds) / len(seconds))}, {device(row)}",
                runs.of(row),
            )
        )
    for name, error in ONE_SHOT.items():
        empty = ("",) * (len(COLUMNS) - 2)
        lines.append((f"{name} ({LAKE})", f"{error:g}", *empty))
    return table(COLUMNS, lines)


def listing() -> str:
    """The runs behind the table."""
    return Runs(RESULTS).listing()


TABLES: dict[str, Callable[[], Table | str]] = {"one_shot": one_shot, "one_shot_runs": listing}
