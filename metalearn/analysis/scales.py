"""How scores are read: accuracies in points, losses as they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from metalearn.runtime.statistics import Estimate

if TYPE_CHECKING:
    pass


class Scale(NamedTuple):
    """How scores of one kind are written: times `factor`, in these formats and units, under a
    `label`.

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
