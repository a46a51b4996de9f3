"""The result of `forgetting`: accuracies, and what each layer has to do with them, over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metalearn.runtime.statistics import Estimate, MeanStd
from metalearn.runtime.tables import Tabular, plain
from transfer.continual.anatomy import COMPARISONS, Anatomy, LayerAnatomy

RESETS = ("reset_top", "reset_bottom", "reset_single")


@dataclass(frozen=True)
class Run:
    """One sequence: a memory under one seed.

    Attributes:
        memory: its name.
        seed: of the network and all trainings.
        accuracy: `accuracy[i][j]`: on task j after task i; NaN without a head.
        courses: for each task {step: accuracy on every task so far}, along its training.
        anatomy: its layers.
        frozen: accuracy on the last task, learned with all layers up to each one frozen: first
            none, then from the bottom; empty if this was not trained.
    """

    memory: str
    seed: int
    accuracy: tuple[tuple[float, ...], ...]
    courses: tuple[Mapping[int, tuple[float, ...]], ...]
    anatomy: Anatomy
    frozen: tuple[float, ...] = ()


@dataclass(frozen=True, repr=False)
class ForgettingResult(Tabular):
    """What a network forgets of its first task, and in which layers.

    Attributes:
        memories: {name: what keeps earlier tasks, in words}.
        seeds: of the runs.
        tasks: how many there are.
        layers: from the bottom to the top, without the head.
        runs: memory by memory, seed by seed.
        shared: whether all tasks have one head.
        settings: what decides the result.
    """

    memories: Mapping[str, str]
    seeds: tuple[int, ...]
    tasks: int
    layers: tuple[str, ...]
    runs: tuple[Run, ...]
    shared: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def of(self, memory: str) -> tuple[Run, ...]:
        """The runs of a memory, seed by seed.

        Raises:
            KeyError: there is no such memory.
        """
        if memory not in self.memories:
            raise KeyError(f"no memory {memory!r}; there are {', '.join(self.memories)}")
        return tuple(run for run in self.runs if run.memory == memory)

    @property
    def baseline(self) -> str:
        """The memory whose layers are shown first: the one that keeps nothing, or the first."""
        nothing = [name for name, text in self.memories.items() if text == "none"]
        return (nothing or list(self.memories))[0]

    def over_seeds(self, memory: str, value: Callable[[Run], float]) -> MeanStd:
        """The mean and standard deviation of a number over the seeds of a memory."""
        return MeanStd.of([value(run) for run in self.of(memory)])

    def forgetting(self, memory: str, task: int = 0) -> Estimate:
        """`R[j, j] - R[m-1, j]` with its 95 % interval.

        The interval is over seeds; of one seed (and task 0) over its test images.
        """
        runs = self.of(memory)
        if len(runs) == 1 and task == 0:
            return runs[0].anatomy.forgetting
        return Estimate.of([run.accuracy[task][task] - run.accuracy[-1][task] for run in runs])

    def is_forgotten(self, memory: str) -> bool:
        """Whether the interval of forgetting leaves out zero: otherwise no recovery is defined."""
        estimate = self.forgetting(memory)
        return bool(abs(estimate.mean) > estimate.interval)

    def recovery(self, memory: str, kind: str, layer: str) -> MeanStd | None:
        """The share of what was forgotten that a reset brings back.

        `(R_reset - R_after) / (R_before - R_after)`, with the mean over seeds of the denominator.

        Args:
            memory: whose runs.
            kind: "reset_top" (this layer and all above), "reset_bottom" or "reset_single".
            layer: of the reset.

        Returns:
            The mean over seeds with its standard deviation; None if the forgetting is within its
            interval of zero, where the share is not defined.
        """
        if kind not in RESETS:
            raise ValueError(f"kind={kind!r}; choose {', '.join(RESETS)}")
        if not self.is_forgotten(memory):
            return None
        lost = self.forgetting(memory).mean
        place = self.place(layer)
        return self.over_seeds(
            memory,
            lambda run: (getattr(run.anatomy.layers[place], kind) - run.anatomy.after) / lost,
        )

    def layer(self, memory: str, layer: str, value: Callable[[LayerAnatomy], float]) -> MeanStd:
        """The mean and standard deviation of a number of one layer over seeds."""
        place = self.place(layer)
        return self.over_seeds(memory, lambda run: value(run.anatomy.layers[place]))

    def accuracy(self, memory: str, after: int, task: int) -> MeanStd:
        """The accuracy on a task after another, over seeds."""
        return self.over_seeds(memory, lambda run: run.accuracy[after][task])

    def course(self, memory: str, step: int) -> MeanStd:
        """The accuracy on the first task at a step of the last one, over seeds."""
        return self.over_seeds(memory, lambda run: run.courses[-1][step][0])

    def subspace(self, memory: str, layer: str, comparison: str) -> MeanStd:
        """The similarity of a layer's leading directions in a comparison, over seeds."""
        return self.layer(memory, layer, lambda row: row.subspace[self.k][comparison])

    def reset(self, memory: str, layer: str, kind: str) -> MeanStd:
        """The accuracy on the first task with layers put back, over seeds; see `RESETS`."""
        return self.layer(memory, layer, lambda row: getattr(row, kind))

    def place(self, layer: str) -> int:
        """The number of a layer from the bottom."""
        if layer not in self.layers:
            raise KeyError(f"no layer {layer!r}; there are {', '.join(self.layers)}")
        return self.layers.index(layer)

    @property
    def k(self) -> int:
        """The number of directions of the subspaces in tables."""
        return next(iter(self.runs[0].anatomy.layers[0].subspace))

    def records(self) -> list[dict[str, Any]]:
        """A row for each memory, seed and layer."""
        rows = []
        for run in self.runs:
            head = {
                "memory": run.memory,
                "seed": run.seed,
                "before": run.anatomy.before,
                "after": run.anatomy.after,
                "last": run.accuracy[-1][-1],
            }
            for row in run.anatomy.layers:
                numbers = {name: value for name, value in vars(row).items() if name != "subspace"}
                spaces = {f"subspace, {name}": row.subspace[self.k][name] for name in COMPARISONS}
                rows.append(plain({**head, **numbers, **spaces}))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        return plain(self) | {
            "forgetting": {name: plain(self.forgetting(name)) for name in self.memories}
        }


def depth_correlation(values: Sequence[float]) -> float:
    """Spearman's rank correlation of a number with its place from the bottom.

    Example:
        >>> round(depth_correlation([0.9, 0.8, 0.5]), 6)
        -1.0
    """
    return rank_correlation(list(range(len(values))), values)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation; NaN for fewer than 3 pairs, or if one side is constant.

    Example:
        >>> round(rank_correlation([1, 2, 3], [2.0, 4.0, 3.0]), 6)
        0.5
    """
    import numpy as np
    from scipy.stats import rankdata  # here, since it takes long to import

    pairs = [pair for pair in zip(x, y, strict=True) if not any(map(math.isnan, pair))]
    if len(pairs) < 3:
        return math.nan
    ranks = [rankdata(side) for side in zip(*pairs, strict=True)]
    if any(np.ptp(side) == 0 for side in ranks):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])
