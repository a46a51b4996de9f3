"""The command line: `metalearn reuse | train | evaluate | sweep`, every setting from the signatures
below.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from metalearn import __version__, experiments
from metalearn.experiments.experiment import Experiment, parse
from metalearn.experiments.sweep import sweep as run_sweep
from metalearn.experiments.sweep import table as sweep_table
from metalearn.runtime import distributed, files, provenance, tables
from metalearn.runtime.installation import check_files
from metalearn.runtime.options import Listed, Parser, command, listed, numbers
from metalearn.runtime.options import device as usable
from metalearn.runtime.progress import duration

from .evaluation import Evaluation, evaluate, paired


def reuse(
    algorithms: Listed = "maml,anil,nil",
    checkpoint: str | None = None,
    report: str = "report.html",
    table: str | None = None,
    analysed_tasks: int = 60,
    trust_model: bool = False,
    progress: bool = True,
    **settings: Any,
) -> None:
    """Rapid learning or feature reuse? Train learners, test them, and say what their inner loop
    changes, layer by layer.

    Prints the accuracies, the similarity of every layer before and after adaptation, what freezing
    costs and a verdict, and writes all of it with pictures as one HTML page (and as JSON beside
    it).

    Args:
        algorithms: maml, fomaml, anil, boil, meta-sgd, reptile, protonet, nil (on the body that
            ANIL trains) or nil-train, with commas.
        checkpoint: analyse this trained run instead of training; it fixes the settings it was
            trained with.
        report: the page to write.
        table: also write the table of learners to this file: .csv, .md, .tex, .html or .txt.
        analysed_tasks: test tasks that the representations are compared on.
        trust_model: import and run the package.module:callable that the checkpoint names as its
            model (or name the same with --model).
        progress: show progress.
        settings: the few-shot problem and its training.
    """
    from metalearn.analysis.adaptation.page import report as write_report
    from metalearn.analysis.adaptation.tables import overview as overview_table
    from metalearn.analysis.adaptation.verdict import DOES_NOT_ADAPT

    from .analysis import feature_reuse

    started = time.monotonic()
    tables.check_table(table)
    Path(report).absolute().parent.mkdir(
        parents=True, exist_ok=True
    )  # now, rather than after all the work
    if checkpoint:
        run = experiments.restored(
            checkpoint, trust_model=trust_model, **_at_test(settings, checkpoint)
        )
        experiment, names, runs = run.experiment, [run.algorithm], {run.algorithm: run}
        print(
            f"{checkpoint}: {run.algorithm} on {_problem(experiment)}, {len(run.curve.losses):,}"
            " outer steps"
        )
    else:
        experiment, names, runs = Experiment(**settings), parse(algorithms), {}
        _started(experiment, names)
    done = experiments.compare(experiment, names, runs=runs, progress=progress)
    if distributed.rank():
        return
    learners, seconds = done.learners, {name: run.curve.seconds for name, run in done.runs.items()}
    rows = _rows(done.evaluations, seconds)
    _print_table(rows, experiment)
    episodes = experiment.testing_tasks(tasks=analysed_tasks)
    found = [
        feature_reuse(learner, episodes, name=_title(name), progress=progress)
        for name, learner in learners.items()
        if learner.steps
    ]
    for one in found:
        print(f"\n{one}")
    if found:
        command = shlex.join(["metalearn", *sys.argv[1:]])
        about = {
            "command": command,
            "data": experiment.dataset,
            "preset": experiment.settings().follows,
            "machine": provenance.machine(),
        }
        about["protocol"] = _protocol(experiment)
        overview = []
        for row in rows:
            answer = {} if learners[row["learner"]].steps else {"verdict": DOES_NOT_ADAPT}
            overview.append(row | {"learner": _title(row["learner"])} | answer)
        if table:
            overview_table(found, overview).write(table)
        write_report(
            found,
            report,
            results=overview,
            settings={**about, "seconds": round(time.monotonic() - started)},
        )
        details = {
            name: {**experiment.to_dict(name), **asdict(experiment.settings(name))}
            for name in map(experiments.trained_by, learners)
        }
        facts = {
            "results": rows,
            "settings": {**about, "learners": details},
            "reuse": [one.to_dict() for one in found],
        }
        files.write_atomically(
            Path(report).with_suffix(".json"), json.dumps(facts, indent=1).encode()
        )
        for one in found:
            print(f"\n{one.name}: {one.verdict.answer}")
        print(
            f"The page with pictures: {os.path.abspath(report)}"
            f" ({duration(time.monotonic() - started)} in all)"
        )
    else:
        print(
            "None of these learners has an inner loop, so there is nothing to compare before and"
            " after; add maml, anil or boil"
        )


def train(
    algorithm: str = "maml", tensorboard: str | None = None, progress: bool = True, **settings: Any
) -> None:
    """Train one learner, or go on where it was interrupted, and test it.

    Args:
        algorithm: maml, fomaml, anil, boil, meta-sgd, reptile, protonet, nil-train, or nil (trains
            anil and tests its body).
        tensorboard: also write events to this folder (needs the extra `tensorboard`).
        progress: show progress.
        settings: the few-shot problem and its training.
    """
    experiment = Experiment(**settings)
    name, *more = parse(algorithm)
    if more:
        raise ValueError(
            f"train takes one algorithm, not {algorithm!r}; metalearn reuse trains and compares"
            " several"
        )
    _started(experiment, [name])
    done = experiments.compare(experiment, [name], progress=progress, tensorboard=tensorboard)
    if distributed.rank() == 0:
        _print_table(_rows(done.evaluations, {name: done.runs[name].curve.seconds}), experiment)
        print(f"The trained weights: {experiment.checkpoint(experiments.trained_by(name))}")


def evaluate_checkpoint(
    checkpoint: str,
    split: Literal["train", "validation", "val", "test"] = "test",
    dataset: str | None = None,
    splits: str | None = None,
    split_ratio: Listed | None = None,
    root: str | None = None,
    protocol: Literal["vinyals", "finn", "lake"] | None = None,
    queries: int | None = None,
    test_tasks: int | None = None,
    test_steps: int | None = None,
    device: str | None = None,
    execution: str | None = None,
    model: str | None = None,
    trust_model: bool = False,
    progress: bool = True,
) -> None:
    """Test a trained run on test tasks: mean accuracy with its 95 % interval. What is not said is
    as it was trained.

    Args:
        checkpoint: the file that training wrote.
        split: train, validation or test.
        dataset: another data set than it was trained on, by name or path.
        splits: for a folder, as in train.
        split_ratio: for a folder, as in train.
        root: the folder that holds the data sets; by default METALEARN_DATA, or else ./data.
        protocol: for a run that was not trained on Omniglot, which of its characters to test on.
        queries: query images per class.
        test_tasks: how many tasks [600].
        test_steps: inner steps.
        device: auto (cuda where there is one, else cpu), cpu, cuda, or any that torch knows [auto].
        execution: how tasks are run: auto, loop, threads, vectorized or graphs [auto].
        model: the package.module:callable that the checkpoint names as its model, which is imported
            only if you name it too.
        trust_model: import and run whatever model the checkpoint names.
        progress: show progress.
    """
    asked: dict[str, Any] = {
        "dataset": dataset,
        "root": root,
        "queries": queries,
        "test_tasks": test_tasks,
        "test_steps": test_steps,
    }
    asked |= {
        "protocol": protocol,
        "splits": splits,
        "split_ratio": split_ratio,
        "device": device,
        "execution": execution,
        "model": model,
    }
    changes = {name: value for name, value in asked.items() if value is not None}
    distributed.join(torch.device(distributed.device(usable(device or "auto"))))
    run = experiments.restored(checkpoint, trust_model=trust_model, **changes)
    found = evaluate(run.tested(), run.experiment.testing_tasks(split), progress=progress)
    if distributed.rank() == 0:
        print(f"{run.algorithm} on {_problem(run.experiment)}, {split}: {found}")


def sweep(
    algorithms: Listed = "maml,anil,nil",
    datasets: Listed = "glyphs",
    ways: Listed = "5",
    shots: Listed = "1",
    seeds: Listed = "0",
    results: str = "sweep.jsonl",
    processes: int = 1,
    progress: bool = True,
    **settings: Any,
) -> None:
    """Train and test algorithms x data sets x ways x shots x seeds, into one result file; the same
    command goes on where it was stopped.

    A run that fails is reported and does not stop the others; the exit code is then 1. Under
    torchrun the ranks share out the runs.

    Args:
        algorithms: maml, fomaml, anil, boil, meta-sgd, reptile, protonet, nil (on the body that
            ANIL trains) or nil-train, with commas.
        datasets: names or paths, with commas.
        ways: classes per task, with commas.
        shots: support images per class, with commas.
        seeds: of the initial weights and of the training tasks, with commas.
        results: a file of JSON lines, one a figure, added to; what it holds already is not
            repeated.
        processes: runs at once on this machine, each with one intra-op thread where there are
            several.
        progress: say when runs start and end.
        settings: the few-shot problem and its training.
    """
    problems = []
    axes = (
        listed(datasets, "datasets"),
        numbers(ways, "ways"),
        numbers(shots, "shots"),
        numbers(seeds, "seeds"),
    )
    for dataset, way, shot, seed in itertools.product(*axes):
        problems.append(Experiment(dataset=dataset, ways=way, shots=shot, seed=seed, **settings))
    rows = run_sweep(problems, parse(algorithms), results, processes=processes, progress=progress)
    if distributed.rank():
        return
    Console(width=None if sys.stdout.isatty() else 120).print(sweep_table(rows))
    failed = [row for row in rows if "error" in row]
    for error in dict.fromkeys(row["error"] for row in failed):
        print(f"metalearn: {error}", file=sys.stderr)
    print(
        f"{len(rows) - len(failed)} figures in {results}"
        + (f"; {len(failed)} failed, which the same command tries again" if failed else "")
    )
    if failed:
        raise SystemExit(1)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line -> exit code: 0, 2 for input that cannot be used, 130 after Ctrl-C."""
    from jsonargparse import auto_cli

    try:
        if "--version" in (sys.argv[1:] if arguments is None else arguments):
            check_files()
        auto_cli(
            {"reuse": reuse, "train": train, "evaluate": evaluate_checkpoint, "sweep": sweep},
            args=arguments,
            prog="metalearn",
            as_positional=False,
            parser_class=Parser,
            version=__version__,
        )
    except KeyboardInterrupt as stopped:
        again = command("metalearn", arguments)
        print(
            f"metalearn: {stopped or 'stopped'}; the same command goes on from there: {again}",
            file=sys.stderr,
        )
        return 130
    except (ValueError, FileNotFoundError, FloatingPointError, OSError) as error:
        print(f"metalearn: {error}", file=sys.stderr)
        return 2
    return 0


