"""Experiments of the feature-reuse papers, one call each: what training gives the features, other
domains, points of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from metalearn.experiments.experiment import Experiment
from metalearn.experiments.regimes import REGIMES, at_test, restored, snapshots, trained
from metalearn.experiments.runs import Run
from metalearn.runtime.statistics import Spread
from metalearn.runtime.tables import aligned, plain

from .algorithms import NIL
from .evaluation import Evaluation, Tasks, evaluate, evaluate_together

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metalearn.analysis.adaptation.feature_reuse import Reuse


@dataclass(frozen=True)
class Regimes:
    """Accuracy under NIL by what trained the body: over seeds, and each seed's evaluation; prints
    as table 5 of Raghu et al. 2020.
    """

    accuracy: Mapping[str, Spread]
    evaluations: Mapping[str, tuple[Evaluation, ...]]
    rule: str

    def __str__(self) -> str:
        rows = [
            (
                name,
                self.accuracy[name].text(100, 2),
                "; ".join(f"{100 * e.mean:.2f} ± {100 * e.interval:.2f}" for e in found),
            )
            for name, found in self.evaluations.items()
        ]
        table = aligned(
            ("training", "accuracy %, ± std over seeds", "each seed, ± 95 % over tasks"), rows
        )
        return f"{table}\n(NIL, rule {self.rule}, on the same test tasks)"

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None."""
        found = {name: [one.to_dict() for one in runs] for name, runs in self.evaluations.items()}
        return plain({"accuracy": self.accuracy, "rule": self.rule, "evaluations": found})


def under_nil(
    models: Mapping[str, nn.Module],
    episodes: Tasks,
    *,
    rule: str = "softmax",
    progress: bool = False,
) -> dict[str, Evaluation]:
    """Accuracy of each network's features alone, on the same tasks: the head is not used, so that
    it may have any number of outputs.

    Example:
        >>> from metalearn.models import Conv4
        >>> from metalearn.tasks import FewShot, glyphs
        >>> tasks = FewShot(glyphs("test"), ways=5, shots=1, queries=5, tasks=4)
        >>> sorted(under_nil({"random": Conv4(5, hidden=4), "other head": Conv4(60, hidden=4)}, tasks))
        ['other head', 'random']
    """
    return evaluate_together(
        {name: NIL(model, rule) for name, model in models.items()}, episodes, progress=progress
    )


def training_regimes(
    experiment: Experiment,
    regimes: Sequence[str] = REGIMES,
    seeds: Sequence[int] = (0,),
    *,
    runs: Mapping[tuple[str, int], Run] | None = None,
    rule: str = "softmax",
    progress: bool = True,
) -> Regimes:
    """Which training gives the features? Train each regime from each seed, then test every body
    under NIL -> `Regimes`.

    Table 5 of Raghu et al. 2020 (arXiv:1909.09157): MAML and ANIL against training without an inner
    loop ("multiclass", "multitask"), no training ("random") and training under NIL's own rule
    ("nil-train"). All see as many training images a step.

    Args:
        experiment: the few-shot problem, the network, and how long each is trained.
        regimes: which; any algorithm that trains will do too.
        seeds: of the initial weights and of what is drawn in training.
        runs: (regime, seed) -> a run that is taken instead of training it.
        rule: NIL's.
        progress: show progress.
    """
    given, tasks = dict(runs or {}), experiment.testing_tasks()
    found: dict[str, list[Evaluation]] = {name: [] for name in regimes}
    for seed in seeds:
        own = replace(experiment, seed=seed)
        done = {
            name: given.get((name, seed)) or trained(own, name, progress=progress)
            for name in regimes
        }
        for name, evaluation in under_nil(
            {n: run.learner.model for n, run in done.items()}, tasks, rule=rule, progress=progress
        ).items():
            found[name].append(evaluation)
    return Regimes(
        {n: Spread.of([e.mean for e in found[n]]) for n in regimes},
        {n: tuple(found[n]) for n in regimes},
        rule,
    )


