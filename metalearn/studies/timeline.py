"""Feature reuse at several points of one training run."""

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
    """A learner in the course of its training.

    Args:
        step: the number of outer steps so far.
        run: the run so far.
        evaluation: its accuracy on the test tasks.
        reuse: what its inner loop changes.
    """

    step: int
    run: Run
    evaluation: Evaluation
    reuse: Reuse


def timeline_figure(points: Sequence[Point]) -> Figure:
    """Draw each layer's CKA before and after adaptation, and accuracy, with their intervals.

    Args:
        points: those of `timeline`.
    """
    # Imported here, since matplotlib is only needed for a picture.
    from metalearn.analysis.adaptation.figures import timeline as draw
    from metalearn.runtime.statistics import Estimate

    similarity = {}
    for i, layer in enumerate(points[0].reuse.layers):
        similarity[layer.layer] = [point.reuse.layers[i].cka for point in points]
    accuracy = [Estimate(point.evaluation.mean, point.evaluation.interval) for point in points]
    return draw([point.step for point in points], similarity, accuracy)


def timeline(
    experiment: Experiment,
    algorithm: str,
    steps: Sequence[int],
    *,
    runs: Sequence[Run] = (),
    analysed_tasks: int = 50,
    progress: bool = True,
) -> list[Point]:
    """Measure `feature_reuse` and accuracy in the course of a training run.

    Figure 3 of Raghu et al. 2020 (arXiv:1909.09157). The run has a constant outer rate and keeps a
    checkpoint at every point, so a second call trains nothing.

    Args:
        experiment: the few-shot problem and its training.
        algorithm: the algorithm to train.
        steps: the points, in outer steps.
        runs: the same training run at several points, to use instead of training it.
        analysed_tasks: the number of test tasks to compare representations on.
        progress: whether to show progress.

    Returns:
        A point for each of `steps`.
    """
    from metalearn.analysis import feature_reuse

    if not runs:
        paths = snapshots(experiment, algorithm, steps, progress=progress)
        # Settings of this machine, which may differ from those of the run.
        machine = {
            "root": experiment.root,
            "execution": experiment.execution,
            "device": experiment.device,
        }
        runs = [restored(path, **machine) for path in paths.values()]
    points = []
    # The number of losses is the number of outer steps.
    for run in sorted(runs, key=lambda run: len(run.curve.losses)):
        step = len(run.curve.losses)
        learner = run.tested()
        evaluation = evaluate(learner, experiment.testing_tasks(), progress=progress)
        reuse = feature_reuse(
            learner,
            experiment.testing_tasks(tasks=analysed_tasks),
            name=f"{algorithm} {step}",
            progress=progress,
        )
        points.append(Point(step, run, evaluation, reuse))
    return points
