"""The tables of the page on dynamics, drawn from the results of its benchmark."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness.markdown import NONE, mean_std, number, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import Row, load
from metalearn.runtime.tables import Table

from .common import Runs

RESULTS = FOLDER / "dynamics.jsonl"


def newest() -> dict[str, Row]:
    """The newest row of each figure."""
    return {row["figure"]: row for row in load(RESULTS)}


def of(figure: str) -> list[Row]:
    """The newest rows whose figure begins so."""
    return [row for name, row in newest().items() if name.startswith(figure)]


def convergences(figure: str) -> Table:
    """Similarity of each layer to the end at each step, and to the end of another seed."""
    rows = of(figure)
    runs = Runs(RESULTS)
    steps = rows[0]["convergence"]["steps"] if rows else []
    lines = []
    for row in rows:
        found = row["convergence"]
        for layer, values in zip(found["layers"], found["values"], strict=True):
            settled = found["reached"][layer]
            at = NONE if settled is None else f"{settled:,}"
            cells = (number(value, 1, 2) for value in values)
            lines.append((str(row["seed"]), layer, *cells, at, runs.of(row)))
        if found["other"] is not None:
            means = [sum(column) / len(column) for column in zip(*found["other"], strict=True)]
            cells = (number(value, 1, 2) for value in means)
            lines.append(
                (str(row["seed"]), "mean, to another seed's end", *cells, NONE, runs.of(row))
            )
    columns = ("seed", "layer", *(f"{step:,}" for step in steps), "0.9 from step", "run")
    return table(columns, lines)


def labels() -> Table:
    """Similarity within and between the networks on true and on shuffled labels."""
    rows = of("labels")
    runs = Runs(RESULTS)
    lines = []
    columns: tuple[str, ...] = ("networks", "pairs", "run")
    for row in rows:
        for group in row["groups"]:
            first, second = group["groups"]
            name = f"within {first}" if first == second else f"{first} and {second}"
            cells = (mean_std(value, 1, 2, "pair") for value in group["layers"].values())
            lines.append((name, str(group["pairs"]), *cells, runs.of(row)))
            columns = ("networks", "pairs", *group["layers"], "run")
    return table(columns, lines)


def fits() -> Table:
    """The training accuracy of both groups."""
    lines = []
    for row in of("labels"):
        for name, value in row["training"].items():
            lines.append((name, mean_std(value, 100, 1, "network")))
    return table(("labels", "training accuracy, %"), lines)


def states() -> Table:
    """Similarity of the states of a layer at two time steps, by their distance."""
    distances = (1, 2, 4, 8, 16, 32)
    lines = []
    for row in of("text"):
        for layer, values in row["by_distance"].items():
            cells = (number(values[distance], 1, 2) for distance in distances)
            lines.append((str(row["seed"]), layer, *cells))
    columns = ("seed", "layer", *(f"{distance} apart" for distance in distances))
    return table(columns, lines)


def freezing() -> Table:
    """Freeze training: accuracy and time."""
    runs = Runs(RESULTS)
    lines = []
    for row in of("freezing"):
        for schedule in row["rows"]:
            scale = schedule["scale"]
            lines.append(
                (
                    "nothing frozen" if scale is None else f"scale {scale:g}",
                    mean_std(schedule["score"], 100, 1),
                    mean_std(schedule["seconds"], 1, 1),
                    number(schedule["share_of_time"], 1, 2),
                    runs.of(row),
                )
            )
    return table(("schedule", "test, %", "seconds", "share of the time", "run"), lines)


def listing() -> str:
    """The runs behind the tables."""
    return Runs(RESULTS).listing()


TABLES: dict[str, Callable[[], Table | str]] = {
    "dynamics_settling": lambda: convergences("settling"),
    "dynamics_labels": labels,
    "dynamics_fits": fits,
    "dynamics_text": lambda: convergences("text"),
    "dynamics_states": states,
    "dynamics_freezing": freezing,
    "dynamics_runs": listing,
}
