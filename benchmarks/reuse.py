"""Rapid learning or feature reuse? The papers' experiments on networks trained here.

    python -m benchmarks.reuse --experiment all --dataset omniglot --seeds 0,1,2 --steps 2000

Each experiment trains the networks that it needs and does not find (or resumes them), prints its
table, and adds JSON lines to the file that `--results` names (benchmarks/results/reuse.jsonl holds
those of the page). `--experiment train` trains all of them and tests nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from metalearn.algorithms.base import Learner
from metalearn.analysis import Estimate, Reuse, compare_layers, feature_reuse, over_seeds
from metalearn.analysis.adaptation.freezing import freezing as freeze_layers
from metalearn.analysis.networks.between import similarity_between
from metalearn.analysis.networks.probes import linear_probes
from metalearn.analysis.plotting.style import save
from metalearn.evaluation import Evaluation, evaluate_together, to_device
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.regimes import REGIMES, at_test, restored, snapshots, trained
from metalearn.experiments.runs import Run
from metalearn.network.layers import body
from metalearn.runtime.options import Listed, listed, numbers
from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import plain
from metalearn.studies import (
    Point,
    another_domain,
    cross_domain,
    timeline,
    timeline_figure,
    training_regimes,
)
from metalearn.tasks import FewShot, LabelledImages

from .harness.rows import Row, append, keep_in, origin, run_benchmark


@dataclass
class Study:
    """One call of this command: the problem, the seeds, and the networks.

    Args:
        experiment: the few-shot problem.
        seeds: of the networks.
        chosen: the algorithms that are asked for; none for those of each experiment.
        other: the data set that cross_domain tests on.
        points: outer steps at which timeline looks.
        analysed_tasks: test tasks that representations are compared on.
        progress: show progress.
        note: what a reader of the rows should know.
        runs: the networks by regime and seed.
        stored: the networks that checkpoints hold.
    """

    experiment: Experiment
    seeds: tuple[int, ...]
    chosen: tuple[str, ...]
    other: str
    points: tuple[int, ...]
    analysed_tasks: int
    progress: bool
    note: str
    runs: dict[tuple[str, int], Run] = field(default_factory=dict)
    stored: list[Run] = field(default_factory=list)

    def run(self, name: str, seed: int) -> Run:
        """The network that a regime trains from a seed, trained at most once."""
        if (name, seed) not in self.runs:
            problem = replace(self.experiment, seed=seed)
            self.runs[name, seed] = trained(problem, name, progress=self.progress)
        return self.runs[name, seed]

    def take(self, run: Run) -> None:
        """Take a network from a checkpoint.

        Of several of one regime and seed the longest trained one counts, and all for `timeline`.
        """
        self.stored.append(run)
        name = run.algorithm
        seed = run.experiment.seed
        same = self._stored_of(name, seed)
        self.runs[name, seed] = max(same, key=lambda other: len(other.curve.losses))

    def _stored_of(self, name: str, seed: int) -> list[Run]:
        return [run for run in self.stored if (run.algorithm, run.experiment.seed) == (name, seed)]

    def points_of(self, name: str, seed: int) -> list[Run]:
        """The stored points of one training at a constant outer rate."""
        same = self._stored_of(name, seed)
        return [run for run in same if run.experiment.settings(name).schedule == "constant"]

    def networks(self, name: str) -> list[Run]:
        """The networks of a regime, one a seed."""
        return [self.run(name, seed) for seed in self.seeds]

    def algorithms(self, default: str) -> list[str]:
        """The algorithms that are asked for, or else those that the experiment compares."""
        return list(self.chosen or names(default))

    def record(self, question: str, runs: Mapping[str, Sequence[Run]], result: Row) -> None:
        """Append one row with everything behind it."""
        problem = self.experiment
        settings = ("dataset", "ways", "shots", "test_tasks", "preset", "norm")
        row = {
            "benchmark": "reuse",
            "experiment": question,
            **{name: getattr(problem, name) for name in settings},
            "queries": problem.test_queries(),
            "follows": problem.settings().follows,
            "seeds": self.seeds,
            "trained": {name: list(map(described, group)) for name, group in runs.items()},
            "data": problem.data("test").description,
            "analysed_tasks": self.analysed_tasks,
            "note": self.note,
            **origin("reuse", asking_for(question, sys.argv[1:])),
        }
        append(plain({**row, **result}))


def reuse(
    experiment: Listed = "all",
    seeds: Listed = "",
    algorithms: Listed = "",
    checkpoints: Listed = "",
    other: str = "",
    points: Listed = "",
    analysed_tasks: int = 50,
    progress: bool = True,  # noqa: FBT001, FBT002  # a command line setting
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
    stored = [restored_for(problem, path) for path in names(checkpoints)]
    stored_seeds = sorted({run.experiment.seed for run in stored})
    steps = problem.settings().steps
    # A tenth, a quarter, a half and all of the steps.
    parts = sorted({max(1, steps // part) for part in (10, 4, 2, 1)})
    away = "mini-imagenet" if problem.dataset == "omniglot" else "omniglot"
    study = Study(
        experiment=problem,
        seeds=tuple(numbers(names(seeds), "seeds") or stored_seeds or [0]),
        chosen=tuple(names(algorithms)),
        other=other or away,
        points=tuple(numbers(names(points), "points") or parts),
        analysed_tasks=analysed_tasks,
        progress=progress,
        note=note,
    )
    questions = list(EXPERIMENTS) if experiment == "all" else names(experiment)
    unknown = [name for name in questions if name not in (*EXPERIMENTS, "train")]
    if unknown or not questions:
        raise ValueError(
            f"there is no experiment {', '.join(unknown) or experiment!r}; choose from train, all,"
            f" {', '.join(EXPERIMENTS)}"
        )
    for run in stored:
        study.take(run)
    for question in questions:
        if question == "train":
            train(study)
        else:
            EXPERIMENTS[question](study)


def train(study: Study) -> None:
    """Train all that the experiments need, and test nothing.

    That includes the run that timeline looks at, unless algorithms are named.
    """
    for seed in study.seeds:
        if not study.chosen:
            # First: if the outer rate is constant anyhow, this is the run that the others load.
            problem = replace(study.experiment, seed=seed)
            snapshots(problem, "maml", study.points, progress=study.progress)
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
        learners = [at_test(run) for run in runs]
        result = over_seeds(
            [freeze_layers(learner, tasks, progress=study.progress) for learner in learners]
        )
        print(f"\n{name}: accuracy with layers frozen at test time\n{result}", flush=True)
        study.record("freezing", {name: runs}, {"algorithm": name, **result.to_dict()})


def similarity(study: Study) -> None:
    """Similarity of networks of other seeds and algorithms (Raghu et al. 2020, table 3)."""
    runs = {name: study.networks(name) for name in study.algorithms("maml,anil,random")}
    tasks = study.experiment.testing_tasks(tasks=study.analysed_tasks)
    learners = {name: list(map(at_test, group)) for name, group in runs.items()}
    # With one seed all pairs share their initial weights.
    apart = len(study.seeds) > 1
    result = similarity_between(learners, tasks, by_seed=apart, progress=study.progress)
    print(f"\n{result}", flush=True)
    if not apart:
        print("(one seed: the networks share their initial weights)", flush=True)
    about = {"adapted": result.adapted, "tasks": result.tasks, "apart": apart}
    for row in result.rows:
        groups = {name: runs[name] for name in row.groups}
        study.record("similarity", groups, {**about, **plain(row)})


def regimes(study: Study) -> None:
    """Which training gives the features, under NIL (Raghu et al. 2020, table 5)."""
    chosen = study.algorithms(",".join(REGIMES))
    runs = {name: study.networks(name) for name in chosen}
    result = training_regimes(
        study.experiment, chosen, study.seeds, runs=study.runs, progress=study.progress
    )
    print(f"\n{result}", flush=True)
    for name in chosen:
        row = {
            "algorithm": name,
            "accuracy": result.accuracy[name],
            "evaluations": [brief(evaluation) for evaluation in result.evaluations[name]],
            "rule": result.rule,
        }
        study.record("regimes", {name: runs[name]}, row)


def profile(study: Study) -> None:
    """What the inner loop changes layer by layer (Oh et al. 2021, figures 2 to 4).

    Accuracy with and without the head stands in the same rows.
    """
    tasks = study.experiment.testing_tasks(tasks=study.analysed_tasks)
    for name in study.algorithms("maml,anil,boil"):
        for run in study.networks(name):
            learner = at_test(run)
            analysis = feature_reuse(learner, tasks, name=name, progress=study.progress)
            print(f"\nseed {run.experiment.seed}\n{analysis}", flush=True)
            row = {
                "algorithm": name,
                "seed": run.experiment.seed,
                "reuse": slim(analysis),
                "cka_biased": biased_cka(learner, tasks),
            }
            study.record("profile", {name: [run]}, row)


def decomposition(study: Study) -> None:
    """The worth of the body's change under a converged head, over seeds."""
    tasks = study.experiment.testing_tasks(tasks=study.analysed_tasks)
    # Each seed is analysed alone, then all together.
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
    runs = {name: study.networks(name) for name in study.algorithms("maml,anil,boil")}
    changes = {
        "root": study.experiment.root,
        "test_tasks": study.experiment.test_tasks,
        "queries": study.experiment.test_queries(),
    }
    home: dict[str, list[Evaluation]] = {name: [] for name in runs}
    away: dict[str, list[Evaluation]] = {name: [] for name in runs}
    for index in range(len(study.seeds)):
        networks = {name: group[index] for name, group in runs.items()}
        learners = {name: at_test(run) for name, run in networks.items()}
        tasks = study.experiment.testing_tasks()
        at_home = evaluate_together(learners, tasks, progress=study.progress)
        abroad = cross_domain(networks, study.other, progress=study.progress, **changes)
        for name in runs:
            home[name].append(at_home[name])
            away[name].append(abroad[name])
    first = next(iter(runs.values()))[0]
    data = another_domain(first, study.other, **changes).data("test").description
    for name, group in runs.items():
        at_home_std = MeanStd.of([evaluation.mean for evaluation in home[name]])
        away_std = MeanStd.of([evaluation.mean for evaluation in away[name]])
        print(
            f"{name}: {study.experiment.dataset} {at_home_std.text(100, 2)} %, {study.other}"
            f" {away_std.text(100, 2)} %"
        )
        row = {
            "algorithm": name,
            "other": study.other,
            "other_data": data,
            "home": at_home_std,
            "away": away_std,
            "evaluations": [brief(evaluation) for evaluation in away[name]],
        }
        study.record("cross_domain", {name: group}, row)


