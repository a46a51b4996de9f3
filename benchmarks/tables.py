"""The tables of README.md, drawn from the result files.

python -m benchmarks.tables            # write them into benchmarks/README.md
python -m benchmarks.tables --check true # fail where README.md says something else than the results
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from metalearn.analysis import MeanStd
from metalearn.engine.memory import size
from metalearn.runtime.progress import duration

from . import init_tables, reuse_tables, speed_tables
from .papers import LAKE, ONE_SHOT, beside
from .rows import run_benchmark

HERE = Path(__file__).parent
Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    """The lines of a result file, oldest first; none where there is no file."""
    path = HERE / "results" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def few_shot() -> str:
    """Accuracy of every learner: the newest row of each run."""
    columns = (
        "data, ways, shots",
        "learner",
        "seed",
        "ours, % (± 95 % over test tasks)",
        "minus MAML, paired",
        "outer steps",
        "training",
    )
    lines = [
        f"| {' | '.join(columns)} | the paper's, % | command |",
        "|---" * (len(columns) + 2) + "|",
    ]
    shown = newest_few_shot()
    for row in sorted(
        shown,
        key=lambda row: (row["dataset"] != "omniglot", row["dataset"], row["ways"], row["shots"]),
    ):
        theirs = beside(row["dataset"], row["ways"], row["shots"], row["algorithm"])
        minus = row["minus"]
        difference = f"{100 * minus['mean']:+.2f} ± {100 * minus['interval']:.2f}" if minus else ""
        ours = (
            f"{100 * row['accuracy']:.2f} ± {100 * row['interval']:.2f} ({row['test_tasks']} tasks)"
        )
        lines.append(
            f"| {row['dataset']} {row['ways']}-way {row['shots']}-shot | {row['algorithm']} |"
            f" {row['seed']} | {ours} | {difference} | {row['trained_steps']:,} x"
            f" {row['meta_batch']} tasks | {duration(row['training_seconds'])}, {on(row)} |"
            f" {theirs} | `{row['training_command']}` |"
        )
    return "\n".join(lines)


def newest_few_shot() -> list[Row]:
    """The newest row of each run. At a constant outer rate a longer training is the same run gone
    on.

    Runs on the split of Finn et al. stand in a table of their own.
    """
    newest: dict[tuple[Any, ...], Row] = {}
    for row in rows("few_shot"):
        if row["data"].get("protocol") == "finn":
            continue
        length = 0 if row["schedule"] == "constant" else row["trained_steps"]
        run = tuple(
            row[key]
            for key in ("dataset", "ways", "shots", "algorithm", "preset", "seed", "precision")
        )
        newest[*run, row["data"].get("protocol"), row["queries"], length] = row
    return list(newest.values())


def protocols() -> str:
    """Omniglot under Finn et al.'s protocol beside the harder split and more queries, over seeds."""
    groups: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in rows("few_shot"):
        if row["dataset"] == "omniglot" and row["preset"] == "finn2017":
            split = row["data"]["protocol"] + (", turned too" if row["data"]["rotations"] else "")
            length = round(
                row["trained_steps"], -2
            )  # seeds that were stopped a few steps apart are one row
            run = (row["ways"], row["shots"], row["algorithm"], split, row["queries"], length)
            groups.setdefault(run, {})[row["seed"]] = row
    columns = ["ways, shots", "learner", "test characters", "queries a class", "seeds"]
    columns += ["accuracy, %", "outer steps", "training", "the paper's, %", "command"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for (ways, shots, algorithm, split, queries, _), seeds in sorted(groups.items()):
        steps = sorted({f"{row['trained_steps']:,}" for row in seeds.values()})
        first = next(iter(seeds.values()))
        accuracy = MeanStd.of([row["accuracy"] for row in seeds.values()]).text(100, 2, "seed")
        if len(seeds) == 1:
            accuracy += f", ± {100 * first['interval']:.2f} over tasks"
        training = duration(sum(row["training_seconds"] for row in seeds.values()) / len(seeds))
        cells = [f"{ways}-way {shots}-shot", algorithm, split, str(queries), str(len(seeds))]
        cells += [accuracy, " or ".join(steps), f"{training}, {on(first)}"]
        cells += [beside("omniglot", ways, shots, algorithm), f"`{first['training_command']}`"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def on(row: Row) -> str:
    """What a network was trained on, in a word or two."""
    gpu = row["machine"].partition("NVIDIA ")[2]
    return " ".join(gpu.split()[:1]) + " shared with other trainings" if gpu else "CPU"


def figures(name: str) -> str:
    """The newest line of each figure in a result file: what was measured, with the torch and the
    threads it was measured with.
    """
    newest = {row["figure"]: row for row in rows(name)}
    lines = ["| figure | measured | torch | threads |", "|---|---|---|---|"]
    for figure, row in newest.items():
        lines.append(
            f"| {figure} | {row['said']} | {row['versions']['torch']} | {row.get('threads', '')} |"
        )
    return "\n".join(lines)


def scale() -> str:
    """The newest point of each quantity that was changed: time, memory and its forecast."""
    newest = {(row["changed"], row["value"]): row for row in rows("scale")}
    lines = [
        "| changed | to | median | x as fast as one process | peak memory | its forecast |",
        "|---|---|---|---|---|---|",
    ]
    for (changed, value), row in newest.items():
        faster = f"{row['times_faster']:.2f}" if "times_faster" in row else ""
        if "same" in row:
            faster += ", every accuracy the same" if row["same"] else ", other accuracies"
        memory = [
            size(row[name]) if name in row else "" for name in ("peak_bytes", "forecast_bytes")
        ]
        lines.append(
            f"| {changed} | {value:,} | {row['median']:.3f} s | {faster} | {' | '.join(memory)} |"
        )
    return "\n".join(lines)


def one_shot() -> str:
    """The error rate of every learner on Lake et al.'s runs: the newest row of each, then theirs."""
    newest = {(row["algorithm"], row["preset"]): row for row in rows("one_shot")}
    columns = (
        "learner",
        "error, % (± 95 % over 20 runs)",
        "each seed",
        "trained on",
        "at test",
        "outer steps",
        "training of a seed",
    )
    lines = [f"| {' | '.join(columns)} | command |", "|---" * (len(columns) + 1) + "|"]
    for row in newest.values():
        error = f"{100 * row['error']:.2f} ± {100 * row['interval']:.2f}"
        each = ", ".join(f"{100 * one:.2f}" for one in row["error_per_seed"])
        split = row["split"]
        trained = (
            f"{split['characters']} characters of {split['protocol']}'s background alphabets and"
            " their turns"
        )
        tested = f"{row['queries']} query a class, {row['norm']}"
        seconds = row["training_seconds"]
        spent = f"{duration(sum(seconds) / len(seconds))}, {on(row)}"
        lines.append(
            f"| {row['algorithm']} | {error} | {each} | {trained} | {tested} |"
            f" {row['trained_steps'][0]:,} x {row['meta_batch']} tasks | {spent} |"
            f" `{row['command']}` |"
        )
    for name, theirs in ONE_SHOT.items():
        lines.append(f"| {name} ({LAKE}) | {theirs:g} |" + " |" * (len(columns) - 1))
    return "\n".join(lines)


FIGURES = {
    name: partial(figures, name) for name in ("engine", "finetuning", "measures", "similarity_map")
}
OTHERS = reuse_tables.TABLES | speed_tables.TABLES | init_tables.TABLES
TABLES: dict[str, Callable[[], str]] = {
    "few_shot": few_shot,
    "one_shot": one_shot,
    "protocols": protocols,
    "scale": scale,
    **FIGURES,
    **OTHERS,
}


def tables(check: bool = False) -> None:
    """Draw the tables.

    Args:
        check: write nothing, and fail where the page differs.
    """
    path = HERE / "README.md"
    text = drawn(path.read_text())
    if check and text != path.read_text():
        sys.exit(
            "benchmarks/README.md does not say what the results say; run python -m"
            " benchmarks.tables"
        )
    if not check:
        path.write_text(text)


def drawn(text: str) -> str:
    """A page with the tables between its markers drawn anew."""
    for name, table in TABLES.items():
        start, end = f"<!-- table {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(start)
        if found:
            text = f"{before}{start}{table()}\n{end}" + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    run_benchmark(tables)
