"""The command line: `metalearn reuse | train | evaluate | sweep | rl`.

Every setting comes from the signatures below.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from metalearn import __version__, experiments
from metalearn.experiments import results as wording
from metalearn.experiments.experiment import Experiment, parse
from metalearn.experiments.images import Protocol
from metalearn.experiments.sweep import sweep as run_sweep
from metalearn.experiments.sweep import table as sweep_table
from metalearn.reinforcement.command import rl
from metalearn.runtime import distributed, files, provenance
from metalearn.runtime.files import Record
from metalearn.runtime.installation import check_files
from metalearn.runtime.options import Listed, Parser, command, listed, numbers
from metalearn.runtime.options import device as usable
from metalearn.runtime.progress import duration
from metalearn.runtime.tables import Table, check_table

from .evaluation import evaluate

if TYPE_CHECKING:
    from .analysis.adaptation.feature_reuse import Reuse

# Settings that a trained run does not fix.
AT_TEST = (
    "model",
    "dataset",
    "protocol",
    "test_rotations",
    "splits",
    "split_ratio",
    "root",
    "in_memory",
    "download",
    "queries",
    "test_tasks",
    "test_steps",
    "device",
    "execution",
)


def reuse(
    algorithms: Listed = "maml,anil,nil",
    checkpoint: str | None = None,
    report: str = "report.html",
    table: str | None = None,
    analysed_tasks: int = 60,
    *,
    trust_model: bool = False,
    progress: bool = True,
    **settings: Any,
) -> None:
    """Rapid learning or feature reuse? Train learners, test them, and analyse their inner loop.

    Prints the accuracies, the similarity of every layer before and after adaptation, the cost of
    freezing, and a verdict. Writes all of it with pictures as one HTML page (and as JSON beside
    it).

    Args:
        algorithms: maml, fomaml, anil, boil, meta-sgd, reptile, protomaml, protonet, r2d2, nil (on
            the body that ANIL trains), nil-train, maml++, imaml, meta-curvature, baseline (on a
            body trained by multiclass), baseline++, or training without an inner loop (multiclass,
            multitask, random), with commas.
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
    started = time.monotonic()
    check_table(table)
    # Now, rather than after all the work.
    Path(report).absolute().parent.mkdir(parents=True, exist_ok=True)
    # A trained run keeps its settings; otherwise everything is trained here.
    if checkpoint:
        changes = _changed_at_test(settings, checkpoint)
        run = experiments.restored(checkpoint, trust_model=trust_model, **changes)
        experiment = run.experiment
        names = [run.algorithm]
        runs = {run.algorithm: run}
        print(
            f"{checkpoint}: {run.algorithm} on {wording.problem(experiment)},"
            f" {len(run.curve.losses):,} outer steps"
        )
    else:
        experiment = Experiment(**settings)
        names = parse(algorithms)
        runs = {}
        _announce(experiment, names)
    compared = experiments.compare(experiment, names, runs=runs, progress=progress)
    if distributed.rank():
        return
    rows = wording.accuracy_rows(compared)
    # The first rank alone analyses and writes.
    print(f"\n{wording.accuracy_table(rows, experiment)}")
    reuses = _analysed(compared, experiment.testing_tasks(tasks=analysed_tasks), progress=progress)
    overview = _overview(rows, compared)
    if table:
        _overview_table(reuses, overview).write(table)
    if not reuses:
        print(
            "None of these learners has an inner loop, so there is nothing to compare before and"
            " after; add maml, anil or boil"
        )
        return
    _write_report(report, reuses, rows, overview, compared, experiment, started)
    for result in reuses:
        print(f"\n{result.name}: {result.verdict.answer}")
    print(
        f"The page with pictures: {os.path.abspath(report)}"
        f" ({duration(time.monotonic() - started)} in all)"
    )


