"""What compare finds, as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from metalearn.analysis import Estimate
from metalearn.runtime.files import Record
from metalearn.runtime.tables import Tabular, plain
from transfer.comparison import statistics
from transfer.comparison.statistics import Paired
from transfer.finetuning.curve import Curve


@dataclass(frozen=True)
class LayerRetention:
    """How much of its start one layer kept in one run: similarity of its outputs, its floor, and
    the correlation of its weights.
    """

    layer: str
    similarity: float
    floor: float
    correlation: float
    note: str = ""


@dataclass(frozen=True)
class Run:
    """One strategy under one seed: its curve, what every tensor started from, what each layer kept,
    and its first-layer filters.

    `filters` are (2, filters, channels, height, width), at the start and at the end; None where the
    first layer is no convolution.
    """

    strategy: str
    seed: int
    curve: Curve
    initialisation: Record = field(repr=False)
    kept: tuple[LayerRetention, ...] = field(repr=False)
    filters: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class BaselineTest:
    """One strategy's score, or its steps to the threshold, against the baseline's on the same
    seeds.

    `paired` is None where a seed of either did not reach the threshold: then there is no number.
    `adjusted` is p after Holm. `collapsed` counts the seeds whose network predicts one class for
    every test image.
    """

    strategy: str
    estimate: Estimate | None
    reached: int
    seeds: int
    paired: Paired | None = None
    adjusted: float = math.nan
    answer: str = ""
    collapsed: int = 0


@dataclass(frozen=True)
class EndSimilarity:
    """How similar one layer ends in two runs of a strategy under different seeds, and in one of it
    and one of the baseline.
    """

    strategy: str
    layer: str
    seeds: Estimate
    baseline: Estimate


@dataclass(frozen=True, repr=False)
class ComparisonResult(Tabular):
    """The numbers of a comparison; `Comparison` prints, draws and reports them."""

    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    baseline: str
    threshold: float
    threshold_rule: str
    level: float
    measure: str
    alike: tuple[EndSimilarity, ...] = ()
    settings: Record = field(default_factory=dict, repr=False)

    def of(self, strategy: str) -> list[Run]:
        """The runs of a strategy, in the order of seeds."""
        found = [run for run in self.runs if run.strategy == strategy]
        if not found:
            raise KeyError(
                f"there is no strategy {strategy!r}; there are {', '.join(self.strategies)}"
            )
        return found

    @property
    def metric(self) -> str:
        """The score that is compared."""
        return self.runs[0].curve.metric

    @property
    def test_counts(self) -> Mapping[int, int]:
        """How many test images there are of each class; empty if the training did not count them."""
        return self.runs[0].curve.test_counts

    @property
    def majority(self) -> float:
        """The score of predicting the most frequent class for every test image; NaN if the training
        did not count them.
        """
        return self.runs[0].curve.majority

    @cached_property
    def collapsed(self) -> dict[str, tuple[int, ...]]:
        """Strategy -> the seeds whose network predicts one class for every test image; without
        those that have none.
        """
        seeds = {
            name: tuple(run.seed for run in self.of(name) if run.curve.collapsed)
            for name in self.strategies
        }
        return {name: some for name, some in seeds.items() if some}

    @cached_property
    def finals(self) -> tuple[BaselineTest, ...]:
        """The final score of every strategy against the baseline."""
        return self._against(
            {name: [run.curve.final for run in self.of(name)] for name in self.strategies}
        )

    @cached_property
    def steps(self) -> tuple[BaselineTest, ...]:
        """Steps to the threshold of every strategy against the baseline; fewer is faster."""
        return self._against(
            {
                name: [run.curve.steps_to(self.threshold) for run in self.of(name)]
                for name in self.strategies
            }
        )

    def kept(self, strategy: str) -> dict[str, tuple[Estimate, float, Estimate]]:
        """Layer -> similarity of start and end over seeds, its floor (the largest), and the
        correlation of weights over seeds.
        """
        rows = [run.kept for run in self.of(strategy)]
        return {
            layer[0].layer: (
                statistics.over_seeds([one.similarity for one in layer], self.level),
                max(one.floor for one in layer),
                statistics.over_seeds([one.correlation for one in layer], self.level),
            )
            for layer in zip(*rows, strict=True)
        }

    def __repr__(self) -> str:
        scores = ", ".join(
            f"{row.strategy} {row.estimate.mean:.4f}" for row in self.finals if row.estimate
        )
        collapsed = f"; collapsed: {', '.join(self.collapsed)}" if self.collapsed else ""
        return (
            f"Comparison({self.metric} over {len(self.seeds)} seeds: {scores}{collapsed}; print it"
            " for the tables)"
        )

    def records(self) -> list[dict[str, Any]]:
        """A row for each run."""
        records = []
        for run in self.runs:
            curve = run.curve
            records.append(
                {
                    "strategy": run.strategy,
                    "seed": run.seed,
                    "final": curve.final,
                    "steps_to_threshold": curve.steps_to(self.threshold),
                    "collapsed": curve.collapsed,
                }
            )
        return records

    def to_dict(self) -> Record:
        """Everything but the pictures as JSON-able values; NaN is None."""
        own = [
            "strategies",
            "seeds",
            "baseline",
            "metric",
            "threshold",
            "threshold_rule",
            "level",
            "measure",
            "finals",
            "steps",
        ]
        own += ["test_counts", "majority", "collapsed"]
        runs = [
            {
                "strategy": run.strategy,
                "seed": run.seed,
                "curve": run.curve.to_dict(),
                "start": run.initialisation,
                "kept": run.kept,
            }
            for run in self.runs
        ]
        smallest = statistics.smallest_p(len(self.seeds))
        figures = {name: getattr(self, name) for name in own}
        return plain(
            {
                **figures,
                "smallest_p": smallest,
                "alike": self.alike,
                "runs": runs,
                "settings": self.settings,
            }
        )

    def _against(self, measured: Mapping[str, Sequence[float | None]]) -> tuple[BaselineTest, ...]:
        reached = {
            name: [value for value in values if value is not None]
            for name, values in measured.items()
        }
        whole = {name: values for name, values in reached.items() if len(values) == len(self.seeds)}
        tests = statistics.against(whole, self.baseline, self.level)
        rows = []
        for name in self.strategies:
            estimate = statistics.over_seeds(whole[name], self.level) if name in whole else None
            row = (name, estimate, len(reached[name]), len(self.seeds))
            test = (
                (*tests[name], statistics.answer(*tests[name], self.level)) if name in tests else ()
            )
            rows.append(
                replace(BaselineTest(*row, *test), collapsed=len(self.collapsed.get(name, ())))
            )
        return tuple(rows)
