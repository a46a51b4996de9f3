"""Results of `feature_reuse` as tables of text, for the terminal, the page and files alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from metalearn.analysis.measures.chance import Floor
from metalearn.analysis.networks.profile import shown_p
from metalearn.analysis.scales import SCALES, Scale
from metalearn.runtime.statistics import Estimate, MeanStd, holm
from metalearn.runtime.tables import Table

from .freezing import Freezing, Frozen
from .over_seeds import difference
from .results import LayerReuse, ReuseResult
from .verdict import Verdict, percent, points

WORTH = "adapting the body is worth"


def overview(reuses: Sequence[ReuseResult], results: Sequence[Mapping[str, Any]] = ()) -> Table:
    """All learners: `results`, and a row for each learner that these do not name.

    Args:
        reuses: the results of `feature_reuse`.
        results: a row a learner, `{"learner": name, column: value}`; the name as in `reuses` adds
            that learner's answer to the row.
    """
    remaining = list(reuses)
    rows = []
    for row in results:
        named = next((reuse for reuse in remaining if reuse.name == row.get("learner")), None)
        # By identity: two learners may have one name.
        remaining = [reuse for reuse in remaining if reuse is not named]
        rows.append(_answer(named) | dict(row))
    rows += [_score(reuse, reuses[0]) | _answer(reuse) for reuse in remaining]
    # The columns in the order in which rows name them.
    names = dict.fromkeys(chain.from_iterable(rows))
    # The answer comes after the numbers, and the time of training last.
    last = [name for name in (WORTH, "verdict", "training") if name in names]
    columns = [*(name for name in names if name not in last), *last]
    cells = []
    for row in rows:
        cells.append(tuple(str(row.get(name, "")) for name in columns))
    return Table(columns, cells)


def _answer(reuse: ReuseResult | None) -> dict[str, Any]:
    """The answer of the analysis; "-" for a learner that was not analysed."""
    if reuse is None:
        return {WORTH: "-", "verdict": "-"}
    worth = "-"
    if reuse.decomposition:
        worth = points(reuse.decomposition.worth, reuse.accuracies.measure)
    return {WORTH: worth, "verdict": reuse.verdict.answer}


def _score(reuse: ReuseResult, first: ReuseResult) -> dict[str, Any]:
    """A learner's score on the analysed tasks, and the difference to the first learner."""
    measure = reuse.accuracies.measure
    counts = [counted(reuse.tasks, "task")]
    if reuse.seeds:
        counts.insert(0, counted(len(reuse.seeds), "seed"))
    score = f"{percent(reuse.accuracies.own, measure)} ({', '.join(counts)})"
    row = {"learner": reuse.name, f"{measure}, tasks analysed": score}
    if reuse is not first:
        compared = difference(reuse, first)
        scale = SCALES[compared.measure]
        minus = compared.estimate.shown(f"+{scale.cost_form}", scale.factor)
        if compared.note:
            minus = "not comparable"
        row[f"minus {first.name}, paired"] = minus
    return row


def layer_by_layer(reuse: ReuseResult) -> Table:
    """Every layer's similarity, and the gain or loss of freezing up to it."""
    scale = SCALES[reuse.accuracies.measure]
    columns = ["layer", "CKA, before and after", "chance (95 %)"]
    similarity = {
        layer.layer: (_name(layer), _similarity(layer, layer.cka), _chance(layer.cka_floor))
        for layer in reuse.layers
    }
    converged: dict[str, Frozen] = {}
    paper: dict[str, Frozen] = {}
    if reuse.decomposition:
        columns += ["frozen up to here, head converged", "of that, this layer"]
        converged = _by_last_layer(reuse.decomposition.converged)
    if reuse.freezing:
        columns.append("frozen up to here, head by its own steps (the paper's)")
        paper = _by_last_layer(reuse.freezing)
    rows = []
    # The body from the bottom, then the head.
    for name in dict.fromkeys([*converged, *paper, *similarity]):
        cells = [*similarity.get(name, (name, "-", "-"))]
        if reuse.decomposition:
            cells += _against(scale, converged.get(name), "cost", "added")
        if reuse.freezing:
            cells += _against(scale, paper.get(name), "cost")
        rows.append(tuple(cells))
    return Table(columns, rows)


