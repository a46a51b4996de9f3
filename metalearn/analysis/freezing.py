"""What the inner loop's changes to each layer are worth: accuracy with the layers frozen from the bottom up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from metalearn.algorithms.base import Learner
from metalearn.evaluation import Evaluation, evaluate, half_width
from metalearn.network.layers import body
from metalearn.runtime import progress as _progress

from .tables import Pictured, aligned, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Estimate(NamedTuple):
    """A mean with the half-width of its 95 % interval (see `metalearn.evaluation.half_width`); NaN if one value gives none."""

    mean: float
    interval: float

    @classmethod
    def of(cls, values: Any) -> Estimate:
        """The estimate from one value a task (tasks,).

        Example:
            >>> Estimate.of([0.5, 0.7, 0.6, 0.6])
            Estimate(mean=0.6, interval=0.1299...)
        """
        tensor = torch.as_tensor(values, dtype=torch.float64)
        return cls(float(tensor.mean()), half_width(tensor))

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.mean - self.interval

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.mean + self.interval

    def shown(self, form: str = ".3f", scale: float = 1, unit: str = "") -> str:
        """The mean ± its interval, or the mean and that there is none.

        Example:
            >>> Estimate(0.5, 0.02).shown(".1f", 100, " %"), Estimate(0.5, float("nan")).shown(".1f", 100, " %")
            ('50.0 ± 2.0 %', '50.0 % (no interval)')
        """
        mean = f"{scale * self.mean:{form}}"
        if math.isnan(self.interval):
            return f"{mean}{unit} (no interval)"
        return f"{mean} ± {format(scale * self.interval, form.lstrip('+')).strip()}{unit}"


class Scale(NamedTuple):
    """How scores of one kind are written: times `factor`, in these formats and units, under a `label`.

    `gain` and `loss` are the words for a difference that is better or worse.
    """

    label: str
    factor: float
    form: str
    cost_form: str
    unit: str
    cost_unit: str
    gain: str
    loss: str

    def value(self, estimate: Estimate) -> str:
        """A score with its interval, in words."""
        return estimate.shown(self.form, self.factor, self.unit)

    def cost(self, estimate: Estimate) -> str:
        """How much worse a score is, with its interval."""
        return estimate.shown(self.cost_form, self.factor, self.cost_unit)

    def against(self, cost: Estimate) -> str:
        """What is gained or lost, by how much worse a score is; no word if the mean rounds to zero.

        Example:
            >>> costs = Estimate(0.1539, 0.0264), Estimate(-0.0019, 0.0097), Estimate(0.0, 0.0)
            >>> [SCALES["accuracy"].against(cost) for cost in costs]
            ['loses 15.39 ± 2.64', 'gains 0.19 ± 0.97', '0.00 ± 0.00']
        """
        if math.isnan(cost.mean):
            return "-"
        size = Estimate(abs(cost.mean), cost.interval)
        shown = size.shown(self.cost_form, self.factor)
        if not float(format(self.factor * size.mean, self.cost_form)):
            return shown
        return f"{self.loss if cost.mean > 0 else self.gain} {shown}"

    @property
    def against_label(self) -> str:
        """The header of a column of `against`."""
        return f"against nothing frozen ({'points, ' * (self.factor == 100)}paired)"


SCALES = {
    "accuracy": Scale("accuracy %", 100, ".1f", "z.2f", " %", " points", "gains", "loses"),
    "loss": Scale("loss", 1, ".4g", "z.3g", "", "", "removes", "adds"),
}


def worse(held: Any, free: Any, measure: str) -> Any:
    """How much worse scores are than others: the accuracy that is lost, or the loss that is added."""
    return held - free if measure == "loss" else free - held


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
class Freezing(Pictured):
    """Accuracy with the first k layers frozen, k from 0 on.

    `head` says how the head was adapted on top of them (`HEADS`): "steps" is the table of Raghu et
    al. 2020. If `measure` is "loss", for real targets, each row's `accuracy` is the loss, and its
    `cost` the loss added. `note` says whether heads did not converge, and `unconverged` what share of them.
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

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None."""
        return plain(self)

    def figure(self) -> Figure:
        """The accuracy by how much is frozen, as a matplotlib `Figure`."""
        from .plots import frozen_accuracies

        return frozen_accuracies(self)

    @classmethod
    def of(cls, names: Sequence[str], scores: Sequence[Tensor], measure: str, **about: Any) -> Freezing:
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
    """Accuracy (for real targets, loss) on the queries with layers 1..k left out of the inner loop, for every k from 0 -> `Freezing`.

    The weights are the trained ones throughout: only adaptation at test time is held back, and the
    head adapts by the learner's own few steps (Raghu et al. 2020, arXiv:1909.09157, table 1). What
    the body's change is worth cannot be read from it, since it also holds what a head cannot learn
    in so few steps: `feature_reuse` has the same table with the head run to convergence. Costs are
    paired: the same tasks with and without, `mean(accuracy(nothing frozen) - accuracy(k frozen))`.

    Args:
        learner: any learner with an inner loop.
        episodes: what `evaluate` takes, giving the same tasks each time; a `FewShot` or one stack.
        layers: which to freeze, from the bottom; by default the body, layer by layer.
        free: what `evaluate` gave for this learner on these episodes with nothing frozen, where that is known already.
        progress: show the progress on standard error.
    """
    names = body(learner.model, learner.head) if layers is None else list(layers)
    scores: list[Tensor] = []
    measure = "accuracy"
    with _progress.progress("freezing", len(names) + 1, unit="evaluation", shown=progress) as advance:
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
    """The learner with the first k layers frozen, for every k from 0; None if that freezes nothing more than k - 1 does."""
    moving = len(learner.rates)
    yield learner
    for k in range(1, len(names) + 1):
        held = learner.frozen(names[:k])
        yield None if len(held.rates) == moving else held
        moving = len(held.rates)
