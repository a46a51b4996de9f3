"""The tables of the page on vision transformers, drawn from the results of its benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.harness.markdown import NONE, number, percent, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import Row, load
from metalearn.runtime.progress import duration
from metalearn.runtime.tables import Table

from .common import Runs

RESULTS = FOLDER / "vit_vs_cnn.jsonl"
POOLS = {"class": "ViT, class token", "mean": "ViT, mean over patches"}


def newest() -> list[Row]:
    """The newest row of each network."""
    return list({row["figure"]: row for row in load(RESULTS)}.values())


def transformers() -> list[Row]:
    """The rows of transformers, before and after training."""
    return [row for row in newest() if row.get("network") == "vit"]


def name(row: Row) -> str:
    """The network of a row in words."""
    if row["network"] != "vit":
        return "ResNet-20"
    state = "" if row["trained"] else ", untrained"
    return f"{POOLS[row['pool']]}{state}"


def networks() -> Table:
    """Accuracy of each network, and where the transformer's layers are like the other's."""
    runs = Runs(RESULTS)
    columns = (
        "network",
        "training, %",
        "test, %",
        "lowest quarter is most like, depth of ResNet-20",
        "highest quarter",
        "mean CKA, ViT with ViT",
        "ViT with ResNet-20",
        "training",
        "run",
    )
    lines = []
    for row in newest():
        if "network" not in row:
            continue
        cells = [percent(row["train_accuracy"], 1), percent(row["test_accuracy"], 1)]
        if row["network"] == "vit":
            lowest = [match for match in row["best_matches"] if match["depth"] <= 0.25]
            highest = [match for match in row["best_matches"] if match["depth"] >= 0.75]
            cells += [depth_of(lowest), depth_of(highest)]
            cells += [number(row["maps"]["vit"], 1, 2), number(row["maps"]["across"], 1, 2)]
        else:
            cells += [NONE] * 4
        seconds = duration(row["seconds"]) if row["seconds"] else NONE
        lines.append((name(row), *cells, seconds, runs.of(row)))
    return table(columns, lines)


def depth_of(matches: list[Row]) -> str:
    """The mean depth of the most similar layers, in per cent of all."""
    mean = statistics.mean(match["match_depth"] for match in matches)
    return f"{100 * mean:.0f} %"


def heads() -> Table:
    """How far the heads of each block look, in pixels."""
    lines = []
    for row in transformers():
        for layer, distances in zip(
            row["distances"]["layers"], row["distances"]["distances"], strict=True
        ):
            cells = (number(distance, 1, 1) for distance in sorted(distances))
            lines.append((name(row), layer, *cells, number(row["distances"]["uniform"], 1, 1)))
    width = max((len(line) - 3 for line in lines), default=0)
    columns = ("network", "layer", *(f"head {i}" for i in range(1, width + 1)), "uniform attention")
    return table(columns, lines)


def places() -> Table:
    """How well tokens keep their place, block by block."""
    lines = []
    for row in transformers():
        for layer in row["places"]["layers"]:
            own = number(layer["own"], 1, 2)
            elsewhere = number(layer["elsewhere"], 1, 2)
            lines.append((name(row), layer["layer"], own, elsewhere, number(layer["rank"], 1, 1)))
    columns = ("network", "layer", "CKA with the own patch", "with others", "rank of the own patch")
    return table(columns, lines)


def skips() -> Table:
    """Test accuracy without the skip connections of one block."""
    lines = []
    for row in transformers():
        for block, accuracy in row.get("without_skip", {}).items():
            cost = accuracy - row["test_accuracy"]
            lines.append((name(row), block, percent(accuracy, 1), number(cost, 100, 1, sign=True)))
    return table(("network", "block", "test without it, %", "change, points"), lines)


def shares() -> Table:
    """Similarity to the transformers of all images, and probes, block by block."""
    lines = []
    for row in newest():
        for part in row.get("shares", ()):
            for layer, similarity in part["similarity"].items():
                share = percent(part["share"], 0)
                cells = (
                    number(similarity["mean"], 1, 2),
                    percent(part["probes"][layer]["mean"], 1),
                )
                lines.append((f"{share} %", part["examples"], layer, *cells))
    columns = ("share", "images", "layer", "CKA with all images, other seed", "10-shot probe, %")
    return table(columns, lines)


def listing() -> str:
    """The runs behind the tables."""
    return Runs(RESULTS).listing()


TABLES: dict[str, Callable[[], Table | str]] = {
    "vit_networks": networks,
    "vit_heads": heads,
    "vit_places": places,
    "vit_skips": skips,
    "vit_shares": shares,
    "vit_runs": listing,
}
