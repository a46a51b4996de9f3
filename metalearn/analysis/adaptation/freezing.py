"""What the inner loop's changes to each layer are worth: accuracy with the layers frozen from the
bottom up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from metalearn.algorithms.base import Learner
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.analysis.scales import SCALES, worse
from metalearn.evaluation import Evaluation, evaluate
from metalearn.network.layers import body
from metalearn.runtime import progress as _progress
from metalearn.runtime.statistics import Estimate
from metalearn.runtime.tables import Tabular, aligned, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metalearn.analysis.plotting.layers import FrozenCurve


HEADS = {
    "steps": "the head by its own inner steps (Raghu et al. 2020, table 1)",
    "zeros": "the head run to convergence from zeros",
    "initial": "the head run to convergence from its initialisation",
}


@dataclass(frozen=True)
class Frozen:
    """One row of a freezing table.

    Attributes:
        layers: what the inner loop could not move.
        accuracy: the accuracy then (for real targets, the loss).
        cost: how much worse that is than with nothing frozen, on the same tasks.
        added: how much worse that is than without freezing the last of `layers`, on the same tasks.
    """

    layers: tuple[str, ...]
    accuracy: Estimate
    cost: Estimate
    added: Estimate


@dataclass(frozen=True)
class Freezing(Pictured, Tabular):
    """Accuracy with the first k layers frozen, k from 0 on.

    `head` says how the head was adapted on top of them (`HEADS`): "steps" is the table of Raghu et
    al. 2020. If `measure` is "loss", for real targets, each row's `accuracy` is the loss, and its
    `cost` the loss added. `note` says whether heads did not converge, and `unconverged` what share
    of them.
    """

    rows: tuple[Frozen, ...]
    tasks: int
    spread: str = "the 95 % interval over tasks"
    measure: str = "accuracy"
    head: str = "steps"
    note: str = ""
    unconverged: float = 0.0

    def __str__(self) -> str:
        scale = SCALES[self.measure]
        form = "6.2f" if self.measure == "accuracy" else "6.4g"
        rows = []
        for row in self.rows:
            name = f"up to {row.layers[-1]}" if row.layers else "nothing"
            against = scale.against(row.cost) if row.layers else ""
            rows.append((name, row.accuracy.shown(form, scale.factor), against))
        lines = [aligned(("frozen", scale.label, scale.against_label), rows)]
        lines.append(f"({HEADS[self.head]}; {self.tasks} tasks; ± is {self.spread})")
        if self.note:
            lines.append(f"({self.note})")
        return "\n".join(lines)

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of numbers and names."""
        return list(self.to_dict()["rows"])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None."""
        return plain(self)

    def figure(self) -> Figure:
        """The accuracy by how much is frozen, as a matplotlib `Figure`."""
        from metalearn.analysis.plotting.layers import frozen_accuracies
        from metalearn.analysis.plotting.style import look_of

        return frozen_accuracies(self.curve("the learner", look_of(0)))

    def curve(self, label: str, look: Mapping[str, Any]) -> FrozenCurve:
        """The scores as a curve for a drawing; `look` is colour, marker and line."""
        from metalearn.analysis.plotting.layers import FrozenCurve

        means = [row.accuracy.mean for row in self.rows]
        intervals = [row.accuracy.interval for row in self.rows]
        layers = [row.layers[-1] for row in self.rows[1:]]
        return FrozenCurve(label, layers, means, intervals, self.measure, look)

    @classmethod
    def of(
        cls, names: Sequence[str], scores: Sequence[Tensor], measure: str, **about: Any
    ) -> Freezing:
        """The table of these scores: one (tasks,) for each number of frozen layers."""
        rows = []
        for k, values in enumerate(scores):
            below = scores[max(k - 1, 0)]
            cost = Estimate.of(worse(values, scores[0], measure))
            added = Estimate.of(worse(values, below, measure))
            rows.append(Frozen(tuple(names[:k]), Estimate.of(values), cost, added))
        return cls(tuple(rows), len(scores[0]), measure=measure, **about)


def freezing(
    learner: Learner,
    episodes: Any,
    *,
    layers: Sequence[str] | None = None,
    free: Evaluation | None = None,
    progress: bool = False,
) -> Freezing:
    """Accuracy (for real targets, loss) on the queries with layers 1..k left out of the inner loop,
    for every k from 0 -> `Freezing`.

    The weights are the trained ones throughout: only adaptation at test time is held back, and the
    head adapts by the learner's own few steps (Raghu et al. 2020, arXiv:1909.09157, table 1). What
    the body's change is worth cannot be read from it, since it also holds what a head cannot learn
    in so few steps: `feature_reuse` has the same table with the head run to convergence. Costs are
    paired: the same tasks with and without, `mean(accuracy(nothing frozen) - accuracy(k frozen))`.

    Args:
        learner: any learner with an inner loop.
        episodes: what `evaluate` takes, giving the same tasks each time; a `FewShot` or one stack.
        layers: which to freeze, from the bottom; by default the body, layer by layer.
        free: what `evaluate` gave for this learner on these episodes with nothing frozen, where
            that is known already.
        progress: show the progress on standard error.
    """
    names = body(learner.model, learner.head) if layers is None else list(layers)
    scores: list[Tensor] = []
    measure = "accuracy"
    with _progress.progress(
        "freezing", len(names) + 1, unit="evaluation", shown=progress
    ) as advance:
        for k, held in enumerate(frozen_learners(learner, names)):
            # Freezing what does not move changes nothing, so it need not be tried.
            if held is None:
                scores.append(scores[-1])
            else:
                result = free if free and not k else evaluate(held, episodes)
                measure = result.measure
                scores.append(result.per_episode)
            advance(text="nothing frozen" if not k else f"frozen up to {names[k - 1]}")
    return Freezing.of(names, scores, measure)


def frozen_learners(learner: Learner, names: Sequence[str]) -> Iterator[Learner | None]:
    """The learner with the first k layers frozen, for every k from 0; None if that freezes nothing
    more than k - 1 does.
    """
    moving = len(learner.rates)
    yield learner
    for k in range(1, len(names) + 1):
        held = learner.frozen(names[:k])
        yield None if len(held.rates) == moving else held
        moving = len(held.rates)
