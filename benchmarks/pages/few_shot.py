"""The tables of the page on few-shot accuracy, drawn from the results of `benchmarks.few_shot`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.harness.markdown import estimate, percent, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import Row, load
from benchmarks.papers.figures import beside
from metalearn.runtime.progress import duration
from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import Table

from .common import Runs, device, problem, shown_and_superseded

RESULTS = FOLDER / "few_shot.jsonl"
COLUMNS = (
    "data, ways, shots",
    "learner",
    "preset",
    "seed",
    "accuracy, % (± 95 % over test tasks)",
    "minus MAML, paired",
    "outer steps",
    "training",
    "the paper's, %",
    "run",
)


def few_shot() -> Table:
    """Accuracy of every learner: the longest run of each setting."""
    return accuracies(parted()[0])


def history() -> Table:
    """Accuracy of runs that a longer run of the same setting supersedes."""
    return accuracies(parted()[1])


def parted() -> tuple[list[Row], list[Row]]:
    """The rows that are shown, and the superseded ones; Finn et al.'s split has its own table."""
    # Other data sets have no protocol.
    rows = [row for row in load(RESULTS) if row["data"].get("protocol") != "finn"]
    return shown_and_superseded(rows, setting, lambda row: row["trained_steps"])


def newest() -> list[Row]:
    """The newest row of every setting and length."""
    shown, superseded = parted()
    return [*shown, *superseded]


def setting(row: Row) -> tuple[Any, ...]:
    """All that decides a run but its length."""
    names = ("dataset", "ways", "shots", "algorithm", "preset", "seed", "precision", "queries")
    return (*(row[name] for name in names), row["data"].get("protocol"))


def accuracies(rows: Iterable[Row]) -> Table:
    """One line a row."""
    runs = Runs(RESULTS)
    lines = []
    for row in sorted(rows, key=_order):
        accuracy = estimate({"mean": row["accuracy"], "interval": row["interval"]}, 100, 2)
        minus = ""
        if row["minus"]:
            minus = estimate(row["minus"], 100, 2, sign=True)
        # float32 is the default and goes without saying.
        preset = row["preset"]
        if row["precision"] != "float32":
            preset += f", {row['precision']}"
        lines.append(
            (
                problem(row),
                row["algorithm"],
                preset,
                str(row["seed"]),
                f"{accuracy} ({row['test_tasks']} tasks)",
                minus,
                f"{row['trained_steps']:,} x {row['meta_batch']} tasks",
                f"{duration(row['training_seconds'])}, {device(row)}",
                beside(row["dataset"], row["ways"], row["shots"], row["algorithm"]),
                runs.of(row),
            )
        )
    return table(COLUMNS, lines)


def _order(row: Row) -> tuple[Any, ...]:
    return (row["dataset"] != "omniglot", row["dataset"], row["ways"], row["shots"])


def protocols() -> Table:
    """Omniglot under Finn et al.'s protocol beside the harder split and more queries."""
    runs = Runs(RESULTS)
    columns = (
        "ways, shots",
        "learner",
        "preset",
        "test characters",
        "queries a class",
        "seeds",
        "accuracy, %",
        "outer steps",
        "training",
        "the paper's, %",
        "run",
    )
    lines = []
    for group in by_protocol():
        first = group[0]
        steps = sorted({f"{row['trained_steps']:,}" for row in group})
        seconds = sum(row["training_seconds"] for row in group) / len(group)
        lines.append(
            (
                f"{first['ways']}-way {first['shots']}-shot",
                first["algorithm"],
                first["preset"],
                characters(first),
                str(first["queries"]),
                str(len(group)),
                accuracy_over_seeds(group),
                f"{' or '.join(steps)} x {first['meta_batch']} tasks",
                f"{duration(seconds)}, {device(first)}",
                beside("omniglot", first["ways"], first["shots"], first["algorithm"]),
                runs.of(*group),
            )
        )
    return table(columns, lines)


def by_protocol() -> list[list[Row]]:
    """The seeds on Omniglot under the preset `finn2017` or on Finn et al.'s characters.

    Each has its newest row.
    """
    groups: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in load(RESULTS):
        of_omniglot = row["dataset"] == "omniglot"
        on_their_characters = row["data"].get("protocol") == "finn"
        if of_omniglot and (row["preset"] == "finn2017" or on_their_characters):
            # Seeds that were stopped a few steps apart are one line.
            length = round(row["trained_steps"], -2)
            names = ("ways", "shots", "algorithm", "preset")
            key = (*(row[name] for name in names), characters(row), row["queries"], length)
            groups.setdefault(key, {})[row["seed"]] = row
    return [list(seeds.values()) for _, seeds in sorted(groups.items())]


def characters(row: Row) -> str:
    """The split of Omniglot that a row was tested on."""
    if row["data"]["rotations"]:
        return f"{row['data']['protocol']}, turned too"
    return row["data"]["protocol"]


def accuracy_over_seeds(group: list[Row]) -> str:
    """Mean and standard deviation over seeds; of one seed the interval over its tasks."""
    # ± over seeds is a standard deviation; over tasks it is a 95 % interval.
    text = MeanStd.of([row["accuracy"] for row in group]).text(100, 2, "seed")
    if len(group) == 1:
        text += f", ± {percent(group[0]['interval'])} over tasks"
    return text


def listing() -> str:
    """The runs behind the tables."""
    return Runs(RESULTS).listing()


TABLES: dict[str, Callable[[], Table | str]] = {
    "few_shot": few_shot,
    "protocols": protocols,
    "few_shot_history": history,
    "few_shot_runs": listing,
}
