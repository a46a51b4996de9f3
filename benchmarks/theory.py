"""Does what theory asks for make meta-learning work: many tasks, and predictors that are diverse?

    python -m benchmarks.theory --figures law,subspace,glyphs --seeds 0,1,2

The figure "law" measures the joint estimator against tasks, shots and conditioning on problems
whose subspace is known. "subspace" trains MAML and ANIL on such problems. "glyphs" and "omniglot"
train learners on 20-way 1-shot tasks with and without what keeps predictors diverse: the spectral
penalty for MAML and ANIL, prototypes of unit length for ProtoNet. Every finished part is a file, so
a run that was stopped goes on. A JSON line for each part and seed is added to the file that
`--results` names (benchmarks/results/theory.jsonl holds those of the page).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metalearn import ANIL, MAML, ProtoNet, evaluate
from metalearn.algorithms.joint_representation import subspace_error
from metalearn.experiments.experiment import Experiment
from metalearn.runtime.devices import resolved
from metalearn.runtime.files import write_atomically
from metalearn.runtime.options import Listed, listed, numbers
from metalearn.runtime.tables import plain
from metalearn.studies.predictor_course import predictor_course
from metalearn.studies.shared_representation import AXES, Setting, measure, varied
from metalearn.tasks import SharedSubspace
from metalearn.training.regularisers import spectral

from .harness.markdown import number, percent, table
from .harness.rows import Row, append, choose, keep_in, origin, run_benchmark

FIGURES = ("law", "subspace", "glyphs", "omniglot")
LEARNERS = ("maml", "anil", "protonet")
MEASURED = 100  # tasks whose predictors are measured, as in Bouniot et al. 2022


@dataclass(frozen=True)
class Training:
    """What all few-shot trainings of a run share.

    Attributes:
        steps: outer steps.
        points: how many times predictors are measured, beside step 0.
        ratio: of the penalty.
        norm: of the penalty.
        test_tasks: test tasks.
        measured_tasks: tasks whose predictors are measured.
        folder: of finished parts.
        progress: whether to show progress.
        settings: of `Experiment`.
    """

    steps: int
    points: int
    ratio: float
    norm: float
    test_tasks: int
    measured_tasks: int
    folder: Path
    progress: bool
    settings: dict[str, Any]

    def measured(self, steps: int | None = None) -> list[int]:
        """The steps at which predictors are measured, in a training of so many [`steps`]."""
        last = steps or self.steps
        count = min(self.points, last)
        return [last * place // count for place in range(count + 1)]


def theory(
    figures: Listed = "law,subspace,glyphs",
    seeds: Listed = "0,1,2",
    learners: Listed = "maml,anil,protonet",
    steps: int = 1500,
    subspace_steps: int = 1200,
    ratio: float = 1.0,
    norm: float = 1.0,
    points: int = 5,
    test_tasks: int = 300,
    ways: int = 20,
    shots: int = 1,
    hidden: int = 64,
    root: str | None = None,
    device: str = "auto",
    folder: str = "runs/theory",
    quick: bool = False,  # noqa: FBT001, FBT002  # a command line setting
    progress: bool = True,  # noqa: FBT001, FBT002
    note: str = "",
    results: str | None = None,
) -> None:
    """Measure what the theory of shared representations says, and train by it.

    Args:
        figures: law, subspace, glyphs, omniglot, with commas.
        seeds: of tasks and initial weights, with commas; they must differ.
        learners: maml, anil, protonet, of glyphs and omniglot, with commas.
        steps: outer steps on glyphs and omniglot.
        subspace_steps: outer steps of the figure "subspace".
        ratio: strength of the penalty's ratio.
        norm: strength of the penalty's norm.
        points: how many times predictors are measured in a training.
        test_tasks: test tasks, the same for every learner.
        ways: classes per task.
        shots: support images per class.
        hidden: channels of Conv4, at least as many as ways.
        root: the folder that holds Omniglot; by default METALEARN_DATA, or else ./data.
        device: auto, cpu or cuda.
        folder: where finished parts are kept.
        quick: a few steps, to try the command.
        progress: show progress.
        note: what a reader of the rows should know.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    keep_in(results)
    chosen = choose("figure", figures, FIGURES)
    algorithms = choose("learner", learners, LEARNERS)
    listed_seeds = numbers(seeds)
    if len(set(listed_seeds)) < len(listed_seeds):
        raise ValueError(f"seeds={','.join(listed(seeds))} repeat; give each seed once")
    if quick:
        listed_seeds = listed_seeds[:1]
        steps, subspace_steps, points, test_tasks, hidden = (2, 20, 1, 5, ways)
    training = Training(
        steps=steps,
        points=points,
        ratio=ratio,
        norm=norm,
        test_tasks=test_tasks,
        measured_tasks=min(MEASURED, 4 * test_tasks),
        folder=Path(folder),
        progress=progress,
        settings={"ways": ways, "shots": shots, "hidden": hidden, "root": root, "device": device},
    )
    if "law" in chosen:
        law(listed_seeds, training.folder, note, quick=quick)
    if "subspace" in chosen:
        subspace(listed_seeds, subspace_steps, training, note)
    for dataset in ("glyphs", "omniglot"):
        if dataset in chosen:
            few_shot(dataset, algorithms, listed_seeds, training, note)


