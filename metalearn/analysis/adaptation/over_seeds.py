"""Several results together: one learner over seeds, and learners compared on the same tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations, pairwise
from typing import Any, TypeVar, overload

import numpy as np
import torch

from metalearn.algorithms.base import Learner
from metalearn.analysis.checks import check_all
from metalearn.analysis.measures.chance import Floor
from metalearn.evaluation import Evaluation, paired
from metalearn.runtime.renamed import warn_renamed
from metalearn.runtime.statistics import Estimate

from .decomposition import Decomposition
from .freezing import Freezing, Frozen, freezing
from .results import Accuracies, BeforeAfter, LayerReuse, OtherSeed, ReuseResult, judge, notes_on

Result = TypeVar("Result", bound=ReuseResult)

CURE = "pass the results of feature_reuse in a list"


@overload
def over_seeds(reuses: Sequence[Result]) -> Result: ...
@overload
def over_seeds(reuses: Sequence[Freezing]) -> Freezing: ...
def over_seeds(reuses: Sequence[Any]) -> Any:
    """Pool the results of one learner trained from several seeds.

    Every estimate becomes the mean over seeds with Student's interval over seeds,
    `t(0.975, seeds - 1) std(ddof=1) / sqrt(seeds)`. The tables print the standard deviation too,
    because that is the ± of the papers.

    For results of `feature_reuse`, the verdict is the rule on these means and intervals. Levels of
    chance are means over seeds, a layer's p value is the largest of any seed, and the single
    results stay in `seeds`. For results of `freezing`, the pooled table is table 1 of Raghu et al.
    2020 (arXiv:1909.09157), and the single tables stay in `runs`.

    Args:
        reuses: the results of `feature_reuse`, or of `freezing`, one for each seed, on the same
            tasks.

    Returns:
        One result of the same kind.

    Raises:
        TypeError: `reuses` is not a list of results of one kind.
        ValueError: there are no results, one of them is passed twice or pooled already, or they
            differ in settings, layers or tasks (the difference is named).

    Example:
        >>> scores = Estimate(0.5, 0.1), Estimate(0.7, 0.1)
        >>> rows = [Frozen((), accuracy=score, cost=score, added=score) for score in scores]
        >>> pooled = over_seeds([Freezing((row,), tasks=9) for row in rows])
        >>> round(pooled.rows[0].accuracy.mean, 3)
        0.6
    """
    results = check_all(reuses, (ReuseResult, Freezing), "reuses", CURE)
    if not results:
        raise ValueError(
            "over_seeds() got nothing to pool: pass the results of feature_reuse (or of freezing),"
            " one for each seed"
        )
    if all(isinstance(result, Freezing) for result in results):
        _check_tables(results)
        return replace(_pool_freezing(results), runs=tuple(results))
    check_all(results, ReuseResult, "reuses", "pass results of one kind")
    _check_reuses(results)
    return _pool_reuses(results)


def freezing_over_seeds(
    learners: Sequence[Learner],
    episodes: Any,
    *,
    layers: Sequence[str] | None = None,
    progress: bool = False,
) -> Freezing:
    """The former name of `over_seeds([freezing(learner, episodes) for learner in learners])`."""
    warn_renamed(
        "freezing_over_seeds(learners, episodes)",
        "over_seeds([freezing(learner, episodes) for learner in learners])",
    )
    learners = check_all(learners, Learner, "learners", "pass one learner for each seed")
    if not learners:
        raise ValueError("there is no learner: pass one for each seed")
    return over_seeds(
        [freezing(learner, episodes, layers=layers, progress=progress) for learner in learners]
    )


@dataclass(frozen=True)
class Difference:
    """The accuracy (or loss) of one learner minus that of another, paired.

    Attributes:
        first: the name of the one.
        second: the name of the other.
        estimate: the mean difference with its interval; NaN if they cannot be compared.
        pairs: the number of pairs.
        unit: what is paired: "task" or "seed".
        note: why they cannot be compared.
        measure: "accuracy" or "loss".
    """

    first: str
    second: str
    estimate: Estimate
    pairs: int
    unit: str = "task"
    note: str = ""
    measure: str = "accuracy"


def differences(reuses: Sequence[ReuseResult]) -> list[Difference]:
    """Compare every two learners in pairs, on the same tasks.

    Pooled results are paired seed by seed, in order; the interval is then over seeds.

    Args:
        reuses: results of `feature_reuse`, one a learner.
    """
    reuses = check_all(reuses, ReuseResult, "reuses", CURE)
    return [difference(a, b) for a, b in combinations(reuses, 2)]


def difference(a: ReuseResult, b: ReuseResult) -> Difference:
    """The accuracy of `a` minus that of `b` on the same tasks."""
    unit = "seed" if a.seeds or b.seeds else "task"
    runs = list(zip(a.seeds or [a], b.seeds or [b], strict=False))
    try:
        if max(len(a.seeds), 1) != max(len(b.seeds), 1):
            raise ValueError(f"{len(a.seeds)} seeds against {len(b.seeds)}")
        pairs = [paired(first.evaluation, second.evaluation) for first, second in runs]
    except ValueError as error:
        return Difference(a.name, b.name, Estimate(math.nan, math.nan), 0, unit, str(error))
    # The interval is over seeds, or over the tasks of the only pair.
    if unit == "seed":
        estimate = Estimate.of([pair.mean for pair in pairs])
        count = len(pairs)
    else:
        estimate = Estimate(pairs[0].mean, pairs[0].interval)
        count = pairs[0].tasks
    return Difference(a.name, b.name, estimate, count, unit, measure=pairs[0].measure)


# What can be pooled


def _check_tables(tables: Sequence[Freezing]) -> None:
    """Raise ValueError if these freezing tables are not of one recipe."""
    if any(table.runs for table in tables):
        raise ValueError(
            "over_seeds() got a table that is pooled already; pass the single ones in its .runs"
        )
    for first, second in pairwise(tables):
        layers = [table.rows[-1].layers for table in (first, second)]
        if layers[0] != layers[1]:
            raise ValueError(
                f"the learners differ in their layers ({layers[0]} against {layers[1]}); pool one"
                " recipe"
            )
        for name in ("tasks", "measure", "head"):
            _check_equal(name, getattr(first, name), getattr(second, name), "the tables")


def _check_reuses(reuses: Sequence[ReuseResult]) -> None:
    """Raise ValueError if these results are not of one setting, or one is passed twice."""
    if any(reuse.seeds for reuse in reuses):
        raise ValueError(
            "over_seeds() got a result that is pooled already; pass the single ones in its .seeds"
        )
    first = reuses[0]
    for number, reuse in enumerate(reuses[1:], 1):
        names = f"{first.name} 0 and {reuse.name} {number}"
        _check_settings(first.settings, reuse.settings, names)
        for name in ("tasks", "ways", "shots", "queries"):
            _check_equal(name, getattr(first, name), getattr(reuse, name), names)
        # The checksums of the tasks' data.
        if reuse.evaluation.fingerprints != first.evaluation.fingerprints:
            raise ValueError(f"{names} saw other tasks; give every seed the same episodes")
        if reuse.layer_names != first.layer_names:
            raise ValueError(
                f"{names} differ in their layers; compare the same layers for every seed"
            )
        if (reuse.layers[0].other_seed is None) != (first.layers[0].other_seed is None):
            raise ValueError(
                "some seeds were compared with another network and some were not; pass other_seed="
                " for all of them, or for none"
            )
    # A result that is passed twice would make the interval too small.
    records = [reuse.to_dict() for reuse in reuses]
    for i, j in combinations(range(len(reuses)), 2):
        if records[i] == records[j]:
            raise ValueError(
                f"runs {i} and {j} are the same to the last digit; pass one run for each seed"
            )


def _check_settings(first: Mapping[str, Any], second: Mapping[str, Any], names: str) -> None:
    for key in {**first, **second}:
        _check_equal(key, first.get(key), second.get(key), names)


def _check_equal(key: str, first: Any, second: Any, names: str) -> None:
    if first != second:
        raise ValueError(
            f"{names} differ in {key} ({first} against {second}); pool runs of one setting"
        )


# Pooling


def _pool_reuses(reuses: Sequence[ReuseResult]) -> ReuseResult:
    first = reuses[0]
    same_layers = zip(*(reuse.layers for reuse in reuses), strict=True)
    layers = tuple(_pool_layer(same) for same in same_layers)
    accuracies = _pool_accuracies([reuse.accuracies for reuse in reuses])
    frozen = None
    parts = None
    if first.freezing:
        frozen = _pool_freezing([reuse.freezing for reuse in reuses if reuse.freezing])
    if first.decomposition:
        parts = _pool_decompositions(
            [reuse.decomposition for reuse in reuses if reuse.decomposition]
        )
    # The notes are on the pooled numbers, not on those of a seed.
    notes = list(notes_on(layers, parts, first.tasks))
    if len(reuses) == 1:
        one_seed = (
            "One seed gives no interval over seeds: nothing can be decided from it; the papers take"
            " three."
        )
        notes.insert(0, one_seed)
    # Everything else is that of the first seed.
    return replace(
        first,
        verdict=judge(layers, parts, accuracies),
        layers=layers,
        freezing=frozen,
        decomposition=parts,
        accuracies=accuracies,
        evaluation=_mean_evaluation([reuse.evaluation for reuse in reuses]),
        notes=tuple(notes),
        seeds=tuple(reuses),
    )


def _pool(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over seeds with its interval over seeds; a NaN among them stays NaN."""
    return Estimate.of([estimate.mean for estimate in estimates])


