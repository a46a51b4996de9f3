"""Similarity of networks trained independently, within a group of learners and across groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from metalearn.algorithms.base import Learner
from metalearn.analysis.checks import check_draws, single_tasks
from metalearn.episodes import Episode
from metalearn.evaluation import check_examples, to_device
from metalearn.network.activations import representations
from metalearn.network.layers import body
from metalearn.network.modes import evaluation_mode
from metalearn.runtime import progress as _progress
from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import Tabular, aligned, plain

from .layerwise import compare_layers
from .per_task import cca_draws, cca_of_task
from .positions import sample
from .profile import LayerSimilarity, Profile

MEASURES = {
    "cca": "mean CCA, positions as examples and channels as features, mean over tasks: the paper's",
    "cca_pooled": (
        "the same with the tasks pooled, so one linear map must fit every task: not the paper's"
    ),
    "cka": "debiased linear CKA, images flattened, mean over tasks",
    "cka_biased": (
        "biased linear CKA, images flattened, mean over tasks: high by chance if features"
        " outnumber images"
    ),
}

# The numbers of two learners, in the order of their groups.
Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class BetweenGroups:
    """The similarity of the networks of two groups.

    Attributes:
        groups: the names of both.
        pairs: how many pairs of networks were compared.
        layers: `{layer: {measure: similarity}}`, over pairs; the measures are `MEASURES`.
        body: `{measure: similarity}`, the mean over layers, over pairs.
        floor: `{measure: chance level}`, with whole images (for pooled tasks, whole tasks) of one
            side shuffled: the median, averaged over pairs and layers.
    """

    groups: tuple[str, str]
    pairs: int
    layers: Mapping[str, Mapping[str, MeanStd]]
    body: Mapping[str, MeanStd]
    floor: Mapping[str, float]


@dataclass(frozen=True)
class Between(Tabular):
    """Similarity of networks trained independently; prints as table 3 of Raghu et al. 2020.

    Attributes:
        rows: one for each two groups.
        tasks: how many tasks the networks were compared on.
        adapted: whether each network was adapted to each task.
        draws: how often chance shuffled.
    """

    rows: tuple[BetweenGroups, ...]
    tasks: int
    adapted: bool
    draws: int

    def __getitem__(self, groups: tuple[str, str]) -> BetweenGroups:
        for row in self.rows:
            if row.groups in (groups, groups[::-1]):
                return row
        raise KeyError(
            f"{groups} were not compared; these were:"
            f" {', '.join('-'.join(row.groups) for row in self.rows)}"
        )

    def __str__(self) -> str:
        rows = []
        for row in self.rows:
            cells = [
                f"{row.body[name].text(unit='pair')} (chance {row.floor[name]:.3f})"
                for name in MEASURES
            ]
            rows.append(("-".join(row.groups), str(row.pairs), *cells))
        table = aligned(("networks", "pairs", *MEASURES), rows)
        when = "after adaptation to each task" if self.adapted else "at the meta-initialisation"
        caption = (
            f"({self.tasks} tasks, {when}; mean over the body's layers; ± is the std over pairs of"
            f" networks; {self.draws} draws for chance)"
        )
        legend = [f"{name}: {text}" for name, text in MEASURES.items()]
        return "\n".join([table, caption, *legend])

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of numbers and names."""
        return list(self.to_dict()["rows"])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None."""
        return plain(self)


def similarity_between(
    groups: Mapping[str, Sequence[Learner]],
    episodes: Any,
    *,
    layers: Sequence[str] | None = None,
    adapted: bool = True,
    by_seed: bool = True,
    rows: int = 30_000,
    draws: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Between:
    """The similarity of networks trained independently, within a group and across groups.

    Every pair of networks is compared on the query images of each task, layer by layer, by
    `compare_layers`: table 3 of Raghu et al. 2020 (arXiv:1909.09157), in which MAML and ANIL are as
    similar as two MAMLs from different seeds.

    Args:
        groups: learners by name, one a seed: `{"MAML": [...], "ANIL": [...]}`.
        episodes: a `FewShot`, a list of tasks, or one stack.
        layers: the layers to average over; by default the body.
        adapted: compare the networks as each learner's own inner loop adapts them to the task;
            False compares them at the meta-initialisation.
        by_seed: the i-th learner of every group comes from seed i. Those share their initial
            weights, so they are not independent, and are not paired across groups; False pairs them
            too.
        rows: about how many rows CCA of the pooled tasks keeps, by taking some positions of every
            image.
        draws: how often chance shuffles for each pair; by default 200 times if that is cheap over
            all tasks, pairs and layers, else 20 (`chosen_draws`).
        seed: determines the draws and the positions.
        progress: show the progress on standard error.

    Returns:
        A `Between`: a row for each two groups.

    Raises:
        ValueError: no two networks can be paired, or a layer does not exist in one of them.
    """
    pairs = _pairs(groups, by_seed=by_seed)
    draws, seed = check_draws(draws, seed)
    learners = list(chain.from_iterable(groups.values()))
    names = _body(groups) if layers is None else list(layers)
    tasks = single_tasks(episodes)
    every = sorted(set(chain.from_iterable(pairs.values())))
    comparison = _Comparison(learners, names, every, len(tasks), rows, draws, seed)
    with (
        evaluation_mode(learners),
        torch.no_grad(),
        _progress.progress(
            "comparing networks", len(tasks), unit="task", shown=progress
        ) as advance,
    ):
        for number in range(len(tasks)):
            comparison.add(number, tasks[number], adapted=adapted)
            advance()
    profiles = comparison.profiles()
    table = [
        _row(both, [profiles[pair] for pair in of_groups], names)
        for both, of_groups in pairs.items()
    ]
    return Between(tuple(table), len(tasks), adapted, int(comparison.draws or 0))


def _pairs(
    groups: Mapping[str, Sequence[Learner]], *, by_seed: bool
) -> dict[tuple[str, str], list[Pair]]:
    """The learners to compare, by the names of their groups.

    Raises ValueError if there are none.
    """
    places = []
    for group, learners in groups.items():
        places += [(group, seed) for seed in range(len(learners))]
    pairs: dict[tuple[str, str], list[Pair]] = {(group, group): [] for group in groups}
    for first, second in combinations(range(len(places)), 2):
        group_a, seed_a = places[first]
        group_b, seed_b = places[second]
        if group_a == group_b or seed_a != seed_b or not by_seed:
            pairs.setdefault((group_a, group_b), []).append((first, second))
    pairs = {both: of_groups for both, of_groups in pairs.items() if of_groups}
    if not pairs:
        raise ValueError(
            "there are no two networks of different seeds to compare; give a group two or more"
            " learners, or pass by_seed=False if networks of two groups do not share their initial"
            " weights"
        )
    return pairs


def _body(groups: Mapping[str, Sequence[Learner]]) -> list[str]:
    """The body of the first learner."""
    group, learner = next((group, members[0]) for group, members in groups.items() if members)
    names = body(learner.model, learner.head)
    if not names:
        raise ValueError(f"{group} has no layer but its head; name what to compare with layers=")
    return names


class _PairProfiles(NamedTuple):
    """Two networks compared: CCA of the pooled tasks, and the other measures task by task."""

    pooled: Profile
    tasks: list[dict[str, Profile]]


class _Comparison:
    """Pairs of networks compared task by task."""

    def __init__(
        self,
        learners: Sequence[Learner],
        names: Sequence[str],
        pairs: Sequence[Pair],
        tasks: int,
        rows: int,
        draws: int | None,
        seed: int,
    ) -> None:
        self.learners = learners
        self.names = names
        self.tasks = tasks
        self.rows = rows
        self.draws = draws
        self.seed = seed
        self.per_task: dict[Pair, list[dict[str, Profile]]] = {pair: [] for pair in pairs}
        # For each learner, layer by layer, some positions of the images of each task.
        self.sampled: list[dict[str, list[Tensor]]] = []
        for _ in learners:
            self.sampled.append({name: [] for name in names})

    def add(self, number: int, task: Episode, *, adapted: bool) -> None:
        """Compare every pair on the queries of one task."""
        outputs = [
            _outputs(learner, task, self.names, adapted=adapted) for learner in self.learners
        ]
        rows = self.rows // self.tasks
        for samples, of_learner in zip(self.sampled, outputs, strict=True):
            for name in self.names:
                samples[name].append(sample(of_learner[name], rows, self.seed).cpu())
        if self.draws is None:  # decided once, by the first task
            repeats = self.tasks * len(self.per_task)
            self.draws = cca_draws(None, outputs[0], self.names, repeats)
        for (a, b), profiles in self.per_task.items():
            profiles.append(self._compare(outputs[a], outputs[b], self.seed + number))

    def _compare(
        self, first: Mapping[str, Tensor], second: Mapping[str, Tensor], seed: int
    ) -> dict[str, Profile]:
        """The measures of one task."""
        options: Any = {"draws": self.draws, "seed": seed}
        return {
            "cca": cca_of_task(first, second, self.names, **options),
            "cka": compare_layers(first, second, layers=self.names, **options),
            "cka_biased": compare_layers(
                first, second, layers=self.names, **options, debiased=False
            ),
        }

    def profiles(self) -> dict[Pair, _PairProfiles]:
        """Everything that was compared, by pair."""
        pooled = []
        for samples in self.sampled:
            pooled.append({name: torch.cat(parts) for name, parts in samples.items()})
        profiles = {}
        for (a, b), of_tasks in self.per_task.items():
            of_pooled = compare_layers(
                pooled[a],
                pooled[b],
                layers=self.names,
                measure="cca",
                groups=self.tasks if self.tasks > 1 else None,
                rows=10**9,  # the samples are few enough already
                draws=self.draws,
                seed=self.seed,
            )
            profiles[a, b] = _PairProfiles(of_pooled, of_tasks)
        return profiles


def _outputs(
    learner: Learner, task: Episode, names: Sequence[str], *, adapted: bool
) -> dict[str, Tensor]:
    """The outputs of a learner's layers on the queries of a task."""
    check_examples(task, stacked=False)
    support, query = to_device(task, learner)
    network = learner.network
    weights = learner.adapt(support).weights if adapted else network.weights()
    with representations(network.module, names) as outputs:
        network(weights, query.inputs)
    return outputs


