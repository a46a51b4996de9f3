"""How accurate is each learner on the same test tasks?

    python -m benchmarks.few_shot --dataset omniglot --ways 5 --shots 1 --algorithms maml,anil,nil

Trains each (or resumes, or loads what is done), tests all on the same episodes, prints one table
with intervals, paired differences, training time and the papers' figures, and adds a JSON line a
row to the file that `--results` names (benchmarks/results/few_shot.jsonl holds those of the page).
"""

from __future__ import annotations

from typing import Any

from metalearn import experiments
from metalearn.evaluation import Evaluation, paired
from metalearn.experiments.experiment import Experiment, parse
from metalearn.experiments.runs import Compared, Run
from metalearn.runtime.options import Listed, listed
from metalearn.runtime.progress import duration

from .harness.markdown import estimate, table
from .harness.rows import Row, append, keep_in, origin, run_benchmark
from .papers.figures import beside

# Settings that may differ from those of a checkpoint.
AT_TEST = ("root", "device", "execution", "test_tasks", "queries")


def few_shot(
    algorithms: Listed = "maml,anil,nil",
    checkpoints: Listed = "",
    progress: bool = True,  # noqa: FBT001, FBT002  # a command line setting
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
    changes = {name: settings[name] for name in AT_TEST if settings.get(name) is not None}
    # Runs from elsewhere fix the problem; without them the settings do.
    stored = [experiments.restored(path, **changes) for path in listed(checkpoints)]
    experiment = stored[0].experiment if stored else Experiment(**settings)
    compared = experiments.compare(
        experiment,
        parse(algorithms),
        runs={run.algorithm: run for run in stored},
        progress=progress,
    )
    rows = described(compared, note)
    for row in rows:
        append(row)
    print(f"preset {experiment.preset}: {experiment.settings().follows}")
    show(experiment, rows)


def described(compared: Compared, note: str) -> list[Row]:
    """A row a learner, with the paired difference from the first."""
    rows = []
    first = next(iter(compared.evaluations))
    for name, evaluation in compared.evaluations.items():
        row = {**described_run(name, compared.runs[name], evaluation), "minus": None, "note": note}
        if name != first:
            difference = paired(evaluation, compared.evaluations[first])
            row["minus"] = {
                "learner": first,
                "mean": difference.mean,
                "interval": difference.interval,
                "p": difference.p,
            }
        rows.append(row)
    return rows


def described_run(name: str, run: Run, evaluation: Evaluation) -> Row:
    """All that is behind a row: settings, seed, versions, machine and commit."""
    experiment = run.experiment
    settings = experiment.settings(run.algorithm)
    training = experiment.data("train")
    tasks = len(evaluation.per_episode)
    return {
        "benchmark": "few_shot",
        "algorithm": name,
        "body_trained_by": run.algorithm,
        **experiment.to_dict(run.algorithm),
        "preset": experiment.preset,
        "follows": settings.follows,
        "test_steps": settings.test_steps,
        "trained_steps": len(run.curve.losses),
        "training_seconds": round(run.curve.seconds, 1),
        "training_command": run.command(),
        "accuracy": evaluation.mean,
        "interval": evaluation.interval,
        "interval_means": f"1.96 std / sqrt({tasks}) over test tasks, one seed",
        "test_tasks": tasks,
        "queries": experiment.test_queries(),
        "data": experiment.data("test").description,
        "training_images_per_class": round(len(training) / len(training.names)),
        "norm": run.learner.settings()["norm"],
        "execution": experiment.execution,
        **origin("few_shot"),
    }


def show(experiment: Experiment, rows: list[Row]) -> None:
    """Print the rows beside the papers' figures."""
    first = rows[0]["algorithm"]
    problem = f"{experiment.dataset}, {experiment.ways}-way {experiment.shots}-shot"
    columns = (
        "learner",
        "accuracy %",
        f"minus {first}, paired",
        "steps",
        "training",
        "paper's figure",
    )
    lines = []
    for row in rows:
        name = row["algorithm"]
        minus = ""
        if row["minus"]:
            minus = estimate(row["minus"], 100, 2, sign=True)
        lines.append(
            (
                name,
                estimate({"mean": row["accuracy"], "interval": row["interval"]}, 100, 2),
                minus,
                f"{row['trained_steps']:,}",
                duration(row["training_seconds"]),
                beside(experiment.dataset, experiment.ways, experiment.shots, name),
            )
        )
    print(f"{problem}, ± is 95 % over {experiment.test_tasks} tasks")
    print(table(columns, lines))


if __name__ == "__main__":
    run_benchmark(few_shot)
