"""The numbers of a grid of pointer value retrieval, as table, picture and page."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalearn.analysis.plotting.page import Section, write_page
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import Table, Tabular, plain
from metalearn.studies.pointer_scores import PointerScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEARNED = 0.95  # the iid accuracy from which a problem counts as learned
Row = tuple[int, str, int]  # complexity, function, size
COLUMNS = (
    "complexity",
    "function",
    "training examples",
    "training, %",
    "iid, %",
    "adversarial, %",
    "iid with the adversarial labels, %",
    "entropy of labels, bits (iid; adversarial)",
)
NOTE = (
    "Adversarial inputs have windows that training never had. If the entropy of their labels is 0,"
    " a constant scores 100 %: compare with the accuracy on iid inputs of the same labels."
)


@dataclass(frozen=True)
class GridCell:
    """One training.

    Attributes:
        complexity: m.
        function: its name; "value" with complexity 0.
        size: of the training set.
        seed: of data and initial weights.
        scores: of the trained network.
        seconds: of training.
        file: of the weights; None if they were not kept.
    """

    complexity: int
    function: str
    size: int
    seed: int
    scores: PointerScores
    seconds: float
    file: Path | None = field(default=None, compare=False)

    @property
    def row(self) -> Row:
        """What cells of different seeds have in common."""
        return self.complexity, self.function, self.size


@dataclass(frozen=True)
class PointerGrid(Pictured, Tabular):
    """The result of `pointer_grid`; prints as a table, mean ± standard deviation over seeds.

    Attributes:
        cells: the trainings.
        tests: examples of each test set.
        steps: updates of the weights.
    """

    cells: tuple[GridCell, ...]
    tests: int
    steps: int

    @property
    def rows(self) -> list[Row]:
        """Complexity, function and size of each row of the table."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    def over_seeds(self, row: Row, score: str) -> MeanStd:
        """A score of one row, over its seeds.

        Args:
            row: complexity, function and size.
            score: a field of `PointerScores`.
        """
        return MeanStd.of([getattr(cell.scores, score) for cell in self.cells if cell.row == row])

    def records(self) -> list[dict[str, Any]]:
        """A row for each training."""
        return [
            {
                "complexity": cell.complexity,
                "function": cell.function,
                "size": cell.size,
                "seed": cell.seed,
                **plain(cell.scores),
                "seconds": cell.seconds,
            }
            for cell in self.cells
        ]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-able values."""
        return {"tests": self.tests, "steps": self.steps, "cells": self.records()}

    def table(self) -> Table:
        """The rows as text."""
        lines = []
        for row in self.rows:
            scores = [
                _percent(self.over_seeds(row, name))
                for name in ("train", "iid", "adversarial", "same_labels")
            ]
            entropies = [
                _bits(self.over_seeds(row, name).mean)
                for name in ("entropy", "adversarial_entropy")
            ]
            complexity, function, size = row
            lines.append((str(complexity), function, f"{size:,}", *scores, "; ".join(entropies)))
        return Table(COLUMNS, lines, note=NOTE)

    def answer(self) -> str:
        """From how many examples on each problem is learned, in a sentence each."""
        sentences = []
        for complexity, function in dict.fromkeys(row[:2] for row in self.rows):
            sizes = [row[2] for row in self.rows if row[:2] == (complexity, function)]
            learned = [
                size
                for size in sizes
                if self.over_seeds((complexity, function, size), "iid").mean >= LEARNED
            ]
            problem = f"{function}, complexity {complexity}"
            words = f"above {max(sizes):,}"
            if learned:
                words = f"{min(learned):,}"
            sentences.append(f"{problem}: {words}")
        return (
            f"Training examples for an iid accuracy of {100 * LEARNED:.0f} %, of the sizes tried:"
            f" {'; '.join(sentences)}."
        )

    def __str__(self) -> str:
        return f"{self.answer()}\n\n{self.table()}"

    def figure(self) -> Figure:
        """Accuracy against the size of the training set, a line a problem."""
        from transfer.studies.pointer_figures import accuracies

        lines: dict[str, dict[int, tuple[float, float]]] = {}
        for row in self.rows:
            complexity, function, size = row
            shown = [self.over_seeds(row, name).mean for name in ("iid", "adversarial")]
            lines.setdefault(f"{function}, m = {complexity}", {})[size] = (shown[0], shown[1])
        return accuracies(lines)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write the page.

        Args:
            path: the file.
        """
        seeds = sorted({cell.seed for cell in self.cells})
        text = (
            f"{self.steps:,} updates each; {self.tests:,} examples of each test set; seeds"
            f" {', '.join(map(str, seeds))}; ± is the standard deviation over seeds.",
            NOTE,
        )
        pictures = {"Accuracy and training examples": self.figure()}
        section = Section("Accuracies", text, [Table(COLUMNS, self.table().rows)], pictures)
        write_page(path, "Pointer value retrieval", self.answer(), [section])


def _percent(score: MeanStd) -> str:
    """A score in percent; a dash if it is not defined."""
    return "-" if math.isnan(score.mean) else score.text(100, 1, "seed")


def _bits(entropy: float) -> str:
    return "-" if math.isnan(entropy) else f"{entropy:.2f}"
