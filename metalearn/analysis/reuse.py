"""What changed between two networks, where, and is it more than chance: asked of networks, and of a learner's inner loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import progress as _progress
from ..checkpoints import versions
from ..episodes import Episode, Examples, unstack
from ..evaluation import evaluation_mode, place
from ..execution import in_threads
from ..layers import is_inside
from ..layers import layers as layer_names
from ..learner import Learner
from ..readouts import cosine_readout
from ..representations import head_input, representations
from .freezing import Estimate, Freezing, freezing
from .layerwise import Profile, compare_layers, sample
from .similarity import Floor
from .tables import plain
from .verdict import Verdict, percent, verdict

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerReuse:
    """One layer before and after the inner loop.

    `cka` is debiased linear CKA, per task on the query images, with its interval over tasks, taken over `cka_size` (examples, features);
    `cca` is the mean canonical correlation pooled over tasks, over `cca_size`. `unmoved` says that the outputs were equal bit for bit.
    """

    layer: str
    head: bool
    unmoved: bool
    cka: Estimate
    cka_floor: Floor
    cka_size: tuple[int, int]
    cca: float
    cca_floor: Floor
    cca_size: tuple[int, int]
    note: str = ""


@dataclass(frozen=True)
class Accuracies:
    """Query accuracy, as fractions: the learner's own prediction, and with and without the head before and after adaptation.

    With the head before adaptation is the meta-initialisation as it stands; without the head is the cosine readout of the features
    that enter it. `head_cost` is with minus without after adaptation, paired. NaN where the learner does not use its head.
    """

    own: Estimate
    head_before: Estimate
    head_after: Estimate
    headless_before: Estimate
    headless_after: Estimate
    head_cost: Estimate
    chance: float


@dataclass(frozen=True)
class Reuse:
    """The answer of `feature_reuse`: print it, `plot` it, write the page with `report`, or take `to_dict`."""

    name: str
    verdict: Verdict
    layers: tuple[LayerReuse, ...]
    freezing: Freezing | None
    accuracies: Accuracies
    tasks: int
    ways: int
    shots: int
    queries: int
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        from .report import text

        return text(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None."""
        return plain(self)

    def figure(self) -> Figure:
        """The layer profile, the freezing curve and the accuracies as one matplotlib figure."""
        from .plots import summary

        return summary([self])

    def plot(self, path: str | PathLike[str]) -> None:
        """Write the figure; the ending of `path` says how (.png, .svg, .pdf)."""
        from .plots import save

        save(self.figure(), path)

    def report(self, path: str | PathLike[str]) -> None:
        """Write one self-contained HTML page."""
        from .report import report

        report([self], path)


