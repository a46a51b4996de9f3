"""The numbers that `feature_reuse` returns: one row a layer, the accuracies, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

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
from metalearn.runtime.renamed import warn_renamed
from metalearn.runtime.statistics import Estimate
from metalearn.runtime.tables import Tabular, plain


class BeforeAfter(NamedTuple):
    """One number before and after adaptation."""

    before: Estimate
    after: Estimate


class OtherSeed(NamedTuple):
    """The similarity of a layer to the same layer of a network trained from another seed.

    Both are taken before adaptation, over the same n x d.
    """

    cka: Estimate
    cca: Estimate
    cca_pooled: float


@dataclass(frozen=True)
class LayerReuse:
    """One layer before and after the inner loop.

    Every similarity has the level of chance beside it (`_floor`), and the number of examples and
    features that it was taken over (`_size`).

    Attributes:
        layer: the name.
        head: whether it is the head, or part of it.
        unmoved: whether its outputs are equal bit for bit.
        cka: debiased linear CKA, per task on the query images, with its interval over tasks.
        cka_floor: chance for it; its draws are means over tasks too.
        cka_size: (examples, features).
        cka_p: the add-one p value of the mean over tasks; tables print it corrected over layers.
        cca: the mean canonical correlation per task, with positions of the query images as
            examples and channels as features, as Raghu et al. 2020 report it.
        cca_floor: chance for it.
        cca_size: (examples, features) in a task.
        cca_pooled: the same of all tasks together, for which one linear map must fit every task:
            a smaller number, not comparable with theirs.
        cca_pooled_floor: chance for it.
        cca_pooled_size: (examples, features).
        weights: the number of weights of the layer.
        has_rate: whether the inner loop has a rate for any of them.
        distance: how far the weights move: the Euclidean norm of the difference.
        relative_distance: that over the norm that they had.
        gradient: the norm of the gradient of the inner loss on the support set at the
            meta-initialisation, by the weights that have a rate; 0 if none has.
        intra: the mean cosine between query features of one class.
        inter: the mean cosine between query features of two classes.
        other_seed: the similarity to another network, if one was passed.
        note: why a number is missing, or what to know about it.
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
    other_seed: OtherSeed | None = None
    note: str = ""

    @property
    def ceiling(self) -> OtherSeed | None:
        """The former name of `other_seed`."""
        warn_renamed("LayerReuse.ceiling", "LayerReuse.other_seed")
        return self.other_seed

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None. `ceiling` is the former `other_seed`."""
        record: dict[str, Any] = plain(self)
        return {**record, "ceiling": record["other_seed"]}


@dataclass(frozen=True)
class Accuracies:
    """Query accuracies, as fractions: with and without the head, before and after adaptation.

    Attributes:
        own: of the learner's own prediction.
        head_before: of the model before adaptation; NaN if the learner does not use its head.
        head_after: of the adapted model; NaN if the learner does not use its head.
        headless_before: of the cosine readout of the features that enter the head, before
            adaptation.
        headless_after: the same after adaptation.
        head_cost: accuracy without minus with the head after adaptation, paired.
        chance: the accuracy of guessing.
        measure: "accuracy", or "loss" for real targets. All numbers are then the learner's loss, a
            cost is the loss added, `chance` is the loss of predicting the mean of the support
            targets, and ridge regression takes the place of the cosine readout.
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
        if self.measure == "loss":
            return self.own.high < self.chance
        return self.own.low > self.chance


