"""The command `transfuse forget`."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metalearn.runtime import files
from metalearn.runtime.options import listed
from metalearn.runtime.progress import duration
from metalearn.runtime.provenance import machine
from metalearn.runtime.tables import check_table
from transfer.continual.forgetting import forgetting
from transfer.continual.question import Forget
from transfer.continual.tables import memories_table


def forget(
    report: str = "forgetting.html",
    table: str | None = None,
    folder: str | None = None,
    probe: int = 400,
    k: int = 10,
    freezing: bool = True,  # noqa: FBT001, FBT002  # a command line setting
    *,
    progress: bool = True,
    **settings: Any,
) -> None:
    """What does a network forget when it learns the next task, and in which layers?

    Learns the tasks one after another under every memory and seed. Prints what is forgotten, and
    layer by layer how far it changed, what putting it back recovers, and whether the tasks share
    its directions; and writes all of it with pictures as one HTML page (and as JSON beside it). A
    run that was stopped goes on with the task that it was at.

    Args:
        report: the page to write.
        table: also write the table of memories to this file: .csv, .md, .tex, .html or .txt.
        folder: where finished tasks are kept [runs/forgetting-... by settings].
        probe: test images of each task that layers are compared on.
        k: leading directions of a layer that are compared.
        freezing: learn the last task with layers frozen, too: one more training a layer and seed.
        progress: show progress.
        settings: the images and their tasks, the network, its training, and the memories.
    """
    started = time.monotonic()
    # What is wrong with the settings is said before any image is read.
    question = Forget(**settings)
    check_table(table)
    # Now, rather than after all the work.
    Path(report).absolute().parent.mkdir(parents=True, exist_ok=True)
    runs = Path(folder or question.folder)
    tasks = question.cut(question.parts())
    for number, task in enumerate(tasks):
        print(
            f"task {number}: {len(task.train):,} training and {len(task.test):,} test images of"
            f" {len(task.train.names)} classes ({', '.join(task.train.names):.60})"
        )
    print(
        f"{question.network}, {question.norm} norm, {question.steps} steps of {question.batch}"
        f" images a task; {question.memories}; seeds {question.seeds} ({runs})"
    )
    result = forgetting(
        question.build(tasks),
        tasks,
        question.training(),
        question.numbers,
        question.chosen_memories(),
        heads=question.heads,
        layers=listed(question.layers) if question.layers else None,
        freezing=freezing,
        probe=probe,
        k=k,
        folder=runs,
        settings={"model": question.network, "norm": question.norm},
        progress=progress,
    )
    print(f"\n{result}")
    seconds = time.monotonic() - started
    about = {
        "command": shlex.join(["transfuse", *sys.argv[1:]]),
        "machine": machine(),
        "seconds": round(seconds),
        **{name: value for name, value in asdict(question).items() if value is not None},
    }
    if table:
        memories_table(result).write(table)
    result.report(report, settings=about)
    facts = {**result.to_dict(), "about": about}
    files.write_atomically(Path(report).with_suffix(".json"), json.dumps(facts, indent=1).encode())
    print(f"\nThe page with pictures: {os.path.abspath(report)} ({duration(seconds)} in all)")