def finished(folder: Path, settings: Row, compute: Callable[[Path], Row]) -> Row:
    """A part's numbers: from its file if it is finished, else computed.

    Args:
        folder: of the parts.
        settings: all that decides the numbers.
        compute: from the path of the part's checkpoint to its numbers.
    """
    digest = hashlib.sha256(json.dumps(plain(settings), sort_keys=True).encode()).hexdigest()[:12]
    file = folder / f"{settings['figure']}-{digest}.json"
    if file.exists():
        stored: Row = json.loads(file.read_text())
        return stored
    folder.mkdir(parents=True, exist_ok=True)
    row: Row = plain({**settings, **compute(file.with_suffix(".safetensors"))})
    write_atomically(file, json.dumps(row).encode())
    return row


def keep(row: Row, note: str) -> None:
    """Add a part's row to the results."""
    append({"benchmark": "theory", **row, "note": note, **origin("theory")})


def law(seeds: Sequence[int], folder: Path, note: str, *, quick: bool) -> None:
    """The joint estimator, one setting varied at a time."""
    base = Setting()
    lines = []
    for axis, values in AXES.items():
        for setting in varied(axis, values[:2] if quick else values, base):
            value = getattr(setting, axis)
            for seed in seeds:
                settings = {"figure": "law", "axis": axis, "value": value, "seed": seed}
                settings |= plain({"setting": setting})
                row = finished(folder, settings, partial(_numbers, setting, seed))
                keep(row, note)
            lines.append((axis, f"{value:g}", f"{row['error']:.4f}", f"{row['law']:.4f}"))
            print(f"law: {axis} {value:g} error {row['error']:.4f}", flush=True)
    print(table(("varied", "value", "error of the last seed", "law"), lines))


def _numbers(setting: Setting, seed: int, checkpoint: Path) -> Row:
    """The numbers of one problem; nothing is trained, so there is no checkpoint."""
    point = measure(setting, seed)
    return {name: getattr(point, name) for name in ("error", "law", "risk", "oracle", "exact")}


def subspace(seeds: Sequence[int], steps: int, training: Training, note: str) -> None:
    """MAML and ANIL with two linear layers on tasks that share a subspace."""
    lines = []
    for name in ("maml", "anil"):
        for condition in (1.0, 8.0):
            for seed in seeds:
                settings = {"figure": "subspace", "learner": name, "condition": condition}
                settings |= {"seed": seed, "steps": steps, "points": training.points}
                part = Subspace(name, condition, seed, steps, training)
                row = finished(training.folder, settings, part.compute)
                keep(row, note)
                lines.append((name, f"{condition:g}", f"{seed}", f"{row['error']:.4f}"))
                print(f"subspace: {lines[-1]}", flush=True)
    print(table(("learner", "condition", "seed", "error of the subspace"), lines))