def another_domain(run: Run, dataset: str, **changes: Any) -> Experiment:
    """The experiment of `run` with the test tasks of another data set, its images brought to the
    model's channels and size.

    Grey images are repeated in three channels, colour turned to grey (ITU-R 601 luma), and the size
    changed with an antialiased bilinear filter; the data set's description says which. `changes`
    are other settings that hold at test (root, test_tasks, queries).
    """
    channels, size = run.experiment.shape()
    if dataset != run.experiment.dataset:
        changes = {"protocol": None, "test_rotations": None, **changes}  # which are Omniglot's own
    return replace(
        run.experiment, dataset=dataset, preset="quick", channels=channels, size=size, **changes
    )


def cross_domain(
    runs: Mapping[str, Run], dataset: str, *, progress: bool = False, **changes: Any
) -> dict[str, Evaluation]:
    """Test learners on a data set that none was trained on -> accuracy by name, on the same tasks
    (BOIL: Oh et al. 2021, section 4.2).

    Each adapts as it did at home, with its own rate and test steps; a body trained without an inner
    loop is tested by NIL.

    Args:
        runs: trained runs by name.
        dataset: what to test on, by name or path.
        progress: show progress.
        changes: other settings that hold at test: root, test_tasks, queries.

    Raises ValueError where the runs take images of different shapes, since their tasks would then
    differ.
    """
    shapes = {name: run.experiment.shape() for name, run in runs.items()}
    if len(set(shapes.values())) != 1:
        said = (
            ", ".join(
                f"{name} {channels} x {size} x {size}" for name, (channels, size) in shapes.items()
            )
            or "there are none"
        )
        raise ValueError(
            f"cross_domain compares runs on the same images, but they take ({said}); call it for"
            " each shape"
        )
    tasks = another_domain(next(iter(runs.values())), dataset, **changes).testing_tasks()
    return evaluate_together(
        {name: at_test(run) for name, run in runs.items()}, tasks, progress=progress
    )


@dataclass(frozen=True)
class Point:
    """A learner after `step` outer steps: the run so far, what it reached on the test tasks, and
    what its inner loop changed.
    """

    step: int
    run: Run
    evaluation: Evaluation
    reuse: Reuse


def timeline_figure(points: Sequence[Point]) -> Figure:
    """The points of `timeline` as a picture: each layer's CKA before and after adaptation, and
    accuracy, with their intervals.
    """
    from metalearn.analysis.adaptation.figures import timeline as drawn
    from metalearn.runtime.statistics import Estimate

    steps, names = (
        [point.step for point in points],
        [layer.layer for layer in points[0].reuse.layers],
    )
    similarity = {
        name: [point.reuse.layers[i].cka for point in points] for i, name in enumerate(names)
    }
    return drawn(
        steps,
        similarity,
        [Estimate(point.evaluation.mean, point.evaluation.interval) for point in points],
    )


def timeline(
    experiment: Experiment,
    algorithm: str,
    steps: Sequence[int],
    *,
    runs: Sequence[Run] = (),
    analysed_tasks: int = 50,
    progress: bool = True,
) -> list[Point]:
    """`feature_reuse` and accuracy at several points of one training run (Raghu et al. 2020, figure
    3) -> a `Point` for each step.

    The run has a constant outer rate and keeps a checkpoint at every point, so that a second call
    trains nothing.

    Args:
        experiment: the few-shot problem and its training.
        algorithm: what is trained.
        steps: numbers of outer steps.
        runs: that training as it stood at several points, to take instead of training it.
        analysed_tasks: test tasks that the representations are compared on.
        progress: show progress.
    """
    from .analysis import feature_reuse

    if not runs:
        here = {
            "root": experiment.root,
            "execution": experiment.execution,
            "device": experiment.device,
        }
        runs = [
            restored(path, **here)
            for path in snapshots(experiment, algorithm, steps, progress=progress).values()
        ]
    points = []
    for run in sorted(runs, key=lambda run: len(run.curve.losses)):
        step, learner = len(run.curve.losses), run.tested()
        evaluation = evaluate(learner, experiment.testing_tasks(), progress=progress)
        reuse = feature_reuse(
            learner,
            experiment.testing_tasks(tasks=analysed_tasks),
            name=f"{algorithm} {step}",
            progress=progress,
        )
        points.append(Point(step, run, evaluation, reuse))
    return points
