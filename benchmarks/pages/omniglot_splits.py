"""The tables of the page on the splits of Omniglot, drawn from the results of its benchmark."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness.markdown import over_seeds, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import Row, load
from metalearn.runtime.statistics import Estimate
from metalearn.runtime.tables import Table

from .common import Runs

RESULTS = FOLDER / "omniglot_splits.jsonl"
TEST = "15 queries a class"  # that of the curve
NAMES = {
    "vinyals": "Vinyals et al.: other alphabets",
    "finn": "as Finn et al.: at random from all alphabets",
    "lake": "Lake et al.: background and evaluation alphabets",
}


def rows_at(split: str, steps: int, test: str = TEST) -> list[Row]:
    """The newest row of each seed of one point."""
    by_seed = {}
    for row in load(RESULTS):
        if (row["protocol"], row["trained_steps"], row["test"]) == (split, steps, test):
            by_seed[row["seed"]] = row
    return [by_seed[seed] for seed in sorted(by_seed)]


def points() -> list[int]:
    """The numbers of steps that networks were tested after."""
    return sorted({row["trained_steps"] for row in load(RESULTS)})


def gains(split: str, steps: int, test: str = TEST) -> list[float]:
    """A split minus that of Vinyals et al., in accuracy, for each seed that has both."""
    base = {row["seed"]: row["accuracy"] for row in rows_at("vinyals", steps, test)}
    rows = rows_at(split, steps, test)
    return [row["accuracy"] - base[row["seed"]] for row in rows if row["seed"] in base]


def difference(split: str, steps: int, test: str = TEST) -> Estimate:
    """A split minus that of Vinyals et al., paired by seed, in accuracy."""
    return Estimate.of(gains(split, steps, test))


def curve() -> Table:
    """The accuracy on each split after each number of steps, then the differences."""
    columns = ["split", "characters to train on", "seeds"]
    columns += [f"after {steps:,} steps, %" for steps in points()]
    lines = []
    for split, name in NAMES.items():
        rows = rows_at(split, points()[0])
        cells = [str(rows[0]["characters"]), str(len(rows))]
        for steps in points():
            cells.append(over_seeds([row["accuracy"] for row in rows_at(split, steps)], 100, 1))
        lines.append((name, *cells))
    for split in ("finn", "lake"):
        pairs = str(len(gains(split, points()[-1])))
        cells = [difference(split, steps).shown("+.1f", 100) for steps in points()]
        lines.append((f"{split} minus vinyals, points, paired", "", pairs, *cells))
    return table(columns, lines)


def tests() -> Table:
    """The same networks under other test tasks."""
    last = points()[-1]
    found = dict.fromkeys(row["test"] for row in load(RESULTS) if row["trained_steps"] == last)
    columns = ("test tasks", *NAMES, "finn minus vinyals, points")
    lines = []
    for test in found:
        cells = []
        for split in NAMES:
            accuracies = [row["accuracy"] for row in rows_at(split, last, test)]
            cells.append(over_seeds(accuracies, 100, 1))
        lines.append((test, *cells, difference("finn", last, test).shown("+.1f", 100)))
    return table(columns, lines)


def runs() -> str:
    """The commands behind the rows."""
    return Runs(RESULTS).listing()


TABLES: dict[str, Callable[[], Table | str]] = {
    "omniglot_splits": curve,
    "omniglot_splits_tests": tests,
    "omniglot_splits_runs": runs,
}
