"""The tables of a comparison, which its text and its page share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from metalearn.analysis import Estimate
from metalearn.analysis.plotting.measure_names import measure_name
from metalearn.runtime.tables import Table
from transfer.comparison import statistics
from transfer.finetuning.scores import words

if TYPE_CHECKING:
    from transfer.comparison.results import BaselineTest, ComparisonResult, EndSimilarity

# Similarity, chance and correlation of a layer that a start's network does not have.
NOTHING = (Estimate(math.nan, math.nan), -math.inf, Estimate(math.nan, math.nan))
TESTS = ("p (t)", "p (Holm)", "p (sign flip)")
KEPT = (
    "(Outputs of a layer on the probe before and after training, mean over seeds; positions as"
    " examples, channels as features. Chance: with the images of one side shuffled.)"
)
FIRST = (
    "(On the first batch, mean over seeds. A unit of a linear or convolutional layer is dead if its"
    " weights have no gradient.)"
)
ALIKE = (
    "(At the end of training, two seeds of the same start / one of this start and one of the"
    " baseline. Where the second is as high as the first, the baseline finds the same features.)"
)


def final_table(comparison: ComparisonResult) -> Table:
    """Final scores, each beside the score of the majority class, and tests against the baseline."""
    counted = bool(comparison.test_counts)
    majority = [f"{100 * comparison.majority:.2f} %"] if counted else []
    rows = []
    for row in comparison.finals:
        # A finished run always has a final score, so there is an estimate.
        score = f"{percent(row.estimate)}{_collapsed(row)}"
        tests = _test_cells(row, comparison.baseline, points)
        rows.append((row.strategy, score, *majority, *tests, row.answer))
    columns = [f"final {words(comparison.metric)}", *["majority class"] * counted]
    return _against_baseline(comparison, columns, rows)


def steps_table(comparison: ComparisonResult) -> Table:
    """Steps to the threshold, and tests against the baseline."""
    rows = []
    for row in comparison.steps:
        steps = not_reached(row) if row.estimate is None else row.estimate.shown(".0f")
        tests = _test_cells(row, comparison.baseline, lambda steps: steps.shown("+.0f"))
        rows.append((row.strategy, f"{steps}{_collapsed(row)}", *tests, speed(row)))
    return _against_baseline(comparison, [f"steps to {comparison.threshold:.4g}"], rows)


def first_table(comparison: ComparisonResult) -> Table:
    """Loss, gradient and dead units of each start before the first update, means over seeds."""
    rows = []
    for name in comparison.strategies:
        firsts = [run.first for run in comparison.of(name) if run.first]
        if not firsts:
            continue
        loss = statistics.over_seeds([first.loss for first in firsts], comparison.level)
        gradient = statistics.over_seeds([first.gradient for first in firsts], comparison.level)
        dead = statistics.over_seeds([first.dead_share for first in firsts], comparison.level)
        rows.append((name, loss.shown(".3g"), gradient.shown(".3g"), dead.shown(".1f", 100, " %")))
    columns = ("before the first update", "loss", "gradient norm", "dead units")
    return Table(columns, rows, note=FIRST)


def kept_table(comparison: ComparisonResult) -> Table:
    """Similarity of start and end: a row a layer, a column a start, and chance levels."""
    kept = {name: comparison.kept(name) for name in comparison.strategies}
    rows = []
    for layer in _layers(kept.values()):
        values = [layers.get(layer, NOTHING) for layers in kept.values()]  # (starts,)
        chance = max(level for _, level, _ in values)
        rows.append((layer, *[number(each.mean) for each, _, _ in values], number(chance)))
    columns = (f"{measure_name(comparison.measure)} of start and end", *kept, "chance (95 %)")
    return Table(columns, rows, note=KEPT)


def weights_table(comparison: ComparisonResult) -> Table:
    """Correlation of the weights before and after: a row a layer, a column a start."""
    kept = {name: comparison.kept(name) for name in comparison.strategies}
    rows = []
    for layer in _layers(kept.values()):
        values = [layers.get(layer, NOTHING) for layers in kept.values()]  # (starts,)
        cells = [number(each.mean) for _, _, each in values]
        if set(cells) != {"-"}:  # a layer without weights, such as batch norm, has no row
            rows.append((layer, *cells))
    return Table(("correlation of weights", *kept), rows)


def alike_table(comparison: ComparisonResult) -> Table:
    """Similarity of the ends of two seeds: a row a layer, a column a start.

    Cells hold the similarity with the same start / with the baseline.
    """
    ends: dict[str, dict[str, EndSimilarity]] = {name: {} for name in comparison.strategies}
    for row in comparison.alike:
        ends[row.strategy][row.layer] = row
    rows = []
    for layer in _layers(ends.values()):
        rows.append((layer, *[_pair(layers.get(layer)) for layers in ends.values()]))
    return Table((f"{measure_name(comparison.measure)} of two ends", *ends), rows, note=ALIKE)


def percent(estimate: Estimate | None) -> str:
    """A score in percent; nothing for None."""
    if estimate is None:
        return ""
    return estimate.shown(".2f", 100, " %")


def points(difference: Estimate) -> str:
    """A difference of scores in points."""
    return difference.shown("+.2f", 100, " points")


def number(value: float) -> str:
    """A similarity or correlation; "-" for NaN."""
    return f"{value:.3f}" if math.isfinite(value) else "-"


def speed(row: BaselineTest) -> str:
    """The answer on steps in words: fewer is faster."""
    return {"lower": "faster", "higher": "slower"}.get(row.answer, row.answer)


def not_reached(row: BaselineTest) -> str:
    """How many seeds did not reach the threshold."""
    return f"not reached by {row.seeds - row.reached} of {row.seeds}"


def _against_baseline(
    comparison: ComparisonResult, columns: list[str], rows: list[tuple[str, ...]]
) -> Table:
    difference = f"minus {comparison.baseline}, paired"
    return Table(("start", *columns, difference, *TESTS, "answer"), rows)


def _test_cells(
    row: BaselineTest, baseline: str, form: Callable[[Estimate], str]
) -> tuple[str, ...]:
    """The difference from the baseline and the p values; empty if there is no test."""
    if row.strategy == baseline:
        return ("the baseline", "", "", "")
    if row.paired is None:  # a seed of either did not reach the threshold
        return ("", "", "", "")
    tests = [_p(p) for p in (row.paired.p, row.adjusted, row.paired.exact)]
    return (form(row.paired.difference), *tests)


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _collapsed(row: BaselineTest) -> str:
    """Added to the score of a start whose networks predict one class for every image."""
    if not row.collapsed:
        return ""
    return f", collapsed in {row.collapsed} of {row.seeds}"


def _pair(row: EndSimilarity | None) -> str:
    if row is None:  # the start has a network of its own, without this layer
        return "-"
    return f"{number(row.seeds.mean)} / {number(row.baseline.mean)}"


def _layers(by_strategy: Iterable[Mapping[str, Any]]) -> list[str]:
    """The layers of all strategies, each once, in order."""
    names: dict[str, None] = {}
    for layers in by_strategy:
        names |= dict.fromkeys(layers)
    return list(names)
