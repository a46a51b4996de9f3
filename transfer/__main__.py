"""The command line: `transfuse compare` and `forget`, every setting from their signatures."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from metalearn import __version__
from metalearn.data.labelled_sets import Split
from metalearn.network.forward import Inputs
from metalearn.runtime import distributed, files, parallel
from metalearn.runtime.installation import check_files
from metalearn.runtime.options import Parser, command
from metalearn.runtime.progress import duration
from metalearn.runtime.provenance import machine
from metalearn.runtime.tables import check_table
from transfer.comparison.compare import check_comparison
from transfer.comparison.compare import compare as compare_strategies
from transfer.comparison.tables import final_table
from transfer.continual.command import forget
from transfer.finetuning.finetune import FineTuning
from transfer.initialisation.weights import Pretrained
from transfer.models import Build
from transfer.question import Transfer

__all__ = ["Transfer", "compare", "forget", "main"]

PROCESSES = 4  # that share out the runs on a CPU, at most


def compare(
    report: str = "transfer.html",
    table: str | None = None,
    folder: str | None = None,
    baseline: str = "random",
    threshold: float | None = None,
    level: float = 0.05,
    measure: str = "cca",
    probe: int = 400,
    processes: int | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> None:
    """Does a pretrained start help, which layers carry it, and is it features or only scale?

    Trains every start under every seed on the same batches. Prints learning speed, scores, tests
    and what each layer kept, and writes all of it with pictures as one HTML page (and as JSON
    beside it). A comparison that was stopped goes on where it was.

    Args:
        report: the page to write.
        table: also write the table of final scores to this file: .csv, .md, .tex, .html or .txt.
        folder: where runs are kept [runs/transfer-... by settings].
        baseline: the strategy that others are compared against.
        threshold: the score that steps are counted to [98 % of the baseline's final score].
        level: of the tests and intervals.
        measure: cca, svcca, linear_cka, or another measure of similarity.
        probe: test images that layers are compared on.
        processes: how many share out the runs on this machine [one a core, at most 4, on a CPU;
            else 1].
        progress: show progress.
        settings: the images, the network and its fine-tuning.
    """
    started = time.monotonic()
    # What is wrong with the settings is said before any image is read.
    question = Transfer(**settings)
    check_table(table)
    # Now, rather than after all the work.
    Path(report).absolute().parent.mkdir(parents=True, exist_ok=True)
    runs = Path(folder or question.folder)
    runs.mkdir(parents=True, exist_ok=True)
    parts = question.parts()
    train = question.training(parts)
    distributed.join(torch.device(question.device))
    rank = distributed.rank()
    _, channels, size, _ = parts.train.images.shape
    build = question.build(len(parts.train.names), channels, size)
    if processes is None:
        processes = _processes(question.device)
    checked: dict[str, Any] = {
        "baseline": baseline,
        "threshold": threshold,
        "level": level,
        "measure": measure,
    }
    inputs = train.probe(probe)
    if not question.given:
        _check_before_pretraining(question, build, train, inputs, processes, checked)
    # One rank pretrains, and the others read what it wrote.
    weights = distributed.rank_zero_first(
        lambda: question.pretrained(runs, channels, shown=progress and rank == 0)
    )
    strategies = question.starts(weights, build)
    if distributed.world_size() > 1:
        processes = 1  # the ranks share out the runs already
    if rank == 0:
        for line in _announcement(question, parts, train, strategies, runs):
            print(line)
    # Runs that are in the folder already are not repeated.
    comparison = compare_strategies(
        strategies,
        build,
        train,
        inputs,
        question.numbers,
        folder=runs,
        **checked,
        processes=processes,
        settings={"model": question.network, "weights": repr(weights)},
        progress=progress,
    )
    if rank:
        return
    print(f"\n{comparison}")
    seconds = time.monotonic() - started
    about = {
        "command": shlex.join(["transfuse", *sys.argv[1:]]),
        "data": _described(parts),
        "machine": machine(),
        "seconds": round(seconds),
    }
    if table:
        final_table(comparison).write(table)
    comparison.report(report, settings={**about, "processes": processes})
    facts = {**comparison.to_dict(), "about": about, "question": asdict(question)}
    files.write_atomically(Path(report).with_suffix(".json"), json.dumps(facts, indent=1).encode())
    print(f"\nThe page with pictures: {os.path.abspath(report)} ({duration(seconds)} in all)")


def _check_before_pretraining(
    question: Transfer,
    build: Build,
    train: FineTuning,
    probe: Inputs,
    processes: int,
    checked: dict[str, Any],
) -> None:
    """Raise what `compare` would raise, with the network's own weights as the pretrained ones."""
    itself = Pretrained("the network itself", dict(build().state_dict()))
    check_comparison(
        question.starts(itself, build),
        build,
        train,
        probe,
        question.numbers,
        processes=processes,
        **checked,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, 2 for input that cannot be used, 130 after Ctrl-C.
    """
    from jsonargparse import auto_cli  # takes long to import

    try:
        # A broken installation is reported with the version.
        if "--version" in (sys.argv[1:] if arguments is None else arguments):
            check_files()
        # SIGTERM ends the workers too; runs that are done are kept.
        with parallel.sigterm_exits():
            auto_cli(
                {"compare": compare, "forget": forget},
                args=arguments,
                prog="transfuse",
                as_positional=False,
                parser_class=Parser,
                version=__version__,
            )
    except KeyboardInterrupt:
        again = command("transfuse", arguments)
        print(f"transfuse: stopped; the same command goes on from there: {again}", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, FloatingPointError, ImportError, OSError) as error:
        print(f"transfuse: {error}", file=sys.stderr)
        return 2
    return 0


def _announcement(
    question: Transfer, parts: Split, train: FineTuning, strategies: Iterable[str], runs: Path
) -> list[str]:
    """What is about to be done, in lines."""
    images = len(train.chosen(0))
    lines = [
        f"{question.network} on {question.dataset}: {images:,} training images of"
        f" {len(parts.train.names)} classes, {len(parts.test):,} test images"
    ]
    if question.given:
        lines.append(f"weights: {question.given}; {_normalization(question)}")
    lines.append(
        f"{question.steps} steps of {min(question.batch, images)} images; {', '.join(strategies)};"
        f" seeds {question.seeds} ({runs})"
    )
    return lines


def _normalization(question: Transfer) -> str:
    """How the images are normalised, in words."""
    if question.normalization:
        return f"images are normalised by mean/std {question.normalization}"
    if question.normalize is None and question.given and question.given.normalization is None:
        return (
            "how their images were normalised is not known, so images stay in [0, 1]; --normalize"
            " imagenet or MEAN/STD changes that"
        )
    return "images stay in [0, 1]"


def _processes(device: str) -> int:
    return max(1, min(PROCESSES, os.cpu_count() or 1)) if device == "cpu" else 1


def _described(parts: Split) -> dict[str, Any]:
    """The images, for the record of the result."""
    description = {
        name: value for name, value in parts.train.description.items() if name != "split"
    }
    return {"images": {"train": len(parts.train), "test": len(parts.test)}, **description}


if __name__ == "__main__":
    sys.exit(main())