@dataclass(frozen=True)
class ReuseResult(Tabular):
    """The numbers of one `feature_reuse`; `Reuse` prints, draws and reports them.

    Attributes:
        name: of the learner.
        verdict: the answer of the rule.
        layers: the numbers of every layer.
        freezing: the freezing table of Raghu et al. 2020; None if the learner does not adapt.
        decomposition: the accuracy taken apart; None without an inner loop or a head.
        accuracies: with and without the head.
        evaluation: the learner's accuracy task by task, to compare learners in pairs.
        tasks: the number of tasks.
        ways: classes in a task; 0 for real targets.
        shots: support examples a class (in all, for real targets).
        queries: query examples a class (in all, for real targets).
        settings: of the learner.
        versions: of the libraries.
        notes: what to know before believing the numbers.
        seeds: the single results, if `over_seeds` pooled several. Every estimate is then the mean
            over seeds with its interval over seeds, and `evaluation` their mean.
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

    @property
    def layer_names(self) -> list[str]:
        """The names of the layers, in order."""
        return [layer.layer for layer in self.layers]

    @property
    def spread_over(self) -> str:
        """What the intervals are over: "seeds" if several were pooled, else "tasks"."""
        if self.seeds:
            return "seeds"
        return "tasks"

    def records(self) -> list[dict[str, Any]]:
        """The layers as dictionaries of numbers and names."""
        return [{"learner": self.name, **layer} for layer in self.to_dict()["layers"]]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None."""
        record: dict[str, Any] = plain(replace(self, seeds=()))
        # These have more in their dictionaries than their fields.
        record["layers"] = [layer.to_dict() for layer in self.layers]
        if self.freezing:
            record["freezing"] = self.freezing.to_dict()
        if self.decomposition:
            record["decomposition"] = self.decomposition.to_dict()
        return {**record, "seeds": [seed.to_dict() for seed in self.seeds]}


def judge(
    layers: Sequence[LayerReuse], parts: Decomposition | None, accuracies: Accuracies
) -> Verdict:
    """The verdict on these layers, or the reason why there is none."""
    # What needs no measurement, or has none that can be trusted.
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
    # The first row has nothing frozen.
    rows = parts.converged.rows[1:]
    if not rows:
        return undecidable(
            "The network is its head alone: there is no body whose features could change."
        )
    # The body has no rate, so its features cannot change.
    if not parts.body_moves:
        return reused_by_construction(rows[-1].layers)
    # Costs are a share of all that could be gained: an accuracy of 1, or the whole loss.
    return verdict(
        parts.worth,
        {layer.layer: layer.cka for layer in layers if not layer.head},
        {row.layers[-1]: row.cost for row in rows},
        added={row.layers[-1]: row.added for row in rows},
        measure=accuracies.measure,
        whole=accuracies.chance if accuracies.measure == "loss" else 1.0,
    )


def _at_chance(accuracies: Accuracies) -> str:
    """A sentence: the score cannot be told from guessing."""
    chance = f"chance ({accuracies.chance:.0%})"
    if accuracies.measure == "loss":
        chance = f"that of predicting the mean of the support targets ({accuracies.chance:.4g})"
    score = percent(accuracies.own, accuracies.measure)
    return (
        f"{accuracies.measure.capitalize()} {score} cannot be told from {chance}: the similarity of"
        " features that solve nothing says nothing about reuse. Train the learner first."
    )


def notes_on(
    layers: Sequence[LayerReuse], parts: Decomposition | None, tasks: int
) -> Iterator[str]:
    """What to know before believing the numbers."""
    if tasks == 1:
        yield "One task gives no interval: nothing can be decided from it; pass at least 20."
    # If no layer moves at all, the verdict says so.
    unmoved = [layer.layer for layer in layers if layer.unmoved and not layer.head]
    if unmoved and not all(layer.unmoved for layer in layers):
        yield (
            f"The inner loop changes nothing up to {unmoved[-1]}: similarity 1 there is by"
            " construction, not a finding."
        )
    if parts:
        for start, table in (("zeros", parts.zeros), ("their initialisation", parts.initial)):
            if table.note:
                yield f"Heads run from {start}: {table.note}."
    # Layers without a value, or with one to be read with care.
    for layer in layers:
        if layer.note:
            yield f"{layer.layer}: {layer.note}."
