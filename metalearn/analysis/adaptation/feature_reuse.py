"""What a learner's inner loop changes, where, and whether it is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from metalearn.algorithms.base import Learner
from metalearn.analysis.adaptation.results import Accuracies, ReuseResult, judge, notes_on
from metalearn.analysis.checks import check_draws, single_tasks
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.engine.threads import in_threads
from metalearn.episodes import Episode
from metalearn.evaluation import Evaluation, evaluate
from metalearn.network.functional import Functional
from metalearn.network.modes import evaluation_mode
from metalearn.runtime import progress as _progress
from metalearn.runtime.provenance import versions
from metalearn.runtime.renamed import warn_renamed

from .decomposition import Decomposition, decompose
from .freezing import Freezing, freezing
from .observations import Observations
from .observe import Observed, OtherNetwork, observe, settle

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Reuse(ReuseResult, Pictured):
    """The result of `feature_reuse`: print it, `plot` it, write its page, or take `to_dict`."""

    def __str__(self) -> str:
        from .text import text

        return text(self)

    def figure(self) -> Figure:
        """The layer profile, the freezing curve and the decomposition as one matplotlib figure."""
        from .figures import summary

        return summary([self])

    def report(self, path: str | PathLike[str]) -> None:
        """Write one self-contained HTML page."""
        from .page import report

        report([self], path)


def feature_reuse(
    learner: Learner,
    episodes: Any,
    *,
    layers: Sequence[str] | None = None,
    other_seed: Learner | None = None,
    name: str | None = None,
    seed: int = 0,
    rows: int = 30_000,
    draws: int | None = None,
    progress: bool = False,
    ceiling: Learner | None = None,
) -> Reuse:
    """Does the inner loop change the features, or reuse them?

    After Raghu et al. 2020 (arXiv:1909.09157). Each layer's output on the query images is compared
    under the meta-initialisation and under the adapted weights, with chance beside every
    similarity:

    - debiased linear CKA per task, every image flattened;
    - CCA with channels as features, per task as in the paper, and of the pooled tasks;
    - chance: the same measure with whole images of one side shuffled (for the pooled tasks, whole
      tasks);
    - how far each layer's weights moved, how long their first gradient was, and the cosines between
      features of one class and of two.

    Then the body is frozen from the bottom up, with the head adapted by its own few steps (the
    paper's table) and run to convergence, and the head is left out. The verdict depends on what the
    body's change is worth under a converged head (`Decomposition`, and the rule in
    `metalearn.analysis.adaptation.verdict.RULE`).

    For regression (real targets), the learner's loss takes the place of the accuracy, and ridge
    regression that of the cosine readout.

    Args:
        learner: any learner.
        episodes: a `FewShot` (or anything with a length and `[i]` giving single tasks), or one
            stack of tasks.
        layers: the layers to compare, in order; by default all of `metalearn.layers(model)`. A
            layer that returns a tuple or runs twice cannot be compared: name a module inside it.
        other_seed: a learner of the same architecture trained from another seed. The similarity of
            the two before adaptation is what two trainings share (Raghu et al. 2020, table 3).
        name: the name of the learner in tables; by default that of its class.
        seed: what the draws for chance depend on.
        rows: about how many rows CCA of the pooled tasks uses, by sampling positions of every
            image.
        draws: how often chance shuffles; by default 200 times if that is cheap over all tasks and
            layers, else 20 (`chosen_draws`). The table prints the numbers.
        progress: show the progress on standard error.
        ceiling: the former name of `other_seed`.

    Raises:
        ValueError: there are no tasks, activations are not finite (the layer is named), or
            `other_seed` has another architecture or the same weights.

    Example:
        >>> from metalearn import ANIL
        >>> from metalearn.models import Conv4
        >>> from metalearn.tasks import FewShot, glyphs
        >>> learner = ANIL(Conv4(5, channels=1, hidden=8, size=28), lr=0.1)
        >>> tasks = FewShot(glyphs("test"), ways=5, shots=1, queries=5, tasks=3)
        >>> reuse = feature_reuse(learner, tasks, draws=5)
        >>> [layer.layer for layer in reuse.layers if layer.unmoved]
        ['block1', 'block2', 'block3', 'block4']
    """
    if ceiling is not None:
        warn_renamed("feature_reuse(ceiling=...)", "feature_reuse(other_seed=...)")
        other_seed = ceiling
    tasks = single_tasks(episodes)
    draws, seed = check_draws(draws, seed)
    observations = Observations(learner, layers, draws, seed)
    learners = [learner]
    other = None
    if other_seed is not None:
        check_other_seed(other_seed, learner)
        other = OtherNetwork(other_seed)
        learners.append(other_seed)

    settle(learner, tasks[0])
    with evaluation_mode(learners), torch.no_grad():
        _observe_tasks(learner, tasks, observations, rows=rows, other=other, progress=progress)
        measured = observations.layers()
        accuracies = observations.accuracies()
        # Tasks of several sizes are no stack.
        at_once = 1 if len(observations.shapes()) > 1 else 16
        evaluation = evaluate(learner, tasks, progress=progress, tasks_at_once=at_once)
        frozen, parts = _take_apart(
            learner, tasks, observations, evaluation, accuracies, progress=progress
        )
    ways, shots, queries = observations.task_sizes()
    return Reuse(
        name=name or type(learner).__name__,
        verdict=judge(measured, parts, accuracies),
        layers=tuple(measured),
        freezing=frozen,
        decomposition=parts,
        accuracies=accuracies,
        evaluation=evaluation,
        tasks=len(tasks),
        ways=ways,
        shots=shots,
        queries=queries,
        settings=learner.settings(),
        versions=versions(),
        notes=(*observations.notes(), *notes_on(measured, parts, len(tasks))),
    )


def _observe_tasks(
    learner: Learner,
    tasks: Sequence[Episode],
    observations: Observations,
    *,
    rows: int,
    other: OtherNetwork | None,
    progress: bool,
) -> None:
    """Observe every task, in order, into `observations`."""

    def work(network: Functional, i: int) -> Observed:
        return observe(
            learner,
            network,
            observations.names,
            tasks[i],
            rows=rows // len(tasks),
            draws=observations.draws,
            seed=observations.seed,
            index=i,
            tasks=len(tasks),
            other=other,
        )

    with _progress.progress(
        "before and after adaptation", len(tasks), unit="task", shown=progress
    ) as advance:
        for task in in_threads(learner, range(len(tasks)), work):
            observations.tasks.append(task)
            advance()


def _take_apart(
    learner: Learner,
    tasks: Sequence[Episode],
    observations: Observations,
    evaluation: Evaluation,
    accuracies: Accuracies,
    *,
    progress: bool,
) -> tuple[Freezing | None, Decomposition | None]:
    """The paper's freezing table, and the accuracy taken apart if the learner uses its head.

    Neither if the inner loop changes nothing.
    """
    if not observations.moved:
        return None, None
    names = observations.blocks(learner)
    scores = observations.scores()
    if np.isnan(scores["head_after"]).any():
        return freezing(learner, tasks, layers=names, free=evaluation, progress=progress), None
    return decompose(
        learner,
        tasks,
        names,
        (scores["headless_before"], scores["headless_after"]),
        chance=accuracies.chance,
        measure=accuracies.measure,
        progress=progress,
    )


def check_other_seed(other: Learner, learner: Learner) -> None:
    """Raise ValueError if the two have other architectures, or the same weights."""
    before = learner.model.state_dict()
    after = other.model.state_dict()
    for name in {**before, **after}:
        if name not in before or name not in after or before[name].shape != after[name].shape:
            raise ValueError(
                f"other_seed is another architecture: {name} differs; pass the same network trained"
                " from another seed"
            )
    if all(torch.equal(before[name], after[name].to(before[name])) for name in before):
        raise ValueError(
            "other_seed has the same weights as the learner, so every similarity would be 1; pass"
            " a network trained from another seed"
        )
