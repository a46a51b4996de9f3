"""How accurate is each learner on the same test tasks?

    python -m benchmarks.few_shot --dataset omniglot --ways 5 --shots 1 --algorithms maml,anil,nil

Trains each (or resumes, or loads what is done), tests all on the same episodes, prints one table
with intervals, paired differences, training time and the papers' figures, and adds a JSON line a
row to the file that `--results` names (benchmarks/results/few_shot.jsonl holds those of the page).
"""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from metalearn import experiments
from metalearn.evaluation import Evaluation, paired
from metalearn.experiments.experiment import Experiment, parse
from metalearn.experiments.runs import Run
from metalearn.runtime import provenance
from metalearn.runtime.options import Listed, listed
from metalearn.runtime.progress import duration
from metalearn.runtime.provenance import commit, versions

from .papers.figures import beside
from .harness.rows import append, keep_in, run_benchmark


def few_shot(
    algorithms: Listed = "maml,anil,nil",
    checkpoints: Listed = "",
    progress: bool = True,
    note: str = "",
    results: str | None = None,
    **settings: Any,
) -> None:
    """Compare learners on the same test tasks.

    Args:
        algorithms: maml, fomaml, anil, boil, meta-sgd, reptile, protonet, nil (on the body that
            ANIL trains) or nil-train, with commas.
        checkpoints: runs of `metalearn train` to take instead of training here, with commas; they
            fix the problem, but for root, device, execution, test_tasks and queries.
        progress: show progress.
        note: what a reader of the row should know.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
        settings: the few-shot problem and its training.
    """
    keep_in(results)
    here = {
        name: settings[name]
        for name in ("root", "device", "execution", "test_tasks", "queries")
        if settings.get(name) is not None
    }
    given = [experiments.restored(path, **here) for path in listed(checkpoints)]
    experiment = given[0].experiment if given else Experiment(**settings)
    done = experiments.compare(
        experiment, parse(algorithms), runs={run.algorithm: run for run in given}, progress=progress
    )
    first = next(iter(done.evaluations))
    print(f"preset {experiment.preset}: {experiment.settings().follows}")
    table = Table(
        title=(
            f"{experiment.dataset}, {experiment.ways}-way {experiment.shots}-shot, ± is 95 % over"
            f" {experiment.test_tasks} tasks"
        )
    )
    for column in (
        "learner",
        "accuracy %",
        f"minus {first}, paired",
        "steps",
        "training",
        "paper's figure",
    ):
        table.add_column(column)
    for name, found in done.evaluations.items():
        compared = None if name == first else paired(found, done.evaluations[first])
        row = {**described(name, done.runs[name], found), "minus": None, "note": note}
        if compared:
            row["minus"] = {
                "learner": first,
                "mean": compared.mean,
                "interval": compared.interval,
                "p": compared.p,
            }
        append(row)
        difference = (
            f"{100 * compared.mean:+.2f} ± {100 * compared.interval:.2f}" if compared else ""
        )
        ours = f"{100 * found.mean:.2f} ± {100 * found.interval:.2f}"
        theirs = beside(experiment.dataset, experiment.ways, experiment.shots, name)
        table.add_row(
            name,
            ours,
            difference,
            f"{row['trained_steps']:,}",
            duration(row["training_seconds"]),
            theirs,
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def described(name: str, run: Run, found: Evaluation) -> dict[str, Any]:
    """All that is behind a row: settings, seed, versions, machine and commit."""
    experiment, chosen = run.experiment, run.experiment.settings(run.algorithm)
    return {
        "benchmark": "few_shot",
        "algorithm": name,
        "body_trained_by": run.algorithm,
        **experiment.to_dict(run.algorithm),
        "preset": experiment.preset,
        "follows": chosen.follows,
        "test_steps": chosen.test_steps,
        "trained_steps": len(run.curve.losses),
        "training_seconds": round(run.curve.seconds, 1),
        "training_command": run.command(),
        "accuracy": found.mean,
        "interval": found.interval,
        "interval_means": f"1.96 std / sqrt({len(found.per_episode)}) over test tasks, one seed",
        "test_tasks": len(found.per_episode),
        "queries": experiment.test_queries(),
        "data": experiment.data("test").description,
        "training_images_per_class": round(
            len(experiment.data("train")) / len(experiment.data("train").names)
        ),
        "norm": run.learner.settings()["norm"],
        "execution": experiment.execution,
        "command": " ".join(["python -m benchmarks.few_shot", *sys.argv[1:]]),
        "versions": versions(),
        "machine": provenance.machine(),
        "commit": commit(),
        "time": provenance.now(),
    }


if __name__ == "__main__":
    run_benchmark(few_shot)
