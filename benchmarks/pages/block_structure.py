"""The tables of the page on block structure, drawn from the results of its benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from benchmarks.harness.markdown import NONE, number, percent, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import Row, load
from metalearn.runtime.progress import duration
from metalearn.runtime.tables import Table

from .common import Runs

RESULTS = FOLDER / "block_structure.jsonl"
MAPS = (
    "all images",
    "without the dominant images",
    "without as many random images",
    "without the first components",
)


def newest() -> list[Row]:
    """The newest row of each network or pair, in the order in which they first came."""
    return list({(row["figure"], row["images"]): row for row in load(RESULTS)}.values())


def networks() -> list[Row]:
    """The rows of single networks."""
    return [row for row in newest() if "start" in row]


def pairs() -> list[Row]:
    """The rows of two networks of different seeds."""
    return [row for row in newest() if "pair" in row]


def name(row: Row) -> str:
    """The network of a row in words."""
    if row["start"] == "published":
        return "published ResNet-20, all 50,000 images"
    text = f"ResNet-{row['depth']}, seed {row['seed']}"
    if row["start"] == "pretrained":
        text += ", pretrained"
    if "strength" in row:
        text += f", penalty {row['strength']:g}"
    return text


def blocks(found: Iterable[Row]) -> str:
    """Blocks by their first and last layers."""
    return ", ".join(f"{block['first']} to {block['last']}" for block in found) or "none"


def components() -> Table:
    """The strongest first component of each network, and its blocks."""
    runs = Runs(RESULTS)
    columns = (
        "network",
        "training, %",
        "test, %",
        "strongest layer",
        "its share",
        "carried by, of the images",
        "without the top 1 %",
        "blocks",
        "by the looser rule",
        "training",
        "run",
    )
    lines = []
    for row in networks():
        training = percent(row["train_accuracy"], 1) if "train_accuracy" in row else NONE
        seconds = duration(row["seconds"]) if "seconds" in row else NONE
        lines.append(
            (
                name(row),
                training,
                percent(row["test_accuracy"], 1),
                row["layer"],
                number(row["share"], 1, 2),
                f"{row['participation']:.0f} of {row['probe']:,}",
                number(row.get("share_without_dominant"), 1, 2),
                blocks(row["blocks"]),
                blocks(row["loose_blocks"]),
                seconds,
                runs.of(row),
            )
        )
    return table(columns, lines)


def similarities() -> Table:
    """The mean similarity of two layers in each map."""
    lines = []
    for row in networks():
        cells = (number(row["maps"][kind]) for kind in MAPS)
        count = str(len(row["dominant"]))
        lines.append((name(row), count, *cells))
    return table(("network", "dominant images", *MAPS), lines)


def seeds() -> Table:
    """How alike the networks of two seeds are, and how many dominant images they share."""
    runs = Runs(RESULTS)
    columns = ("seeds", "CKA of the same layers", "overlap of the dominant images", "run")
    lines = []
    for row in pairs():
        values = list(row["similarity"].values())
        mean = sum(values) / len(values)
        first, second = row["pair"]
        lines.append((f"{first} and {second}", number(mean), number(row["overlap"]), runs.of(row)))
    return table(columns, lines)


def evolution() -> Table:
    """The first components in the course of training."""
    lines = []
    for row in networks():
        for step in row.get("evolution", ()):
            lines.append(
                (
                    name(row),
                    f"{step['step']:,}",
                    number(step["share"], 1, 2),
                    f"{step['participation']:.0f}",
                    number(step["similarity"]),
                    number(step["overlap"], 1, 2),
                )
            )
    columns = (
        "network",
        "step",
        "largest share",
        "carried by, of 1,000 images",
        "similarity of layers",
        "dominant images shared with the end",
    )
    return table(columns, lines)


def listing() -> str:
    """The runs behind the tables."""
    return Runs(RESULTS).listing()


TABLES: dict[str, Callable[[], Table | str]] = {
    "block_components": components,
    "block_similarities": similarities,
    "block_seeds": seeds,
    "block_evolution": evolution,
    "block_runs": listing,
}
