"""The numbers of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from metalearn.analysis import Estimate
from metalearn.runtime.files import Record
from metalearn.runtime.tables import Tabular, plain
from transfer.comparison import statistics
from transfer.comparison.statistics import Paired
from transfer.finetuning.curve import Curve

RECORDED = (
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
    "test_counts",
    "majority",
    "collapsed",
)


@dataclass(frozen=True)
class LayerRetention:
    """How much of its start one layer kept in one run.

    Attributes:
        layer: its name.
        similarity: of its outputs on the probe at the start and at the end.
        floor: the similarity by chance (95 %).
        correlation: of its weights at the start and at the end; NaN if it has none.
        note: why there is no similarity, if there is none.
    """

    layer: str
    similarity: float
    floor: float
    correlation: float
    note: str = ""


@dataclass(frozen=True)
class FirstStep:
    """A start on the first batch of its training, before the first update.

    Attributes:
        loss: of the batch.
        gradients: the norm of the gradient of each layer that trains.
        dead: units of linear and convolutional layers whose weights have no gradient.
        units: all units of linear and convolutional layers that train.
    """

    loss: float
    gradients: dict[str, float]
    dead: int
    units: int

    @property
    def gradient(self) -> float:
        """The norm of the gradient of all layers together."""
        return math.hypot(*self.gradients.values())

    @property
    def dead_share(self) -> float:
        """The share of units that are dead; NaN without units."""
        return self.dead / self.units if self.units else math.nan


@dataclass(frozen=True)
class Run:
    """One strategy under one seed.

    Attributes:
        strategy: its name.
        seed: the seed.
        curve: scores and losses.
        initialisation: the start of every tensor.
        kept: what each layer kept.
        filters: of the first layer, (2, filters, channels, height, width), at the start and at the
            end; None if the first layer is no convolution.
        first: the start before the first update; None if the training is a function of the user's.
    """

    strategy: str
    seed: int
    curve: Curve
    initialisation: Record = field(repr=False)
    kept: tuple[LayerRetention, ...] = field(repr=False)
    filters: Tensor | None = field(default=None, repr=False)
    first: FirstStep | None = field(default=None, repr=False)


@dataclass(frozen=True)
class BaselineTest:
    """One strategy's score, or its steps to the threshold, against the baseline's.

    Attributes:
        strategy: its name.
        estimate: the mean over seeds; None if a seed did not reach the threshold.
        reached: seeds that reached the threshold.
        seeds: all seeds.
        paired: the test on the same seeds; None if a seed of either did not reach the threshold.
        adjusted: its p after Holm.
        answer: "higher", "lower", "no difference shown" or "not decidable".
        collapsed: seeds whose network predicts one class for every test image.
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
    """How similar one layer ends in two runs under different seeds.

    Attributes:
        strategy: its name.
        layer: the layer's name.
        seeds: similarity of two runs of the strategy.
        baseline: similarity of a run of the strategy and one of the baseline.
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
        """The runs of a strategy, in the order of seeds.

        Raises:
            KeyError: there is no such strategy.
        """
        runs = [run for run in self.runs if run.strategy == strategy]
        if not runs:
            raise KeyError(
                f"there is no strategy {strategy!r}; there are {', '.join(self.strategies)}"
            )
        return runs

    @property
    def metric(self) -> str:
        """The score that is compared."""
        return self.runs[0].curve.metric

    @property
    def test_counts(self) -> Mapping[int, int]:
        """The number of test images of each class; empty if the training did not count them."""
        return self.runs[0].curve.test_counts

    @property
    def majority(self) -> float:
        """The score of predicting the most frequent class for every test image.

        NaN if the training did not count the classes.
        """
        return self.runs[0].curve.majority

    @cached_property
    def collapsed(self) -> dict[str, tuple[int, ...]]:
        """The seeds whose network predicts one class for every test image, by strategy.

        Strategies without such seeds are left out.
        """
        collapsed = {}
        for name in self.strategies:
            seeds = tuple(run.seed for run in self.of(name) if run.curve.collapsed)
            if seeds:
                collapsed[name] = seeds
        return collapsed

    @cached_property
    def finals(self) -> tuple[BaselineTest, ...]:
        """The final score of every strategy against the baseline."""
        finals = {}
        for name in self.strategies:
            finals[name] = [run.curve.final for run in self.of(name)]
        return self._against(finals)

    @cached_property
    def steps(self) -> tuple[BaselineTest, ...]:
        """Steps to the threshold of every strategy against the baseline; fewer is faster."""
        steps = {}
        for name in self.strategies:
            steps[name] = [run.curve.steps_to(self.threshold) for run in self.of(name)]
        return self._against(steps)

    def kept(self, strategy: str) -> dict[str, tuple[Estimate, float, Estimate]]:
        """What each layer kept of its start.

        Returns:
            By layer: similarity of start and end over seeds, the largest chance level, and the
            correlation of weights over seeds.
        """
        layers = {}
        # One layer of all seeds at a time.
        for rows in zip(*[run.kept for run in self.of(strategy)], strict=True):  # (seeds,) each
            layers[rows[0].layer] = (
                statistics.over_seeds([row.similarity for row in rows], self.level),
                max(row.floor for row in rows),
                statistics.over_seeds([row.correlation for row in rows], self.level),
            )
        return layers

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
        # The fields of a run, without its filters.
        runs = [
            {
                "strategy": run.strategy,
                "seed": run.seed,
                "curve": run.curve.to_dict(),
                "start": run.initialisation,
                "kept": run.kept,
                "first": run.first,
            }
            for run in self.runs
        ]
        figures = {name: getattr(self, name) for name in RECORDED}
        return plain(
            {
                **figures,
                "smallest_p": statistics.smallest_p(len(self.seeds)),
                "alike": self.alike,
                "runs": runs,
                "settings": self.settings,
            }
        )

    def _against(self, measured: Mapping[str, Sequence[float | None]]) -> tuple[BaselineTest, ...]:
        """Each strategy's values against the baseline's, seed by seed; None is not reached."""
        reached = {}
        complete = {}
        for name, values in measured.items():
            reached[name] = [value for value in values if value is not None]
            # A mean over some of the seeds would be of the lucky ones.
            if len(reached[name]) == len(self.seeds):
                complete[name] = reached[name]
        # One family of tests, corrected for their number.
        tests = statistics.against(complete, self.baseline, self.level)
        rows = []
        for name in self.strategies:
            estimate = None
            if name in complete:
                estimate = statistics.over_seeds(complete[name], self.level)
            test: dict[str, Any] = {}
            if name in tests:
                paired, adjusted = tests[name]
                answer = statistics.answer(paired, adjusted, self.level)
                test = {"paired": paired, "adjusted": adjusted, "answer": answer}
            row = BaselineTest(
                name,
                estimate,
                len(reached[name]),
                len(self.seeds),
                collapsed=len(self.collapsed.get(name, ())),
                **test,
            )
            rows.append(row)
        return tuple(rows)
