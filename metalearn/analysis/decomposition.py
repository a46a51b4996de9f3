"""What the head and the body of a learner each contribute when it adapts: one accuracy taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import progress as _progress
from ..evaluation import place
from ..execution import in_threads
from ..learner import Learner
from .converged import STARTS, Convergence, HeadFit, SupportFeatures, converged_logits
from .freezing import SCALES, Estimate, Freezing, frozen_learners, worse
from .tables import aligned, plain


@dataclass(frozen=True)
class Condition:
    """One way of adapting: its accuracy (for real targets, loss), and how much worse that is than with nothing frozen, paired."""

    name: str
    score: Estimate
    cost: Estimate


@dataclass(frozen=True)
class Decomposition:
    """A learner's accuracy taken apart: what adapts, and how the head is trained on top of it.

    The learner's own few head steps cannot tell whether features must change: a head may not be
    able to learn a task in three steps. So the head is also run to convergence on the support set
    (`metalearn.analysis.converged.CRITERION`), over the body before and after adaptation, from
    zeros and from its initialisation. What the body's change is worth is the difference:

        worth = accuracy(converged head, adapted body) - accuracy(converged head, body before)

    paired over tasks, under the start with which the body before adaptation does better.

    Attributes:
        conditions: every way of adapting, nothing frozen first.
        zeros, initial: the freezing table with the head run to convergence, by its start. Its first
            row is the adapted body, its last the body before adaptation.
        chance: the accuracy of guessing (for real targets, the loss of the support targets' mean).
        measure: "accuracy" or "loss".
    """

    conditions: tuple[Condition, ...]
    zeros: Freezing
    initial: Freezing
    chance: float
    measure: str = "accuracy"

    def __getitem__(self, name: str) -> Condition:
        for condition in self.conditions:
            if condition.name == name:
                return condition
        names = ", ".join(repr(condition.name) for condition in self.conditions)
        raise KeyError(f"there is no condition {name!r}; there are {names}")

    @property
    def converged(self) -> Freezing:
        """The freezing table under the start that serves the body before adaptation better."""
        tables = (self.zeros, self.initial)
        before = [table.rows[-1].accuracy.mean for table in tables]
        if self.measure == "loss":
            before = [-value for value in before]
        return self.initial if before[1] > before[0] else self.zeros

    @property
    def worth(self) -> Estimate:
        """What the body's change is worth, with its interval: accuracy gained, or loss removed."""
        return self.converged.rows[-1].cost

    def __str__(self) -> str:
        scale = SCALES[self.measure]
        form = "6.2f" if self.measure == "accuracy" else "6.4g"
        rows = []
        for condition in self.conditions:
            against = "" if condition is self.conditions[0] else scale.against(condition.cost)
            rows.append((condition.name, condition.score.shown(form, scale.factor), against))
        rows.append(("chance", f"{scale.factor * self.chance:{form}}", ""))
        return aligned(("what adapts", scale.label, scale.against_label), rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None."""
        return plain(self) | {"worth": plain(self.worth), "start": self.converged.head}


class TaskScores(NamedTuple):
    """The scores of one task: with a converged head for every number of frozen layers, by its start, and with the head frozen."""

    converged: dict[str, list[float]]
    head_frozen: float
    fits: dict[str, list[HeadFit]]


def decompose(
    learner: Learner,
    tasks: Sequence[Any],
    layers: Sequence[str],
    scores: Mapping[str, Tensor | np.ndarray],
    *,
    chance: float,
    measure: str = "accuracy",
    progress: bool = False,
) -> Decomposition:
    """Take a learner's accuracy apart -> `Decomposition`.

    Args:
        learner: any learner with an inner loop and a head, in evaluation mode.
        tasks: single-task episodes by index.
        layers: the layers of the body, from the bottom.
        scores: what is known already of each task (tasks,): "own", "body_frozen",
            "headless_before" and "headless_after".
        chance: the accuracy of guessing.
        measure: "accuracy", or "loss" for real targets.
        progress: show the progress on standard error.
    """

    def work(one: Learner, i: int) -> TaskScores:
        return score_task(one, tasks[i], layers, measure)

    found: list[TaskScores] = []
    with (
        torch.no_grad(),
        _progress.progress("heads run to convergence", len(tasks), unit="task", shown=progress) as advance,
    ):
        for task in in_threads(learner, range(len(tasks)), work):
            found.append(task)
            advance()
    tables = {}
    for start in STARTS:
        columns = torch.tensor([task.converged[start] for task in found], dtype=torch.float64)  # (tasks, 1 + layers)
        fits = [fit for task in found for fit in task.fits[start]]
        note = Convergence.of(fits).note
        tables[start] = Freezing.of(layers, list(columns.T), measure, head=start, note=note)
        scores = {**scores, f"adapted_{start}": columns[:, 0], f"before_{start}": columns[:, -1]}
    scores = {**scores, "head_frozen": torch.tensor([task.head_frozen for task in found], dtype=torch.float64)}
    own = torch.as_tensor(scores["own"])
    conditions = []
    for key, name in CONDITIONS.items():
        values = torch.as_tensor(scores[key])
        conditions.append(Condition(name, Estimate.of(values), Estimate.of(worse(values, own, measure))))
    return Decomposition(tuple(conditions), tables["zeros"], tables["initial"], chance, measure)


CONDITIONS = {
    "own": "nothing frozen",
    "body_frozen": "body frozen, head by its own steps",
    "before_initial": "body frozen, head converged from its initialisation",
    "before_zeros": "body frozen, head converged from zeros",
    "head_frozen": "head frozen, body adapted",
    "adapted_initial": "body adapted, head converged from its initialisation",
    "adapted_zeros": "body adapted, head converged from zeros",
    "headless_before": "no head, body before adaptation",
    "headless_after": "no head, body adapted",
}


def score_task(learner: Learner, task: Any, layers: Sequence[str], measure: str) -> TaskScores:
    """The scores of one task with its head run to convergence, and with its head frozen."""
    support, query = place(task, learner)

    def score(logits: Tensor) -> float:
        if measure == "loss":
            return float(learner.task_loss(logits, query.targets))
        return float((logits.argmax(-1) == query.targets).double().mean())

    converged: dict[str, list[float]] = {start: [] for start in STARTS}
    fits: dict[str, list[HeadFit]] = {start: [] for start in STARTS}
    for held in frozen_learners(learner, layers):
        features = held and SupportFeatures(held, held.adapt(support).weights, support)
        for start in STARTS:
            if features is None:  # nothing more is frozen than in the row before
                converged[start].append(converged[start][-1])
                continue
            fit = features.fit(start)
            fits[start].append(fit._replace(weights={}))  # which would be kept for every task
            converged[start].append(score(converged_logits(learner, fit, query.inputs)))
    head_frozen = learner.frozen([learner.head])
    adapted = head_frozen.adapt(support)
    return TaskScores(converged, score(head_frozen.predict(adapted, query.inputs)), fits)
