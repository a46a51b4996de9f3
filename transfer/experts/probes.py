"""What does each layer know of how much raters disagree, directly or via the votes themselves?"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.analysis.checks import check_kind, check_seed, check_whole
from metalearn.analysis.networks.probes import (
    CONVENTIONS,
    RIDGES,
    check_probe,
    features_of,
    probed_layers,
    ridge_readout,
)
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.runtime.statistics import Interval, bootstrap
from metalearn.runtime.tables import Table, Tabular, plain
from transfer.experts.votes import check_counts, disagreement, spread_of_shares
from transfer.finetuning.data import WithNumbers
from transfer.finetuning.ranks import Ranks, area, correlation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("metalearn")


@dataclass(frozen=True)
class Prediction:
    """How well one way predicts the disagreement of the test items.

    Attributes:
        auc: of "the disagreement is above the threshold", with its bootstrap interval.
        rank: Spearman's correlation with the disagreement.
        mean: the mean predicted disagreement.
    """

    auc: Interval
    rank: Interval
    mean: float


@dataclass(frozen=True)
class Contest:
    """Direct prediction against prediction via classification, on the same items.

    Attributes:
        direct: the disagreement itself was fitted.
        via: the votes were fitted, and the disagreement is that of the predicted shares.
        auc_difference: AUC of direct minus that of via, from the same bootstrap samples.
        rank_difference: the same of the rank correlations.
    """

    direct: Prediction
    via: Prediction
    auc_difference: Interval
    rank_difference: Interval


@dataclass(frozen=True)
class LayerProbe:
    """The two predictions from one layer.

    Attributes:
        layer: its name.
        features: how many features it has.
        contest: the two predictions.
        ridges: of direct and via, as multiples of the mean eigenvalue.
    """

    layer: str
    features: int
    contest: Contest
    ridges: tuple[float, float]


@dataclass(frozen=True)
class DisagreementProbes(Pictured, Tabular):
    """What each layer knows of the disagreement of raters; prints as a table.

    Attributes:
        layers: the rows, in order.
        convention: how outputs became features.
        train: how many training items there are.
        test: how many test items there are.
        dropped: training and test items left out because they have one rater.
        above: the threshold of a high disagreement.
        high: the share of test items above it.
        mean: the mean disagreement of the test items.
    """

    layers: tuple[LayerProbe, ...]
    convention: str
    train: int
    test: int
    dropped: tuple[int, int]
    above: float
    high: float
    mean: float

    def __getitem__(self, layer: str) -> LayerProbe:
        for row in self.layers:
            if row.layer == layer:
                return row
        raise KeyError(
            f"no layer {layer!r} was probed; these were:"
            f" {', '.join(row.layer for row in self.layers)}"
        )

    def table(self) -> Table:
        """AUC and rank correlation of both ways, and their differences."""
        columns = ("layer", "AUC direct", "AUC via votes", "difference", "rank direct")
        rows = []
        for row in self.layers:
            contest = row.contest
            rows.append(
                (
                    row.layer,
                    contest.direct.auc.shown(),
                    contest.via.auc.shown(),
                    contest.auc_difference.shown("+.3f"),
                    contest.direct.rank.shown(),
                    contest.via.rank.shown(),
                    contest.rank_difference.shown("+.3f"),
                )
            )
        return Table((*columns, "rank via votes", "difference"), rows, note=self.note())

    def note(self) -> str:
        """What the numbers are of, in one sentence or two."""
        text = (
            f"{self.train} training and {self.test} test items; {CONVENTIONS[self.convention]}; in"
            " brackets the 95 % bootstrap interval over test items; AUC of a disagreement above"
            f" {self.above:.3f}, which {100 * self.high:.1f} % of the test items have"
        )
        if not 0 < self.high < 1:
            text += ", so it is not defined"
        if any(self.dropped):
            text += (
                f"; {self.dropped[0]} training and {self.dropped[1]} test items with one rater were"
                " left out"
            )
        return f"({text})"

    def __str__(self) -> str:
        return str(self.table())

    def records(self) -> list[dict[str, Any]]:
        """A row for each layer."""
        return [plain(row) for row in self.layers]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        return plain(self)

    def figure(self) -> Figure:
        """AUC and rank correlation of every layer, directly and via the votes."""
        names = [row.layer for row in self.layers]
        return contests_figure(names, [row.contest for row in self.layers])


def contests_figure(layers: Sequence[str], contests: Sequence[Contest]) -> Figure:
    """AUC and rank correlation of every layer, predicted directly and via the votes."""
    from transfer.experts.figures import layer_contests

    ways = {
        "direct": [contest.direct for contest in contests],
        "via": [contest.via for contest in contests],
    }
    scores = {
        "AUC of high disagreement": {way: [p.auc for p in ways[way]] for way in ways},
        "rank correlation": {way: [p.rank for p in ways[way]] for way in ways},
    }
    return layer_contests(layers, scores)


def disagreement_probes(
    model: nn.Module,
    train: Any,
    test: Any,
    layers: Sequence[str] | None = None,
    *,
    above: float | None = None,
    convention: str = "pool",
    ridge: float | None = None,
    draws: int = 1000,
    batch: int = 128,
    seed: int = 0,
) -> DisagreementProbes:
    r"""Predict the disagreement of raters from each layer, directly and via classification.

    Raghu et al. 2019 (arXiv:1807.01771), with ridge regressions in closed form on the features of
    a layer. *Direct*: the unbiased disagreement U of the training votes is the target. *Via*: the
    shares of the votes are the targets, and the prediction is the disagreement of the predicted
    shares p (negative ones set to 0), $1 - \sum_j p_j^2$. If raters see o and the network sees
    less, x, direct estimates $E[U(p(o)) | x]$ and via estimates $U(E[p(o) | x])$, which is larger
    by $\sum_j Var(p_j(o) | x)$. A linear direct readout is linear in the features, and the one via
    the votes quadratic, so direct does not always win.

    Args:
        model: a network.
        train: `Examples(inputs, votes)`, or a data set of (input, votes), with inputs as the
            network takes them. Votes are how many raters chose each class, (classes,).
        test: the same for the test items.
        layers: module paths; by default all of `metalearn.layers(model)`.
        above: items whose disagreement is above it are the positives of the AUC; None takes the
            mean disagreement of the training items.
        convention: "pool" (channels averaged over positions) or "flatten".
        ridge: in units of the mean eigenvalue; None takes the one with the smallest squared
            leave-one-out error.
        draws: bootstrap samples of the test items.
        batch: items a forward pass.
        seed: of the bootstrap samples.

    Returns:
        A row a layer.

    Raises:
        TypeError: the data do not consist of pairs (input, votes).
        ValueError: votes are negative, fractional or absent; all items have one rater; all training
            items have the same disagreement; the sets have different classes; or a layer does not
            exist.

    Example:
        >>> from metalearn.episodes import Examples
        >>> inputs = torch.randn(60, 3)
        >>> first = (3 * torch.sigmoid(4 * inputs[:, 0])).round()
        >>> data = Examples(inputs, torch.stack([first, 3 - first], 1))
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> probes = disagreement_probes(model, data, data, ["1"], draws=20)
        >>> probes["1"].features, probes.train
        (8, 60)
    """
    check_kind(model, nn.Module, "model", "give a network")
    batch = check_whole(batch, "batch", 1, "it is how many items go through the network at a time")
    draws = check_whole(draws, "draws", 0, "the number of bootstrap samples")
    seed = check_seed(seed)
    names = probed_layers(model, layers)
    check_probe(convention, ridge)
    inputs, votes, dropped = _items(train, "training")
    test_inputs, test_votes, test_dropped = _items(test, "test")
    problem = _Problem.of(votes, test_votes, above, RIDGES if ridge is None else (ridge,))
    # Pooled features of all layers fit in memory, and then one pass through the network does.
    groups = [names] if convention == "pool" else [[name] for name in names]
    rows = []
    for name, x, y in _features(model, groups, inputs, test_inputs, convention, batch):
        direct, via, chosen = problem.predictions(x, y)
        contest = contest_of(direct, via, problem.truth, problem.above, draws=draws, seed=seed)
        rows.append(LayerProbe(name, x.shape[1], contest, chosen))
    return DisagreementProbes(
        tuple(rows),
        convention,
        len(votes),
        len(test_votes),
        (dropped, test_dropped),
        problem.above,
        float((problem.truth > problem.above).double().mean()),
        float(problem.truth.mean()),
    )


@dataclass(frozen=True)
class _Problem:
    """The targets of the probes, the same for every layer.

    Attributes:
        target: (training items,) disagreements.
        shares: (training items, classes) of the votes.
        truth: (test items,) disagreements.
        above: the threshold of a high one.
        ridges: to choose from.
    """

    target: Tensor
    shares: Tensor
    truth: Tensor
    above: float
    ridges: tuple[float, ...]

    @classmethod
    def of(
        cls, votes: Tensor, test_votes: Tensor, above: float | None, ridges: tuple[float, ...]
    ) -> _Problem:
        """The targets of these votes (items, classes), checked."""
        if votes.shape[1] != test_votes.shape[1]:
            raise ValueError(
                f"the training votes are of {votes.shape[1]} classes and the test votes of"
                f" {test_votes.shape[1]}; give both the same classes"
            )
        target = disagreement(votes)
        if target.min() == target.max():
            raise ValueError(
                f"all training items have the disagreement {float(target[0]):g}: there is nothing"
                " to predict; add items on which raters differ"
            )
        threshold = float(target.mean()) if above is None else float(above)
        shares = votes / votes.sum(1, keepdim=True)
        return cls(target, shares, disagreement(test_votes), threshold, ridges)

    def predictions(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, tuple[float, float]]:
        """Disagreements of the test items, direct and via the votes, and the ridges of both."""
        direct, direct_ridge = ridge_readout(x, self.target[:, None], y, self.ridges)
        predicted, via_ridge = ridge_readout(x, self.shares, y, self.ridges)
        # The predicted shares sum to 1, because the targets do; after this their sum is at least 1.
        predicted = predicted.clamp(min=0)  # (test items, classes)
        via = spread_of_shares(predicted / predicted.sum(1, keepdim=True))
        return direct[:, 0], via, (direct_ridge, via_ridge)


def contest_of(
    direct: Any, via: Any, truth: Any, above: float, *, draws: int = 1000, seed: int = 0
) -> Contest:
    """Compare two predictions of the same disagreements, with a paired bootstrap over items.

    Args:
        direct: (items,) one prediction.
        via: (items,) the other.
        truth: (items,) the disagreements.
        above: items above it are the positives of the AUC.
        draws: bootstrap samples.
        seed: of the samples.

    Raises:
        ValueError: they differ in length, or a value is not finite.

    Example:
        >>> truth = np.array([0.0, 0.1, 0.5, 0.9])
        >>> contest = contest_of(truth, 1 - truth, truth, 0.3, draws=0)
        >>> contest.direct.auc.value, contest.via.auc.value, contest.auc_difference.value
        (1.0, 0.0, 1.0)
    """
    numbers = {"direct": direct, "via": via, "truth": truth}
    arrays = {name: np.asarray(values, dtype=float) for name, values in numbers.items()}
    sizes = {name: array.shape for name, array in arrays.items()}
    if len(set(sizes.values())) > 1 or arrays["truth"].ndim != 1 or not len(arrays["truth"]):
        raise ValueError(f"the predictions and the truth have shapes {sizes}; give one an item")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            item = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(f"{name} of item {item} is {array[item]}; leave the item out")
    positive = arrays["truth"] > above
    ranks = {name: Ranks(array) for name, array in arrays.items()}

    def statistics(counts: np.ndarray) -> np.ndarray:
        """AUC and rank correlation of both, and their differences, (6,)."""
        of_truth = ranks["truth"](counts)
        scores = {}
        for name in ("direct", "via"):
            predicted = ranks[name](counts)
            scores[name] = np.array(
                [area(predicted, positive, counts), correlation(predicted, of_truth, counts)]
            )
        return np.concatenate([*scores.values(), scores["direct"] - scores["via"]])

    intervals = bootstrap(statistics, len(positive), draws=draws, seed=seed)
    return Contest(
        Prediction(intervals[0], intervals[1], float(arrays["direct"].mean())),
        Prediction(intervals[2], intervals[3], float(arrays["via"].mean())),
        intervals[4],
        intervals[5],
    )


def _features(
    model: nn.Module,
    groups: Sequence[Sequence[str]],
    inputs: Tensor,
    test_inputs: Tensor,
    convention: str,
    batch: int,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each layer with its training and test features; a group is one pass through the network."""
    for group in groups:
        training = features_of(model, group, inputs, convention, batch)
        testing = features_of(model, group, test_inputs, convention, batch)
        for name in group:
            yield name, training[name], testing[name]


def _items(data: Any, name: str) -> tuple[Tensor, Tensor, int]:
    """Inputs and votes of the items with two raters or more, and how many others there were."""
    if hasattr(data, "inputs") and hasattr(data, "targets"):  # Examples
        inputs = data.inputs
        targets = data.targets
    else:
        dataset = WithNumbers(data, name)
        inputs = dataset.inputs
        if not isinstance(inputs, Tensor):
            inputs = torch.stack([torch.as_tensor(entry) for entry in inputs])
        targets = dataset.targets
    votes = check_counts(targets, f"votes of the {name} set")
    if len(inputs) != len(votes):
        raise ValueError(
            f"the {name} set has {len(inputs)} inputs and votes of {len(votes)} items; give one row"
            " of votes for each input"
        )
    several = votes.sum(1) > 1
    dropped = int((~several).sum())
    if dropped == len(votes):
        raise ValueError(
            f"all {len(votes)} items of the {name} set have one rater, which says nothing about"
            " disagreement; give votes of two or more raters an item"
        )
    if dropped:
        log.warning("%d items of the %s set have one rater and are left out", dropped, name)
    return inputs[several.to(inputs.device)], votes[several], dropped