def _by_last_layer(table: Freezing) -> dict[str, Frozen]:
    """The rows with layers frozen, by the last of these."""
    return {row.layers[-1]: row for row in table.rows[1:]}


def _against(scale: Scale, row: Frozen | None, *names: str) -> list[str]:
    """Gains and losses in words; "-" for a layer that was not frozen."""
    if row is None:
        return ["-"] * len(names)
    return [scale.against(getattr(row, name)) for name in names]


def similarity_table(reuse: ReuseResult) -> Table:
    """CKA of every layer with chance; p is corrected over the layers."""
    columns = ["layer", "CKA", "chance (95 %)", "p", "n x d"]
    if has_other_seed(reuse):
        columns.append("CKA, other seed")
    rows = []
    # As many tests as layers, so p is corrected for their number.
    adjusted = holm([layer.cka_p for layer in reuse.layers])
    for layer, p in zip(reuse.layers, adjusted, strict=True):
        cells = [_name(layer), _similarity(layer, layer.cka), _chance(layer.cka_floor)]
        cells += [shown_p(p), _size(layer.cka_size)]
        if layer.other_seed:
            cells.append(_estimate(layer.other_seed.cka))
        rows.append(cells)
    return Table(columns, rows, title="Similarity before and after adaptation")


def cca_table(reuse: ReuseResult) -> Table:
    """CCA of every layer, per task and of the pooled tasks, each with chance."""
    columns = ["layer", "CCA", "chance (95 %)", "n x d", "CCA, pooled", "chance (95 %)", "n x d"]
    if has_other_seed(reuse):
        columns += ["CCA, other seed", "pooled, other seed"]
    rows = []
    for layer in reuse.layers:
        cells = [_name(layer), _similarity(layer, layer.cca), _chance(layer.cca_floor)]
        cells += [_size(layer.cca_size), _number(layer.cca_pooled)]
        cells += [_chance(layer.cca_pooled_floor), _size(layer.cca_pooled_size)]
        if layer.other_seed:
            cells += [_estimate(layer.other_seed.cca), _number(layer.other_seed.cca_pooled)]
        rows.append(cells)
    return Table(columns, rows, title="CCA, per task and pooled")


def has_other_seed(reuse: ReuseResult) -> bool:
    """Whether the layers were compared with those of another network."""
    return any(layer.other_seed for layer in reuse.layers)


def seed_table(reuse: ReuseResult) -> Table:
    """The mean and standard deviation over seeds of every layer's numbers, as papers print them."""
    columns = ("layer", "CKA", "CCA", "CCA, pooled", "move by", "first gradient")
    rows = []
    # The same layer of every seed.
    for layers in zip(*(seed.layers for seed in reuse.seeds), strict=True):
        rows.append(
            (
                _name(layers[0]),
                _mean_std([layer.cka.mean for layer in layers]),
                _mean_std([layer.cca.mean for layer in layers]),
                _mean_std([layer.cca_pooled for layer in layers]),
                _mean_std([layer.distance.mean for layer in layers], 4),
                _mean_std([layer.gradient.mean for layer in layers], 4),
            )
        )
    scale = SCALES[reuse.accuracies.measure]
    own = MeanStd.of([seed.accuracies.own.mean for seed in reuse.seeds])
    score = f"{own.text(scale.factor, scale.digits, 'seed')}{scale.unit}"
    note = (
        f"Mean ± standard deviation over {counted(len(reuse.seeds), 'seed')}, as the papers write"
        f" it; {reuse.accuracies.measure} {score}."
    )
    return Table(columns, rows, title="Over seeds", note=note)


def weight_table(reuse: ReuseResult) -> Table:
    """How far each layer's weights move, and the norm of their first gradient."""
    rows = []
    for layer in reuse.layers:
        gradient = _length(layer.gradient)
        # A rule of its own may move a layer that has no rate.
        if not layer.has_rate and not layer.gradient.mean:
            gradient = "0, no rate"
        rows.append(
            (
                _name(layer),
                f"{layer.weights:,}",
                _length(layer.distance),
                _length(layer.relative_distance),
                gradient,
            )
        )
    columns = ("layer", "weights", "move by", "of their norm", "first gradient")
    return Table(columns, rows, title="How far the weights move")


