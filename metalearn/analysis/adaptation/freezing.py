"""What the inner loop's changes to each layer are worth: accuracy with layers frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from metalearn.algorithms.base import Learner
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.analysis.scales import SCALES, worse
from metalearn.evaluation import Evaluation, evaluate
from metalearn.network.layers import body
from metalearn.runtime import progress as _progress
from metalearn.runtime.statistics import Estimate, MeanStd
from metalearn.runtime.tables import Table, Tabular, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metalearn.analysis.plotting.layers import FrozenCurve


HEADS = {
    "steps": "the head by its own inner steps (Raghu et al. 2020, table 1)",
    "zeros": "the head run to convergence from zeros",
    "initial": "the head run to convergence from its initialisation",
}


@dataclass(frozen=True)
class Frozen:
    """One row of a freezing table.

    Attributes:
        layers: the layers that the inner loop could not move.
        accuracy: the accuracy then (for real targets, the loss).
        cost: how much worse that is than with nothing frozen, on the same tasks.
        added: how much worse that is than without freezing the last of `layers`, on the same tasks.
    """

    layers: tuple[str, ...]
    accuracy: Estimate
    cost: Estimate
    added: Estimate


@dataclass(frozen=True)
class Freezing(Pictured, Tabular):
    """Accuracy with the first k layers frozen, for every k from 0.

    Attributes:
        rows: one for each k.
        tasks: the number of tasks.
        spread: what the intervals are over.
        measure: "accuracy", or "loss" for real targets: each `accuracy` is then a loss, and each
            `cost` the loss added.
        head: how the head was adapted on top of the frozen layers (`HEADS`); "steps" is the table
            of Raghu et al. 2020.
        note: whether heads did not converge.
        unconverged: the share of heads that did not converge.
        runs: the single tables, if `over_seeds` pooled several.
    """

    rows: tuple[Frozen, ...]
    tasks: int
    spread: str = "the 95 % interval over tasks"
    measure: str = "accuracy"
    head: str = "steps"
    note: str = ""
    unconverged: float = 0.0
    runs: tuple[Freezing, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return str(self.table())

    def table(self) -> Table:
        """The rows as text; of several seeds, with the standard deviation too."""
        scale = SCALES[self.measure]
        columns = ["frozen", scale.label, scale.against_label]
        rows = []
        for row in self.rows:
            name = f"up to {row.layers[-1]}" if row.layers else "nothing"
            cost = scale.against(row.cost) if row.layers else ""
            rows.append([name, scale.column(row.accuracy), cost])
        notes = [f"({HEADS[self.head]}; {self.tasks} tasks; ± is {self.spread})"]
        if self.runs:
            columns += [f"{scale.label}, ± std", "cost, ± std"]
            # As in the paper: accuracy ± std, and what freezing costs ± std.
            for name in ("accuracy", "cost"):
                for cells, value in zip(rows, self.mean_std(name), strict=True):
                    cells.append(value.text(scale.factor, scale.digits, "seed"))
            rows[0][-1] = ""  # nothing frozen costs nothing
            notes.append(f"(± std: the standard deviation over {len(self.runs)} seeds)")
        if self.note:
            notes.append(f"({self.note})")
        return Table(columns, rows, note="\n".join(notes))

    def mean_std(self, name: str = "accuracy") -> list[MeanStd]:
        """The mean and standard deviation over seeds of every row, as in Raghu et al. 2020.

        Args:
            name: "accuracy", "cost" or "added".

        Returns:
            One a row; none if this is the table of a single learner.
        """
        spreads = []
        for rows in zip(*(run.rows for run in self.runs), strict=True):
            means = [getattr(row, name).mean for row in rows]  # (seeds,)
            spreads.append(MeanStd.of(means))
        return spreads

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of numbers and names."""
        return list(self.to_dict()["rows"])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None.

        Of several seeds, each estimate has its standard deviation too, and "runs" are the single
        tables.
        """
        record: dict[str, Any] = plain(replace(self, runs=()))
        # The table of a single learner has no such entry.
        del record["runs"]
        if not self.runs:
            return record
        for name in ("accuracy", "cost", "added"):
            for row, value in zip(record["rows"], self.mean_std(name), strict=True):
                row[name] |= plain(value)
        return {**record, "runs": [run.to_dict() for run in self.runs]}

    def figure(self) -> Figure:
        """The accuracy by the layers frozen, as a matplotlib `Figure`."""
        # Importing this module does not load matplotlib.
        from metalearn.analysis.plotting.layers import frozen_accuracies
        from metalearn.analysis.plotting.style import look_of

        return frozen_accuracies(self.curve("the learner", look_of(0)))

    def curve(self, label: str, look: Mapping[str, Any]) -> FrozenCurve:
        """The scores as a curve for a drawing; `look` is colour, marker and line."""
        from metalearn.analysis.plotting.layers import FrozenCurve

        means = [row.accuracy.mean for row in self.rows]
        intervals = [row.accuracy.interval for row in self.rows]
        layers = [row.layers[-1] for row in self.rows[1:]]
        return FrozenCurve(label, layers, means, intervals, self.measure, look)

    @classmethod
    def of(
        cls, names: Sequence[str], scores: Sequence[Tensor], measure: str, **about: Any
    ) -> Freezing:
        """The table of the scores of every task.

        Args:
            names: the layers, from the bottom.
            scores: (tasks,) for each number of frozen layers, from 0.
            measure: "accuracy" or "loss".
            about: more attributes of the table.
        """
        rows = []
        # cost = mean(score(nothing frozen) - score(k frozen)), over the same tasks
        # added = mean(score(k - 1 frozen) - score(k frozen))
        for k, values in enumerate(scores):
            below = scores[max(k - 1, 0)]
            cost = Estimate.of(worse(values, scores[0], measure))
            added = Estimate.of(worse(values, below, measure))
            rows.append(Frozen(tuple(names[:k]), Estimate.of(values), cost, added))
        return cls(tuple(rows), len(scores[0]), measure=measure, **about)


def freezing(
    learner: Learner,
    episodes: Any,
    *,
    layers: Sequence[str] | None = None,
    free: Evaluation | None = None,
    progress: bool = False,
) -> Freezing:
    """Query accuracy (for real targets, loss) with layers 1..k left out of the inner loop.

    The weights are the trained ones throughout. Only the adaptation at test time leaves layers out,
    and the head adapts by the learner's own few steps (Raghu et al. 2020, arXiv:1909.09157,
    table 1). Costs are paired: `mean(accuracy(nothing frozen) - accuracy(k frozen))` over the same
    tasks. They also contain what a head cannot learn in so few steps, so they are not what the
    body's change is worth; `feature_reuse` has the same table with the head run to convergence.

    Args:
        learner: any learner with an inner loop.
        episodes: what `evaluate` takes, with the same tasks each time: a `FewShot` or one stack.
        layers: the layers to freeze, from the bottom; by default the body, layer by layer.
        free: the result of `evaluate` for this learner on these episodes with nothing frozen, if
            you have it already.
        progress: show the progress on standard error.

    Returns:
        The table, with a row for every k from 0. `over_seeds` pools those of several seeds.

    Example:
        >>> import torch
        >>> from metalearn import MAML
        >>> from metalearn.models import MLP
        >>> from metalearn.tasks import Sinusoid
        >>> learner = MAML(MLP(1, 1), lr=0.01, loss=torch.nn.functional.mse_loss)
        >>> table = freezing(learner, Sinusoid(tasks=3))
        >>> [row.layers[-1:] for row in table.rows]
        [(), ('layer1',), ('layer2',)]
    """
    names = body(learner.model, learner.head) if layers is None else list(layers)
    scores: list[Tensor] = []
    measure = "accuracy"
    with _progress.progress(
        "freezing", len(names) + 1, unit="evaluation", shown=progress
    ) as advance:
        for k, held in enumerate(frozen_learners(learner, names)):
            # Without a change, the scores are those of the row before.
            if held is None:
                scores.append(scores[-1])
            else:
                result = free if free and not k else evaluate(held, episodes)
                measure = result.measure
                scores.append(result.per_episode)
            advance(text=f"frozen up to {names[k - 1]}" if k else "nothing frozen")
    return Freezing.of(names, scores, measure)


def frozen_learners(learner: Learner, names: Sequence[str]) -> Iterator[Learner | None]:
    """The learner with the first k layers frozen, for every k from 0.

    None if freezing layer k changes nothing, because the inner loop does not move it: the scores
    are those of k - 1, and need not be computed again.
    """
    # What the inner loop moves are the weights with a rate.
    moving = len(learner.rates)
    yield learner
    for k in range(1, len(names) + 1):
        held = learner.frozen(names[:k])
        yield None if len(held.rates) == moving else held
        moving = len(held.rates)
