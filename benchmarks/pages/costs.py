"""The tables of the pages on cost: measures, maps, fine-tuning, engine, scale, seconds."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

from benchmarks.harness.markdown import NONE, percent, seconds, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import Row, load
from metalearn.engine.memory import size
from metalearn.runtime.tables import Table

from .common import Runs, figures

ACCURACY_TIME = FOLDER / "accuracy_time.jsonl"
MEASURES = FOLDER / "measures.jsonl"
SCALE = FOLDER / "scale.jsonl"
SIMILARITY_MAP = FOLDER / "similarity_map.jsonl"
SIDES = ("torch_cka", "pytorch-cka", "the floor", "forward passes alone")


def scale() -> Table:
    """The newest point of each quantity that was changed: time, memory and its forecast."""
    runs = Runs(SCALE)
    newest = {(row["changed"], row["value"]): row for row in load(SCALE)}
    columns = (
        "changed",
        "to",
        "median",
        "x as fast as one process",
        "peak memory",
        "its forecast",
        "run",
    )
    lines = []
    for (changed, value), row in newest.items():
        peak = memory(row, "peak_bytes")
        forecast = memory(row, "forecast_bytes")
        time = f"{row['median']:.3f} s"
        lines.append((changed, f"{value:,}", time, faster(row), peak, forecast, runs.of(row)))
    return table(columns, lines)


def faster(row: Row) -> str:
    """How many times as fast as one process, and whether the accuracies are the same."""
    if "times_faster" not in row:
        return ""
    text = f"{row['times_faster']:.2f}"
    if "same" not in row:
        return text
    if row["same"]:
        return f"{text}, every accuracy the same"
    return f"{text}, other accuracies"


def memory(row: Row, name: str) -> str:
    """Bytes in words; nothing if they were not measured."""
    if name not in row:
        return ""
    return size(row[name])


def similarity_map() -> Table:
    """Agreement with the other libraries, and memory."""
    rows = [row for row in load(SIMILARITY_MAP) if not row["figure"].startswith("time, ")]
    return figures(SIMILARITY_MAP, rows)


def similarity_map_times() -> Table:
    """The time of a map: ours in seconds, the other sides as multiples of it."""
    runs = Runs(SIMILARITY_MAP)
    columns = ("networks", "images", "threads", "ours", *SIDES, "run")
    lines = []
    for row in map_times():
        networks, images = row["figure"].removeprefix("time, ").rsplit(", ", 1)
        cells = (ratio_to_ours(row, side) for side in SIDES)
        ours = seconds(statistics.median(row["seconds"]["similarity_map"]))
        lines.append((networks, images, str(row["threads"]), ours, *cells, runs.of(row)))
    return table(columns, lines)


def map_times() -> list[Row]:
    """The newest time of each size and number of threads."""
    newest = {}
    for row in load(SIMILARITY_MAP):
        # Figures are named "time, two networks, 1 x 64 images".
        if row["figure"].startswith("time, "):
            newest[row["figure"], row["threads"]] = row
    return list(newest.values())


def ratio_to_ours(row: Row, side: str) -> str:
    """A side's time: the median over rounds of its ratio to ours, its seconds, processor time."""
    if side not in row["median_ratios"]:
        return NONE
    median = seconds(statistics.median(row["seconds"][side]))
    processor = row["median_processor_ratios"][side]
    return f"{row['median_ratios'][side]:.2f} x ({median}; processor time {processor:.2f} x)"


def accuracy_time() -> Table:
    """The last point of the newest race: steps and accuracy of each side."""
    return race_ends(races()[0])


def accuracy_time_history() -> Table:
    """The last points of earlier races."""
    return race_ends(races()[1])


def races() -> tuple[list[Row], list[Row]]:
    """The newest race of each algorithm and side, and the earlier ones."""
    rows = load(ACCURACY_TIME)
    # The place of the last row of each algorithm and side.
    newest = {(row["algorithm"], row["side"]): number for number, row in enumerate(rows)}
    shown = [rows[number] for number in newest.values()]
    return shown, [row for number, row in enumerate(rows) if number not in newest.values()]


def race_ends(rows: list[Row]) -> Table:
    """One line a race: what it reached."""
    runs = Runs(ACCURACY_TIME)
    columns = ("learner", "side", "seconds", "outer steps", "accuracy, %", "time of day", "run")
    lines = []
    for row in rows:
        last = row["points"][-1]
        accuracy = f"{percent(last['accuracy'])} ± {percent(last['interval'])}"
        cells = (f"{last['seconds']:.0f}", f"{last['steps']:,}", accuracy, row["time"])
        lines.append((row["algorithm"], row["side"], *cells, runs.of(row)))
    return table(columns, lines)


def listing(name: str) -> str:
    """The runs of a file of results."""
    return Runs(FOLDER / f"{name}.jsonl").listing()


TABLES: dict[str, Callable[[], Table | str]] = {
    "scale": scale,
    "similarity_map": similarity_map,
    "similarity_map_times": similarity_map_times,
    "accuracy_time": accuracy_time,
    "accuracy_time_history": accuracy_time_history,
    "engine": partial(figures, FOLDER / "engine.jsonl"),
    "finetuning": partial(figures, FOLDER / "finetuning.jsonl"),
    "measures": partial(figures, FOLDER / "measures.jsonl"),
}
for _name in ("accuracy_time", "engine", "finetuning", "measures", "scale", "similarity_map"):
    TABLES[f"{_name}_runs"] = partial(listing, _name)
