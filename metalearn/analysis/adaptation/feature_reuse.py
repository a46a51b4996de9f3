"""What changes in a learner's inner loop, where, and is it more than chance: `feature_reuse`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from metalearn.algorithms.base import Learner
from metalearn.analysis.adaptation.results import (
    Accuracies,
    BeforeAfter,
    Ceiling,
    LayerReuse,
    ReuseResult,
    judge,
    notes_on,
)
from metalearn.analysis.checks import check_draws, single_tasks
from metalearn.analysis.measures.chance import Floor
from metalearn.analysis.networks.layerwise import compare_layers
from metalearn.analysis.networks.profile import LayerSimilarity
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.analysis.scales import worse
from metalearn.engine.threads import in_threads
from metalearn.episodes import Episode
from metalearn.evaluation import Evaluation, evaluate
from metalearn.network.functional import Functional
from metalearn.network.layers import body, is_inside, resolve
from metalearn.network.layers import layers as layer_names
from metalearn.network.modes import evaluation_mode
from metalearn.runtime import progress as _progress
from metalearn.runtime.provenance import versions
from metalearn.runtime.statistics import Estimate, p_value

from .decomposition import Decomposition, decompose
from .freezing import Freezing, freezing
from .observe import Observed, Other, observe, settle, weights_of

if TYPE_CHECKING:
    pass


if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Reuse(ReuseResult, Pictured):
    """The answer of `feature_reuse`: print it, `plot` it, write the page with `report`, or take
    `to_dict`.
    """

    def __str__(self) -> str:
        from .page import text

        return text(self)

    def figure(self) -> Figure:
        """The layer profile, the freezing curve and the decomposition as one matplotlib figure."""
        from .figures import summary

        return summary([self])

    def report(self, path: str | PathLike[str]) -> None:
        """Write one self-contained HTML page."""
        from .page import report

        report([self], path)


def feature_reuse(
    learner: Learner,
    episodes: Any,
    *,
    layers: Sequence[str] | None = None,
    ceiling: Learner | None = None,
    name: str | None = None,
    seed: int = 0,
    rows: int = 30_000,
    draws: int | None = None,
    progress: bool = False,
) -> Reuse:
    """Does the inner loop change the features, or reuse them? -> `Reuse`, after Raghu et al. 2020
    (arXiv:1909.09157).

    Each layer's output on the query images is compared under the meta-initialisation and under the
    adapted weights: debiased linear CKA per task, images flattened, and CCA, channels as features,
    per task as in the paper and with the tasks pooled. The floor is the same measure with whole
    images (for pooled tasks: whole tasks) of one side shuffled. Beside it stand how far each
    layer's weights moved, how long their first gradient was, and how close the features of one
    class and of two are. Then the body is frozen from the bottom up, with the head adapted by its
    own few steps (the paper's table) and run to convergence, and the head is left out. What decides
    is what the body's change is worth to a head that is given every chance (`Decomposition`, and
    the rule in `metalearn.analysis.verdict`).

    For regression (real targets) the learner's loss stands in place of the accuracy, and ridge
    regression in place of the cosine readout.

    Args:
        learner: any learner; what it is made of does not matter.
        episodes: a `FewShot` (or anything with a length and `[i]` giving single-task episodes), or
            one stack of tasks.
        layers: the layers to look at, in order; by default all of
            `metalearn.layers(learner.model)`. One that puts out a tuple or runs twice cannot be
            compared: name a module inside it instead.
        ceiling: a learner of the same architecture trained from another seed: how similar the two
            are before adaptation says what two trainings of one kind share (Raghu et al. 2020,
            table 3).
        name: what to call it; by default the algorithm's name.
        seed: what the floor's draws depend on.
        rows: about how many rows CCA of the pooled tasks keeps, by taking some positions of every
            image.
        draws: how often each floor shuffles; by default 200 times if that is cheap over all tasks
            and layers, else 20 (`chosen_draws`). The table prints the numbers.
        progress: show the progress on standard error.

    Raises:
        ValueError: no tasks, activations that are not finite (the layer is named), or a ceiling of
            another architecture or of the same weights.
    """
    tasks = single_tasks(episodes)
    draws, seed = check_draws(draws, seed)
    seen = _Seen(learner, layers, draws, seed)
    other = None if ceiling is None else _other(ceiling, learner)

    settle(learner, tasks[0])

    def work(network: Functional, i: int) -> Observed:
        sizes: Any = {"rows": rows // len(tasks), "draws": draws, "tasks": len(tasks)}
        return observe(
            learner, network, seen.names, tasks[i], **sizes, seed=seed, index=i, other=other
        )

    with evaluation_mode([learner, *([other.learner] if other else [])]), torch.no_grad():
        with _progress.progress(
            "before and after adaptation", len(tasks), unit="task", shown=progress
        ) as advance:
            for task in in_threads(learner, range(len(tasks)), work):
                seen.tasks.append(task)
                advance()
        found = seen.layers()
        accuracies = seen.accuracies()
        frozen, parts = None, None
        # Tasks of several sizes are no stack.
        evaluation = evaluate(
            learner, tasks, progress=progress, tasks_at_once=1 if len(seen.shapes()) > 1 else 16
        )
        if not all(layer.unmoved for layer in found):
            frozen, parts = _taken_apart(learner, tasks, seen, evaluation, accuracies, progress)
    ways, shots, queries = seen.task_sizes()
    return Reuse(
        name=name or type(learner).__name__,
        verdict=judge(found, parts, accuracies),
        layers=tuple(found),
        freezing=frozen,
        decomposition=parts,
        accuracies=accuracies,
        evaluation=evaluation,
        tasks=len(tasks),
        ways=ways,
        shots=shots,
        queries=queries,
        settings=learner.settings(),
        versions=versions(),
        notes=(*seen.notes(), *notes_on(found, parts, len(tasks))),
    )


def _taken_apart(
    learner: Learner,
    tasks: Sequence[Episode],
    seen: _Seen,
    evaluation: Evaluation,
    accuracies: Accuracies,
    progress: bool,
) -> tuple[Freezing, Decomposition | None]:
    """The paper's freezing table, and the accuracy taken apart if the learner predicts with a head."""
    names = seen.blocks(learner)
    scores = seen.scores()
    if np.isnan(scores["head_after"]).any():
        return freezing(learner, tasks, layers=names, free=evaluation, progress=progress), None
    return decompose(
        learner,
        tasks,
        names,
        (scores["headless_before"], scores["headless_after"]),
        chance=accuracies.chance,
        measure=accuracies.measure,
        progress=progress,
    )


