"""The tables of the page on pretrained starts, drawn from the results of `init_strategies`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.harness.markdown import NONE, estimate, number, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import Row, load
from benchmarks.papers.findings import Measured, smaller_data
from benchmarks.papers.findings import findings as answers
from metalearn.runtime.progress import duration
from metalearn.runtime.tables import Table

from .common import Runs

RESULTS = FOLDER / "init_strategies.jsonl"
LAYERS = ("random", "mean_var", "slim", "full")
FASTER = {"lower": "faster", "higher": "slower"}  # fewer steps to the threshold
Line = tuple[str, ...]


def starts() -> Table:
    """Every start: final score and steps to the threshold, and both against random."""
    columns = (
        "network, data",
        "start",
        "parameters",
        "final score, %",
        "minus random",
        "steps to the threshold",
        "minus random",
        "faster?",
        "run",
    )
    runs = Runs(RESULTS)
    lines: list[Line] = []
    for row in newest():
        about = (
            f"{problem(row)}; {len(row['seeds'])} seeds x {row['settings']['steps']} steps;"
            f" threshold {100 * row['threshold']:.1f}"
        )
        rows = []
        for final, steps in zip(row["final_tests"], row["steps_tests"], strict=True):
            name = final["strategy"]
            rows.append(
                (
                    name,
                    f"{row['parameters'][name]:,}",
                    estimate(final["estimate"], 100, 2),
                    against_random(final, 100, 2),
                    steps_to_threshold(steps),
                    against_random(steps, 1, 1),
                    FASTER.get(steps["answer"], steps["answer"]),
                    runs.of(row),
                )
            )
        lines += under(about, rows)
    return table(columns, lines)


def findings() -> Table:
    """The paper's findings under every comparison that can speak to them."""
    lines: list[Line] = []
    runs = Runs(RESULTS)
    for row in newest():
        few = row["images"] < row["whole"]
        rows = []
        for finding in answers(measured(row), few=few, level=row["level"]):
            claim = finding.claim
            if not finding.paper:
                claim += " (ours)"
            rows.append((claim, finding.answer, finding.numbers(), runs.of(row)))
        lines += under(problem(row), rows)
    for few_row, whole_row in pairs():
        finding = smaller_data(measured(few_row), measured(whole_row), few_row["level"])
        about = f"{problem(few_row)} against {whole_row['images']:,}"
        cells = (finding.claim, finding.answer, finding.numbers())
        lines.append((about, *cells, runs.of(few_row, whole_row)))
    columns = ("network, data", "finding", "answer", "difference over paired seeds", "run")
    return table(columns, lines)


def layers() -> Table:
    """Similarity of each layer's outputs before and after fine-tuning."""
    lines: list[Line] = []
    runs = Runs(RESULTS)
    for row in newest():
        rows = []
        for layer in row["layers"]:
            means = {name: number(value["mean"]) for name, value in layer["similarity"].items()}
            cells = [means.get(name, NONE) for name in LAYERS]
            chance = number(layer["chance"]["random"])
            rows.append((layer["layer"], *cells, chance, runs.of(row)))
        lines += under(f"{problem(row)}; {row['measure'].upper()}", rows)
    return table(("network, data", "layer", *LAYERS, "chance, 95 %", "run"), lines)


def under(about: str, rows: Iterable[Line]) -> list[Line]:
    """The lines of a table under one heading, which stands in the first of them."""
    headed = []
    for number_of_line, row in enumerate(rows):
        headed.append(("" if number_of_line else about, *row))
    return headed


def costs() -> Table:
    """What was trained where, and how long it took."""
    columns = ("network, data", "starts from", "fine-tuning", "training", "in all", "run")
    runs = Runs(RESULTS)
    lines = []
    for row in newest():
        settings = row["settings"]
        fine_tuning = (
            f"{settings['steps']} steps of {settings['batch']}, lr {settings['lr']:g}, tested on"
            f" {row['test_images']:,}"
        )
        times = (duration(row["training_seconds"]), duration(row["seconds"]))
        source = pretrained_on(row["pretraining"])
        lines.append((problem(row), source, fine_tuning, *times, runs.of(row)))
    return table(columns, lines)


def pretrained_on(row: Row) -> str:
    """What the weights that are transferred were trained on, in words.

    Example:
        >>> pretrained_on({"file": "squeezenet.npz", "trained_on": "ImageNet"})
        'ImageNet (`squeezenet.npz`)'
    """
    if "file" in row:
        return f"{row['trained_on']} (`{row['file']}`)"
    colour = {1: "grey", 3: "colour"}[row["channels"]]
    training = f"{row['steps']:,} steps of {row['batch']}, {duration(row['seconds'])}"
    return (
        f"{row['trained_on']}, {colour}, {row['size']} px: {100 * row['accuracy']:.1f} % of its"
        f" test images right ({training})"
    )


def newest() -> list[Row]:
    """The newest row of each comparison, in the order in which they first came."""
    latest: dict[str, Row] = {}
    for row in load(RESULTS):
        latest[json.dumps([*same_network(row), row["images"]])] = row
    return list(latest.values())


def pairs() -> list[tuple[Row, Row]]:
    """Comparisons of one network with some and with all of the images, on the same seeds."""
    rows = newest()
    comparisons = []
    for few in rows:
        for whole in rows:
            # Same table, network, data and seeds: only the number of images differs.
            if few["images"] < whole["images"] and same_network(few) == same_network(whole):
                comparisons.append((few, whole))
    return comparisons


def same_network(row: Row) -> list[Any]:
    """What two comparisons share that differ in their number of images alone."""
    return [row["table"], row["network"], row["dataset"], row["seeds"]]


def measured(row: Row) -> Measured:
    """The numbers of a row by seed, layers in their order, which a line of JSON does not keep."""
    order = [layer["layer"] for layer in row["layers"]]
    kept = {}
    for name, similarities in row["kept"].items():
        kept[name] = {layer: similarities[layer] for layer in order if layer in similarities}
    return Measured(row["finals"], row["steps"], kept, tuple(row["ladder"]), tuple(row["learned"]))


def problem(row: Row) -> str:
    """Network, data and images."""
    return f"{row['network']}, {row['dataset']}, {row['images']:,} images"


def steps_to_threshold(test: Row) -> str:
    """The mean steps, or under how many seeds the threshold was reached."""
    if not test["estimate"]:
        return f"reached under {test['reached']} of {test['seeds']} seeds"
    return estimate(test["estimate"], 1, 1)


def against_random(test: Row, scale: float, digits: int) -> str:
    """The paired difference from random, with p after Holm over the starts."""
    if not test["paired"]:
        return ""
    difference = estimate(test["paired"]["difference"], scale, digits, sign=True)
    if test["adjusted"] is None:
        return difference
    return f"{difference} (p = {test['adjusted']:.2g})"


def listing() -> str:
    """The runs behind the tables."""
    return Runs(RESULTS).listing()


TABLES: dict[str, Callable[[], Table | str]] = {
    "init_starts": starts,
    "init_findings": findings,
    "init_layers": layers,
    "init_costs": costs,
    "init_runs": listing,
}
