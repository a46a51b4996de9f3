"""Rapid learning or feature reuse: one rule on numbers and their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metalearn.analysis.checks import check_kind
from metalearn.analysis.scales import SCALES
from metalearn.runtime.statistics import Estimate

# Of an accuracy, or for real targets of the loss of predicting the mean of the support targets.
WORTH_BOUND = 0.02
SIMILARITY_BOUND = 0.9
UNCONVERGED_BOUND = 0.1

RULE = (
    "The rule. What adapting the body is worth: the accuracy of a head run to convergence on the"
    " adapted features, minus that on the features before adaptation, paired. More than 2 points"
    " beyond the interval is rapid learning; less than 2 points beyond the interval is feature"
    " reuse; anything else is undecided. Rapid learning is placed by freezing layers from the"
    " bottom under a converged head: those that can be frozen for less than 2 points beyond the"
    " interval are reused. A layer whose debiased CKA before and after adaptation is below 0.9"
    " beyond its interval changes. A body that cannot move is feature reuse by construction. An"
    " accuracy that cannot be told from chance gets no verdict, nor do heads of which more than one"
    " in ten did not converge. For real targets, 2 points are 2 % of the loss of predicting the"
    " mean of the support targets."
)

NO_VERDICT = "no verdict"
DOES_NOT_ADAPT = "does not adapt"
BY_CONSTRUCTION = "feature reuse by construction"
FEATURE_REUSE = "feature reuse"
RAPID_LEARNING = "rapid learning"
UNDECIDED = "undecided"

MEANING = {
    "holds": "features are reused",
    "fails": "features change for a gain",
    "open": "cannot be told at this interval",
}


@dataclass(frozen=True)
class Criterion:
    """One condition of feature reuse.

    Attributes:
        text: what was measured.
        status: "holds", "fails", or "open" if it cannot be told at this interval.
    """

    text: str
    status: str


@dataclass(frozen=True)
class Verdict:
    """The answer of the rule on one learner.

    Attributes:
        answer: "feature reuse", "feature reuse by construction", "rapid learning", "reuse below L,
            rapid learning in L" (or "from L on"), "undecided", "does not adapt" or "no verdict".
        evidence: the numbers that decide, in sentences; the first is the answer in plain words.
        criteria: every condition of feature reuse with its status.
    """

    answer: str
    evidence: str
    criteria: tuple[Criterion, ...] = ()


def verdict(
    worth: Estimate,
    similarity: Mapping[str, Estimate],
    frozen: Mapping[str, Estimate] | None = None,
    *,
    added: Mapping[str, Estimate] | None = None,
    measure: str = "accuracy",
    whole: float = 1.0,
) -> Verdict:
    """Apply the rule (`RULE`) to a learner that adapts its body and is better than chance.

    Args:
        worth: the accuracy, as a fraction, that a converged head gains by adapting the body.
        similarity: the debiased CKA before and after adaptation of every layer of the body, from
            the bottom.
        frozen: the accuracy lost by freezing every layer up to this one, under a converged head.
        added: the part of it that this layer adds to those below it.
        measure: "accuracy", or "loss" if costs are losses added.
        whole: what costs are a share of: 1, or the loss of predicting the mean of the support
            targets.

    Raises:
        TypeError: a number is not an `Estimate`, or `similarity` is not a mapping.

    Example:
        >>> same, changed = Estimate(0.99, 0.002), Estimate(0.5, 0.02)
        >>> verdict(Estimate(0.001, 0.004), {"conv1": same, "conv2": same}).answer
        'feature reuse'
        >>> verdict(Estimate(0.08, 0.01), {"conv1": same, "conv2": changed}).answer
        'rapid learning'
        >>> frozen = {"conv1": Estimate(0.001, 0.002), "conv2": Estimate(0.08, 0.01)}
        >>> verdict(Estimate(0.08, 0.01), {"conv1": same, "conv2": changed}, frozen).answer
        'reuse below conv2, rapid learning in conv2'
        >>> verdict(Estimate(0.02, 0.01), {"conv1": same}).answer
        'undecided'
    """
    frozen = frozen or {}
    added = added or {}
    check_kind(similarity, Mapping, "similarity", "give {layer: Estimate(mean, interval)}")
    for name, value in {"worth": worth, **similarity, **frozen, **added}.items():
        check_kind(value, Estimate, name, "give an Estimate(mean, interval)")
    bound = WORTH_BOUND * whole
    # Feature reuse if even the upper end of the interval is below the bound.
    status = _status(bound - worth.high, worth.low - bound)
    answer = {"holds": FEATURE_REUSE, "fails": RAPID_LEARNING, "open": UNDECIDED}[status]
    evidence = _plain(worth, status, measure, bound)
    # The change is worth more than the bound: where does it happen?
    if status == "fails":
        answer = _placed(list(similarity), frozen, bound)
        most = _most(worth, added)
        if most and len(similarity) > 1:
            evidence = f"{evidence.removesuffix('.')}; most of that is {most}."
    # A layer stays similar if even the lower end of its interval is above the bound.
    layers = {
        layer: _status(value.low - SIMILARITY_BOUND, SIMILARITY_BOUND - value.high)
        for layer, value in similarity.items()
    }
    # Every condition that was tested, the one that decides first.
    criteria = [Criterion(f"adapting the body is worth {points(worth, measure)}", status)]
    for layer, value in similarity.items():
        criteria.append(Criterion(f"CKA of {layer} {number(value)}", layers[layer]))
    sentences = [evidence, _changes(layers, measure, worthless=status == "holds")]
    return Verdict(answer, " ".join(filter(None, sentences)), tuple(criteria))


def reused_by_construction(body: Sequence[str]) -> Verdict:
    """The verdict on a learner whose inner loop cannot move its body."""
    return Verdict(
        BY_CONSTRUCTION,
        f"The inner loop cannot move {_names(body)}: the body's features are reused by"
        " construction, whatever is measured.",
    )


def undecidable(reason: str) -> Verdict:
    """The verdict if no answer can be trusted."""
    return Verdict(NO_VERDICT, reason)


def does_not_adapt() -> Verdict:
    """The verdict on a learner without an inner loop."""
    return Verdict(
        DOES_NOT_ADAPT,
        "No inner loop moves a weight: every layer is the same before and after, and there is"
        " nothing to compare (similarity 1 by construction).",
    )


def _plain(worth: Estimate, status: str, measure: str, bound: float) -> str:
    """What the body's change is worth, in a sentence."""
    counted = f"a loss of {bound:.3g}"
    if measure == "accuracy":
        counted = f"{100 * bound:.0f} points"
    # A negative worth reads better as a loss.
    if worth.mean < 0:
        loss = points(Estimate(-worth.mean, worth.interval), measure)
        lost = f"loses {loss}" if measure == "accuracy" else f"adds a loss of {loss}"
        consequence = f"so it gains less than the {counted} that count"
        if worth.high < 0:
            consequence = "so its features are better left as they are"
        if status == "open":
            consequence = f"which cannot be told from a gain of {counted}"
        return f"Adapting the body {lost} here, {consequence}."
    worthwhile = f"Adapting the body is worth {points(worth, measure)} here"
    if status == "fails":
        return f"{worthwhile}."
    if status == "holds":
        return f"{worthwhile}, less than the {counted} that count."
    return f"{worthwhile}, which cannot be told from {counted}."