def class_table(reuse: ReuseResult) -> Table:
    """The cosines between query features of one class and of two."""
    rows = [
        (_name(layer), *map(_estimate, layer.intra), *map(_estimate, layer.inter))
        for layer in reuse.layers
    ]
    columns = ("layer", "one class, before", "after", "two classes, before", "after")
    return Table(columns, rows, title="Cosines of one class and of two")


def accuracy_table(reuse: ReuseResult) -> Table:
    """With and without the head, before and after adaptation."""
    accuracies = reuse.accuracies
    measure = accuracies.measure
    scores = {
        "with the head": (accuracies.head_before, accuracies.head_after),
        "without the head": (accuracies.headless_before, accuracies.headless_after),
    }
    rows = [
        (name, percent(before, measure), percent(after, measure))
        for name, (before, after) in scores.items()
        if _known(before.mean)
    ]
    # A learner without a head predicts from features in a way of its own.
    if not _known(accuracies.head_after.mean):
        rows.append(("the learner itself", "", percent(accuracies.own, measure)))
    return Table((SCALES[measure].label, "before adaptation", "after adaptation"), rows)


def criteria_table(verdict: Verdict) -> Table:
    """Every condition of feature reuse with its status."""
    rows = [(criterion.text, criterion.status) for criterion in verdict.criteria]
    columns = ("criterion of feature reuse", "status")
    return Table(columns, rows, title="The criteria of feature reuse")


def settings_table(settings: Sequence[tuple[str, Any]]) -> Table:
    """Pairs of names and values, such as those of `flat_settings`."""
    rows = [(name, str(value)) for name, value in settings]
    return Table(("setting", "value"), rows, title="Settings")


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as pairs of a name and a value.

    Names are joined by dots; a mapping with one value for every name is folded.

    Example:
        >>> flat_settings({"steps": 5, "lr": {"head": 0.1, "body": 0.1}, "data": {"name": "cifar"}})
        [('steps', '5'), ('lr', '0.1 for head, body'), ('data.name', 'cifar')]
    """
    pairs: list[tuple[str, str]] = []
    for key, value in settings.items():
        if not isinstance(value, Mapping):
            pairs.append((f"{prefix}{key}", str(value)))
            continue
        # One rate for all layers is one line.
        values = {str(item) for item in value.values()}
        if len(value) > 1 and len(values) == 1:
            names = ", ".join(value) if len(value) <= 4 else f"{len(value)} entries"
            pairs.append((f"{prefix}{key}", f"{values.pop()} for {names}"))
        else:
            pairs += flat_settings(value, f"{prefix}{key}.")
    return pairs


def counted(number: int, noun: str) -> str:
    """A number of things in words.

    Example:
        >>> counted(1, "seed"), counted(3, "task")
        ('1 seed', '3 tasks')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# Cells


def _name(layer: LayerReuse) -> str:
    return f"{layer.layer} (head)" if layer.head and layer.layer != "head" else layer.layer


def _similarity(layer: LayerReuse, value: Estimate) -> str:
    if layer.unmoved and _known(value.mean):
        return "1 by construction"
    return _estimate(value)


def _chance(level: Floor) -> str:
    """The median, and the 95 % quantile in brackets."""
    if not _known(level.median):
        return "-"
    # "z" writes a median that rounds to zero without a sign.
    return f"{level.median:z.2f} ({level.upper:z.2f})"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _estimate(value: Estimate, form: str = ".3f") -> str:
    return value.shown(form) if _known(value.mean) else "-"


def _number(value: float) -> str:
    return f"{value:.3f}" if _known(value) else "-"


def _mean_std(values: Sequence[float], digits: int = 3) -> str:
    if not all(map(_known, values)):
        return "-"
    return MeanStd.of(values).text(digits=digits, unit="seed")


def _length(value: Estimate) -> str:
    """A length with its interval; lengths span decades, and small ones need more digits."""
    for least, form in ((0.1, ".3f"), (0.001, ".4f")):
        if value.mean >= least:
            return _estimate(value, form)
    return _estimate(value, ".2g")


def _known(value: float) -> bool:
    return math.isfinite(value)