def probes(study: Study) -> None:
    """What a linear readout of each layer knows of test classes, unseen in training."""
    train_images, test_images = halved(study.experiment.data("test"))
    for name in study.algorithms("maml,anil,multiclass,random"):
        runs = study.networks(name)
        results = []
        for run in runs:
            model = run.learner.model
            layers = body(model, run.learner.head)
            seed = run.experiment.seed
            result = linear_probes(model, train_images, test_images, layers=layers, seed=seed)
            print(f"\n{name}, seed {seed}: linear probes on test classes\n{result}", flush=True)
            results.append(result)
        accuracies = {}
        for row in results[0].layers:
            seeds = [result[row.layer].accuracy.mean for result in results]
            accuracies[row.layer] = MeanStd.of(seeds)
        each = [result.to_dict() for result in results]
        facts = {"algorithm": name, "accuracy": accuracies, "each": each}
        study.record("probes", {name: runs}, facts)


def over_time(study: Study) -> None:
    """What the inner loop changes, as training goes on (Raghu et al. 2020, figure 3)."""
    for name in study.algorithms("maml"):
        for seed in study.seeds:
            problem = replace(study.experiment, seed=seed)
            points = timeline(
                problem,
                name,
                study.points,
                runs=study.points_of(name, seed),
                analysed_tasks=study.analysed_tasks,
                progress=study.progress,
            )
            file = f"timeline-{Path(problem.dataset).name}-{name}-seed{seed}.svg"
            picture = Path(problem.runs) / file
            save(timeline_figure(points), picture)
            print(f"{name}, seed {seed}: {picture}")
            for point in points:
                record_point(study, name, seed, point)


