"""A comparison as plain text, and the rows of its tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from metalearn.analysis import Estimate
from metalearn.runtime.tables import aligned
from transfer.comparison import statistics
from transfer.finetuning.scores import words

if TYPE_CHECKING:
    from transfer.comparison.results import ComparisonResult

if TYPE_CHECKING:
    from transfer.comparison.results import BaselineTest, ComparisonResult, EndSimilarity


def text(comparison: ComparisonResult) -> str:
    """The comparison as aligned plain text."""
    parts = [
        "\n".join([overall(comparison), *collapsed_words(comparison), *headlines(comparison)]),
        aligned(columns(comparison, "final"), final_rows(comparison)),
        aligned(columns(comparison, "steps"), steps_rows(comparison)),
        "\n".join(filter(None, (counts_words(comparison), explained(comparison)))),
        f"{aligned(*kept_table(comparison))}\n{KEPT}",
        f"{aligned(*weights_table(comparison))}",
    ]
    if comparison.alike:
        parts.append(f"{aligned(*alike_table(comparison))}\n{ALIKE}")
    return "\n\n".join(parts)


def overall(comparison: ComparisonResult) -> str:
    """The answer in a line: which starts end higher, and which are faster."""
    if statistics.smallest_p(len(comparison.seeds)) > comparison.level:
        return (
            f"Not decidable with {_seeds(comparison)} at the level {comparison.level:g}; the"
            " estimates stand below."
        )
    higher = [row.strategy for row in comparison.finals if row.answer == "higher"]
    faster = [row.strategy for row in comparison.steps if row.answer == "lower"]
    said = [
        f"{word} than {comparison.baseline}: {', '.join(names) or 'none'}"
        for word, names in (("Higher", higher), ("faster", faster))
    ]
    return "; ".join(said)


def headlines(comparison: ComparisonResult) -> list[str]:
    """One sentence a start: what it brings over the baseline, and whether this many seeds can tell."""
    lines = []
    for final, steps in zip(comparison.finals, comparison.steps, strict=True):
        if final.strategy == comparison.baseline or final.paired is None:
            continue
        score = (
            f"{final.strategy} ends {_points(final.paired.difference)} from {comparison.baseline}:"
            f" {final.answer}"
        )
        lines.append(f"{score}; {_arrival(steps, comparison)}.")
    return lines


def columns(comparison: ComparisonResult, kind: str) -> tuple[str, ...]:
    """The header of the table of final scores or of steps."""
    if kind == "final":
        what = [
            f"final {words(comparison.metric)}",
            *(["majority class"] if comparison.test_counts else []),
        ]
    else:
        what = [f"steps to {comparison.threshold:.4g}"]
    return (
        "start",
        *what,
        f"minus {comparison.baseline}, paired",
        "p (t)",
        "p (Holm)",
        "p (sign flip)",
        "answer",
    )


def final_rows(comparison: ComparisonResult) -> list[tuple[str, ...]]:
    """Final scores under `columns`, each beside the score of the majority class."""
    beside = [f"{100 * comparison.majority:.2f} %"] if comparison.test_counts else []
    rows = []
    for row in comparison.finals:
        name, score, *rest = _row(
            row, comparison.baseline, _percent(row.estimate) + _mark(row), _points
        )
        rows.append((name, score, *beside, *rest, row.answer))
    return rows


def _mark(row: BaselineTest) -> str:
    """What is added to the score of a start whose networks have collapsed."""
    return f", collapsed in {row.collapsed} of {row.seeds}" if row.collapsed else ""


def collapsed_words(comparison: ComparisonResult) -> list[str]:
    """A sentence on each start that predicts one class for every test image."""
    lines = []
    for name, seeds in comparison.collapsed.items():
        runs = {run.seed: run.curve for run in comparison.of(name)}
        labels = sorted({label for seed in seeds for label in runs[seed].predicted_counts})
        which = (
            f"class {labels[0]}"
            if len(labels) == 1
            else f"one class ({' or '.join(map(str, labels))})"
        )
        threshold = (
            ", nor do the threshold and the differences from it"
            if name == comparison.baseline
            else ""
        )
        lines.append(
            f"{name} has collapsed: it predicts {which} for every test image in {len(seeds)} of"
            f" {_seeds(comparison)}. Its score there says nothing about what it learned{threshold}."
        )
    return lines


def counts_words(comparison: ComparisonResult) -> str:
    """The number of test images of each class, and what predicting the most frequent one scores."""
    counts = comparison.test_counts
    if not counts:
        return ""
    most = max(counts, key=lambda label: counts[label])
    if len(set(counts.values())) == 1:
        sizes, which = f"{counts[most]} of each of {len(counts)} classes", "any one class"
    else:
        listed = [f"class {label}: {count}" for label, count in sorted(counts.items())]
        more = len(listed) - SHOWN_COUNTS
        sizes = ", ".join(listed[:SHOWN_COUNTS]) + (f" and {more} more classes" if more > 0 else "")
        which = f"the majority class ({most})"
    below = (
        ""
        if comparison.threshold > comparison.majority
        else ", which reaches the threshold without learning"
    )
    return (
        f"{sum(counts.values()):,} test images, {sizes}. Predicting {which} for all of them scores "
        f"{100 * comparison.majority:.2f} % {words(comparison.metric)}{below}."
    )


def steps_rows(comparison: ComparisonResult) -> list[tuple[str, ...]]:
    """Steps to the threshold under `columns`."""
    rows = []
    for row in comparison.steps:
        missing = row.seeds - row.reached
        said = (
            f"not reached by {missing} of {row.seeds}"
            if row.estimate is None
            else row.estimate.shown(".0f")
        )
        said += _mark(row)
        rows.append(
            (
                *_row(row, comparison.baseline, said, lambda difference: difference.shown("+.0f")),
                _speed(row),
            )
        )
    return rows


def explained(comparison: ComparisonResult) -> str:
    """How the tables are to be read."""
    seeds, share = _seeds(comparison), f"{100 - 100 * comparison.level:g} %"
    smallest = statistics.smallest_p(len(comparison.seeds))
    said = (
        f"{seeds}; ± is the {share} t interval over seeds; the threshold {comparison.threshold:.4g}"
        f" is {comparison.threshold_rule}. p (t): paired t test, which takes differences for"
        f" normal; p (Holm): the same over all starts. p (sign flip): exact, and with {seeds}"
        f" {smallest:.4g} at least"
    )
    if smallest > comparison.level:
        needed = statistics.seeds_needed(comparison.level)
        said += f", above the level {comparison.level:g}: not decidable; {needed} seeds can decide"
    return said + "."


def kept_table(comparison: ComparisonResult) -> Table:
    """Similarity of start and end: a row a layer, a column a start, and the largest chance value."""
    kept = {name: comparison.kept(name) for name in comparison.strategies}
    chance = {
        layer: max(found[layer][1] for found in kept.values() if layer in found)
        for layer in _layers(kept)
    }
    rows = [
        (layer, *(_known(found, layer, 0) for found in kept.values()), _shown(chance[layer]))
        for layer in _layers(kept)
    ]
    return (f"{_measure(comparison)} of start and end", *kept, "chance (95 %)"), rows


def weights_table(comparison: ComparisonResult) -> Table:
    """Correlation of the weights before and after: a row a layer, a column a start."""
    kept = {name: comparison.kept(name) for name in comparison.strategies}
    rows = [
        (layer, *(_known(found, layer, 2) for found in kept.values())) for layer in _layers(kept)
    ]
    return ("correlation of weights", *kept), [row for row in rows if set(row[1:]) != {"-"}]


def alike_table(comparison: ComparisonResult) -> Table:
    """How alike runs of two seeds end: a row a layer, a column a start, its cells with itself /
    with the baseline.
    """
    found: dict[str, dict[str, EndSimilarity]] = {name: {} for name in comparison.strategies}
    for row in comparison.alike:
        found[row.strategy][row.layer] = row
    cells = [(layer, [rows.get(layer) for rows in found.values()]) for layer in _layers(found)]
    rows = [
        (
            layer,
            *(
                "-" if one is None else f"{_shown(one.seeds.mean)} / {_shown(one.baseline.mean)}"
                for one in all
            ),
        )
        for layer, all in cells
    ]
    return (f"{_measure(comparison)} of two ends", *found), rows


def _seeds(comparison: ComparisonResult) -> str:
    count = len(comparison.seeds)
    return f"{count} seed{'s' * (count != 1)}"


def _layers(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(layer for rows in found.values() for layer in rows))


def start_words(comparison: ComparisonResult, strategy: str) -> str:
    """How many parameters started how."""
    counts = comparison.of(strategy)[0].initialisation["parameters"]
    return ", ".join(f"{count:,} parameters {how}" for how, count in counts.items())


def _row(
    row: BaselineTest, baseline: str, said: str, form: Callable[[Estimate], str]
) -> tuple[str, ...]:
    if row.paired is None:
        return (row.strategy, said, "the baseline" if row.strategy == baseline else "", "", "", "")
    figures = (row.paired.p, row.adjusted, row.paired.exact)
    return (
        row.strategy,
        said,
        form(row.paired.difference),
        *("-" if math.isnan(p) else f"{p:.3g}" for p in figures),
    )


def _percent(estimate: Estimate | None) -> str:
    return "" if estimate is None else estimate.shown(".2f", 100, " %")


def _points(difference: Estimate) -> str:
    return difference.shown("+.2f", 100, " points")


def _speed(row: BaselineTest) -> str:
    return {"lower": "faster", "higher": "slower"}.get(row.answer, row.answer)


def _arrival(steps: BaselineTest, comparison: ComparisonResult) -> str:
    goal = f"{comparison.threshold:.4g}"
    if steps.estimate is None:
        return f"{goal} is not reached by {steps.seeds - steps.reached} of {steps.seeds} seeds"
    reached = f"it reaches {goal} in {steps.estimate.mean:.0f} steps"
    base = next(row.estimate for row in comparison.steps if row.strategy == comparison.baseline)
    return (
        f"{reached}, {comparison.baseline} in {base.mean:.0f}: {_speed(steps)}"
        if base
        else f"{reached}, {comparison.baseline} not always"
    )


def _known(found: Mapping[str, tuple[Any, ...]], layer: str, which: int) -> str:
    return _shown(found[layer][which].mean) if layer in found else "-"


def _shown(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _measure(comparison: ComparisonResult) -> str:
    return comparison.measure.removeprefix("linear_").upper()


KEPT = (
    "(Outputs of a layer on the probe before and after training, mean over seeds; positions as"
    " examples, channels as features. Chance: with the images of one side shuffled.)"
)


ALIKE = (
    "(At the end of training, two seeds of the same start / one of this start and one of the"
    " baseline. Where the second is as high as the first, the baseline finds the same features.)"
)


SHOWN_COUNTS = 10  # classes whose test images are counted in words


Table: TypeAlias = tuple[tuple[str, ...], list[tuple[str, ...]]]
