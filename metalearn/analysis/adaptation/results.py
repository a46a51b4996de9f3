"""What `feature_reuse` finds, as numbers: one value a layer, the accuracies, and the verdict on
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from metalearn.analysis.adaptation.decomposition import Decomposition
from metalearn.analysis.adaptation.freezing import Freezing
from metalearn.analysis.adaptation.verdict import (
    UNCONVERGED_BOUND,
    Verdict,
    does_not_adapt,
    percent,
    reused_by_construction,
    undecidable,
    verdict,
)
from metalearn.analysis.measures.chance import Floor
from metalearn.evaluation import Evaluation
from metalearn.runtime.statistics import Estimate
from metalearn.runtime.tables import Tabular, plain

if TYPE_CHECKING:
    pass


class BeforeAfter(NamedTuple):
    """One number before and after adaptation."""

    before: Estimate
    after: Estimate


class Ceiling(NamedTuple):
    """What this layer shares with the same layer of an independently trained network, both before
    adaptation; over the same n x d.
    """

    cka: Estimate
    cca: Estimate
    cca_pooled: float


@dataclass(frozen=True)
class LayerReuse:
    """One layer before and after the inner loop.

    `cka` is debiased linear CKA, per task on the query images, with its interval over tasks, taken
    over `cka_size` (examples, features). `cca` is the mean canonical correlation, per task too:
    positions of the query images as examples and channels as features, over `cca_size` in a task,
    which is what Raghu et al. 2020 report. `cca_pooled` is that of all tasks pooled, so that one
    linear map must fit them all: a smaller number, which is not theirs. Each has its floor. `cka_p`
    is the add-one p value of the mean over tasks, whose draws are means over tasks too; tables
    print it corrected over layers. `unmoved` says that the outputs were equal bit for bit.

    `distance` is how far the layer's `weights` (their number) move, Euclidean, and
    `relative_distance` that over the norm they had; `gradient` is the norm of the gradient of the
    inner loss by them on the support set at the meta-initialisation, of those with a rate: 0 where
    the layer has none (`has_rate`). `intra` and `inter` are the mean cosine between query features
    of one class and of two. `ceiling` is None unless another network was given.
    """

    layer: str
    head: bool
    unmoved: bool
    cka: Estimate
    cka_floor: Floor
    cka_size: tuple[int, int]
    cka_p: float
    cca: Estimate
    cca_floor: Floor
    cca_size: tuple[int, int]
    cca_pooled: float
    cca_pooled_floor: Floor
    cca_pooled_size: tuple[int, int]
    weights: int
    has_rate: bool
    distance: Estimate
    relative_distance: Estimate
    gradient: Estimate
    intra: BeforeAfter
    inter: BeforeAfter
    ceiling: Ceiling | None = None
    note: str = ""


@dataclass(frozen=True)
class Accuracies:
    """Query accuracy, as fractions: the learner's own prediction, and with and without the head
    before and after adaptation.

    Where `measure` is "loss", for real targets, all are the learner's loss, a cost is the loss
    added, `chance` is the loss of predicting the mean of the support targets, and without the head
    is ridge regression from the features that enter it.

    With the head before adaptation is the meta-initialisation as it stands; without the head is the
    cosine readout of the features that enter it. `head_cost` is with minus without after
    adaptation, paired. NaN where the learner does not use its head.
    """

    own: Estimate
    head_before: Estimate
    head_after: Estimate
    headless_before: Estimate
    headless_after: Estimate
    head_cost: Estimate
    chance: float
    measure: str = "accuracy"

    @property
    def decided(self) -> bool:
        """Whether the learner's own score is better than chance beyond its interval."""
        return self.own.high < self.chance if self.measure == "loss" else self.own.low > self.chance


@dataclass(frozen=True)
class ReuseResult(Tabular):
    """The numbers of one answer of `feature_reuse`; `Reuse` prints, draws and reports them.

    `evaluation` is the learner's accuracy task by task, by which learners are compared in pairs.
    `seeds` holds the single answers where `over_seeds` pooled several; every estimate is then the
    mean over seeds with its interval over seeds, and `evaluation` their mean.
    """

    name: str
    verdict: Verdict
    layers: tuple[LayerReuse, ...]
    freezing: Freezing | None
    decomposition: Decomposition | None
    accuracies: Accuracies
    evaluation: Evaluation = field(repr=False, compare=False)
    tasks: int
    ways: int
    shots: int
    queries: int
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seeds: tuple[ReuseResult, ...] = field(default=(), repr=False)

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of numbers and names."""
        return [{"learner": self.name, **layer} for layer in self.to_dict()["layers"]]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None."""
        record: dict[str, Any] = plain(replace(self, seeds=()))
        if self.decomposition:
            record["decomposition"] = self.decomposition.to_dict()
        return {**record, "seeds": [seed.to_dict() for seed in self.seeds]}


def judge(
    layers: Sequence[LayerReuse], parts: Decomposition | None, accuracies: Accuracies
) -> Verdict:
    """The verdict on these layers, or why there is none."""
    if all(layer.unmoved for layer in layers):
        return does_not_adapt()
    if math.isnan(accuracies.own.interval):
        return undecidable("One value has no interval, so its accuracy cannot be told from chance.")
    if not accuracies.decided:
        return undecidable(_at_chance(accuracies))
    if parts is None:
        return undecidable(
            "The learner does not predict with its head, so no head can be run on its features."
        )
    if parts.converged.unconverged > UNCONVERGED_BOUND:
        return undecidable(f"The readout cannot be trusted: {parts.converged.note}.")
    rows = parts.converged.rows[1:]
    if not rows:
        return undecidable(
            "The network is its head alone: there is no body whose features could change."
        )
    in_body = [layer for layer in layers if not layer.head]
    if not parts.body_moves:
        return reused_by_construction(rows[-1].layers)
    return verdict(
        parts.worth,
        {layer.layer: layer.cka for layer in in_body},
        {row.layers[-1]: row.cost for row in rows},
        added={row.layers[-1]: row.added for row in rows},
        measure=accuracies.measure,
        whole=accuracies.chance if accuracies.measure == "loss" else 1.0,
    )


def _at_chance(accuracies: Accuracies) -> str:
    """That the score cannot be told from guessing, in a sentence."""
    chance = f"chance ({accuracies.chance:.0%})"
    if accuracies.measure == "loss":
        chance = f"that of predicting the mean of the support targets ({accuracies.chance:.4g})"
    score = percent(accuracies.own, accuracies.measure)
    return (
        f"{accuracies.measure.capitalize()} {score} cannot be told from {chance}: how similar"
        " features are that solve nothing does not speak of reuse. Train the learner first."
    )


def notes_on(
    layers: Sequence[LayerReuse],
    parts: Decomposition | None,
    tasks: int,
) -> Iterator[str]:
    """What a reader has to know before believing the numbers."""
    if tasks == 1:
        yield "One task gives no interval: nothing can be decided from it; ask for at least 20."
    still = [layer.layer for layer in layers if layer.unmoved and not layer.head]
    if still and not all(layer.unmoved for layer in layers):
        yield (
            f"The inner loop changes nothing up to {still[-1]}: similarity 1 there is by"
            " construction, not a finding."
        )
    if parts:
        for table in (parts.zeros, parts.initial):
            if table.note:
                yield (
                    "Heads run from"
                    f" {'zeros' if table.head == 'zeros' else 'their initialisation'}:"
                    f" {table.note}."
                )
    yield from (f"{layer.layer}: {layer.note}." for layer in layers if layer.note)
