"""The freezing table of one training recipe under several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metalearn.algorithms.base import Learner
from metalearn.analysis.adaptation.freezing import Freezing, freezing
from metalearn.analysis.checks import check_all
from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import Tabular, aligned, plain


@dataclass(frozen=True)
class SeededFrozen:
    """The `layers` that the inner loop could not move, the accuracy then, and what that cost on the
    same tasks, over seeds.
    """

    layers: tuple[str, ...]
    accuracy: MeanStd
    cost: MeanStd


@dataclass(frozen=True)
class SeededFreezing(Tabular):
    """Accuracy with the first k layers frozen, over seeds; prints as table 1 of Raghu et al. 2020.

    `runs` has each seed's own table.
    """

    rows: tuple[SeededFrozen, ...]
    runs: tuple[Freezing, ...]

    def __str__(self) -> str:
        rows = [
            (
                f"up to {row.layers[-1]}" if row.layers else "nothing",
                row.accuracy.text(100, 2),
                row.cost.text(100, 2) if row.layers else "",
            )
            for row in self.rows
        ]
        spread = (
            f"± is the standard deviation over {len(self.runs)} seeds"
            if len(self.runs) > 1
            else "one seed: no spread over seeds"
        )
        return (
            f"{aligned(('frozen', 'accuracy %', 'cost in points'), rows)}\n({self.runs[0].tasks}"
            f" tasks; {spread})"
        )

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of numbers and names."""
        return list(self.to_dict()["rows"])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None."""
        return plain(self)


def freezing_over_seeds(
    learners: Sequence[Learner],
    episodes: Any,
    *,
    layers: Sequence[str] | None = None,
    progress: bool = False,
) -> SeededFreezing:
    """`freezing` of the same learner trained from several seeds, on the same tasks ->
    `SeededFreezing`.

    Mean and standard deviation over seeds are what table 1 of Raghu et al. 2020 (arXiv:1909.09157)
    has.

    Args:
        learners: one a seed, of one architecture.
        episodes, layers, progress: as for `freezing`.

    Raises ValueError where there is no learner, or their layers differ.
    """
    learners = check_all(learners, Learner, "learners", "give one learner for each seed")
    if not learners:
        raise ValueError("there is no learner: give one for each seed")
    runs = tuple(
        freezing(learner, episodes, layers=layers, progress=progress) for learner in learners
    )
    names = [tuple(row.layers for row in run.rows) for run in runs]
    if len(set(names)) > 1:
        raise ValueError(
            f"the learners have other layers ({names[0][-1]} and"
            f" {next(n for n in names if n != names[0])[-1]}); compare one recipe"
        )
    rows = [
        SeededFrozen(
            same[0].layers,
            MeanStd.of([row.accuracy.mean for row in same]),
            MeanStd.of([row.cost.mean for row in same]),
        )
        for same in zip(*(run.rows for run in runs), strict=True)
    ]
    return SeededFreezing(tuple(rows), runs)