def _row(
    groups: tuple[str, str], pairs: Sequence[_PairProfiles], names: Sequence[str]
) -> BetweenGroups:
    """One row of the table, from the profiles of its pairs."""
    layers: dict[str, dict[str, MeanStd]] = {name: {} for name in names}
    over_body = {}
    chance = {}
    for measure in MEASURES:
        for name in names:
            similarities = [_similarity(pair, measure, name) for pair in pairs]
            layers[name][measure] = MeanStd.of(similarities)
        body_of_pairs = []
        medians = []
        for pair in pairs:
            body_of_pairs.append(_mean([_similarity(pair, measure, name) for name in names]))
            medians += [_median(pair, measure, name) for name in names]
        over_body[measure] = MeanStd.of(body_of_pairs)
        chance[measure] = _mean(medians)
    return BetweenGroups(groups, len(pairs), layers, over_body, chance)


def _rows(pair: _PairProfiles, measure: str, layer: str) -> list[LayerSimilarity]:
    """What a measure found for one layer: in every task, or in all of them pooled."""
    if measure == "cca_pooled":
        return [pair.pooled[layer]]
    return [task[measure][layer] for task in pair.tasks]


def _similarity(pair: _PairProfiles, measure: str, layer: str) -> float:
    return _mean([row.similarity for row in _rows(pair, measure, layer)])


def _median(pair: _PairProfiles, measure: str, layer: str) -> float:
    return _mean([row.floor.median for row in _rows(pair, measure, layer)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
