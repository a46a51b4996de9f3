"""The tables of the page on pointer value retrieval, drawn from the results of its benchmark."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from benchmarks.harness.markdown import NONE, number, over_seeds, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import Row, load
from metalearn.runtime.tables import Table

from .common import Runs, device

RESULTS = FOLDER / "pointer_values.jsonl"
SCORES = ("train", "iid", "adversarial", "same_labels")
SCORE_COLUMNS = ("training, %", "iid, %", "adversarial, %", "iid, adversarial labels, %")
TRAINING = ("steps", "batch", "optimizer", "lr")


def grouped(part: str, names: Sequence[str]) -> list[list[Row]]:
    """The rows of a part, together if they differ in their seed alone; the newest of each seed."""
    groups: dict[Hashable, dict[int, Row]] = {}
    for row in load(RESULTS):
        if row["part"] == part:
            key = tuple(row[name] for name in (*names, *TRAINING))
            groups.setdefault(key, {})[row["seed"]] = row
    return [list(rows.values()) for rows in groups.values()]


def scores(rows: Sequence[Row]) -> list[str]:
    """The accuracies over seeds, then the entropies of the labels."""
    cells = [over_seeds([row[name] for row in rows], 100, 1, counted=True) for name in SCORES]
    entropies = [number(rows[0][name], digits=2) for name in ("entropy", "adversarial_entropy")]
    return [*cells, "; ".join(entropies)]


def trained(rows: Sequence[Row]) -> str:
    """How the networks were trained, in a few words."""
    row = rows[0]
    settings = f"{row['steps']:,} x {row['batch']}, {row['optimizer']} {row['lr']:g}"
    return f"{settings}, {device(row)}"


def grid() -> Table:
    """Accuracy of each complexity, function and number of examples."""
    runs = Runs(RESULTS)
    columns = (
        "m",
        "function",
        "examples",
        *SCORE_COLUMNS,
        "entropy, bits",
        "trained by",
        "seeds",
        "run",
    )
    lines = []
    for rows in grouped("grid", ("complexity", "function", "size")):
        first = rows[0]
        problem = (str(first["complexity"]), first["function"], f"{first['size']:,}")
        lines.append((*problem, *scores(rows), trained(rows), str(len(rows)), runs.of(*rows)))
    return table(columns, lines)


def probes() -> Table:
    """Accuracy of linear probes of each layer."""
    runs = Runs(RESULTS)
    facts = ("pointer", "values (mean)", "pointed value", "label")
    lines = []
    for rows in grouped("probes", ("network", "size")):
        for place, layer in enumerate(rows[0]["layers"]):
            cells = [
                over_seeds(_accuracies(rows, place, fact), 100, 1, counted=True) for fact in facts
            ]
            name = rows[0]["network"]
            lines.append((name, layer["layer"], *cells, str(len(rows)), runs.of(*rows)))
    return table(("network", "layer", *facts, "seeds", "run"), lines)


def _accuracies(rows: Sequence[Row], place: int, fact: str) -> list[Any]:
    return [row["layers"][place][fact] for row in rows]


def transfer() -> Table:
    """Complexity 1 from networks of complexity 0."""
    runs = Runs(RESULTS)
    columns = (
        "function",
        "start",
        "examples",
        *SCORE_COLUMNS,
        "entropy, bits",
        "trained by",
        "seeds",
        "run",
    )
    lines = []
    for rows in grouped("transfer", ("function", "start", "size")):
        first = rows[0]
        problem = (first["function"], first["start"], f"{first['size']:,}")
        lines.append((*problem, *scores(rows), trained(rows), str(len(rows)), runs.of(*rows)))
    return table(columns, lines)


def visual() -> Table:
    """Accuracy on images of four digits."""
    runs = Runs(RESULTS)
    columns = ("network", "images", *SCORE_COLUMNS, "entropy, bits", "trained by", "seeds", "run")
    lines = []
    for rows in grouped("visual", ("network", "size")):
        first = rows[0]
        problem = (first["network"], f"{first['size']:,}")
        lines.append((*problem, *scores(rows), trained(rows), str(len(rows)), runs.of(*rows)))
    return table(columns, lines)


def listing() -> str:
    """The runs behind the tables."""
    return Runs(RESULTS).listing() or NONE


TABLES: dict[str, Callable[[], Table | str]] = {
    "pointer_grid": grid,
    "pointer_probes": probes,
    "pointer_transfer": transfer,
    "pointer_visual": visual,
    "pointer_values_runs": listing,
}
