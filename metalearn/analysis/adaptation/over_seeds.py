"""Several answers of `feature_reuse` together: one algorithm over seeds, and learners compared on
the same tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
import torch

from metalearn.analysis.checks import check_all
from metalearn.analysis.measures.chance import Floor
from metalearn.evaluation import paired
from metalearn.runtime.statistics import Estimate

from .decomposition import Decomposition
from .freezing import Freezing, Frozen
from .results import Accuracies, BeforeAfter, Ceiling, LayerReuse, ReuseResult, judge, notes_on

Answer = TypeVar("Answer", bound=ReuseResult)

CURE = "pass the results of feature_reuse in a list"


def over_seeds(reuses: Sequence[Answer]) -> Answer:
    """The same learner trained from several seeds as one answer: every estimate is the mean over
    seeds with its interval over seeds.

    The interval is Student's, `t(0.975, seeds - 1) std(ddof=1) / sqrt(seeds)`; the single answers
    stay in `seeds`, and the tables print the standard deviation too, which is what the papers' ±
    is. The verdict is the rule on these means and intervals. Floors are means over seeds, and a
    layer's p value is the largest of any seed.

    Args:
        reuses: what `feature_reuse` returned for each seed, on the same tasks.

    Raises:
        ValueError: none, one given twice, or learners that differ in settings, layers or tasks
            (what differs is named).
    """
    reuses = check_all(reuses, ReuseResult, "reuses", CURE)
    _check(reuses)
    layers = tuple(
        _layer([reuse.layers[i] for reuse in reuses]) for i in range(len(reuses[0].layers))
    )
    # The head's cost is there only where the head is used; a mean of NaN stays NaN.
    accuracies = Accuracies(
        **{
            one.name: _pooled([getattr(reuse.accuracies, one.name) for reuse in reuses])
            for one in fields(Accuracies)
            if one.name not in ("chance", "measure")
        },
        chance=reuses[0].accuracies.chance,
        measure=reuses[0].accuracies.measure,
    )
    frozen = None
    parts = None
    if reuses[0].freezing:
        frozen = _freezing([reuse.freezing for reuse in reuses if reuse.freezing])
    if reuses[0].decomposition:
        parts = _decomposition([reuse.decomposition for reuse in reuses if reuse.decomposition])
    notes = [*notes_on(layers, parts, reuses[0].tasks)]
    if len(reuses) == 1:
        notes.insert(
            0,
            "One seed gives no interval over seeds: nothing can be decided from it; the papers take"
            " three.",
        )
    return replace(
        reuses[0],
        verdict=judge(layers, parts, accuracies),
        layers=layers,
        freezing=frozen,
        decomposition=parts,
        accuracies=accuracies,
        evaluation=replace(
            reuses[0].evaluation,
            per_episode=torch.stack([reuse.evaluation.per_episode for reuse in reuses]).mean(0),
            settings={},
        ),
        notes=tuple(notes),
        seeds=tuple(reuses),
    )


@dataclass(frozen=True)
class Difference:
    """The accuracy (or loss) of `first` minus that of `second`, paired over `pairs` tasks or seeds
    (`unit`).

    `note` says why there is none.
    """

    first: str
    second: str
    estimate: Estimate
    pairs: int
    unit: str = "task"
    note: str = ""
    measure: str = "accuracy"


def differences(reuses: Sequence[ReuseResult]) -> list[Difference]:
    """Every two learners compared in pairs on the same tasks: the accuracy of the first minus that
    of the second.

    Pooled ones are paired seed by seed, in order; the interval is then over seeds.
    """
    reuses = check_all(reuses, ReuseResult, "reuses", CURE)
    return [difference(a, b) for a, b in combinations(reuses, 2)]


def difference(a: ReuseResult, b: ReuseResult) -> Difference:
    """The accuracy of `a` minus that of `b` on the same tasks."""
    runs = list(zip(a.seeds or [a], b.seeds or [b], strict=False))
    unit = "seed" if a.seeds or b.seeds else "task"
    try:
        if max(len(a.seeds), 1) != max(len(b.seeds), 1):
            raise ValueError(f"{len(a.seeds)} seeds against {len(b.seeds)}")
        found = [paired(one.evaluation, other.evaluation) for one, other in runs]
    except ValueError as error:
        return Difference(a.name, b.name, Estimate(math.nan, math.nan), 0, unit, str(error))
    if unit == "task":
        return Difference(
            a.name,
            b.name,
            Estimate(found[0].mean, found[0].interval),
            found[0].tasks,
            measure=found[0].measure,
        )
    return Difference(
        a.name,
        b.name,
        Estimate.of([one.mean for one in found]),
        len(found),
        unit,
        measure=found[0].measure,
    )


def _check(reuses: Sequence[ReuseResult]) -> None:
    if not reuses:
        raise ValueError(
            "over_seeds() got nothing to pool: pass the results of feature_reuse, one for each seed"
        )
    first, shown = reuses[0], [reuse.to_dict() for reuse in reuses]
    if any(reuse.seeds for reuse in reuses):
        raise ValueError(
            "over_seeds() got an answer that is pooled already; pass the single ones of its .seeds"
        )
    for number, reuse in enumerate(reuses[1:], 1):
        for what in ("settings", "tasks", "ways", "shots", "queries"):
            ours, theirs = getattr(first, what), getattr(reuse, what)
            if ours != theirs:
                raise ValueError(
                    f"{first.name} 0 and {reuse.name} {number} differ in"
                    f" {_what(what, ours, theirs)}; pool runs of one setting"
                )
        if reuse.evaluation.fingerprints != first.evaluation.fingerprints:
            raise ValueError(
                f"{first.name} 0 and {reuse.name} {number} saw other tasks; give every seed the"
                " same episodes"
            )
        if [layer.layer for layer in reuse.layers] != [layer.layer for layer in first.layers]:
            raise ValueError(
                f"{first.name} 0 and {reuse.name} {number} differ in their layers; compare the same"
                " layers for every seed"
            )
        if (reuse.layers[0].ceiling is None) != (first.layers[0].ceiling is None):
            raise ValueError(
                "some seeds have a ceiling and some have none; give all of them one, or none"
            )
    twice = next(
        ((i, j) for i, j in combinations(range(len(reuses)), 2) if shown[i] == shown[j]), None
    )
    if twice:
        raise ValueError(
            f"runs {twice[0]} and {twice[1]} are the same to the last digit; pass one run for each"
            " seed"
        )


def _what(name: str, ours: Any, theirs: Any) -> str:
    if name != "settings":
        return f"{name} ({ours} against {theirs})"
    key = next(key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))
    return f"{key} ({ours.get(key)} against {theirs.get(key)})"


def _pooled(estimates: Sequence[Estimate]) -> Estimate:
    return Estimate.of([estimate.mean for estimate in estimates])


def _layer(layers: Sequence[LayerReuse]) -> LayerReuse:
    def pool(pick: Callable[[LayerReuse], Estimate]) -> Estimate:
        return _pooled([pick(layer) for layer in layers])

    first = layers[0]
    ceilings = [layer.ceiling for layer in layers if layer.ceiling]
    return replace(
        first,
        unmoved=all(layer.unmoved for layer in layers),
        cka=pool(lambda layer: layer.cka),
        cka_floor=_floor([layer.cka_floor for layer in layers]),
        cka_p=float(np.max([layer.cka_p for layer in layers])),
        cca=pool(lambda layer: layer.cca),
        cca_floor=_floor([layer.cca_floor for layer in layers]),
        cca_pooled=float(np.mean([layer.cca_pooled for layer in layers])),
        cca_pooled_floor=_floor([layer.cca_pooled_floor for layer in layers]),
        distance=pool(lambda layer: layer.distance),
        relative_distance=pool(lambda layer: layer.relative_distance),
        gradient=pool(lambda layer: layer.gradient),
        intra=BeforeAfter(
            pool(lambda layer: layer.intra.before), pool(lambda layer: layer.intra.after)
        ),
        inter=BeforeAfter(
            pool(lambda layer: layer.inter.before), pool(lambda layer: layer.inter.after)
        ),
        ceiling=_ceiling(ceilings) if ceilings else None,
    )


def _ceiling(ceilings: Sequence[Ceiling]) -> Ceiling:
    pooled = float(np.mean([ceiling.cca_pooled for ceiling in ceilings]))
    return Ceiling(
        _pooled([ceiling.cka for ceiling in ceilings]),
        _pooled([ceiling.cca for ceiling in ceilings]),
        pooled,
    )


def _floor(floors: Sequence[Floor]) -> Floor:
    """The mean of floors over seeds; every seed has as many draws."""
    median, upper, draws = np.mean(floors, axis=0).tolist()
    return Floor(median, upper, round(draws))


def _freezing(tables: Sequence[Freezing]) -> Freezing:
    """The same freezing table of several seeds as one."""
    rows = []
    for same in zip(*(table.rows for table in tables), strict=True):
        pooled = {
            name: _pooled([getattr(row, name) for row in same])
            for name in ("accuracy", "cost", "added")
        }
        rows.append(Frozen(same[0].layers, **pooled))
    spread = f"Student's 95 % interval over {len(tables)} seeds"
    if len(tables) == 1:
        spread = "not given: one seed has no interval over seeds"
    notes = dict.fromkeys(table.note for table in tables if table.note)
    return replace(
        tables[0],
        rows=tuple(rows),
        spread=spread,
        note="; ".join(notes),
        unconverged=max(table.unconverged for table in tables),
    )


def _decomposition(answers: Sequence[Decomposition]) -> Decomposition:
    """The decompositions of several seeds as one."""
    conditions = []
    for same in zip(*(answer.conditions for answer in answers), strict=True):
        score = _pooled([condition.score for condition in same])
        cost = _pooled([condition.cost for condition in same])
        conditions.append(replace(same[0], score=score, cost=cost))
    return replace(
        answers[0],
        conditions=tuple(conditions),
        zeros=_freezing([answer.zeros for answer in answers]),
        initial=_freezing([answer.initial for answer in answers]),
    )