def train(
    algorithm: str = "maml",
    tensorboard: str | None = None,
    *,
    table: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> None:
    """Train one learner, or resume its training, and test it.

    Args:
        algorithm: maml, fomaml, anil, boil, meta-sgd, reptile, protomaml, protonet, r2d2,
            nil-train, nil (trains anil and tests its body), baseline (trains multiclass and tests
            its body), baseline++, maml++, imaml, meta-curvature, multiclass, multitask or random.
        tensorboard: also write events to this folder (needs the extra `tensorboard`).
        table: also write the accuracy to this file: .csv, .md, .tex, .html or .txt.
        progress: show progress.
        settings: the few-shot problem and its training.
    """
    check_table(table)
    experiment = Experiment(**settings)
    name, *more = parse(algorithm)
    if more:
        raise ValueError(
            f"train takes one algorithm, not {algorithm!r}; metalearn reuse trains and compares"
            " several"
        )
    _announce(experiment, [name])
    compared = experiments.compare(experiment, [name], progress=progress, tensorboard=tensorboard)
    if distributed.rank():
        return
    accuracies = wording.accuracy_table(wording.accuracy_rows(compared), experiment)
    print(f"\n{accuracies}")
    if table:
        accuracies.write(table)
    if name != "random":
        print(f"The trained weights: {experiment.checkpoint(experiments.trained_by(name))}")


def evaluate_checkpoint(
    checkpoint: str,
    split: Literal["train", "validation", "val", "test"] = "test",
    dataset: str | None = None,
    splits: str | None = None,
    split_ratio: Listed | None = None,
    root: str | None = None,
    protocol: Protocol | None = None,
    queries: int | None = None,
    test_tasks: int | None = None,
    test_steps: int | None = None,
    device: str | None = None,
    execution: str | None = None,
    model: str | None = None,
    *,
    in_memory: bool = True,
    table: str | None = None,
    trust_model: bool = False,
    progress: bool = True,
) -> None:
    """Test a trained run on test tasks: mean accuracy with its 95 % interval.

    Settings left out are those used in training.

    Args:
        checkpoint: the file that training wrote.
        split: train, validation or test.
        dataset: another data set than it was trained on, by name or path.
        splits: for a folder, as in train.
        split_ratio: for a folder, as in train.
        root: the folder that holds the data sets; by default METALEARN_DATA, or else ./data.
        protocol: for a run that was not trained on Omniglot or CUB, which of its classes to test
            on.
        queries: query images per class.
        test_tasks: how many tasks [600].
        test_steps: inner steps.
        device: auto (cuda where there is one, else cpu), cpu, cuda, or any that torch knows [auto].
        execution: how tasks are run: auto, loop, threads, vectorized or graphs [auto].
        model: the package.module:callable that the checkpoint names as its model, which is imported
            only if you name it too.
        in_memory: false decodes image files when they are drawn.
        table: also write the accuracy to this file: .csv, .md, .tex, .html or .txt.
        trust_model: import and run whatever model the checkpoint names.
        progress: show progress.
    """
    check_table(table)
    # Settings left out are those of the checkpoint.
    settings: dict[str, Any] = {
        "dataset": dataset,
        "root": root,
        "in_memory": in_memory,
        "queries": queries,
        "test_tasks": test_tasks,
        "test_steps": test_steps,
        "protocol": protocol,
        "splits": splits,
        "split_ratio": split_ratio,
        "device": device,
        "execution": execution,
        "model": model,
    }
    changes = {name: value for name, value in settings.items() if value is not None}
    # The ranks share out the test tasks, and each of them must restore the run.
    distributed.join(torch.device(distributed.device(usable(device or "auto"))))
    run = experiments.restored(checkpoint, trust_model=trust_model, **changes)
    evaluation = evaluate(run.tested(), run.experiment.testing_tasks(split), progress=progress)
    if distributed.rank():
        return
    problem = wording.problem(run.experiment)
    print(f"{run.algorithm} on {problem}, {split}: {evaluation}")
    if table:
        row = (run.algorithm, problem, split, wording.accuracy(evaluation))
        Table(("learner", "data", "split", "accuracy"), [row]).write(table)


def sweep(
    algorithms: Listed = "maml,anil,nil",
    datasets: Listed = "glyphs",
    ways: Listed = "5",
    shots: Listed = "1",
    seeds: Listed = "0",
    results: str = "sweep.jsonl",
    processes: int = 1,
    executor: str | None = None,
    *,
    table: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> None:
    """Train and test algorithms x data sets x ways x shots x seeds, into one result file.

    The same command goes on where it was stopped. A run that fails is reported and does not stop
    the others; the exit code is then 1. Under torchrun the ranks share out the runs.

    Args:
        algorithms: maml, fomaml, anil, boil, meta-sgd, reptile, protomaml, protonet, r2d2, nil (on
            the body that ANIL trains), nil-train, maml++, imaml, meta-curvature, baseline (on a
            body trained by multiclass), baseline++, or training without an inner loop (multiclass,
            multitask, random), with commas.
        datasets: names or paths, with commas.
        ways: classes per task, with commas.
        shots: support images per class, with commas.
        seeds: of the initial weights and of the training tasks, with commas.
        results: a file of JSON lines, one for each figure; rows are added to it, and figures that
            it holds already are not repeated.
        table: also write the table of all figures to this file: .csv, .md, .tex, .html or .txt.
        processes: runs at once on this machine. If there are several, each has one intra-op thread,
            and a CUDA device of its own where there are enough.
        executor: what runs the jobs: processes, loky, dask or ray on this machine; dask:ADDRESS or
            ray:ADDRESS, a cluster that runs; submitit or submitit:FOLDER (SLURM); or a
            package.module:callable that returns anything with submit(function, *arguments)
            [processes].
        progress: print when runs start and end.
        settings: the few-shot problem and its training.
    """
    check_table(table)
    # Every combination is a problem; a typing error in any is found before the first run.
    axes = (
        listed(datasets, "datasets"),
        numbers(ways, "ways"),
        numbers(shots, "shots"),
        numbers(seeds, "seeds"),
    )
    # Not a comprehension, in which jsonargparse would not find what takes the settings.
    problems = []
    for dataset, way, shot, seed in itertools.product(*axes):
        problems.append(Experiment(dataset=dataset, ways=way, shots=shot, seed=seed, **settings))
    rows = run_sweep(
        problems,
        parse(algorithms),
        results,
        processes=processes,
        executor=executor,
        progress=progress,
    )
    if distributed.rank():
        return
    summary = sweep_table(rows)
    print(summary)
    if table:
        summary.write(table)
    failed = [row for row in rows if "error" in row]
    # Many runs often fail for one reason.
    for error in dict.fromkeys(row["error"] for row in failed):
        print(f"metalearn: {error}", file=sys.stderr)
    line = f"{len(rows) - len(failed)} figures in {results}"
    if failed:
        line += f"; {len(failed)} failed, which the same command tries again"
    print(line)
    if failed:
        raise SystemExit(1)


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
        # Options, help and types come from the signatures and docstrings above.
        auto_cli(
            {
                "reuse": reuse,
                "train": train,
                "evaluate": evaluate_checkpoint,
                "sweep": sweep,
                "rl": rl,
            },
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
    except (ValueError, FileNotFoundError, FloatingPointError, ImportError, OSError) as error:
        print(f"metalearn: {error}", file=sys.stderr)
        return 2
    return 0


def _changed_at_test(settings: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """The settings that differ from their defaults; raises ValueError for one the run fixes."""
    # jsonargparse fills in every default, so only a difference tells what was typed.
    defaults = {setting.name: setting.default for setting in fields(Experiment)}
    changed = {name: value for name, value in settings.items() if value != defaults[name]}
    fixed = [name for name in changed if name not in AT_TEST]
    if fixed:
        raise ValueError(
            f"--{fixed[0]} is fixed by the run in {checkpoint}; with --checkpoint only"
            f" {', '.join(AT_TEST)} can be set"
        )
    return changed


def _announce(experiment: Experiment, algorithms: Iterable[str]) -> None:
    """Meet the other ranks, if there are any, and print what is about to be done."""
    distributed.join(torch.device(distributed.device(experiment.device)))
    if distributed.rank():
        return
    chosen = experiment.settings()
    print(f"{wording.problem(experiment)}; preset {experiment.preset}: {chosen.follows}")
    if chosen.differs:
        print(f"Differences from the paper: {chosen.differs}")
    for line in experiment.start():
        print(line)
    # NIL is tested on the body that ANIL trains, so the two are one line.
    for name in dict.fromkeys(map(experiments.trained_by, algorithms)):
        print(wording.plan(experiment, name))


def _analysed(compared: experiments.Compared, episodes: Any, *, progress: bool) -> list[Reuse]:
    """Analyse and print every learner with an inner loop."""
    from .analysis import feature_reuse

    reuses = []
    for name, learner in compared.learners.items():
        if learner.steps:
            title = wording.title(name)
            reuses.append(feature_reuse(learner, episodes, name=title, progress=progress))
    for result in reuses:
        print(f"\n{result}")
    return reuses


def _overview(rows: list[dict[str, str]], compared: experiments.Compared) -> list[dict[str, str]]:
    """The accuracies under the names of the page, with a verdict where nothing adapts."""
    from metalearn.analysis.adaptation.verdict import DOES_NOT_ADAPT

    overview = []
    for row in rows:
        name = row["learner"]
        row = row | {"learner": wording.title(name)}
        if not compared.learners[name].steps:
            row["verdict"] = DOES_NOT_ADAPT
        overview.append(row)
    return overview


def _overview_table(reuses: Sequence[Reuse], overview: list[dict[str, str]]) -> Table:
    from metalearn.analysis.adaptation.tables import overview as overview_table

    return overview_table(reuses, overview)


def _write_report(
    path: str,
    reuses: list[Reuse],
    rows: list[dict[str, str]],
    overview: list[dict[str, str]],
    compared: experiments.Compared,
    experiment: Experiment,
    started: float,
) -> None:
    """Write the page, and its numbers as JSON beside it."""
    from metalearn.analysis.adaptation.page import report as write_page

    about: Record = {
        "command": shlex.join(["metalearn", *sys.argv[1:]]),
        "data": experiment.dataset,
        "preset": experiment.settings().follows,
        "machine": provenance.machine(),
        "protocol": wording.protocol(experiment),
    }
    seconds = round(time.monotonic() - started)
    write_page(reuses, path, results=overview, settings={**about, "seconds": seconds})
    trainers = map(experiments.trained_by, compared.learners)
    learners = {
        name: {**experiment.to_dict(name), **asdict(experiment.settings(name))} for name in trainers
    }
    facts = {
        "results": rows,
        "settings": {**about, "learners": learners},
        "reuse": [result.to_dict() for result in reuses],
    }
    files.write_atomically(Path(path).with_suffix(".json"), json.dumps(facts, indent=1).encode())


if __name__ == "__main__":
    sys.exit(main())
