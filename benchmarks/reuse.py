"""Rapid learning or feature reuse? The papers' experiments on networks trained here.

    python -m benchmarks.reuse --experiment all --dataset omniglot --seeds 0,1,2 --steps 2000

Each experiment trains the networks that it needs and does not find (or resumes them), prints its
table, and appends JSON lines to `benchmarks/results/reuse.jsonl`. `--experiment train` trains all
of them and tests nothing.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from metalearn.algorithms.base import Learner
from metalearn.analysis import Estimate, Reuse, compare_layers, feature_reuse, over_seeds
from metalearn.analysis.adaptation.freezing_over_seeds import freezing_over_seeds
from metalearn.analysis.networks.between import similarity_between
from metalearn.analysis.networks.probes import linear_probes
from metalearn.analysis.plotting.style import save
from metalearn.evaluation import Evaluation, evaluate_together, to_device
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.regimes import REGIMES, at_test, restored, snapshots, trained
from metalearn.experiments.runs import Run
from metalearn.network.layers import body
from metalearn.runtime import provenance
from metalearn.runtime.options import Listed, listed
from metalearn.runtime.provenance import commit, versions
from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import plain
from metalearn.studies import (
    another_domain,
    cross_domain,
    timeline,
    timeline_figure,
    training_regimes,
)
from metalearn.tasks import FewShot, LabelledImages

from .harness.rows import append, keep_in, run_benchmark

Row = dict[str, Any]


@dataclass
class Study:
    """One call of this command: the problem, the seeds, the networks that are there, and where rows
    go.
    """

    experiment: Experiment
    seeds: tuple[int, ...]
    asked: tuple[str, ...]
    other: str
    points: tuple[int, ...]
    analysed_tasks: int
    progress: bool
    note: str
    runs: dict[tuple[str, int], Run] = field(default_factory=dict)
    given: list[Run] = field(default_factory=list)

    def run(self, name: str, seed: int) -> Run:
        """The network that a regime trains from a seed, trained at most once."""
        if (name, seed) not in self.runs:
            self.runs[name, seed] = trained(
                replace(self.experiment, seed=seed), name, progress=self.progress
            )
        return self.runs[name, seed]

    def take(self, run: Run) -> None:
        """A network that was trained elsewhere; of several of one regime and seed the longest
        trained one, and all for `timeline`.
        """
        self.given.append(run)
        same = [
            one
            for one in self.given
            if (one.algorithm, one.experiment.seed) == (run.algorithm, run.experiment.seed)
        ]
        self.runs[run.algorithm, run.experiment.seed] = max(
            same, key=lambda one: len(one.curve.losses)
        )

    def points_of(self, name: str, seed: int) -> list[Run]:
        """The given points of one training at a constant outer rate."""
        same = [run for run in self.given if (run.algorithm, run.experiment.seed) == (name, seed)]
        return [run for run in same if run.experiment.settings(name).schedule == "constant"]

    def networks(self, name: str) -> list[Run]:
        """The networks of a regime, one a seed."""
        return [self.run(name, seed) for seed in self.seeds]

    def algorithms(self, default: str) -> list[str]:
        """What was asked for, or else what the experiment compares."""
        return list(self.asked or names(default))

    def record(self, question: str, runs: Mapping[str, Sequence[Run]], found: Row) -> None:
        """Append one row with everything behind it."""
        own = self.experiment
        about = {
            "benchmark": "reuse",
            "experiment": question,
            **{
                name: getattr(own, name)
                for name in ("dataset", "ways", "shots", "test_tasks", "preset", "norm")
            },
            "queries": own.test_queries(),
            "follows": own.settings().follows,
            "seeds": self.seeds,
            "trained": {name: [described(run) for run in same] for name, same in runs.items()},
            "data": own.data("test").description,
            "analysed_tasks": self.analysed_tasks,
            "note": self.note,
            "command": command(question, sys.argv[1:]),
            "versions": versions(),
            "machine": provenance.machine(),
            "commit": commit(),
            "time": provenance.now(),
        }
        append(plain({**about, **found}))


def reuse(
    experiment: Listed = "all",
    seeds: Listed = "",
    algorithms: Listed = "",
    checkpoints: Listed = "",
    other: str = "",
    points: Listed = "",
    analysed_tasks: int = 50,
    progress: bool = True,
    note: str = "",
    results: str | None = None,
    **settings: Any,
) -> None:
    """Run the experiments of the feature-reuse papers.

    Args:
        experiment: freezing, similarity, regimes, profile, decomposition, cross_domain, probes,
            timeline (several with commas), all of them, or train.
        seeds: of the networks, with commas [those of the checkpoints, or 0].
        algorithms: what is trained, with commas [what the paper's table has].
        checkpoints: networks to take instead of training here, with commas: what `metalearn train`
            or `--experiment train` keeps in the folder of runs, on any device. Each stands for its
            algorithm and seed, and the -step files are timeline's points.
        other: the data set that cross_domain tests on [mini-imagenet for omniglot, else omniglot].
        points: outer steps at which timeline looks, with commas [a tenth, a quarter, a half and all
            of the steps].
        analysed_tasks: test tasks that representations are compared on.
        progress: show progress.
        note: what a reader of the rows should know.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
        settings: the few-shot problem and its training.
    """
    keep_in(results)
    problem = Experiment(**settings)
    steps, given = (
        problem.settings().steps,
        [restored_for(problem, path) for path in names(checkpoints)],
    )
    study = Study(
        problem,
        tuple(map(int, names(seeds)))
        or tuple(sorted({run.experiment.seed for run in given}))
        or (0,),
        tuple(names(algorithms)),
        other or ("mini-imagenet" if problem.dataset == "omniglot" else "omniglot"),
        tuple(map(int, names(points)))
        or tuple(sorted({max(1, steps // part) for part in (10, 4, 2, 1)})),
        analysed_tasks,
        progress,
        note,
    )
    asked = list(EXPERIMENTS) if experiment == "all" else names(experiment)
    unknown = [name for name in asked if name not in (*EXPERIMENTS, "train")]
    if unknown or not asked:
        raise ValueError(
            f"there is no experiment {', '.join(unknown) or experiment!r}; choose from train, all,"
            f" {', '.join(EXPERIMENTS)}"
        )
    for run in given:
        study.take(run)
    for name in asked:
        train(study) if name == "train" else EXPERIMENTS[name](study)


def train(study: Study) -> None:
    """Train all that the experiments need (the run that timeline looks at too, unless algorithms
    are named), and test nothing.
    """
    for seed in study.seeds:
        if (
            not study.asked
        ):  # first: where the outer rate is constant anyhow, this is the run that the others load
            snapshots(
                replace(study.experiment, seed=seed), "maml", study.points, progress=study.progress
            )
        for name in study.algorithms("maml,anil,boil,multiclass,multitask,nil-train"):
            run = study.run(name, seed)
            print(
                f"{name}, seed {seed}: {len(run.curve.losses):,} steps in"
                f" {run.curve.seconds:.0f} s",
                flush=True,
            )


def freezing(study: Study) -> None:
    """Accuracy with layers frozen at test time, over seeds (Raghu et al. 2020, table 1)."""
    tasks = study.experiment.testing_tasks()
    for name in study.algorithms("maml"):
        runs = study.networks(name)
        found = freezing_over_seeds([at_test(run) for run in runs], tasks, progress=study.progress)
        print(f"\n{name}: accuracy with layers frozen at test time\n{found}", flush=True)
        study.record("freezing", {name: runs}, {"algorithm": name, **found.to_dict()})


def similarity(study: Study) -> None:
    """How alike networks of other seeds and algorithms are (Raghu et al. 2020, table 3)."""
    chosen = study.algorithms("maml,anil,random")
    runs = {name: study.networks(name) for name in chosen}
    tasks = study.experiment.testing_tasks(tasks=study.analysed_tasks)
    learners = {name: [at_test(run) for run in same] for name, same in runs.items()}
    apart = len(study.seeds) > 1
    found = similarity_between(learners, tasks, by_seed=apart, progress=study.progress)
    print(
        (
            f"\n{found}"
            if apart
            else f"\n{found}\n(one seed: the networks share their initial weights)"
        ),
        flush=True,
    )
    for row in found.rows:
        study.record(
            "similarity",
            {name: runs[name] for name in row.groups},
            {"adapted": found.adapted, "tasks": found.tasks, "apart": apart, **plain(row)},
        )


def regimes(study: Study) -> None:
    """Which training gives the features, under NIL (Raghu et al. 2020, table 5)."""
    chosen = study.algorithms(",".join(REGIMES))
    runs = {name: study.networks(name) for name in chosen}
    found = training_regimes(
        study.experiment, chosen, study.seeds, runs=study.runs, progress=study.progress
    )
    print(f"\n{found}", flush=True)
    for name in chosen:
        said = {
            "accuracy": found.accuracy[name],
            "evaluations": [brief(one) for one in found.evaluations[name]],
            "rule": found.rule,
        }
        study.record("regimes", {name: runs[name]}, {"algorithm": name, **said})


def profile(study: Study) -> None:
    """What the inner loop changes layer by layer, and accuracy with and without the head (Oh et al.
    2021, figures 2 to 4).
    """
    tasks = study.experiment.testing_tasks(tasks=study.analysed_tasks)
    for name in study.algorithms("maml,anil,boil"):
        for run in study.networks(name):
            learner = at_test(run)
            found = feature_reuse(learner, tasks, name=name, progress=study.progress)
            print(f"\nseed {run.experiment.seed}\n{found}", flush=True)
            said = {
                "algorithm": name,
                "seed": run.experiment.seed,
                "reuse": slim(found),
                "cka_biased": biased_cka(learner, tasks),
            }
            study.record("profile", {name: [run]}, said)


def decomposition(study: Study) -> None:
    """What the body's change is worth under a head that is given every chance, over seeds."""
    tasks = study.experiment.testing_tasks(tasks=study.analysed_tasks)
    for name in study.algorithms("maml,anil,boil"):
        runs = study.networks(name)
        answers = []
        for run in runs:
            answer = feature_reuse(at_test(run), tasks, name=name, progress=study.progress)
            print(f"\nseed {run.experiment.seed}\n{answer}", flush=True)
            answers.append(answer)
        pooled = over_seeds(answers)
        print(f"\n{len(runs)} seeds\n{pooled}", flush=True)
        row = {
            "algorithm": name,
            "pooled": slim(pooled),
            "each": [slim(answer) for answer in answers],
        }
        study.record("decomposition", {name: runs}, row)


def cross(study: Study) -> None:
    """Accuracy at home and on another data set (Oh et al. 2021, cross-domain tables)."""
    chosen = study.algorithms("maml,anil,boil")
    runs = {name: study.networks(name) for name in chosen}
    here: dict[str, list[Evaluation]] = {name: [] for name in chosen}
    there: dict[str, list[Evaluation]] = {name: [] for name in chosen}
    changes = {
        "root": study.experiment.root,
        "test_tasks": study.experiment.test_tasks,
        "queries": study.experiment.test_queries(),
    }
    for i in range(len(study.seeds)):
        same = {name: runs[name][i] for name in chosen}
        at_home = evaluate_together(
            {n: at_test(r) for n, r in same.items()},
            study.experiment.testing_tasks(),
            progress=study.progress,
        )
        away = cross_domain(same, study.other, progress=study.progress, **changes)
        for name in chosen:
            here[name].append(at_home[name])
            there[name].append(away[name])
    data = another_domain(runs[chosen[0]][0], study.other, **changes).data("test").description
    for name in chosen:
        spreads = {
            key: MeanStd.of([one.mean for one in found[name]])
            for key, found in (("home", here), ("away", there))
        }
        print(
            f"{name}: {study.experiment.dataset} {spreads['home'].text(100, 2)} %, {study.other}"
            f" {spreads['away'].text(100, 2)} %"
        )
        said = {
            "other": study.other,
            "other_data": data,
            **spreads,
            "evaluations": [brief(one) for one in there[name]],
        }
        study.record("cross_domain", {name: runs[name]}, {"algorithm": name, **said})


def probes(study: Study) -> None:
    """What a linear readout of each layer knows of the test classes, which no network was trained
    on.
    """
    halves = halved(study.experiment.data("test"))
    for name in study.algorithms("maml,anil,multiclass,random"):
        runs = study.networks(name)
        found = [
            linear_probes(
                run.learner,
                *halves,
                layers=body(run.learner.model, run.learner.head),
                seed=run.experiment.seed,
            )
            for run in runs
        ]
        for run, one in zip(runs, found, strict=True):
            print(
                f"\n{name}, seed {run.experiment.seed}: linear probes on test classes\n{one}",
                flush=True,
            )
        spreads = {
            row.layer: MeanStd.of([one[row.layer].accuracy.mean for one in found])
            for row in found[0].layers
        }
        study.record(
            "probes",
            {name: runs},
            {"algorithm": name, "accuracy": spreads, "each": [one.to_dict() for one in found]},
        )


def over_time(study: Study) -> None:
    """Accuracy and what the inner loop changes at several points of training (Raghu et al. 2020,
    figure 3).
    """
    for name in study.algorithms("maml"):
        for seed in study.seeds:
            own = replace(study.experiment, seed=seed)
            kept = study.points_of(name, seed)
            points = timeline(
                own,
                name,
                study.points,
                runs=kept,
                analysed_tasks=study.analysed_tasks,
                progress=study.progress,
            )
            picture = Path(own.runs) / f"timeline-{Path(own.dataset).name}-{name}-seed{seed}.svg"
            save(timeline_figure(points), picture)
            print(f"{name}, seed {seed}: {picture}")
            for point in points:
                layers = ", ".join(
                    f"{layer.layer} {layer.cka.mean:.3f}" for layer in point.reuse.layers
                )
                print(
                    f"{name}, seed {seed}, after {point.step:,} steps: {point.evaluation}; CKA"
                    f" {layers}",
                    flush=True,
                )
                said = {
                    "algorithm": name,
                    "seed": seed,
                    "step": point.step,
                    "evaluation": brief(point.evaluation),
                }
                study.record(
                    "timeline",
                    {name: [point.run]},
                    {**said, "schedule": "constant", "reuse": slim(point.reuse)},
                )


EXPERIMENTS: dict[str, Callable[[Study], None]] = {
    "timeline": (
        over_time
    ),  # first: where the outer rate is constant anyhow, its run is the one that the others load
    "freezing": freezing,
    "similarity": similarity,
    "regimes": regimes,
    "profile": profile,
    "decomposition": decomposition,
    "cross_domain": cross,
    "probes": probes,
}


def command(question: str, arguments: Sequence[str]) -> str:
    """What was typed, asking for this experiment alone.

    Example:
        >>> command("freezing", ["--experiment", "all", "--dataset", "omniglot"])
        'python -m benchmarks.reuse --experiment freezing --dataset omniglot'
    """
    rest = list(arguments)
    for at, word in enumerate(rest):
        if word == "--experiment" and at + 1 < len(rest):
            del rest[at : at + 2]
            break
        if word.startswith("--experiment="):
            del rest[at]
            break
    return shlex.join(["python", "-m", "benchmarks.reuse", "--experiment", question, *rest])


def restored_for(problem: Experiment, path: str) -> Run:
    """A run from its checkpoint.

    Raises ValueError where it was trained on another problem than the one asked for.
    """
    run = restored(path, root=problem.root, execution=problem.execution, device=problem.device)
    wrong = [
        name
        for name in ("dataset", "ways", "shots")
        if getattr(run.experiment, name) != getattr(problem, name)
    ]
    if wrong:
        asked, has = getattr(problem, wrong[0]), getattr(run.experiment, wrong[0])
        raise ValueError(
            f"{path} was trained with {wrong[0]}={has}, but {asked} is asked for; add --{wrong[0]}"
            f" {has}"
        )
    return run


def described(run: Run) -> Row:
    """What is behind a network: its settings, how long it was trained, and the command where there
    is one of its own.
    """
    own = run.algorithm not in ("multiclass", "multitask", "random")
    return {
        **run.experiment.to_dict(run.algorithm),
        "regime": run.algorithm,
        "test_steps": run.experiment.settings(run.algorithm).test_steps,
        "trained_steps": len(run.curve.losses),
        "training_seconds": round(run.curve.seconds, 1),
        "training_command": run.command() if own else None,
    }


def brief(found: Evaluation) -> Row:
    """An evaluation without its tasks."""
    return {"mean": found.mean, "interval": found.interval, "tasks": len(found.per_episode)}


def slim(found: Reuse) -> Row:
    """An analysis without the accuracy of every task."""
    return {
        name: value
        for name, value in found.to_dict().items()
        if name not in ("evaluation", "seeds")
    }


def biased_cka(learner: Learner, tasks: FewShot) -> dict[str, Estimate]:
    """The papers' own measure: biased linear CKA before and after adaptation, images flattened,
    over tasks.
    """
    found: dict[str, list[float]] = {}
    for i in range(len(tasks)):
        support, query = to_device(tasks[i], learner)
        with torch.no_grad():
            weights = learner.adapt(support).weights
        rows = compare_layers(
            learner.model, (learner.model, weights), query.inputs, draws=1, debiased=False
        ).layers
        for row in rows:
            found.setdefault(row.layer, []).append(row.similarity)
    return {layer: Estimate.of(values) for layer, values in found.items()}


def halved(images: LabelledImages, most: int = 100) -> tuple[LabelledImages, LabelledImages]:
    """Every other image of each class for training and the rest for testing, at most `most` a class
    in each.
    """
    rank = torch.zeros(len(images), dtype=torch.int64)
    for label in range(len(images.names)):
        mine = images.labels == label
        rank[mine] = torch.arange(int(mine.sum()))
    chosen = [(rank % 2 == part) & (rank < 2 * most) for part in (0, 1)]
    first, second = (
        LabelledImages(images.images[c], images.labels[c], images.names, images.description)
        for c in chosen
    )
    return first, second


def names(setting: Listed) -> list[str]:
    """A list setting without repeated entries."""
    return list(dict.fromkeys(listed(setting)))


if __name__ == "__main__":
    run_benchmark(reuse)
