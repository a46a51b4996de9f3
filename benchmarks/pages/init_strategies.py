"""The tables of `python -m benchmarks.init_strategies`, drawn from its result file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metalearn.runtime.progress import duration

from .init_findings import Measured, smaller_data
from .init_findings import findings as answers
from .reuse_tables import head, line, number

RESULTS = Path(__file__).parent / "results" / "init_strategies.jsonl"
LAYERS = ("random", "mean_var", "slim", "full")
Row = dict[str, Any]


def starts() -> str:
    """Every start: its final score, its steps to the threshold, and both against random on the same
    seeds.
    """
    columns = (
        "network, data",
        "start",
        "parameters",
        "final score, %",
        "minus random",
        "steps to the threshold",
        "minus random",
        "faster?",
    )
    lines = [head(*columns)]
    for row in newest():
        about = (
            f"{problem(row)}; {len(row['seeds'])} seeds x {row['settings']['steps']} steps;"
            f" threshold {100 * row['threshold']:.1f}"
        )
        for final, steps in zip(row["final_tests"], row["steps_tests"], strict=True):
            name = final["strategy"]
            reached = (
                estimate(steps["estimate"], 1, 1)
                if steps["estimate"]
                else f"reached under {steps['reached']} of {steps['seeds']} seeds"
            )
            faster = {"lower": "faster", "higher": "slower"}.get(steps["answer"], steps["answer"])
            cells = (
                estimate(final["estimate"], 100, 2),
                against(final, 100, 2),
                reached,
                against(steps, 1, 1),
                faster,
            )
            lines.append(line(about, name, f"{row['parameters'][name]:,}", *cells))
            about = ""
    return "\n".join(lines)


def findings() -> str:
    """The paper's findings, a line each, under every comparison that can speak to them."""
    lines = [head("network, data", "finding", "answer", "difference over paired seeds")]
    for row in newest():
        about = problem(row)
        for one in answers(measured(row), few=row["images"] < row["whole"], level=row["level"]):
            lines.append(
                line(about, one.claim + ("" if one.paper else " (ours)"), one.answer, one.numbers())
            )
            about = ""
    for few, whole in pairs():
        found = smaller_data(measured(few), measured(whole), few["level"])
        lines.append(
            line(
                f"{problem(few)} against {whole['images']:,}",
                found.claim,
                found.answer,
                found.numbers(),
            )
        )
    return "\n".join(lines)


def layers() -> str:
    """How alike each layer's outputs are at the start and at the end of fine-tuning."""
    lines = [head("network, data", "layer", *LAYERS, "chance, 95 %")]
    for row in newest():
        about = f"{problem(row)}; {row['measure'].upper()}"
        for one in row["layers"]:
            similar = one["similarity"]
            cells = [number(similar[name]["mean"]) if name in similar else "-" for name in LAYERS]
            lines.append(line(about, one["layer"], *cells, number(one["chance"]["random"])))
            about = ""
    return "\n".join(lines)


def costs() -> str:
    """What was trained where, how long it took, and the command of each comparison."""
    lines = [head("network, data", "starts from", "fine-tuning", "training", "in all", "command")]
    for row in newest():
        own = row["settings"]
        said = (
            f"{own['steps']} steps of {own['batch']}, lr {own['lr']:g}, tested on"
            f" {row['test_images']:,}"
        )
        times = (duration(row["training_seconds"]), duration(row["seconds"]))
        lines.append(
            line(problem(row), origin(row["pretraining"]), said, *times, f"`{row['command']}`")
        )
    return "\n".join(lines)


def origin(found: Row) -> str:
    """What the weights that are transferred were trained on, in words.

    Example:
        >>> origin({"file": "squeezenet.npz", "trained_on": "ImageNet"})
        'ImageNet (`squeezenet.npz`)'
    """
    if "file" in found:
        return f"{found['trained_on']} (`{found['file']}`)"
    kind = "grey" if found["channels"] == 1 else "colour"
    how = f"{found['steps']:,} steps of {found['batch']}, {duration(found['seconds'])}"
    return (
        f"{found['trained_on']}, {kind}, {found['size']} px: {100 * found['accuracy']:.1f} % of its"
        f" test images right ({how})"
    )


def newest() -> list[Row]:
    """The last row of each comparison, in the order in which they first came."""
    found: dict[str, Row] = {}
    for row in map(json.loads, RESULTS.read_text().splitlines() if RESULTS.exists() else []):
        found[json.dumps([*same_network(row), row["images"]])] = row
    return list(found.values())


def pairs() -> list[tuple[Row, Row]]:
    """Comparisons of one network with some and with all of the training images, on the same seeds."""
    rows = newest()
    return [
        (few, whole)
        for few in rows
        for whole in rows
        if few["images"] < whole["images"] and same_network(few) == same_network(whole)
    ]


def same_network(row: Row) -> list[Any]:
    """What two comparisons share that differ in their number of images alone."""
    return [row["table"], row["network"], row["dataset"], row["seeds"]]


def measured(row: Row) -> Measured:
    """The numbers of a row by seed; a line of JSON has its layers by name, and here they are in
    order again.
    """
    order = [one["layer"] for one in row["layers"]]
    kept = {
        name: {layer: layers[layer] for layer in order if layer in layers}
        for name, layers in row["kept"].items()
    }
    return Measured(row["finals"], row["steps"], kept, tuple(row["ladder"]), tuple(row["learned"]))


def problem(row: Row) -> str:
    """Network, data and images."""
    return f"{row['network']}, {row['dataset']}, {row['images']:,} images"


def estimate(one: Row, scale: float, digits: int) -> str:
    """A mean with its interval over seeds."""
    return number(one["mean"], scale, digits) + (
        f" ± {scale * one['interval']:.{digits}f}" if one["interval"] is not None else ""
    )


def against(one: Row, scale: float, digits: int) -> str:
    """The paired difference to random with p after Holm over the starts."""
    if not one["paired"]:
        return ""
    p = "" if one["adjusted"] is None else f" (p = {one['adjusted']:.2g})"
    found = one["paired"]["difference"]
    return ("+" if found["mean"] > 0 else "") + estimate(found, scale, digits) + p


TABLES: dict[str, Callable[[], str]] = {
    "init_starts": starts,
    "init_findings": findings,
    "init_layers": layers,
    "init_costs": costs,
}
