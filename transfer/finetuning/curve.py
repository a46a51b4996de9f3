"""How a training went."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metalearn.runtime.files import Record
from metalearn.runtime.tables import Tabular
from transfer.finetuning.scores import majority

RECORDED = (
    "metric",
    "steps",
    "scores",
    "losses",
    "seconds",
    "best",
    "validation",
)  # of a curve, in every version


@dataclass(frozen=True, repr=False)
class Curve(Tabular):
    """How a training went: every score on the test set at each of `steps`, the loss of every step,
    and the seconds spent training.

    `steps` starts at 0, before the first update. `metric` names the score that `values` and `final`
    are. `best` is the index of the evaluation that counts: the last, or with early stopping the one
    with the best validation score.

    `test_counts` has the number of test images of each class, and `predicted_counts` how many of
    them the network took for each class at the evaluation that counts. Both are empty if whoever
    made the curve did not count.

    Example:
        >>> curve = Curve("accuracy", (0, 10, 20), {"accuracy": (0.25, 0.5, 0.75)})
        >>> curve.final, curve.steps_to(0.625), curve.steps_to(0.95)
        (0.75, 15.0, None)
        >>> Curve("accuracy", (0,), {"accuracy": (0.75,)}, test_counts={0: 3, 1: 1}, predicted_counts={0: 4})
        Curve(accuracy 0.7500 after 0 steps; majority class 0.7500; collapsed: class 0 for every
        test image)
    """

    metric: str
    steps: tuple[int, ...]
    scores: Mapping[str, tuple[float, ...]]
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    best: int = -1
    validation: tuple[float, ...] = ()
    test_counts: Mapping[int, int] = field(default_factory=dict)
    predicted_counts: Mapping[int, int] = field(default_factory=dict)

    @property
    def values(self) -> tuple[float, ...]:
        """The score at each of `steps`."""
        return self.scores[self.metric]

    @property
    def final(self) -> float:
        """The score at the evaluation that counts."""
        return self.values[self.best]

    @property
    def collapsed(self) -> bool:
        """Whether the network predicts one class for every test image, though these are of several."""
        return len(self.predicted_counts) == 1 and len(self.test_counts) > 1

    @property
    def majority(self) -> float:
        """The score of predicting the most frequent class for every test image; NaN if the classes
        were not counted.
        """
        return majority(self.metric, self.test_counts)

    def steps_to(self, threshold: float) -> float | None:
        """The step at which `values` first reach `threshold`, linearly between evaluations; None
        where they never do.
        """
        for i, value in enumerate(self.values):
            if value >= threshold:
                if i == 0:
                    return float(self.steps[0])
                share = (threshold - self.values[i - 1]) / (value - self.values[i - 1])
                return self.steps[i - 1] + share * (self.steps[i] - self.steps[i - 1])
        return None

    def __repr__(self) -> str:
        said = [f"{self.metric} {self.final:.4f} after {self.steps[self.best]} steps"]
        if self.test_counts:
            said.append(f"majority class {self.majority:.4f}")
        if self.collapsed:
            said.append(
                f"collapsed: class {next(iter(self.predicted_counts))} for every test image"
            )
        return f"Curve({'; '.join(said)})"

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the score and the loss against steps; the ending of `path` says how (.png, .svg,
        .pdf).
        """
        from metalearn.analysis.plotting.style import save

        from .figures import training_curve

        figure = training_curve(
            self.steps, self.values, self.losses, metric=self.metric, majority=self.majority
        )
        save(figure, path)

    def records(self) -> list[dict[str, Any]]:
        """A row for each evaluation."""
        records = []
        for place, step in enumerate(self.steps):
            scores = {name: values[place] for name, values in self.scores.items()}
            records.append({"step": step, **scores})
        return records

    def to_dict(self) -> Record:
        """All of it as JSON-able values, which `Curve.from_dict` takes."""
        return {
            "metric": self.metric,
            "steps": list(self.steps),
            "scores": {name: list(values) for name, values in self.scores.items()},
            "losses": list(self.losses),
            "seconds": self.seconds,
            "best": self.best,
            "validation": list(self.validation),
            "test_counts": {str(label): count for label, count in self.test_counts.items()},
            "predicted_counts": {
                str(label): count for label, count in self.predicted_counts.items()
            },
            "majority": None if math.isnan(self.majority) else self.majority,
            "collapsed": self.collapsed,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Curve:
        """The curve that `to_dict` recorded."""
        missing = [
            name for name in RECORDED if not isinstance(record, Mapping) or name not in record
        ]
        if missing:
            raise ValueError(
                f"this is no record of a curve: it has no {missing[0]!r}; give what to_dict()"
                " returned"
            )
        scores = {name: tuple(values) for name, values in record["scores"].items()}
        own: dict[str, Any] = {
            name: tuple(record[name]) for name in ("steps", "losses", "validation")
        }
        for name in ("test_counts", "predicted_counts"):
            own[name] = {int(label): count for label, count in record.get(name, {}).items()}
        return cls(
            metric=record["metric"],
            scores=scores,
            seconds=record["seconds"],
            best=record["best"],
            **own,
        )
