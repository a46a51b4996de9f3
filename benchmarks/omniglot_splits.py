"""What do the characters of Omniglot that one tests on do to the accuracy?

    python -m benchmarks.omniglot_splits --seeds 0,1,2 --points 1000,2000,3000

MAML, Omniglot 5-way 1-shot, the network, rates and meta-batch of the preset `quick` at a constant
outer rate. For each seed the same settings are trained on three splits of the characters: that of
Vinyals et al. (1,028 / 172 / 423 characters), one drawn at random as Finn et al. drew theirs
(1,100 / 100 / 423) and that of Lake et al. (background and evaluation alphabets). Networks are
tested after each number of steps in `points`. After the last one they are also tested with turned
characters as classes and with one query a class, which are the other two choices of the papers.
"""

from __future__ import annotations

import tempfile
from typing import Any

from metalearn import evaluate
from metalearn.experiments.experiment import Experiment
from metalearn.runtime.options import Listed, listed

from .harness.rows import append, choose, keep_in, origin, run_benchmark

SPLITS = ("vinyals", "finn", "lake")
# Test tasks beside those of the curve: characters upright, 15 queries a class.
VARIATIONS: dict[str, dict[str, Any]] = {
    "turned characters": {"test_rotations": True},
    "one query a class": {"queries": 1},
    "turned characters, one query a class": {"test_rotations": True, "queries": 1},
}


def omniglot_splits(
    splits: str = "vinyals,finn,lake",
    seeds: Listed = "0,1,2",
    points: Listed = "1000,2000,3000",
    algorithm: str = "maml",
    test_tasks: int = 600,
    root: str | None = None,
    results: str | None = None,
    progress: bool = True,  # noqa: FBT001, FBT002  # a command line setting
) -> None:
    """Train the same settings on each split, and test them at the same numbers of steps.

    Args:
        splits: which of vinyals, finn and lake, with commas.
        seeds: of the first weights and of the training tasks, with commas.
        points: numbers of outer steps to test after, rising, with commas.
        algorithm: the learner.
        test_tasks: test tasks of a point.
        root: the folder that holds the data sets; by default METALEARN_DATA.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
        progress: show progress.
    """
    keep_in(results)
    chosen = choose("split", splits, SPLITS)
    steps = [int(point) for point in listed(points)]
    if steps != sorted(steps):
        raise ValueError(f"points={points}: give numbers of steps that rise, such as 1000,2000")
    with tempfile.TemporaryDirectory() as runs:
        # One seed of all splits after the other, so that an end at any time leaves whole pairs.
        for seed in map(int, listed(seeds)):
            for split in chosen:
                _train(split, seed, steps, algorithm, test_tasks, root, runs, progress=progress)


def _train(
    split: str,
    seed: int,
    points: list[int],
    algorithm: str,
    test_tasks: int,
    root: str | None,
    runs: str,
    *,
    progress: bool,
) -> None:
    """Train one network, and add a row for each test of it."""
    for steps in points:
        shared: dict[str, Any] = {
            "dataset": "omniglot",
            "root": root,
            "protocol": split,
            "seed": seed,
            "schedule": "constant",
            "steps": steps,
            "test_tasks": test_tasks,
            "runs": runs,
        }
        experiment = Experiment(**shared)
        learner, curve = experiment.train(algorithm, progress=progress)
        tests: dict[str, dict[str, Any]] = {"15 queries a class": {}}
        if steps == points[-1]:
            tests |= VARIATIONS
        for name, changes in tests.items():
            tested = Experiment(**{**shared, **changes})
            evaluation = evaluate(tested.tested(algorithm, learner), tested.testing_tasks())
            row = {
                "benchmark": "omniglot_splits",
                "algorithm": algorithm,
                **experiment.to_dict(algorithm),
                "protocol": split,
                "characters": len(tested.data("train").names) // 4,
                "test": name,
                "queries": tested.test_queries(),
                "test_tasks": test_tasks,
                "trained_steps": steps,
                "training_seconds": round(curve.seconds, 1),
                "accuracy": evaluation.mean,
                "interval": evaluation.interval,
                **origin("omniglot_splits"),
            }
            append(row)
            print(
                f"{split}, seed {seed}, {steps:,} steps, {name}:"
                f" {evaluation.mean:.2%} ± {evaluation.interval:.2%}",
                flush=True,
            )


if __name__ == "__main__":
    run_benchmark(omniglot_splits)
