"""What was observed on all tasks, summed up for every layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import torch

from metalearn.algorithms.base import Learner
from metalearn.analysis.measures.chance import Floor
from metalearn.analysis.networks.layerwise import compare_layers
from metalearn.analysis.networks.profile import LayerSimilarity
from metalearn.analysis.scales import worse
from metalearn.network.layers import body, is_inside, resolve
from metalearn.network.layers import layers as layer_names
from metalearn.runtime.statistics import Estimate, p_value

from .observe import Observed, weights_of
from .results import Accuracies, BeforeAfter, LayerReuse, OtherSeed


class MeanOverTasks:
    """The mean of one layer's similarities over the tasks where it is defined, and its chance.

    Attributes:
        estimate: the mean, with its interval over tasks.
        floor: chance for the mean.
        p: the add-one p value of the mean.
        size: (examples, features) in a task.
        note: why tasks are left out, or what to know about them.
    """

    def __init__(self, rows: Sequence[LayerSimilarity]) -> None:
        undefined = [row for row in rows if math.isnan(row.similarity)]
        # If no task has a value, the mean is NaN too.
        used = [row for row in rows if not math.isnan(row.similarity)] or rows
        self.estimate = Estimate.of([row.similarity for row in used])
        # The k-th draws of all tasks are averaged: one draw of the mean over tasks.
        fewest = min(len(row.chance) for row in used)
        chance = np.mean([row.chance[:fewest] for row in used], axis=0)  # (draws,)
        self.floor = Floor.of(chance)
        self.p = p_value(self.estimate.mean, chance, math.prod(row.orders for row in used))
        self.size = (rows[0].examples, rows[0].features[0])
        self.note = next((row.note for row in rows if row.note), "")
        if 0 < len(undefined) < len(rows):
            self.note = f"{len(undefined)} of {len(rows)} tasks are left out: {undefined[0].note}"


class Observations:
    """The tasks observed so far, and their summary.

    Args:
        learner: the learner that was observed.
        names: the layers; by default all of its model.
        draws: how often chance shuffles the pooled tasks; None for a number by its cost.
        seed: what these draws depend on.
    """

    def __init__(
        self, learner: Learner, names: Sequence[str] | None, draws: int | None, seed: int
    ) -> None:
        model = learner.model
        self.names = list(names or layer_names(model))
        self.draws = draws
        self.seed = seed
        self.body = [name for name in self.names if not is_inside(name, learner.head)]
        self.weights = {name: weights_of(model, resolve(model, name)) for name in self.names}
        self.sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        self.rated = set(learner.rates)
        self.tasks: list[Observed] = []

    def layers(self) -> list[LayerReuse]:
        """The numbers of every layer."""
        return [self._layer(name) for name in self.names]

    def _layer(self, name: str) -> LayerReuse:
        cka = MeanOverTasks([task.similarity.cka[name] for task in self.tasks])
        cca = MeanOverTasks([task.similarity.cca[name] for task in self.tasks])
        pooled = self._pooled_cca(name, 1, self.draws)
        # Every number that was measured, over tasks.
        columns = _columns([task.measured[name] for task in self.tasks])
        measured = {key: Estimate.of(values) for key, values in columns.items()}
        notes = (("CKA", cka.note), ("CCA", cca.note), ("CCA, pooled", pooled.note))
        return LayerReuse(
            layer=name,
            head=name not in self.body,
            unmoved=all(task.unmoved[name] for task in self.tasks),
            cka=cka.estimate,
            cka_floor=cka.floor,
            cka_size=cka.size,
            cka_p=cka.p,
            cca=cca.estimate,
            cca_floor=cca.floor,
            cca_size=cca.size,
            cca_pooled=pooled.similarity,
            cca_pooled_floor=pooled.floor,
            cca_pooled_size=(pooled.examples, pooled.features[0]),
            weights=sum(self.sizes[weight] for weight in self.weights[name]),
            has_rate=not self.rated.isdisjoint(self.weights[name]),
            distance=measured["distance"],
            relative_distance=measured["relative_distance"],
            gradient=measured["gradient"],
            intra=BeforeAfter(measured["intra_before"], measured["intra_after"]),
            inter=BeforeAfter(measured["inter_before"], measured["inter_after"]),
            other_seed=self._other_seed(name),
            note="; ".join(f"{kind}: {note}" for kind, note in notes if note),
        )

    def _other_seed(self, name: str) -> OtherSeed | None:
        # All tasks have one, or none has.
        similarities = [task.other_seed for task in self.tasks if task.other_seed]
        if not similarities:
            return None
        return OtherSeed(
            MeanOverTasks([similarity.cka[name] for similarity in similarities]).estimate,
            MeanOverTasks([similarity.cca[name] for similarity in similarities]).estimate,
            self._pooled_cca(name, 2, draws=0).similarity,
        )

    def _pooled_cca(self, name: str, side: int, draws: int | None) -> LayerSimilarity:
        """CCA of the pooled tasks: before adaptation with after (side 1) or another network (2)."""
        # (examples of all tasks, positions, channels)
        before = torch.cat([task.sampled[name][0] for task in self.tasks])
        other = torch.cat([task.sampled[name][side] for task in self.tasks])
        # Whole tasks are shuffled; a single task has its images to shuffle.
        groups = len(self.tasks) if len(self.tasks) > 1 else None
        if len({len(task.sampled[name][0]) for task in self.tasks}) > 1:
            # Tasks of several sizes cannot change places, so there is no chance level.
            groups = None
            draws = 0
        profile = compare_layers(
            {name: before},
            {name: other},
            measure="cca",
            groups=groups,
            rows=before.shape[0] * before.shape[1],
            seed=self.seed,
            draws=draws,
        )
        return profile[name]

    @property
    def moved(self) -> bool:
        """Whether the outputs of any layer changed in any task."""
        return not all(all(task.unmoved.values()) for task in self.tasks)

    def blocks(self, learner: Learner) -> list[str]:
        """The layers by which the body is frozen: those observed, or all if others move too."""
        covered = set(chain.from_iterable(self.weights[name] for name in self.body))
        outside = {name for name in learner.rates if not is_inside(name, learner.head)} - covered
        if outside or not self.body:
            return body(learner.model, learner.head)
        return self.body

    def shapes(self) -> set[tuple[int, int, int]]:
        """The sizes of the tasks: ways, shots, and queries a class."""
        return {task.sizes for task in self.tasks}

    def task_sizes(self) -> tuple[int, int, int]:
        """Ways, shots, and queries a class of the largest task."""
        return max(self.shapes())

    def notes(self) -> Iterator[str]:
        """What to know about the tasks."""
        ways = [task.sizes[0] for task in self.tasks]
        if len(self.shapes()) > 1:
            yield (
                f"The tasks differ in size, from {min(ways)} to {max(ways)} ways; ways, shots and"
                " queries are those of the largest, and chance is the mean over tasks."
            )
        if 1 in ways:
            yield (
                f"The support set of {ways.count(1)} of {len(ways)} tasks holds one class, on which"
                " no head can be trained."
            )

    def scores(self) -> dict[str, np.ndarray]:
        """The scores of every task (tasks,), by the names of `Accuracies`' fields."""
        return _columns([task.scores for task in self.tasks])

    def accuracies(self) -> Accuracies:
        """The scores over tasks."""
        measure = "accuracy" if self.tasks[0].sizes[0] else "loss"
        scores = self.scores()
        estimates = {key: Estimate.of(values) for key, values in scores.items()}
        # Paired: the difference of each task, then the mean.
        cost = Estimate.of(worse(scores["headless_after"], scores["head_after"], measure))
        chance = float(np.mean([task.constant for task in self.tasks]))
        return Accuracies(**estimates, head_cost=cost, chance=chance, measure=measure)


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """The values of every name (rows,)."""
    columns = {}
    for name in rows[0]:
        columns[name] = np.array([row[name] for row in rows])
    return columns
