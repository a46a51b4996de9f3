"""What the inner loop's changes to each layer are worth: accuracy with the layers frozen from the bottom up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import progress as _progress
from ..evaluation import Evaluation, evaluate, half_width
from ..layers import body
from ..learner import Learner
from .tables import Pictured, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Estimate(NamedTuple):
    """A mean with the half-width of its 95 % interval: over tasks `1.96 std(ddof=1) / sqrt(tasks)`; NaN where one value gives none."""

    mean: float
    interval: float

    @classmethod
    def of(cls, values: Any) -> Estimate:
        """The estimate from one value a task (tasks,).

        Example:
            >>> Estimate.of([0.5, 0.7, 0.6, 0.6])
            Estimate(mean=0.6, interval=0.08001...)
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
    """How scores of one kind are written: times `factor`, in these formats and units, under a `label`."""

    label: str
    factor: float
    form: str
    cost_form: str
    unit: str
    cost_unit: str

    def value(self, estimate: Estimate) -> str:
        """A score with its interval, in words."""
        return estimate.shown(self.form, self.factor, self.unit)

    def cost(self, estimate: Estimate) -> str:
        """How much worse a score is, with its interval."""
        return estimate.shown(self.cost_form, self.factor, self.cost_unit)


SCALES = {
    "accuracy": Scale("accuracy %", 100, ".1f", ".2f", " %", " points"),
    "loss": Scale("loss", 1, ".4g", ".3g", "", ""),
}


def worse(held: Tensor | np.ndarray, free: Tensor | np.ndarray, measure: str) -> Any:
    """How much worse scores are than others: the accuracy that is lost, or the loss that is added."""
    return held - free if measure == "loss" else free - held


@dataclass(frozen=True)
class Frozen:
    """One row: the `layers` that the inner loop could not move, the accuracy then, and what it cost against none on the same tasks."""

    layers: tuple[str, ...]
    accuracy: Estimate
    cost: Estimate


@dataclass(frozen=True)
class Freezing(Pictured):
    """Accuracy with the first k layers frozen, k from 0 on; prints as the table of Raghu et al. 2020.

    Where `measure` is "loss", for real targets, each row's `accuracy` is the loss, and its `cost` the loss added.
    """

    rows: tuple[Frozen, ...]
    tasks: int
    spread: str = "1.96 standard errors over tasks"
    measure: str = "accuracy"

    def __str__(self) -> str:
        names = ["nothing" if not row.layers else f"up to {row.layers[-1]}" for row in self.rows]
        width = max(map(len, ("frozen", *names)))
        scale, form = SCALES[self.measure], "6.2f" if self.measure == "accuracy" else "6.4g"
        lines = [f"{'frozen':{width}}  {scale.label:18}cost{' in points' * (scale.factor == 100)} (paired)"]
        for name, row in zip(names, self.rows, strict=True):
            cost = row.cost.shown(f"+{form}", scale.factor) if row.layers else ""
            lines.append(f"{name:{width}}  {row.accuracy.shown(form, scale.factor)}    {cost}".rstrip())
        return "\n".join([*lines, f"({self.tasks} tasks; ± is {self.spread})"])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None."""
        return plain(self)

    def figure(self) -> Figure:
        """The accuracy by how much is frozen, as a matplotlib `Figure`."""
        from .plots import frozen_accuracies

        return frozen_accuracies(self)


def freezing(
    learner: Learner,
    episodes: Any,
    *,
    layers: Sequence[str] | None = None,
    free: Evaluation | None = None,
    progress: bool = False,
) -> Freezing:
    """Accuracy (for real targets, loss) on the queries with layers 1..k left out of the inner loop, for every k from 0 -> `Freezing`.

    The weights are the trained ones throughout: only adaptation at test time is held back (Raghu et al. 2020, arXiv:1909.09157,
    table 1). Costs are paired: the same tasks with and without, `mean(accuracy(nothing frozen) - accuracy(k frozen))`.

    Args:
        learner: any learner with an inner loop.
        episodes: what `evaluate` takes, giving the same tasks each time; a `FewShot` or one stack.
        layers: which to freeze, from the bottom; by default the body, layer by layer.
        free: what `evaluate` gave for this learner on these episodes with nothing frozen, where that is known already.
        progress: show the progress on standard error.
    """
    names = body(learner.model, learner.head) if layers is None else list(layers)
    accuracies: list[Tensor] = []
    measure = "accuracy"
    moving = len(learner.rates)
    with _progress.progress("freezing", len(names) + 1, unit="evaluation", shown=progress) as advance:
        for k in range(len(names) + 1):
            held = learner.frozen(names[:k]) if k else learner
            # Freezing what does not move changes nothing, so that it need not be tried.
            if k and len(held.rates) == moving:
                accuracies.append(accuracies[-1])
            else:
                result = free if free and not k else evaluate(held, episodes)
                measure = result.measure
                accuracies.append(result.per_episode)
            moving = len(held.rates)
            advance(text="nothing frozen" if not k else f"frozen up to {names[k - 1]}")
    rows = [
        Frozen(tuple(names[:k]), Estimate.of(values), Estimate.of(worse(values, accuracies[0], measure)))
        for k, values in enumerate(accuracies)
    ]
    return Freezing(tuple(rows), len(accuracies[0]), measure=measure)
