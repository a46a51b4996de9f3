"""How scores are written: accuracies in percent, losses as they are."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from metalearn.runtime.statistics import Estimate


class Scale(NamedTuple):
    """How scores of one kind are written.

    Attributes:
        label: the header of a column of scores.
        axis: the label of an axis of scores.
        difference: the label of an axis of differences.
        factor: what a score is multiplied by: 100 for percent.
        form: the format of a score in a sentence.
        column_form: the format of a score in a column.
        cost_form: the format of a difference.
        digits: digits after the point of a mean ± standard deviation.
        unit: the unit of a score.
        cost_unit: the unit of a difference.
        paired: the unit of a difference in the header of a column of paired differences.
        gain: the verb for a difference that is better.
        loss: the verb for a difference that is worse.
    """

    label: str
    axis: str
    difference: str
    factor: float
    form: str
    column_form: str
    cost_form: str
    digits: int
    unit: str
    cost_unit: str
    paired: str
    gain: str
    loss: str

    def value(self, estimate: Estimate) -> str:
        """A score with its interval and unit."""
        return estimate.shown(self.form, self.factor, self.unit)

    def column(self, estimate: Estimate) -> str:
        """A score with its interval, for a column of numbers of one width."""
        return estimate.shown(self.column_form, self.factor)

    def cost(self, estimate: Estimate) -> str:
        """A difference with its interval and unit."""
        return estimate.shown(self.cost_form, self.factor, self.cost_unit)

    def against(self, cost: Estimate) -> str:
        """The gain or loss, with its verb; no verb if the mean rounds to zero.

        Args:
            cost: how much worse the score is.

        Example:
            >>> costs = Estimate(0.1539, 0.0264), Estimate(-0.0019, 0.0097), Estimate(0.0, 0.0)
            >>> [SCALES["accuracy"].against(cost) for cost in costs]
            ['loses 15.39 ± 2.64', 'gains 0.19 ± 0.97', '0.00 ± 0.00']
        """
        if math.isnan(cost.mean):
            return "-"
        size = Estimate(abs(cost.mean), cost.interval)
        text = size.shown(self.cost_form, self.factor)
        # A mean that is printed as zero is neither a gain nor a loss.
        if not float(format(self.factor * size.mean, self.cost_form)):
            return text
        verb = self.loss if cost.mean > 0 else self.gain
        return f"{verb} {text}"

    @property
    def against_label(self) -> str:
        """The header of a column of `against`."""
        return f"against nothing frozen ({self.paired})"


SCALES = {
    "accuracy": Scale(
        label="accuracy %",
        axis="accuracy, %",
        difference="accuracy, points",
        factor=100,
        form=".1f",
        column_form="6.2f",
        cost_form="z.2f",
        digits=2,
        unit=" %",
        cost_unit=" points",
        paired="points, paired",
        gain="gains",
        loss="loses",
    ),
    "loss": Scale(
        label="loss",
        axis="loss",
        difference="loss",
        factor=1,
        form=".4g",
        column_form="6.4g",
        cost_form="z.3g",
        digits=4,
        unit="",
        cost_unit="",
        paired="paired",
        gain="removes",
        loss="adds",
    ),
}


def worse(held: Any, free: Any, measure: str) -> Any:
    """How much worse the scores `held` are than `free`: accuracy lost, or loss added.

    Args:
        held: scores, as a number, an array or a tensor.
        free: the scores to compare with, of the same shape.
        measure: "accuracy" (higher is better) or "loss" (lower is better).
    """
    if measure == "loss":
        return held - free
    return free - held