def _changes(layers: Mapping[str, str], measure: str, *, worthless: bool) -> str:
    """Which layers change, in a sentence; empty if that is open.

    Args:
        layers: whether each layer stays similar: "holds", "fails" or "open".
        measure: "accuracy" or "loss".
        worthless: whether the change is known to be worth nothing.
    """
    changed = [layer for layer, status in layers.items() if status == "fails"]
    if changed:
        verb = "changes" if len(changed) == 1 else "change"
        gain = ""
        if worthless:
            gain = ", which is not worth " + ("any loss" if measure == "loss" else "accuracy")
        return f"{_names(changed)} {verb} (CKA below {SIMILARITY_BOUND}){gain}."
    if layers and set(layers.values()) == {"holds"}:
        return f"Every layer of the body stays similar (CKA above {SIMILARITY_BOUND})."
    return ""


def _placed(body: Sequence[str], frozen: Mapping[str, Estimate], bound: float) -> str:
    """Rapid learning, and from which layer on."""
    # The layers from the bottom that can be frozen at a cost below the bound.
    reused = 0
    for layer in body:
        cost = frozen.get(layer)
        if cost is None or not cost.high < bound:
            break
        reused += 1
    # None of them, or all of them, has no place to name.
    if not reused or reused == len(body):
        return RAPID_LEARNING
    first = body[reused]
    if reused == len(body) - 1:
        return f"reuse below {first}, rapid learning in {first}"
    return f"reuse below {first}, rapid learning from {first} on"


def _most(worth: Estimate, added: Mapping[str, Estimate]) -> str:
    """The layer that adds more than half of the worth; empty if none does."""
    layer = max(added, key=lambda name: added[name].mean, default="")
    if layer and added[layer].mean > worth.mean / 2:
        return layer
    return ""


def _names(layers: Sequence[str]) -> str:
    """Layers as people list them: "a", "a and b", "a, b and c"."""
    if len(layers) == 1:
        return layers[0]
    return f"{', '.join(layers[:-1])} and {layers[-1]}"


def _status(margin: float, excess: float) -> str:
    """Whether a condition holds by a margin, fails by an excess, or is open."""
    if margin > 0:
        return "holds"
    if excess > 0:
        return "fails"
    return "open"


def number(value: Estimate) -> str:
    """A similarity with its interval, in words."""
    return value.shown(".3f")


def points(cost: Estimate, measure: str = "accuracy") -> str:
    """A difference of accuracies in percentage points, or of losses, with its interval."""
    return SCALES[measure].cost(cost)


def percent(score: Estimate, measure: str = "accuracy") -> str:
    """An accuracy in percent, or a loss, with its interval."""
    return SCALES[measure].value(score)