def feature_reuse(
    learner: Learner,
    episodes: Any,
    *,
    layers: Sequence[str] | None = None,
    name: str | None = None,
    seed: int = 0,
    rows: int = 30_000,
    progress: bool = False,
) -> Reuse:
    """Does the inner loop change the features, or reuse them? -> `Reuse`, after Raghu et al. 2020 (arXiv:1909.09157).

    Each layer's output on the query images is compared under the meta-initialisation and under the adapted weights: debiased linear CKA
    per task, images flattened, and CCA with the tasks pooled, channels as features. The floor is the same measure with whole images (for
    CCA: whole tasks) of one side shuffled. Then the body is frozen from the bottom up, and the head is left out.

    Args:
        learner: any learner; what it is made of does not matter.
        episodes: a `FewShot` (or anything with a length and `[i]` giving single-task episodes), or one stack of tasks.
        layers: the layers to look at, in order; by default all of `metalearn.layers(learner.model)`. One that puts out a tuple or runs
            twice cannot be compared: name a module inside it instead.
        name: what to call it; by default the algorithm's name.
        seed: what the floor's draws depend on.
        rows: about how many rows CCA keeps, by taking some positions of every image.
        progress: show the progress on standard error.

    Raises:
        ValueError: no tasks, targets that are not class labels, or activations that are not finite (the layer is named).
    """
    tasks = _tasks(episodes)
    seen = _Seen(learner, layers, seed)
    with (
        evaluation_mode([learner]),
        torch.no_grad(),
        _progress.progress("before and after adaptation", len(tasks), unit="task", shown=progress) as advance,
    ):
        for task in in_threads(learner, range(len(tasks)), lambda one, i: _observe(one, seen.names, tasks[i], rows // len(tasks), seed, i)):
            seen.tasks.append(task)
            advance()
    found = seen.layers()
    adapts = not all(layer.unmoved for layer in found)
    frozen = freezing(learner, episodes, layers=seen.body, progress=progress) if adapts else None
    accuracies = seen.accuracies()
    ways, shots, queries = seen.tasks[0].sizes
    return Reuse(
        name=name or type(learner).__name__,
        verdict=_judge(found, frozen, accuracies),
        layers=tuple(found),
        freezing=frozen,
        accuracies=accuracies,
        tasks=len(tasks),
        ways=ways,
        shots=shots,
        queries=queries,
        settings=learner.settings(),
        versions=versions(),
        notes=tuple(_notes(found, accuracies, len(tasks))),
    )


@dataclass(frozen=True)
class _Observed:
    """What is kept of one task: CKA as numbers, sampled rows for CCA, whether layers moved, and how many queries were right."""

    profile: Profile
    sampled: dict[str, tuple[Tensor, Tensor]]
    unmoved: dict[str, bool]
    correct: dict[str, float]
    sizes: tuple[int, int, int]


def _observe(learner: Learner, names: Sequence[str], task: Episode, rows: int, seed: int, index: int) -> _Observed:
    support, query = place(task, learner)
    if support.targets.is_floating_point():
        raise ValueError("feature_reuse needs class labels, and these targets are real numbers; for regression, use compare_layers")
    ways = int(support.targets.max()) + 1

    def run(predict: Callable[..., Tensor], *arguments: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        with representations(learner.model, names) as outputs, head_input(learner.model, learner.head) as at_head:
            logits = predict(*arguments)
        return outputs, logits, at_head.features.flatten(1)

    def share(logits: Tensor) -> float:
        return float((logits.argmax(-1) == query.targets).double().mean())

    def headless(weights: dict[str, Tensor], features: Tensor) -> float:
        shots = run(learner.call, weights, support.inputs)[2]
        return share(cosine_readout(Examples(shots, support.targets), features, ways))

    adapted = learner.adapt(support)
    before, logits_before, features_before = run(learner.call, learner.weights(), query.inputs)
    after, own, features_after = run(learner.predict, adapted, query.inputs)
    uses_head = adapted.support is None  # the others predict from the support features that they keep
    return _Observed(
        profile=compare_layers(before, after, seed=seed + index),
        sampled={name: (sample(before[name], rows, seed).cpu(), sample(after[name], rows, seed).cpu()) for name in names},
        unmoved={name: torch.equal(before[name], after[name]) for name in names},
        correct={
            "own": share(own),
            "head_before": share(logits_before) if uses_head else float("nan"),
            "head_after": share(own) if uses_head else float("nan"),
            "headless_before": headless(learner.weights(), features_before),
            "headless_after": headless(adapted.weights, features_after),
        },
        sizes=(ways, len(support.targets) // ways, len(query.targets) // ways),
    )


class _Seen:
    """The tasks seen, and what they say together."""

    def __init__(self, learner: Learner, names: Sequence[str] | None, seed: int) -> None:
        self.names, self.seed = list(names or layer_names(learner.model)), seed
        self.body = [name for name in self.names if not is_inside(name, learner.head)]
        self.tasks: list[_Observed] = []

    def layers(self) -> list[LayerReuse]:
        """Every layer's similarities: CKA summed up over tasks, CCA from the pooled rows."""
        return [self._layer(name) for name in self.names]

    def _layer(self, name: str) -> LayerReuse:
        per_task = [task.profile[name] for task in self.tasks]
        before, after = (torch.cat(rows) for rows in zip(*(task.sampled[name] for task in self.tasks), strict=True))
        units = len(per_task) if len(per_task) > 1 else None
        pooled = compare_layers(
            {name: before}, {name: after}, measure="cca", units=units, rows=before.shape[0] * before.shape[1], seed=self.seed
        )[name]
        note = next((row.note for row in per_task if row.note), "")
        return LayerReuse(
            layer=name,
            head=name not in self.body,
            unmoved=all(task.unmoved[name] for task in self.tasks),
            cka=Estimate.of([row.similarity for row in per_task]),
            cka_floor=Floor.of(np.mean([row.chance for row in per_task], axis=0)),
            cka_size=(per_task[0].examples, per_task[0].features[0]),
            cca=pooled.similarity,
            cca_floor=pooled.floor,
            cca_size=(pooled.examples, pooled.features[0]),
            note="; ".join(dict.fromkeys(f"{kind}: {note}" for kind, note in (("CKA", note), ("CCA", pooled.note)) if note)),
        )

    def accuracies(self) -> Accuracies:
        """The accuracies over tasks."""
        correct = {key: np.array([task.correct[key] for task in self.tasks]) for key in self.tasks[0].correct}
        estimates = {key: Estimate.of(values) for key, values in correct.items()}
        cost = Estimate.of(correct["head_after"] - correct["headless_after"])
        return Accuracies(**estimates, head_cost=cost, chance=1 / self.tasks[0].sizes[0])


def _judge(layers: Sequence[LayerReuse], frozen: Freezing | None, accuracies: Accuracies) -> Verdict:
    if frozen is None:
        return Verdict(
            "does not adapt",
            "There is no inner loop that moves a weight: every layer is the same before and after, and there is nothing to compare "
            "(similarity 1 by construction).",
        )
    body_layers = [layer for layer in layers if not layer.head]
    estimates = {layer.layer: layer.cka for layer in body_layers}
    return verdict(estimates, frozen.rows[-1].cost, accuracies.head_cost, [layer.layer for layer in body_layers if layer.unmoved])


def _notes(layers: Sequence[LayerReuse], accuracies: Accuracies, tasks: int) -> Iterator[str]:
    if tasks == 1:
        yield "One task gives no interval: nothing can be decided from it; ask for at least 20."
    still = [layer.layer for layer in layers if layer.unmoved and not layer.head]
    if still and not all(layer.unmoved for layer in layers):
        yield f"The inner loop changes nothing up to {still[-1]}: similarity 1 there is by construction, not a finding."
    if accuracies.own.low <= accuracies.chance:
        yield (
            f"Accuracy {percent(accuracies.own)} cannot be told from chance ({accuracies.chance:.0%}): how similar features are that "
            "solve nothing does not speak of reuse. Train the learner first."
        )
    yield from (f"{layer.layer}: {layer.note}." for layer in layers if layer.note)


def _tasks(episodes: Any) -> Sequence[Episode]:
    if isinstance(episodes, Episode):
        return unstack(episodes)
    if not hasattr(episodes, "__len__") or not hasattr(episodes, "__getitem__"):
        raise TypeError(f"episodes must be a FewShot or one stack of tasks, not {type(episodes).__name__}; a DataLoader's data set will do")
    if not len(episodes):
        raise ValueError("episodes holds no tasks; ask for at least 20")
    return episodes