class _OverTasks:
    """What one layer's similarities, one a task, say together: the mean of those that are defined,
    and its chance level.
    """

    def __init__(self, rows: Sequence[LayerSimilarity]) -> None:
        defined = [row for row in rows if not math.isnan(row.similarity)]
        self.estimate = Estimate.of([row.similarity for row in defined or rows])
        self.note = next((row.note for row in rows if row.note), "")
        if defined and len(defined) < len(rows):
            undefined = next(row.note for row in rows if math.isnan(row.similarity))
            self.note = f"{len(rows) - len(defined)} of {len(rows)} tasks are left out: {undefined}"
        # The draws of every task are averaged in the order in which they came, each average being
        # one draw of the mean over tasks.
        fewest = min(len(row.chance) for row in defined or rows)
        chance = np.mean([row.chance[:fewest] for row in defined or rows], axis=0)
        self.floor = Floor.of(chance)
        self.p = p_value(
            self.estimate.mean, chance, math.prod(row.orders for row in defined or rows)
        )
        self.size = (rows[0].examples, rows[0].features[0])


class _Seen:
    """The tasks seen, and what they say together."""

    def __init__(
        self, learner: Learner, names: Sequence[str] | None, draws: int | None, seed: int
    ) -> None:
        self.names, self.draws, self.seed = list(names or layer_names(learner.model)), draws, seed
        self.body = [name for name in self.names if not is_inside(name, learner.head)]
        self.weights = {
            name: weights_of(learner.model, resolve(learner.model, name)) for name in self.names
        }
        self.sizes = {
            name: parameter.numel() for name, parameter in learner.model.named_parameters()
        }
        self.rated = set(learner.rates)
        self.tasks: list[Observed] = []

    def layers(self) -> list[LayerReuse]:
        """Every layer's numbers: CKA and what was measured summed up over tasks, CCA from the
        pooled rows.
        """
        return [self._layer(name) for name in self.names]

    def _layer(self, name: str) -> LayerReuse:
        cka = _OverTasks([task.profile[name] for task in self.tasks])
        cca = _OverTasks([task.cca[name] for task in self.tasks])
        pooled = self._pooled(name, 1)
        measured = {
            key: Estimate.of([task.measured[name][key] for task in self.tasks])
            for key in self.tasks[0].measured[name]
        }
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
            ceiling=self._ceiling(name),
            note="; ".join(f"{kind}: {note}" for kind, note in notes if note),
        )

    def _ceiling(self, name: str) -> Ceiling | None:
        cka = [task.ceiling[name] for task in self.tasks if task.ceiling]
        cca = [task.ceiling_cca[name] for task in self.tasks if task.ceiling_cca]
        if not cka:
            return None
        return Ceiling(
            _OverTasks(cka).estimate,
            _OverTasks(cca).estimate,
            self._pooled(name, 2, draws=0).similarity,
        )

    def _pooled(self, name: str, side: int, draws: int | None = None) -> LayerSimilarity:
        """CCA of the pooled rows before adaptation with those after (side 1) or of the other
        network (side 2).
        """
        first, second = (
            torch.cat([task.sampled[name][i] for task in self.tasks]) for i in (0, side)
        )
        draws = self.draws if draws is None else draws
        groups = len(self.tasks) if len(self.tasks) > 1 else None
        if len({len(task.sampled[name][0]) for task in self.tasks}) > 1:
            # Tasks of several sizes cannot change places, so there is no chance level.
            groups, draws = None, 0
        options: Any = {
            "measure": "cca",
            "groups": groups,
            "rows": first.shape[0] * first.shape[1],
            "seed": self.seed,
        }
        return compare_layers({name: first}, {name: second}, **options, draws=draws)[name]

    def blocks(self, learner: Learner) -> list[str]:
        """The layers by which the body is frozen: those looked at, or all if the others move too."""
        covered = {weight for name in self.body for weight in self.weights[name]}
        outside = {name for name in learner.rates if not is_inside(name, learner.head)} - covered
        return self.body if self.body and not outside else body(learner.model, learner.head)

    def shapes(self) -> set[tuple[int, int, int]]:
        """The sizes that tasks have: ways, shots and queries a class."""
        return {task.sizes for task in self.tasks}

    def notes(self) -> Iterator[str]:
        """What a reader has to know of the tasks."""
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

    def task_sizes(self) -> tuple[int, int, int]:
        """Ways, shots and queries a class, of the largest task."""
        return max(self.shapes())

    def scores(self) -> dict[str, np.ndarray]:
        """Every score of every task (tasks,)."""
        names = self.tasks[0].scores
        return {name: np.array([task.scores[name] for task in self.tasks]) for name in names}

    def accuracies(self) -> Accuracies:
        """The accuracies over tasks."""
        measure = "accuracy" if self.tasks[0].sizes[0] else "loss"
        scores = self.scores()
        estimates = {key: Estimate.of(values) for key, values in scores.items()}
        cost = Estimate.of(worse(scores["headless_after"], scores["head_after"], measure))
        chance = float(np.mean([task.constant for task in self.tasks]))
        return Accuracies(**estimates, head_cost=cost, chance=chance, measure=measure)


def _other(ceiling: Learner, learner: Learner) -> Other:
    ours, theirs = learner.model.state_dict(), ceiling.model.state_dict()
    different = [
        name
        for name in {**ours, **theirs}
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
    ]
    if different:
        raise ValueError(
            f"the ceiling is another architecture: {different[0]} differs; give the same network"
            " trained from another seed"
        )
    if all(torch.equal(ours[name], theirs[name].to(ours[name])) for name in ours):
        raise ValueError(
            "the ceiling has the same weights as the learner, so that it would be 1; give one"
            " trained from another seed"
        )
    return Other(ceiling)
