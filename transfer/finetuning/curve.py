"""The scores and losses of one fine-tuning."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from metalearn.runtime.files import Record
from metalearn.runtime.tables import Tabular
from transfer.finetuning.scores import majority

Snapshot: TypeAlias = Mapping[str, Tensor] | str | os.PathLike[str]

# What the record of a curve has in every version.
RECORDED = ("metric", "steps", "scores", "losses", "seconds", "best", "validation")


@dataclass(frozen=True, repr=False)
class Curve(Tabular):
    """How a training went: test scores along the way, the loss of every step, and its seconds.

    Attributes:
        metric: the name of the score that `values` and `final` are.
        steps: of the evaluations; the first is 0, before any update.
        scores: {name: (evaluations,) scores on the test set}.
        losses: of every step.
        seconds: spent training.
        best: the index of the evaluation that counts: the last, or with early stopping the one with
            the best validation score.
        validation: (evaluations,) scores on the validation set, if there is one.
        test_counts: the number of test images of each class; empty if they were not counted.
        predicted_counts: the number of test images that the network took for each class, at the
            evaluation that counts; empty if they were not counted.
        penalties: of every step, what was added to the loss; empty without a penalty.
        snapshots: {step: the weights after that many updates}, in memory or as a file.
        stopped: why a callback stopped the training early; empty if none did.

    Example:
        >>> curve = Curve("accuracy", (0, 10, 20), {"accuracy": (0.25, 0.5, 0.75)})
        >>> curve.final, curve.steps_to(0.625), curve.steps_to(0.95)
        (0.75, 15.0, None)
        >>> counts = {"test_counts": {0: 3, 1: 1}, "predicted_counts": {0: 4}}
        >>> Curve("accuracy", (0,), {"accuracy": (0.75,)}, **counts)
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
    penalties: tuple[float, ...] = ()
    snapshots: Mapping[int, Snapshot] = field(default_factory=dict, compare=False)
    stopped: str = ""

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
        """Whether the network predicts one class for all test images, which are of several."""
        return len(self.predicted_counts) == 1 and len(self.test_counts) > 1

    @property
    def majority(self) -> float:
        """The score of predicting the most frequent class for every test image.

        NaN if the classes were not counted.
        """
        return majority(self.metric, self.test_counts)

    def steps_to(self, threshold: float) -> float | None:
        """The step at which the score first reaches a threshold, linearly between evaluations.

        Args:
            threshold: a score.

        Returns:
            The step; None if no evaluation reaches the threshold.
        """
        values = self.values
        i = next((i for i, value in enumerate(values) if value >= threshold), None)
        if i is None:
            return None
        if i == 0:
            return float(self.steps[0])
        # Linear between the evaluation before and the first one that reaches it.
        share = (threshold - values[i - 1]) / (values[i] - values[i - 1])
        return self.steps[i - 1] + share * (self.steps[i] - self.steps[i - 1])

    def __repr__(self) -> str:
        parts = [f"{self.metric} {self.final:.4f} after {self.steps[self.best]} steps"]
        if self.test_counts:
            parts.append(f"majority class {self.majority:.4f}")
        if self.collapsed:
            label = next(iter(self.predicted_counts))
            parts.append(f"collapsed: class {label} for every test image")
        if self.stopped:
            parts.append(f"stopped: {self.stopped}")
        return f"Curve({'; '.join(parts)})"

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the score and the loss against steps.

        Args:
            path: the picture; its ending gives the format (.png, .svg, .pdf).
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
        """A JSON-able record, which `Curve.from_dict` takes."""
        record = {
            "metric": self.metric,
            "steps": list(self.steps),
            "scores": {name: list(values) for name, values in self.scores.items()},
            "losses": list(self.losses),
            "seconds": self.seconds,
            "best": self.best,
            "validation": list(self.validation),
            "test_counts": _with_text_keys(self.test_counts),
            "predicted_counts": _with_text_keys(self.predicted_counts),
            "majority": None if math.isnan(self.majority) else self.majority,
            "collapsed": self.collapsed,
        }
        if self.penalties:
            record["penalties"] = list(self.penalties)
        if self.stopped:
            record["stopped"] = self.stopped
        files = {str(step): str(file) for step, file in self.snapshots.items() if is_file(file)}
        return record | ({"snapshots": files} if files else {})

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Curve:
        """The curve that `to_dict` recorded.

        Raises:
            ValueError: `record` is no record of a curve.
        """
        missing = [
            name for name in RECORDED if not isinstance(record, Mapping) or name not in record
        ]
        if missing:
            raise ValueError(
                f"this is no record of a curve: it has no {missing[0]!r}; give what to_dict()"
                " returned"
            )
        scores = {name: tuple(values) for name, values in record["scores"].items()}
        return cls(
            metric=record["metric"],
            steps=tuple(record["steps"]),
            scores=scores,
            losses=tuple(record["losses"]),
            seconds=record["seconds"],
            best=record["best"],
            validation=tuple(record["validation"]),
            # Earlier versions did not count the classes.
            test_counts=_with_number_keys(record.get("test_counts", {})),
            predicted_counts=_with_number_keys(record.get("predicted_counts", {})),
            penalties=tuple(record.get("penalties", ())),
            snapshots={int(step): Path(file) for step, file in record.get("snapshots", {}).items()},
            stopped=record.get("stopped", ""),
        )


def is_file(snapshot: Snapshot) -> bool:
    """Whether a snapshot is a file; otherwise it is a state dict."""
    return isinstance(snapshot, str | os.PathLike)


def _with_text_keys(counts: Mapping[int, int]) -> dict[str, int]:
    """The counts as JSON has them."""
    return {str(label): count for label, count in counts.items()}


def _with_number_keys(counts: Mapping[str, int]) -> dict[int, int]:
    return {int(label): count for label, count in counts.items()}
