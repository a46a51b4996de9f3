"""What the head and the body of a learner each contribute when it adapts: one accuracy taken apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metalearn.algorithms.base import Learner
from metalearn.analysis.scales import SCALES, worse
from metalearn.engine.solver import query_logits, solve
from metalearn.engine.threads import in_threads
from metalearn.evaluation import to_device
from metalearn.network.functional import Functional
from metalearn.runtime import progress as _progress
from metalearn.runtime.statistics import Estimate
from metalearn.runtime.tables import Tabular, aligned, plain

from .converged import STARTS, Convergence, FixedBody, HeadFit
from .freezing import Freezing, frozen_learners
from .observe import query_score, settle


@dataclass(frozen=True)
class Condition:
    """One way of adapting: its accuracy (for real targets, loss), and how much worse that is than
    with nothing frozen, paired.
    """

    name: str
    score: Estimate
    cost: Estimate


@dataclass(frozen=True)
class Decomposition(Tabular):
    """A learner's accuracy taken apart: what adapts, and how the head is trained on top of it.

    The learner's own few head steps cannot tell whether features must change: a head may not be
    able to learn a task in three steps. So the head is also run to convergence on the support set
    (`metalearn.analysis.adaptation.converged.CRITERION`), over the body before and after
    adaptation, from zeros and from its initialisation. What the body's change is worth is the
    difference:

        worth = accuracy(converged head, adapted body) - accuracy(converged head, body before)

    paired over tasks, under the start with which the body before adaptation does better.

    Attributes:
        conditions: every way of adapting, nothing frozen first.
        zeros, initial: the freezing table with the head run to convergence, by its start. Its first
            row is the adapted body, its last the body before adaptation.
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
        tables = (self.zeros, self.initial)
        zeros, initial = (table.rows[-1].accuracy.mean for table in tables)
        if math.isnan(zeros):
            return self.initial
        return self.initial if worse(initial, zeros, self.measure) < 0 else self.zeros

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

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of numbers and names."""
        return list(self.to_dict()["conditions"])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None."""
        return plain(self) | {"worth": plain(self.worth), "start": self.converged.head}


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
    tasks: Sequence[Any],
    layers: Sequence[str],
    headless: tuple[np.ndarray, np.ndarray],
    *,
    chance: float,
    measure: str = "accuracy",
    progress: bool = False,
) -> tuple[Freezing, Decomposition]:
    """Take a learner's accuracy apart -> the freezing table of Raghu et al. 2020, and the
    `Decomposition`.

    Args:
        learner: any learner with an inner loop and a head, in evaluation mode.
        tasks: single-task episodes by index.
        layers: the layers of the body, from the bottom.
        headless: the scores without a head of each task (tasks,), before and after adaptation.
        chance: the accuracy of guessing.
        measure: "accuracy", or "loss" for real targets.
        progress: show the progress on standard error.
    """

    def work(network: Functional, i: int) -> TaskScores:
        return score_task(learner, network, tasks[i], layers)

    settle(learner, tasks[0])
    tasks_scored: list[TaskScores] = []
    with (
        torch.no_grad(),
        _progress.progress(
            "heads run to convergence", len(tasks), unit="task", shown=progress
        ) as advance,
    ):
        for task in in_threads(learner, range(len(tasks)), work):
            tasks_scored.append(task)
            advance()
    tables = {}
    for head in ("steps", *STARTS):
        # (1 + layers, tasks)
        columns = torch.tensor([task.frozen[head] for task in tasks_scored], dtype=torch.float64).T
        fits = [fit for task in tasks_scored for fit in task.fits[head]]
        reached = Convergence.of(fits)
        about = {"head": head, "note": reached.note, "unconverged": reached.share}
        tables[head] = (columns, Freezing.of(layers, list(columns), measure, **about))
    own = tables["steps"][0][0]
    scores = {
        "own": own,
        "body_frozen": tables["steps"][0][-1],
        "head_frozen": torch.tensor(
            [task.head_frozen for task in tasks_scored], dtype=torch.float64
        ),
        "headless_before": torch.as_tensor(headless[0]),
        "headless_after": torch.as_tensor(headless[1]),
    }
    for start in STARTS:
        scores[f"adapted_{start}"] = tables[start][0][0]
        scores[f"before_{start}"] = tables[start][0][-1]
    conditions = []
    for key, name in CONDITIONS.items():
        cost = Estimate.of(worse(scores[key], own, measure))
        conditions.append(Condition(name, Estimate.of(scores[key]), cost))
    body_moves = len(learner.frozen(layers).rates) < len(learner.rates)
    parts = Decomposition(
        tuple(conditions), tables["zeros"][1], tables["initial"][1], chance, measure, body_moves
    )
    return tables["steps"][1], parts


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


def score_task(
    learner: Learner, network: Functional, task: Any, layers: Sequence[str]
) -> TaskScores:
    """The scores of one task with its head run to convergence, and with its head frozen."""
    task = to_device(task, learner)
    support, query = task

    def score(logits: Tensor) -> float:
        return query_score(learner, network, logits, query.targets)

    heads = ("steps", *STARTS)
    frozen: dict[str, list[float]] = {head: [] for head in heads}
    fits: dict[str, list[HeadFit]] = {head: [] for head in heads}
    for held in frozen_learners(learner, layers):
        if held is None:  # nothing more is frozen than in the row before
            for head in heads:
                frozen[head].append(frozen[head][-1])
            continue
        adapted = solve(held, network, support)
        body = FixedBody(held, network, adapted.weights, task)
        frozen["steps"].append(score(body.query_logits(adapted.weights)))
        for start in STARTS:
            fit = body.fit(start)
            readout = score(body.query_logits(fit.weights)) if math.isfinite(fit.loss) else math.nan
            frozen[start].append(readout)
            fits[start].append(fit._replace(weights={}))  # which would be kept for every task
    logits = query_logits(learner.frozen([learner.head]), network, task)
    return TaskScores(frozen, score(logits), fits)
