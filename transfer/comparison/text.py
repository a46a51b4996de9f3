"""A comparison as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from transfer.comparison import statistics
from transfer.comparison.tables import (
    alike_table,
    final_table,
    first_table,
    kept_table,
    not_reached,
    points,
    speed,
    steps_table,
    weights_table,
)
from transfer.finetuning.scores import words

if TYPE_CHECKING:
    from transfer.comparison.results import BaselineTest, ComparisonResult

SHOWN_COUNTS = 10  # classes whose test images are counted in words


def text(comparison: ComparisonResult) -> str:
    """The comparison as aligned plain text."""
    answers = [overall(comparison), *collapsed_words(comparison), *headlines(comparison)]
    notes = [note for note in (counts_words(comparison), explained(comparison)) if note]
    parts = [
        "\n".join(answers),
        str(final_table(comparison)),
        str(steps_table(comparison)),
        "\n".join(notes),
        *[str(table) for table in (first_table(comparison),) if table.rows],
        str(kept_table(comparison)),
        str(weights_table(comparison)),
    ]
    if comparison.alike:
        parts.append(str(alike_table(comparison)))
    return "\n\n".join(parts)


def overall(comparison: ComparisonResult) -> str:
    """The answer in a line: which starts end higher, and which are faster."""
    # With few seeds no difference can be significant, however large it is.
    if statistics.smallest_p(len(comparison.seeds)) > comparison.level:
        return (
            f"Not decidable with {_seeds(comparison)} at the level {comparison.level:g}; the"
            " estimates stand below."
        )
    higher = [row.strategy for row in comparison.finals if row.answer == "higher"]
    faster = [row.strategy for row in comparison.steps if row.answer == "lower"]
    return (
        f"Higher than {comparison.baseline}: {', '.join(higher) or 'none'};"
        f" faster than {comparison.baseline}: {', '.join(faster) or 'none'}"
    )


def headlines(comparison: ComparisonResult) -> list[str]:
    """A sentence on each start: its gain over the baseline, and whether the seeds decide it."""
    lines = []
    for final, steps in zip(comparison.finals, comparison.steps, strict=True):
        if final.strategy == comparison.baseline or final.paired is None:
            continue
        difference = points(final.paired.difference)
        lines.append(
            f"{final.strategy} ends {difference} from {comparison.baseline}: {final.answer};"
            f" {_arrival(steps, comparison)}."
        )
    return lines


def _arrival(steps: BaselineTest, comparison: ComparisonResult) -> str:
    """When a start reaches the threshold, beside the baseline."""
    goal = f"{comparison.threshold:.4g}"
    if steps.estimate is None:
        return f"{goal} is {not_reached(steps)} seeds"
    arrival = f"it reaches {goal} in {steps.estimate.mean:.0f} steps, {comparison.baseline}"
    # None if a seed of the baseline does not reach the threshold.
    base = next(row.estimate for row in comparison.steps if row.strategy == comparison.baseline)
    if base is None:
        return f"{arrival} not always"
    return f"{arrival} in {base.mean:.0f}: {speed(steps)}"


def collapsed_words(comparison: ComparisonResult) -> list[str]:
    """A sentence on each start that predicts one class for every test image."""
    lines = []
    for name, seeds in comparison.collapsed.items():
        labels: set[int] = set()
        for run in comparison.of(name):
            # Different seeds may have collapsed to different classes.
            if run.seed in seeds:
                labels |= set(run.curve.predicted_counts)
        classes = " or ".join(map(str, sorted(labels)))
        prediction = f"class {classes}" if len(labels) == 1 else f"one class ({classes})"
        line = (
            f"{name} has collapsed: it predicts {prediction} for every test image in {len(seeds)}"
            f" of {_seeds(comparison)}. Its score there says nothing about what it learned"
        )
        if name == comparison.baseline:
            line += ", nor do the threshold and the differences from it"
        lines.append(f"{line}.")
    return lines


def counts_words(comparison: ComparisonResult) -> str:
    """The number of test images of each class, and the score of the most frequent one."""
    counts = comparison.test_counts
    if not counts:  # a user's own training did not count
        return ""
    most = max(counts, key=lambda label: counts[label])
    if len(set(counts.values())) == 1:
        sizes = f"{counts[most]} of each of {len(counts)} classes"
        which = "any one class"
    else:
        sizes = _class_sizes(counts)
        which = f"the majority class ({most})"
    line = (
        f"{sum(counts.values()):,} test images, {sizes}. Predicting {which} for all of them scores"
        f" {100 * comparison.majority:.2f} % {words(comparison.metric)}"
    )
    if not comparison.threshold > comparison.majority:
        line += ", which reaches the threshold without learning"
    return f"{line}."


def _class_sizes(counts: Mapping[int, int]) -> str:
    sizes = [f"class {label}: {count}" for label, count in sorted(counts.items())]
    more = len(sizes) - SHOWN_COUNTS
    if more > 0:
        return f"{', '.join(sizes[:SHOWN_COUNTS])} and {more} more classes"
    return ", ".join(sizes)


def explained(comparison: ComparisonResult) -> str:
    """How the tables are to be read."""
    seeds = _seeds(comparison)
    smallest = statistics.smallest_p(len(comparison.seeds))
    explanation = (
        f"{seeds}; ± is the {100 - 100 * comparison.level:g} % t interval over seeds; the threshold"
        f" {comparison.threshold:.4g} is {comparison.threshold_rule}. p (t): paired t test, which"
        " assumes normal differences; p (Holm): the same over all starts. p (sign flip): exact,"
        f" and with {seeds} {smallest:.4g} at least"
    )
    if smallest > comparison.level:
        needed = statistics.seeds_needed(comparison.level)
        explanation += (
            f", above the level {comparison.level:g}: not decidable; {needed} seeds can decide"
        )
    return f"{explanation}."


def start_words(comparison: ComparisonResult, strategy: str) -> str:
    """How many parameters started how."""
    counts = comparison.of(strategy)[0].initialisation["parameters"]
    return ", ".join(f"{count:,} parameters {how}" for how, count in counts.items())


def _seeds(comparison: ComparisonResult) -> str:
    count = len(comparison.seeds)
    return f"{count} seed{'s' * (count != 1)}"
