"""Feature reuse, rapid learning, or undecided: one rule, applied to numbers and their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .checks import check_kind
from .freezing import SCALES, Estimate

RULE = (
    "Feature reuse: the debiased CKA interval of every body layer lies above 0.9, and freezing the body and removing the head each "
    "cost less than 2 points (paired interval). Rapid learning: one of these fails beyond its interval. Otherwise undecided. For real "
    "targets, 2 points are 2 % of the loss of predicting the mean of the support targets."
)


@dataclass(frozen=True)
class Criterion:
    """One condition of the verdict: what was measured, its estimate, and whether it `holds`, `fails`, or is `open` at this interval."""

    text: str
    status: str


@dataclass(frozen=True)
class Verdict:
    """`answer` is "feature reuse", "rapid learning", "undecided" or "does not adapt"; `evidence` says why, with every number."""

    answer: str
    evidence: str
    criteria: tuple[Criterion, ...] = ()


def verdict(
    body: Mapping[str, Estimate],
    freezing_cost: Estimate,
    head_cost: Estimate,
    by_construction: Sequence[str] = (),
    *,
    measure: str = "accuracy",
    whole: float = 1.0,
) -> Verdict:
    """Feature reuse, rapid learning, or undecided, by the stated rule (`RULE`).

    Args:
        body: the debiased CKA before and after adaptation of every body layer.
        freezing_cost, head_cost: accuracy lost, as fractions, by freezing the body and by removing the head.
        by_construction: the body layers that the inner loop cannot change.
        measure: "accuracy", or "loss" where costs are losses added.
        whole: of which costs are a share: 1, or the loss of predicting the mean of the support targets.

    Example:
        >>> same, free = Estimate(0.99, 0.002), Estimate(0.001, 0.004)
        >>> verdict({"conv1": same, "conv2": same}, free, free).answer
        'feature reuse'
        >>> verdict({"conv1": same, "conv2": Estimate(0.5, 0.02)}, free, free).answer
        'rapid learning'
        >>> verdict({"conv1": same, "conv2": Estimate(0.9, 0.02)}, free, free).answer
        'undecided'
    """
    cure = "give an Estimate(mean, interval)"
    check_kind(body, Mapping, "body", "give {layer: Estimate(mean, interval)}")
    for name, value in {**body, "freezing_cost": freezing_cost, "head_cost": head_cost}.items():
        check_kind(value, Estimate, name, cure)
    criteria = [
        Criterion(
            f"CKA of {layer} {number(value)}{' by construction' if layer in by_construction else ''}",
            _status(value.low - 0.9, 0.9 - value.high),
        )
        for layer, value in body.items()
    ]
    for action, cost in (("freezing the body", freezing_cost), ("removing the head", head_cost)):
        bound = 0.02 * whole
        criteria.append(Criterion(f"{action} costs {points(cost, measure)}", _status(bound - cost.high, cost.low - bound)))
    statuses = [criterion.status for criterion in criteria]
    answer = "rapid learning" if "fails" in statuses else "feature reuse" if set(statuses) == {"holds"} else "undecided"
    meaning = {"holds": "meets the bound", "fails": "misses the bound beyond its interval", "open": "cannot be told from the bound"}
    evidence = "; ".join(f"{criterion.text} ({meaning[criterion.status]})" for criterion in criteria)
    return Verdict(answer, evidence[0].upper() + evidence[1:] + ".", tuple(criteria))


def _status(margin: float, excess: float) -> str:
    return "holds" if margin > 0 else "fails" if excess > 0 else "open"


def number(value: Estimate) -> str:
    """A similarity with its interval, in words."""
    return value.shown(".3f")


def points(cost: Estimate, measure: str = "accuracy") -> str:
    """A difference of accuracies in percentage points, or of losses, with its interval."""
    return SCALES[measure].cost(cost)


def percent(score: Estimate, measure: str = "accuracy") -> str:
    """An accuracy in percent, or a loss, with its interval."""
    return SCALES[measure].value(score)