AT_TEST = (
    "model",
    "dataset",
    "protocol",
    "test_rotations",
    "splits",
    "split_ratio",
    "root",
    "download",
    "queries",
    "test_tasks",
    "test_steps",
    "device",
    "execution",
)


def _at_test(settings: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """The settings that were changed from their defaults; with a checkpoint only those that do not
    decide how it was trained.
    """
    defaults = {one.name: one.default for one in fields(Experiment)}
    changed = {name: value for name, value in settings.items() if value != defaults[name]}
    fixed = [name for name in changed if name not in AT_TEST]
    if fixed:
        raise ValueError(
            f"--{fixed[0]} is fixed by the run in {checkpoint}; with --checkpoint only"
            f" {', '.join(AT_TEST)} can be set"
        )
    return changed


def _started(experiment: Experiment, algorithms: Iterable[str]) -> None:
    """Meet the other processes where torchrun started this one, and say what is about to be done."""
    distributed.join(torch.device(distributed.device(experiment.device)))
    if distributed.rank():
        return
    chosen = experiment.settings()
    print(f"{_problem(experiment)}; preset {experiment.preset}: {chosen.follows}")
    if chosen.differs:
        print(f"What is not as in the paper: {chosen.differs}")
    for line in experiment.start():
        print(line)
    for name in dict.fromkeys(map(experiments.trained_by, algorithms)):
        chosen = experiment.settings(name)
        inner = (
            f", inner rate {chosen.lr:g}, inner steps {chosen.inner_steps} (at test"
            f" {chosen.test_steps})"
        )
        print(
            f"{name}: {chosen.model}{'' if name in ('protonet', 'nil-train') else inner};"
            f" {chosen.steps:,} outer steps of {chosen.meta_batch} tasks with"
            f" {chosen.train_queries or experiment.shots} queries a class; seed {experiment.seed}"
        )


def _problem(experiment: Experiment) -> str:
    return f"{experiment.dataset}, {experiment.ways}-way {experiment.shots}-shot"


def _protocol(experiment: Experiment) -> str:
    """What accuracies depend on beside the learner: the split, the queries and the norm."""
    split = ""
    if experiment.dataset == "omniglot":
        chosen = experiment.settings()
        turned = ", turned characters too" if chosen.test_rotations else ""
        split = f"characters split by protocol {chosen.protocol}{turned}; "
    queries = experiment.test_queries()
    plural = "y" if queries == 1 else "ies"
    return f"{split}{queries} quer{plural} a class; norm: {experiment.norm} statistics"


def _title(name: str) -> str:
    """A learner's name as the page has it."""
    return name.upper() if len(name) <= 4 else name


def _rows(
    evaluations: Mapping[str, Evaluation], seconds: Mapping[str, float]
) -> list[dict[str, Any]]:
    first = next(iter(evaluations))
    rows = []
    for name, found in evaluations.items():
        tasks = len(found.per_episode)
        interval = f" ± {100 * found.interval:.2f}" if tasks > 1 else ""
        compared = paired(found, evaluations[first]) if name != first and tasks > 1 else None
        rows.append(
            {
                "learner": name,
                "accuracy": (
                    f"{100 * found.mean:.2f}{interval} % ({tasks}"
                    f" task{'s' * (tasks != 1)}{', exactly chance' * found.at_chance})"
                ),
                f"minus {_title(first)}, paired": (
                    ""
                    if compared is None
                    else f"{100 * compared.mean:+.2f} ± {100 * compared.interval:.2f}"
                ),
                "training": duration(seconds[name]),
            }
        )
    return rows


def _print_table(rows: list[dict[str, Any]], experiment: Experiment) -> None:
    table = Table()
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "learner" else "right")
    for row in rows:
        table.add_row(*row.values())
    print(
        f"\n{_problem(experiment)}, {experiment.test_tasks} test tasks of unseen classes (± is 95 %"
        " over tasks)"
    )
    print(_protocol(experiment))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    sys.exit(main())
