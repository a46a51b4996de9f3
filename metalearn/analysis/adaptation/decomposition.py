"""A learner's accuracy taken apart: what the head and the body each contribute when it adapts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metalearn.algorithms.base import Learner
from metalearn.analysis.scales import SCALES, worse
from metalearn.engine.solver import query_logits, solve
from metalearn.engine.threads import in_threads
from metalearn.episodes import Episode
from metalearn.evaluation import to_device
from metalearn.network.functional import Functional
from metalearn.runtime import progress as _progress
from metalearn.runtime.statistics import Estimate
from metalearn.runtime.tables import Table, Tabular, plain

from .converged import STARTS, Convergence, FixedBody, HeadFit
from .freezing import Freezing, frozen_learners
from .observe import query_score, settle

# The ways to adapt the head on top of a body: its own few steps, or to convergence from a start.
HEADS = ("steps", *STARTS)

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


@dataclass(frozen=True)
class Condition:
    """One way of adapting.

    Attributes:
        name: what adapts.
        score: the accuracy (for real targets, the loss).
        cost: how much worse that is than with nothing frozen, paired.
    """

    name: str
    score: Estimate
    cost: Estimate


@dataclass(frozen=True)
class Decomposition(Tabular):
    """A learner's accuracy taken apart: what adapts, and how the head is trained on top of it.

    The learner's own few head steps cannot tell whether features must change: a head may not be
    able to learn a task in three steps. The head is therefore also run to convergence on the
    support set (`metalearn.analysis.adaptation.converged.CRITERION`), over the body before and
    after adaptation, from zeros and from its initialisation. The body's change is worth

        worth = accuracy(converged head, adapted body) - accuracy(converged head, body before)

    paired over tasks, under the start that serves the body before adaptation better.

    Attributes:
        conditions: every way of adapting, nothing frozen first.
        zeros: the freezing table with the head run to convergence from zeros. Its first row is the
            adapted body, its last the body before adaptation.
        initial: the same with the head run from its initialisation.
        chance: the accuracy of guessing (for real targets, the loss of the support targets' mean).
        measure: "accuracy" or "loss".
        body_moves: whether the inner loop has a rate for any weight of the body.
    """

    conditions: tuple[Condition, ...]
    zeros: Freezing
    initial: Freezing
    chance: float
    measure: str = "accuracy"
    body_moves: bool = True

    def __getitem__(self, name: str) -> Condition:
        for condition in self.conditions:
            if condition.name == name:
                return condition
        names = ", ".join(repr(condition.name) for condition in self.conditions)
        raise KeyError(f"there is no condition {name!r}; there are {names}")

    @property
    def converged(self) -> Freezing:
        """The freezing table under the start that serves the body before adaptation better."""
        # The last row is the body before adaptation.
        zeros = self.zeros.rows[-1].accuracy.mean
        initial = self.initial.rows[-1].accuracy.mean
        if math.isnan(zeros) or worse(initial, zeros, self.measure) < 0:
            return self.initial
        return self.zeros

    @property
    def worth(self) -> Estimate:
        """What the body's change is worth, with its interval: accuracy gained, or loss removed."""
        return self.converged.rows[-1].cost

    def __str__(self) -> str:
        return str(self.table())

    def table(self) -> Table:
        """The conditions as text, and chance below them."""
        scale = SCALES[self.measure]
        rows = []
        for condition in self.conditions:
            cost = "" if condition is self.conditions[0] else scale.against(condition.cost)
            rows.append((condition.name, scale.column(condition.score), cost))
        rows.append(("chance", f"{scale.factor * self.chance:{scale.column_form}}", ""))
        return Table(("what adapts", scale.label, scale.against_label), rows)

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of numbers and names."""
        return list(self.to_dict()["conditions"])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None."""
        # What follows from the fields is written too, for readers without this class.
        return plain(self) | {
            "zeros": self.zeros.to_dict(),
            "initial": self.initial.to_dict(),
            "worth": plain(self.worth),
            "start": self.converged.head,
        }


class TaskScores(NamedTuple):
    """The scores of one task.

    Attributes:
        frozen: the score with the first k layers frozen, for every k from 0, by how the head is
            adapted: "steps", "zeros" or "initial".
        head_frozen: the score with the head frozen and the body adapted.
        fits: the heads that were run to convergence, by their start.
    """

    frozen: dict[str, list[float]]
    head_frozen: float
    fits: dict[str, list[HeadFit]]


def decompose(
    learner: Learner,
    tasks: Sequence[Episode],
    layers: Sequence[str],
    headless: tuple[np.ndarray, np.ndarray],
    *,
    chance: float,
    measure: str = "accuracy",
    progress: bool = False,
) -> tuple[Freezing, Decomposition]:
    """Take a learner's accuracy apart.

    Args:
        learner: any learner with an inner loop and a head, in evaluation mode.
        tasks: single tasks by index.
        layers: the layers of the body, from the bottom.
        headless: the scores without a head of each task (tasks,), before and after adaptation.
        chance: the accuracy of guessing.
        measure: "accuracy", or "loss" for real targets.
        progress: show the progress on standard error.

    Returns:
        The freezing table of Raghu et al. 2020, and the decomposition.
    """
    task_scores = _score_tasks(learner, tasks, layers, progress=progress)
    tables = {}
    for head in HEADS:
        columns = list(_frozen_scores(task_scores, head))  # one (tasks,) for each row
        # The head by its own steps has no fits: none of it can fail to converge.
        fits = chain.from_iterable(task.fits[head] for task in task_scores)
        reached = Convergence.of(list(fits))
        tables[head] = Freezing.of(
            layers, columns, measure, head=head, note=reached.note, unconverged=reached.share
        )
    parts = Decomposition(
        conditions=_conditions(_scores_by_condition(task_scores, headless), measure),
        zeros=tables["zeros"],
        initial=tables["initial"],
        chance=chance,
        measure=measure,
        body_moves=len(learner.frozen(layers).rates) < len(learner.rates),
    )
    return tables["steps"], parts


def _score_tasks(
    learner: Learner, tasks: Sequence[Episode], layers: Sequence[str], *, progress: bool
) -> list[TaskScores]:
    """The scores of every task, in order."""

    def work(network: Functional, i: int) -> TaskScores:
        return score_task(learner, network, tasks[i], layers)

    settle(learner, tasks[0])
    scores: list[TaskScores] = []
    with (
        torch.no_grad(),
        _progress.progress(
            "heads run to convergence", len(tasks), unit="task", shown=progress
        ) as advance,
    ):
        for task in in_threads(learner, range(len(tasks)), work):
            scores.append(task)
            advance()
    return scores


def _frozen_scores(task_scores: Sequence[TaskScores], head: str) -> Tensor:
    """The scores with the first k layers frozen -> (1 + layers, tasks)."""
    # (tasks, 1 + layers)
    rows = torch.tensor([task.frozen[head] for task in task_scores], dtype=torch.float64)
    return rows.T


def _scores_by_condition(
    task_scores: Sequence[TaskScores], headless: tuple[np.ndarray, np.ndarray]
) -> dict[str, Tensor]:
    """The scores (tasks,) of every condition by its key in `CONDITIONS`."""
    scores = {
        "head_frozen": torch.tensor(
            [task.head_frozen for task in task_scores], dtype=torch.float64
        ),
        "headless_before": torch.as_tensor(headless[0]),
        "headless_after": torch.as_tensor(headless[1]),
    }
    # The first row has nothing frozen, the last one the whole body.
    names = {"steps": ("own", "body_frozen")}
    names |= {start: (f"adapted_{start}", f"before_{start}") for start in STARTS}
    for head, (adapted, before) in names.items():
        frozen = _frozen_scores(task_scores, head)
        scores[adapted] = frozen[0]
        scores[before] = frozen[-1]
    return scores


def _conditions(scores: Mapping[str, Tensor], measure: str) -> tuple[Condition, ...]:
    """Every condition, with its cost against nothing frozen."""
    conditions = []
    for key, name in CONDITIONS.items():
        cost = Estimate.of(worse(scores[key], scores["own"], measure))
        conditions.append(Condition(name, Estimate.of(scores[key]), cost))
    return tuple(conditions)


def score_task(
    learner: Learner, network: Functional, task: Episode, layers: Sequence[str]
) -> TaskScores:
    """The scores of one task with its head run to convergence, and with its head frozen."""
    task = to_device(task, learner)

    def score(logits: Tensor) -> float:
        return query_score(learner, network, logits, task.query.targets)

    frozen: dict[str, list[float]] = {head: [] for head in HEADS}
    fits: dict[str, list[HeadFit]] = {head: [] for head in HEADS}
    for held in frozen_learners(learner, layers):
        if held is None:  # the scores of the row before
            for head in HEADS:
                frozen[head].append(frozen[head][-1])
            continue
        # The inner loop moves the rest, and its head is the one "by its own steps".
        adapted = solve(held, network, task.support)
        body = FixedBody(held, network, adapted.weights, task)
        frozen["steps"].append(score(body.query_logits(adapted.weights)))
        for start in STARTS:
            fit = body.fit(start)
            readout = score(body.query_logits(fit.weights)) if math.isfinite(fit.loss) else math.nan
            frozen[start].append(readout)
            # Without the weights, which would be kept for every task.
            fits[start].append(fit._replace(weights={}))
    # The other way round: the body adapts under the head as it was initialised.
    logits = query_logits(learner.frozen([learner.head]), network, task)
    return TaskScores(frozen, score(logits), fits)
