"""Which items does an algorithm decide, and where is human effort spent?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from metalearn.analysis.checks import is_whole
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.runtime.tables import Table, Tabular, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 100  # of a curve of several efforts
SHOWN = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # shares in the printed table


@dataclass(frozen=True, eq=False)
class TriageCurve(Tabular):
    """The total loss against the number of items that the algorithm decides.

    Attributes:
        automated: (points,) numbers of items that the algorithm decides, from 0 to all.
        shares: (points,) the same as shares of all items.
        effort: (points,) human effort that is spent on the others.
        totals: {ranking: (points,) total losses}: "oracle", "predicted" if there is a prediction,
            and "random", its expectation over random rankings, if there is one effort.
    """

    automated: np.ndarray
    shares: np.ndarray
    effort: np.ndarray
    totals: Mapping[str, np.ndarray]

    def best(self, ranking: str = "oracle") -> float:
        """The share at which the total loss of a ranking is least; the largest of several."""
        totals = self.totals[ranking]
        return float(self.shares[np.flatnonzero(totals == totals.min())[-1]])

    def records(self) -> list[dict[str, Any]]:
        """A row for each point."""
        rows = []
        for place, number in enumerate(self.automated):
            row: dict[str, Any] = {
                "automated": int(number),
                "share": float(self.shares[place]),
                "effort": int(self.effort[place]),
            }
            row |= {name: float(totals[place]) for name, totals in self.totals.items()}
            rows.append(row)
        return rows

    def table(self) -> Table:
        """Mean losses at a few shares."""
        items = int(self.automated[-1])
        columns = ["share automated"] + [f"mean loss, {name}" for name in self.totals]
        rows = []
        for share in SHOWN:
            place = int(np.abs(self.shares - share).argmin())
            losses = [f"{totals[place] / items:.4f}" for totals in self.totals.values()]
            rows.append([f"{100 * self.shares[place]:.0f} %", *losses])
        return Table(columns, rows)

    def __str__(self) -> str:
        return str(self.table())


@dataclass(frozen=True, eq=False)
class Plan(Pictured, Tabular):
    """Who decides each item; prints as a table.

    Attributes:
        automated: the items that the algorithm decides, in ascending order.
        kept: the items that humans decide.
        effort: (items,) human effort on each item.
        total: the total loss.
        budget: the effort there was.
        curve: the total loss against the share that is automated.
    """

    automated: np.ndarray
    kept: np.ndarray
    effort: np.ndarray
    total: float
    budget: int
    curve: TriageCurve

    @property
    def share(self) -> float:
        """The share of items that the algorithm decides."""
        return len(self.automated) / len(self.effort)

    def answer(self) -> str:
        """One sentence: how the work is divided, and what each side alone would lose."""
        items = len(self.effort)
        ends = self.curve.totals["oracle"]
        return (
            f"The algorithm decides {len(self.automated)} of {items} items and humans"
            f" {len(self.kept)}, with an effort of {int(self.effort.sum())} of {self.budget}: mean"
            f" loss {self.total / items:.4f}; the algorithm alone {ends[-1] / items:.4f}, humans"
            f" alone {ends[0] / items:.4f}."
        )

    def __str__(self) -> str:
        return f"{self.answer()}\n\n{self.curve}"

    def records(self) -> list[dict[str, Any]]:
        """A row for each item."""
        return [
            {"item": item, "automated": bool(effort == 0), "effort": int(effort)}
            for item, effort in enumerate(self.effort)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        return plain(self)

    def figure(self) -> Figure:
        """The curve of every ranking, with the plan."""
        from transfer.experts.figures import triage_curves

        chosen = (self.share, self.total)
        return triage_curves(self.curve.shares, self.curve.totals, chosen, len(self.effort))


def triage(
    algorithm_loss: Any,
    human_loss: Any,
    *,
    budget: int,
    effort: Sequence[int] | None = None,
    gain: Any = None,
) -> Plan:
    r"""Divide items between an algorithm and humans, whose effort is limited.

    The algorithmic automation problem (Raghu et al. 2019, arXiv:1903.12220): choose the items S
    that the algorithm decides, with losses g, and the effort k of humans on the others, with losses
    f, such that $\sum_S g_i + \sum_{not S} f_i(k_i)$ is least and $\sum k_i$ is at most the
    budget.

    With one effort the solution is exact by sorting: humans get the items with the largest $g - f$
    that is not negative, as many as the budget allows. With several it is exact by dynamic
    programming. `gain` ranks the items by a prediction instead, such as a network's uncertainty or
    its predicted disagreement; humans then get the items with the largest gain, as many as the
    budget allows.

    The curve is of every share of items that are automated, with all others decided by humans,
    whatever the budget: the items automated first are those where humans would save least (oracle),
    those with the smallest `gain` (predicted), or random ones. Of several efforts every other item
    gets the first, and what the budget has left goes where it saves most; the losses must then be
    decreasing and convex in the effort.

    Args:
        algorithm_loss: (items,) g.
        human_loss: (items,) f, or (items, efforts) for several efforts on an item.
        budget: the total effort of humans.
        effort: (efforts,) what each column of `human_loss` costs, in ascending whole numbers; by
            default 1, 2, ...
        gain: (items,) a prediction of what humans would save on each item.

    Returns:
        The plan and its curve.

    Raises:
        ValueError: losses have different lengths or are not finite; the budget is below 0 or more
            than all items could take; an effort is not positive; a gain is given with several
            efforts; or more effort does not lower a loss by less and less.

    Example:
        >>> plan = triage([0.5, 0.1, 0.3], [0.2, 0.2, 0.2], budget=1)
        >>> plan.automated.tolist(), plan.kept.tolist(), round(plan.total, 10)
        ([1, 2], [0], 0.6)
        >>> plan.curve.totals["oracle"].round(10).tolist()
        [0.6, 0.5, 0.6, 0.9]
    """
    g = _losses(algorithm_loss, "algorithm_loss")
    f = _losses(human_loss, "human_loss", columns=True)  # (items, efforts)
    if len(f) != len(g):
        raise ValueError(
            f"there are {len(g)} losses of the algorithm and {len(f)} of humans; give one of each"
            " for every item"
        )
    costs = _costs(effort, f.shape[1])
    largest = len(g) * int(costs[-1])
    if not is_whole(budget) or not 0 <= budget <= largest:
        raise ValueError(
            f"budget={budget!r} must be a whole number from 0 to {largest}, which is the effort of"
            f" humans on all {len(g)} items"
        )
    saved = g - f[:, 0]
    predicted = None
    if gain is not None:
        if f.shape[1] > 1:
            raise ValueError(
                f"gain= ranks items for one effort, and there are {f.shape[1]}; give human_loss of"
                " one effort, or plan with predicted losses"
            )
        predicted = _losses(gain, "gain")
        if len(predicted) != len(g):
            raise ValueError(f"there are {len(predicted)} gains for {len(g)} items; give one each")
    if predicted is not None:
        levels = _largest(predicted, budget // int(costs[0]))
    elif f.shape[1] == 1:
        number = min(budget // int(costs[0]), int((saved >= 0).sum()))
        levels = _largest(saved, number)
    else:
        levels = _optimum(g, f, costs, int(budget))
    spent = np.concatenate([[0], costs])[levels]  # (items,)
    losses = np.column_stack([g, f])[np.arange(len(g)), levels]
    return Plan(
        automated=np.flatnonzero(levels == 0),
        kept=np.flatnonzero(levels),
        effort=spent,
        total=float(losses.sum()),
        budget=int(budget),
        curve=_curve(g, f, costs, int(budget), predicted),
    )


def _largest(gain: np.ndarray, number: int) -> np.ndarray:
    """Level 1 for the items with the largest gain, 0 for the others, (items,)."""
    levels = np.zeros(len(gain), dtype=int)
    # Of equal gains the earlier items come first.
    levels[np.argsort(-gain, kind="stable")[:number]] = 1
    return levels


def _optimum(g: np.ndarray, f: np.ndarray, costs: np.ndarray, budget: int) -> np.ndarray:
    """The level of each item with the least total loss, by dynamic programming over items.

    `best[b]` is the least loss of the items so far with an effort of b at most.
    """
    best = np.zeros(budget + 1)
    chosen = np.zeros((len(g), budget + 1), dtype=np.int8)
    for item in range(len(g)):
        without = best
        best = without + g[item]
        for level, cost in enumerate(costs, 1):
            if cost > budget:
                break
            # Effort b on all items so far leaves b - cost for those before.
            total = without[: budget + 1 - cost] + f[item, level - 1]
            # At a tie humans decide, with the least effort that does as well.
            better = (total < best[cost:]) | ((total == best[cost:]) & (chosen[item, cost:] == 0))
            best[cost:] = np.where(better, total, best[cost:])
            chosen[item, cost:][better] = level
    levels = np.zeros(len(g), dtype=int)
    left = budget
    for item in reversed(range(len(g))):
        levels[item] = chosen[item, left]
        if levels[item]:
            left -= int(costs[levels[item] - 1])
    return levels


def _curve(
    g: np.ndarray, f: np.ndarray, costs: np.ndarray, budget: int, predicted: np.ndarray | None
) -> TriageCurve:
    """The total loss with 0 to n automated items, for each ranking."""
    items = len(g)
    if f.shape[1] > 1:
        return _curve_of_efforts(g, f, costs, budget)
    saved = g - f[:, 0]
    rankings = {"oracle": saved}
    if predicted is not None:
        rankings["predicted"] = predicted
    totals = {}
    for name, ranking in rankings.items():
        order = np.argsort(ranking, kind="stable")  # the items that are automated first
        # Every automated item changes the total by g - f: (items + 1,).
        totals[name] = f.sum() + np.concatenate([[0.0], np.cumsum(saved[order])])
        totals[name][-1] = g.sum()  # without the rounding of the sum
    numbers = np.arange(items + 1)
    shares = numbers / items
    totals["random"] = (1 - shares) * f.sum() + shares * g.sum()
    return TriageCurve(numbers, shares, costs[0] * (items - numbers), totals)


def _curve_of_efforts(g: np.ndarray, f: np.ndarray, costs: np.ndarray, budget: int) -> TriageCurve:
    """The oracle's curve if the effort on an item may grow, at 101 shares at most.

    With a fixed set of automated items, growing the effort where it saves most is optimal for
    losses that are decreasing and convex in the effort, up to one step that no longer fits.
    """
    items = len(g)
    saved = (f[:, :-1] - f[:, 1:]) / np.diff(costs)  # (items, steps), for each unit of effort
    wrong = (saved < 0).any(1) | (np.diff(saved, axis=1) > 1e-12).any(1)
    if wrong.any():
        item = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"the human losses of item {item} are {f[item].tolist()}: more effort must lower the"
            " loss, by less and less; give losses that are decreasing and convex in the effort"
        )
    order = np.argsort(g - f[:, 0], kind="stable")  # the items that are automated first
    place = np.argsort(order, kind="stable")  # of each item in that order
    # Steps by falling saving; those of one item stay in order, because the sort is stable.
    steps = np.argsort(-saved, axis=None, kind="stable")
    item_of_step = steps // saved.shape[1]
    cost_of_step = np.tile(np.diff(costs), items)[steps]
    saved_by_step = saved.flatten()[steps] * cost_of_step
    numbers = np.unique(np.linspace(0, items, min(items, POINTS) + 1).round().astype(int))
    totals = []
    efforts = []
    for number in numbers:
        kept = place >= number
        first = int(costs[0] * kept.sum())
        possible = kept[item_of_step]
        spent = np.cumsum(cost_of_step[possible])
        taken = spent <= budget - first
        total = g[~kept].sum() + f[kept, 0].sum() - saved_by_step[possible][taken].sum()
        totals.append(total)
        efforts.append(first + int(spent[taken].max(initial=0)))
    return TriageCurve(numbers, numbers / items, np.array(efforts), {"oracle": np.array(totals)})


def _losses(values: Any, name: str, *, columns: bool = False) -> np.ndarray:
    """Finite numbers (items,), or (items, efforts) if `columns`."""
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} holds no numbers ({error}); give one for each item") from error
    if columns and array.ndim == 1:
        array = array[:, None]
    if array.ndim != 1 + columns or not array.size:
        raise ValueError(
            f"{name} has shape {array.shape}; give one number for each item"
            + (", or a row of numbers, one for each effort" if columns else "")
        )
    if not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"{name} of item {place[0]} is {array[tuple(place)]}; leave the item out")
    return array


def _costs(effort: Sequence[int] | None, columns: int) -> np.ndarray:
    """The effort of each column of the human losses, (efforts,)."""
    if effort is None:
        return np.arange(1, columns + 1)
    costs = np.atleast_1d(np.asarray(effort))
    whole = costs.dtype.kind in "iu" and costs.ndim == 1
    if not whole or (costs < 1).any() or (np.diff(costs) < 1).any():
        raise ValueError(
            f"effort={effort!r} must be ascending whole numbers from 1 on, what each column of"
            " human_loss costs"
        )
    if len(costs) != columns:
        raise ValueError(
            f"there are {len(costs)} efforts for {columns} columns of human_loss; give one for each"
        )
    return costs.astype(int)
