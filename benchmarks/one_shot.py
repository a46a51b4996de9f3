"""How many characters of Lake et al.'s one-shot classification does each learner get wrong?

    python -m benchmarks.one_shot --algorithms protonet,anil --seeds 0,1,2

Trains each learner on 20-way 1-shot tasks of Omniglot's background alphabets (or resumes it, or
loads what is done), tests it on the 20 published runs, whose alphabets it has not seen, prints the
error rates, and adds a JSON line a learner to the file that `--results` names
(benchmarks/results/one_shot.jsonl holds those of the page).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from metalearn.evaluation import Evaluation, evaluate
from metalearn.experiments.experiment import Experiment, parse, trained_by
from metalearn.experiments.regimes import trained
from metalearn.experiments.runs import Run
from metalearn.runtime.options import Listed, numbers
from metalearn.runtime.statistics import confidence_half_width
from metalearn.runtime.tables import plain
from metalearn.tasks import one_shot_runs

from .harness.markdown import percent, table
from .harness.rows import Row, append, keep_in, origin, run_benchmark
from .papers.figures import LAKE, ONE_SHOT


def one_shot(
    algorithms: Listed = "protonet,anil",
    seeds: Listed = "0",
    archive: str | None = None,
    progress: bool = True,  # noqa: FBT001, FBT002  # a command line setting
    note: str = "",
    results: str | None = None,
    **settings: Any,
) -> None:
    """Test learners on the one-shot classification runs of Lake et al. 2015.

    Args:
        algorithms: maml, fomaml, anil, boil, meta-sgd, reptile, protonet, nil (on the body that
            ANIL trains) or nil-train, with commas.
        seeds: of the initial weights and the training tasks, with commas.
        archive: all_runs.zip, the folder it was unpacked into, or a folder that holds either one
            [root].
        progress: show progress.
        note: what a reader of the rows should know.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
        settings: the network and its training.
    """
    keep_in(results)
    problems = [
        Experiment(dataset="omniglot", protocol="lake", ways=20, shots=1, seed=seed, **settings)
        for seed in numbers(seeds)
    ]
    root = problems[0].root or os.environ.get("METALEARN_DATA", "data")
    # Read now, so a damaged archive is reported before training.
    tasks = one_shot_runs(archive or root, size=problems[0].shape()[1])
    lines: list[tuple[str, ...]] = []
    for name in parse(algorithms):
        runs = [trained(problem, trained_by(name), progress=progress) for problem in problems]
        evaluations = [evaluate(run.tested(name), tasks, progress=progress) for run in runs]
        row = described(name, runs, evaluations)
        append(row | {"note": note})
        each = ", ".join(map(percent, row["error_per_seed"]))
        lines.append((name, percent(row["error"]), f"± {percent(row['interval'])}", each))
    for name, error in ONE_SHOT.items():
        lines.append((f"{name} ({LAKE})", f"{error:g}", "", ""))
    columns = ("learner", "error %", "interval over the 20 runs", "error % of each seed")
    print("one-shot classification of Lake et al. 2015")
    print(table(columns, lines))


def described(name: str, runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> Row:
    """A learner's errors over seeds, and all that is behind them."""
    experiment = runs[0].experiment
    trained_with = runs[0].algorithm
    # (seeds, runs), and the mean over seeds of each run
    errors = 1 - torch.stack([evaluation.per_episode for evaluation in evaluations])
    per_run = errors.mean(0)
    # The row is of all seeds.
    settings = experiment.to_dict(trained_with)
    del settings["seed"]
    row = {
        **settings,
        "benchmark": "one_shot",
        "algorithm": name,
        "body_trained_by": trained_with,
        "preset": experiment.preset,
        "follows": experiment.settings(trained_with).follows,
        "test_steps": experiment.settings(name).test_steps,
        "seeds": [run.experiment.seed for run in runs],
        "trained_steps": [len(run.curve.losses) for run in runs],
        "training_seconds": [round(run.curve.seconds, 1) for run in runs],
        "training_commands": [run.command() for run in runs],
        "error": float(per_run.mean()),
        "interval": confidence_half_width(per_run),
        "interval_means": (
            f"Student's 95 % over {len(per_run)} runs, each the mean over {len(runs)} seeds"
        ),
        "error_per_seed": errors.mean(1).tolist(),
        "errors": errors.tolist(),
        "split": experiment.data("train").description,
        "episodes": evaluations[0].settings["episodes"],
        "queries": 1,
        "norm": evaluations[0].settings["learner"]["norm"],
        **origin("one_shot"),
    }
    return plain(row)


if __name__ == "__main__":
    run_benchmark(one_shot)
