"""Freeze training: what holding layers from below costs in accuracy and saves in time.

Raghu, Gilmer, Yosinski and Sohl-Dickstein 2017 (arXiv:1706.05806).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from metalearn.network.layers import layers as layer_names
from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import Table, Tabular, plain

from .schedule import from_below
from .training import FineTuning


@dataclass(frozen=True)
class FreezeRow:
    """The trainings under one schedule.

    Attributes:
        scale: of the schedule; None for a training that freezes nothing.
        score: the final score over seeds.
        seconds: spent training, over seeds.
        share_of_time: the seconds as a share of those without freezing, the median over seeds.
    """

    scale: float | None
    score: MeanStd
    seconds: MeanStd
    share_of_time: float

    @property
    def name(self) -> str:
        """What the row is called in a table."""
        return "nothing frozen" if self.scale is None else f"scale {self.scale:g}"


@dataclass(frozen=True)
class FreezeTraining(Tabular):
    """Schedules of freeze training beside a training that freezes nothing; prints as a table.

    Attributes:
        rows: a row for each schedule; the first freezes nothing.
        metric: the name of the score.
        steps: of each training.
    """

    rows: tuple[FreezeRow, ...]
    metric: str
    steps: int

    def records(self) -> list[dict[str, Any]]:
        """A row for each schedule."""
        return [plain(row) for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        return plain(self)

    def table(self) -> Table:
        """The rows as text."""
        columns = ("schedule", self.metric, "seconds", "share of the time")
        rows = [
            (
                row.name,
                row.score.text(1, 3, "seed"),
                row.seconds.text(1, 1, "seed"),
                f"{row.share_of_time:.2f}",
            )
            for row in self.rows
        ]
        note = "layer l < L is held from scale * steps * l / L on; the median share over seeds"
        return Table(columns, rows, note=note)

    def __str__(self) -> str:
        return str(self.table())


def freeze_training(
    build: Callable[[], nn.Module],
    train: Callable[..., FineTuning],
    layers: Sequence[str] | None = None,
    *,
    scales: Sequence[float] = (1.0, 0.75, 0.5),
    seeds: Sequence[int] = (0, 1, 2),
) -> FreezeTraining:
    """Train with and without schedules that freeze layers from below, and compare score and time.

    The trainings of a seed take turns, each seed beginning with another one, so that whatever else
    the machine does is shared. The backward pass stops at the lowest layer that still trains: what
    that saves is measured, not assumed.

    Args:
        build: returns a network; called under `torch.manual_seed(seed)`.
        train: called as `train(frozen=...)`, returns a training function: such as
            `partial(finetune, train_set, test_set, steps=500)`.
        layers: the layers to freeze, the lowest first; by default all of the network.
        scales: of the schedules (see `from_below`).
        seeds: one training under each schedule for each seed.

    Raises:
        ValueError: There is no seed, or a scale is not between 0 and 1.

    Example:
        >>> from functools import partial
        >>> from metalearn.data.labelled_sets import divided
        >>> from metalearn.models import Conv4
        >>> from metalearn.tasks import glyphs
        >>> from transfer import finetune
        >>> parts = divided(glyphs("test", classes=3, drawers=10), 0.5)
        >>> train = partial(finetune, parts.train, parts.test, steps=8, batch=8)
        >>> found = freeze_training(lambda: Conv4(3, hidden=4), train, scales=[1.0], seeds=[0])
        >>> [row.name for row in found.rows]
        ['nothing frozen', 'scale 1']
    """
    if not seeds:
        raise ValueError("seeds=() trains nothing; give at least one seed")
    without = train(frozen=None)
    names = layer_names(build()) if layers is None else list(layers)
    trainings: dict[float | None, FineTuning] = {None: without}
    for scale in scales:
        trainings[scale] = train(frozen=from_below(names, without.steps, scale))
    kinds = list(trainings)
    scores: dict[float | None, list[float]] = {kind: [] for kind in kinds}
    seconds: dict[float | None, list[float]] = {kind: [] for kind in kinds}
    for turn, seed in enumerate(seeds):
        first = turn % len(kinds)
        for kind in kinds[first:] + kinds[:first]:
            torch.manual_seed(seed)
            curve = trainings[kind](build(), seed)
            scores[kind].append(curve.final)
            seconds[kind].append(curve.seconds)
    rows = []
    for kind in kinds:
        pairs = zip(seconds[kind], seconds[None], strict=True)
        share = statistics.median(frozen / whole for frozen, whole in pairs)
        rows.append(FreezeRow(kind, MeanStd.of(scores[kind]), MeanStd.of(seconds[kind]), share))
    return FreezeTraining(tuple(rows), without.metric, without.steps)