def _pool_fields(values: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """The pooled estimates of objects, by the names of their attributes."""
    pooled = {}
    for name in names:
        pooled[name] = _pool([getattr(value, name) for value in values])
    return pooled


def _pool_accuracies(accuracies: Sequence[Accuracies]) -> Accuracies:
    # All fields are estimates, but for these two.
    names = [field.name for field in fields(Accuracies) if field.name not in ("chance", "measure")]
    return replace(accuracies[0], **_pool_fields(accuracies, names))


def _mean_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation:
    scores = torch.stack([evaluation.per_episode for evaluation in evaluations])  # (seeds, tasks)
    return replace(evaluations[0], per_episode=scores.mean(0), settings={})


def _pool_layer(layers: Sequence[LayerReuse]) -> LayerReuse:
    names = ("cka", "cca", "distance", "relative_distance", "gradient")
    others = [layer.other_seed for layer in layers if layer.other_seed]
    return replace(
        layers[0],
        **_pool_fields(layers, names),
        unmoved=all(layer.unmoved for layer in layers),
        cka_floor=_mean_floor([layer.cka_floor for layer in layers]),
        # The largest p value of any seed: the one that says least.
        cka_p=float(np.max([layer.cka_p for layer in layers])),
        cca_floor=_mean_floor([layer.cca_floor for layer in layers]),
        cca_pooled=float(np.mean([layer.cca_pooled for layer in layers])),
        cca_pooled_floor=_mean_floor([layer.cca_pooled_floor for layer in layers]),
        intra=_pool_before_after([layer.intra for layer in layers]),
        inter=_pool_before_after([layer.inter for layer in layers]),
        other_seed=_pool_other_seed(others) if others else None,
    )


def _pool_before_after(values: Sequence[BeforeAfter]) -> BeforeAfter:
    return BeforeAfter(**_pool_fields(values, ("before", "after")))


def _pool_other_seed(values: Sequence[OtherSeed]) -> OtherSeed:
    pooled = float(np.mean([value.cca_pooled for value in values]))
    return OtherSeed(**_pool_fields(values, ("cka", "cca")), cca_pooled=pooled)


def _mean_floor(floors: Sequence[Floor]) -> Floor:
    """The mean levels of chance over seeds; every seed has the same number of draws."""
    median, upper, draws = np.mean(floors, axis=0).tolist()
    return Floor(median, upper, round(draws))


def _pool_freezing(tables: Sequence[Freezing]) -> Freezing:
    """The same freezing table of several seeds as one."""
    same_rows = zip(*(table.rows for table in tables), strict=True)
    rows = [
        Frozen(same[0].layers, **_pool_fields(same, ("accuracy", "cost", "added")))
        for same in same_rows
    ]
    spread = f"Student's 95 % interval over {len(tables)} seeds"
    if len(tables) == 1:
        spread = "not given: one seed has no interval over seeds"
    # Each note once, in the order of the seeds.
    notes = dict.fromkeys(table.note for table in tables if table.note)
    return replace(
        tables[0],
        rows=tuple(rows),
        spread=spread,
        note="; ".join(notes),
        unconverged=max(table.unconverged for table in tables),
    )


def _pool_decompositions(answers: Sequence[Decomposition]) -> Decomposition:
    """The decompositions of several seeds as one."""
    same_conditions = zip(*(answer.conditions for answer in answers), strict=True)
    conditions = [
        replace(same[0], **_pool_fields(same, ("score", "cost"))) for same in same_conditions
    ]
    return replace(
        answers[0],
        conditions=tuple(conditions),
        zeros=_pool_freezing([answer.zeros for answer in answers]),
        initial=_pool_freezing([answer.initial for answer in answers]),
    )