def record_point(study: Study, name: str, seed: int, point: Point) -> None:
    """Print one point of training, and append its row."""
    layers = ", ".join(f"{layer.layer} {layer.cka.mean:.3f}" for layer in point.reuse.layers)
    after = f"{name}, seed {seed}, after {point.step:,} steps"
    print(f"{after}: {point.evaluation}; CKA {layers}", flush=True)
    row = {
        "algorithm": name,
        "seed": seed,
        "step": point.step,
        "evaluation": brief(point.evaluation),
        "schedule": "constant",
        "reuse": slim(point.reuse),
    }
    study.record("timeline", {name: [point.run]}, row)


EXPERIMENTS: dict[str, Callable[[Study], None]] = {
    # First: if the outer rate is constant anyhow, its run is the one that the others load.
    "timeline": over_time,
    "freezing": freezing,
    "similarity": similarity,
    "regimes": regimes,
    "profile": profile,
    "decomposition": decomposition,
    "cross_domain": cross,
    "probes": probes,
}


def asking_for(question: str, arguments: Sequence[str]) -> list[str]:
    """The arguments that were typed, asking for one experiment alone.

    Example:
        >>> asking_for("freezing", ["--experiment", "all", "--dataset", "omniglot"])
        ['--experiment', 'freezing', '--dataset', 'omniglot']
    """
    rest = list(arguments)
    for position, word in enumerate(rest):
        if word == "--experiment" and position + 1 < len(rest):
            del rest[position : position + 2]
            break
        if word.startswith("--experiment="):
            del rest[position]
            break
    return ["--experiment", question, *rest]


