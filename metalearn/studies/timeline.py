"""What feature reuse says at several points of one training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metalearn.evaluation import Evaluation, evaluate
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.regimes import restored, snapshots
from metalearn.experiments.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metalearn.analysis.adaptation.feature_reuse import Reuse


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
    from metalearn.analysis import feature_reuse

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