@dataclass(frozen=True)
class Subspace:
    """One training on tasks that share a subspace."""

    name: str
    condition: float
    seed: int
    steps: int
    training: Training

    def compute(self, checkpoint: Path) -> Row:
        """Train, and measure the subspace of the body."""
        tasks = SharedSubspace(
            20, 2, 10, 20, 16 * self.steps, self.condition, 0.5, seed=2 * self.seed
        )
        new = SharedSubspace(
            20, 2, 10, 20, MEASURED, self.condition, 0.5, 2 * self.seed + 1, basis=tasks.basis
        )
        torch.manual_seed(self.seed)
        body = nn.Linear(20, 2, bias=False)
        model = nn.Sequential(body, nn.Linear(2, 1, bias=False))
        method, lr = {"maml": (MAML, 0.01), "anil": (ANIL, 0.1)}[self.name]
        learner = method(model, lr=lr, steps=5, loss=F.mse_loss, execution="vectorized")
        course = predictor_course(
            learner,
            tasks,
            new,
            self.training.measured(self.steps),
            checkpoint=checkpoint,
            meta_batch=16,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=5e-3),
            progress=self.training.progress,
        )
        result = evaluate(learner, new, progress=False)
        return {
            "error": subspace_error(body.weight.T, tasks.basis),
            "loss": result.mean,
            "course": course.records(),
        }


def few_shot(
    dataset: str, algorithms: Sequence[str], seeds: Sequence[int], training: Training, note: str
) -> None:
    """Learners with and without what keeps predictors diverse."""
    lines = []
    for algorithm in algorithms:
        for diverse in (False, True):
            for seed in seeds:
                part = FewShotPart(dataset, algorithm, diverse, seed, training)
                row = finished(training.folder, part.settings(), part.compute)
                keep(row, note)
                last = row["course"][-1]
                norm, condition = (number(last[name], digits=2) for name in ("norm", "condition"))
                cells = (percent(row["accuracy"]), norm, condition)
                lines.append((algorithm, row["kept_by"], f"{seed}", *cells))
                print(f"{dataset}: {lines[-1]}", flush=True)
    columns = ("learner", "kept diverse by", "seed", "accuracy, %", "norm", "condition number")
    print(table(columns, lines))


@dataclass(frozen=True)
class FewShotPart:
    """One training on images."""

    dataset: str
    algorithm: str
    diverse: bool
    seed: int
    training: Training

    @property
    def kept_by(self) -> str:
        """What keeps the predictors diverse."""
        if not self.diverse:
            return "nothing"
        if self.algorithm == "protonet":
            return "unit prototypes"
        return f"spectral({self.training.ratio:g}, {self.training.norm:g})"

    @property
    def experiment(self) -> Experiment:
        """The problem and the preset."""
        return Experiment(
            dataset=self.dataset,
            seed=self.seed,
            steps=self.training.steps,
            test_tasks=self.training.test_tasks,
            outer_lr=1e-3,
            schedule="constant",
            **self.training.settings,
        )

    def settings(self) -> Row:
        """All that decides the numbers."""
        experiment = self.experiment
        return {
            **experiment.to_dict(self.algorithm),
            "figure": self.dataset,
            "learner": self.algorithm,
            "kept_by": self.kept_by,
            "seed": self.seed,
            "steps": self.training.steps,
            "test_tasks": self.training.test_tasks,
            "measured_tasks": self.training.measured_tasks,
            "measured": self.training.measured(),
            "device": resolved(experiment.device),
        }

    def compute(self, checkpoint: Path) -> Row:
        """Train, measure predictors on the way, and test."""
        experiment = self.experiment
        chosen = experiment.settings(self.algorithm)
        learner = experiment.learner(self.algorithm)
        penalty = None
        if self.diverse and isinstance(learner, ProtoNet):
            learner.normalised = True
        elif self.diverse:
            penalty = spectral(self.training.ratio, self.training.norm)
        course = predictor_course(
            learner,
            experiment.training_tasks(self.algorithm),
            experiment.testing_tasks("validation", tasks=self.training.measured_tasks),
            self.training.measured(),
            checkpoint=checkpoint,
            meta_batch=chosen.meta_batch,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=chosen.outer_lr),
            clip_value=chosen.clip_value,
            penalty=penalty,
            progress=self.training.progress,
        )
        tested = experiment.tested(self.algorithm, learner)
        result = evaluate(tested, experiment.testing_tasks(), progress=self.training.progress)
        return {
            "accuracy": result.mean,
            "interval": result.interval,
            "norm_of_network": result.settings["learner"]["norm"],
            "course": course.records(),
        }


if __name__ == "__main__":
    run_benchmark(theory)