def restored_for(problem: Experiment, path: str) -> Run:
    """A run from its checkpoint.

    Raises:
        ValueError: it was trained on another problem than the requested one.
    """
    run = restored(path, root=problem.root, execution=problem.execution, device=problem.device)
    for name in ("dataset", "ways", "shots"):
        requested = getattr(problem, name)
        trained_with = getattr(run.experiment, name)
        if requested != trained_with:
            raise ValueError(
                f"{path} was trained with {name}={trained_with}, but {requested} is asked for; add"
                f" --{name} {trained_with}"
            )
    return run


def described(run: Run) -> Row:
    """What is behind a network: settings, length of training, and its command if it has one."""
    settings = run.experiment.to_dict(run.algorithm)
    command = None
    if run.algorithm not in ("multiclass", "multitask", "random"):
        command = run.command()
    return {
        **settings,
        "regime": run.algorithm,
        "test_steps": run.experiment.settings(run.algorithm).test_steps,
        "trained_steps": len(run.curve.losses),
        "training_seconds": round(run.curve.seconds, 1),
        "training_command": command,
    }


def brief(evaluation: Evaluation) -> Row:
    """An evaluation without its tasks."""
    tasks = len(evaluation.per_episode)
    return {"mean": evaluation.mean, "interval": evaluation.interval, "tasks": tasks}


def slim(analysis: Reuse) -> Row:
    """An analysis without the accuracy of every task."""
    row = analysis.to_dict()
    return {name: value for name, value in row.items() if name not in ("evaluation", "seeds")}


def biased_cka(learner: Learner, tasks: FewShot) -> dict[str, Estimate]:
    """The papers' measure: biased linear CKA before and after adaptation, over tasks.

    Images are flattened.
    """
    similarities: dict[str, list[float]] = {}
    for index in range(len(tasks)):
        support, query = to_device(tasks[index], learner)
        with torch.no_grad():
            weights = learner.adapt(support).weights
        adapted = (learner.model, weights)
        layers = compare_layers(learner.model, adapted, query.inputs, draws=1, debiased=False)
        for row in layers.layers:
            similarities.setdefault(row.layer, []).append(row.similarity)
    return {layer: Estimate.of(values) for layer, values in similarities.items()}


def halved(images: LabelledImages, most: int = 100) -> tuple[LabelledImages, LabelledImages]:
    """Every other image of each class for training, and the rest for testing.

    Args:
        images: labelled images.
        most: images a class in each half.
    """
    rank = torch.zeros(len(images), dtype=torch.int64)  # the place of an image in its class
    for label in range(len(images.names)):
        members = images.labels == label
        rank[members] = torch.arange(int(members.sum()))
    halves = []
    for part in (0, 1):
        chosen = (rank % 2 == part) & (rank < 2 * most)
        kept = (images.images[chosen], images.labels[chosen])
        halves.append(LabelledImages(*kept, images.names, images.description))
    return halves[0], halves[1]


def names(setting: Listed) -> list[str]:
    """A list setting without repeated entries."""
    return list(dict.fromkeys(listed(setting)))


if __name__ == "__main__":
    run_benchmark(reuse)
