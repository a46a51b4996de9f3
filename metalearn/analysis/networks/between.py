"""One training recipe under several seeds: how much of a figure is chance, and how alike the
networks are that it gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

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

from .layerwise import Profile, cca_draws, cca_of_task, compare_layers, sample

MEASURES = {
    "cca": "mean CCA, positions as examples and channels as features, mean over tasks: the paper's",
    "cca_pooled": (
        "the same with the tasks pooled, so that one linear map must fit every task: not the"
        " paper's"
    ),
    "cka": "debiased linear CKA, images flattened, mean over tasks",
    "cka_biased": (
        "biased linear CKA, images flattened, mean over tasks: high by chance where features"
        " outnumber images"
    ),
}


@dataclass(frozen=True)
class BetweenGroups:
    """How alike the networks of two groups are: per layer and over the body, by measure
    (`MEASURES`), spread over `pairs` of networks.

    `floor` is the same with whole images (for pooled tasks whole tasks) of one side shuffled: the
    median, averaged over pairs and layers.
    """

    groups: tuple[str, str]
    pairs: int
    layers: Mapping[str, Mapping[str, MeanStd]]
    body: Mapping[str, MeanStd]
    floor: Mapping[str, float]


@dataclass(frozen=True)
class Between(Tabular):
    """Similarity of independently trained networks, group by group; prints as table 3 of Raghu et
    al. 2020.
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
        rows = [
            (
                "-".join(row.groups),
                str(row.pairs),
                *(
                    f"{row.body[name].text(unit='pair')} (chance {row.floor[name]:.3f})"
                    for name in MEASURES
                ),
            )
            for row in self.rows
        ]
        said = "after adaptation to each task" if self.adapted else "at the meta-initialisation"
        said = (
            f"{self.tasks} tasks, {said}; mean over the body's layers; ± is the std over pairs of"
            f" networks; {self.draws} draws for chance"
        )
        return "\n".join(
            [
                aligned(("networks", "pairs", *MEASURES), rows),
                f"({said})",
                *(f"{k}: {text}" for k, text in MEASURES.items()),
            ]
        )

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
    """How alike are networks that were trained independently, within a group and across groups? ->
    `Between`.

    Every pair of networks is compared on the query images of each task, layer by layer, by
    `compare_layers`: table 3 of Raghu et al. 2020 (arXiv:1909.09157), where MAML and ANIL are as
    alike as two MAMLs from other seeds.

    Args:
        groups: learners by name, one a seed: `{"MAML": [...], "ANIL": [...]}`.
        episodes: a `FewShot`, a list of tasks, or one stack.
        layers: which to average over; by default the body.
        adapted: compare the networks as each learner's own inner loop adapts them to the task;
            False: at the meta-initialisation.
        by_seed: the i-th learner of every group comes from seed i. Those share their initial
            weights, so that they are not independent and not paired across groups; False pairs them
            too.
        rows: about how many rows CCA of the pooled tasks keeps, by taking some positions of every
            image.
        draws: how often the floor of each pair shuffles; by default 200 times if that is cheap over
            all tasks, pairs and layers, else 20 (`chosen_draws`).
        seed: what the floor and the positions depend on.
        progress: show the progress on standard error.

    Raises ValueError where no two networks can be paired, or a layer does not exist in one of them.
    """
    members = [(name, learner) for name, learners in groups.items() for learner in learners]
    places = [(name, i) for name, learners in groups.items() for i in range(len(learners))]
    paired: dict[tuple[str, str], list[tuple[int, int]]] = {(name, name): [] for name in groups}
    for (i, (first, one)), (j, (second, other)) in combinations(enumerate(places), 2):
        if first == second or one != other or not by_seed:
            paired.setdefault((first, second), []).append((i, j))
    paired = {groups_of: found for groups_of, found in paired.items() if found}
    if not paired:
        raise ValueError(
            "there are no two networks of different seeds to compare; give a group two or more"
            " learners (or by_seed=False, where networks of two groups do not share their initial"
            " weights)"
        )
    draws, seed = check_draws(draws, seed)
    names = list(layers) if layers is not None else body(members[0][1].model, members[0][1].head)
    if not names:
        raise ValueError(
            f"{members[0][0]} has no layer but its head; name what to compare with layers="
        )
    tasks = single_tasks(episodes)
    every = sorted({pair for found in paired.values() for pair in found})
    per_task: dict[tuple[int, int], list[dict[str, Profile]]] = {pair: [] for pair in every}
    sampled: list[dict[str, list[Tensor]]] = [{name: [] for name in names} for _ in members]
    with (
        evaluation_mode([learner for _, learner in members]),
        torch.no_grad(),
        _progress.progress(
            "comparing networks", len(tasks), unit="task", shown=progress
        ) as advance,
    ):
        for i in range(len(tasks)):
            seen = [_outputs(learner, tasks[i], names, adapted) for _, learner in members]
            for outputs, kept in zip(seen, sampled, strict=True):
                for name in names:
                    kept[name].append(sample(outputs[name], rows // len(tasks), seed).cpu())
            if draws is None:  # decided once, by the first task
                draws = cca_draws(draws, seen[0], names, len(tasks) * len(every))
            for a, b in every:
                options: Any = {"draws": draws, "seed": seed + i}
                per_task[a, b].append(
                    {
                        "cca": cca_of_task(seen[a], seen[b], names, **options),
                        "cka": compare_layers(seen[a], seen[b], layers=names, **options),
                        "cka_biased": compare_layers(
                            seen[a], seen[b], layers=names, **options, debiased=False
                        ),
                    }
                )
            advance()
    pooled = [{name: torch.cat(parts) for name, parts in kept.items()} for kept in sampled]
    blocks = len(tasks) if len(tasks) > 1 else None
    of_pooled = {
        (a, b): compare_layers(
            pooled[a],
            pooled[b],
            layers=names,
            measure="cca",
            groups=blocks,
            rows=10**9,
            draws=draws,
            seed=seed,
        )
        for a, b in every
    }
    found = [
        _between(pair, [(of_pooled[p], per_task[p]) for p in pairs], names)
        for pair, pairs in paired.items()
    ]
    return Between(tuple(found), len(tasks), adapted, int(draws or 0))


def _outputs(
    learner: Learner, task: Episode, names: Sequence[str], adapted: bool
) -> dict[str, Tensor]:
    check_examples(task, stacked=False)
    support, query = to_device(task, learner)
    network = learner.network
    weights = learner.adapt(support).weights if adapted else network.weights()
    with representations(network.module, names) as seen:
        network(weights, query.inputs)
    return seen


def _between(
    groups: tuple[str, str],
    pairs: Sequence[tuple[Profile, Sequence[Mapping[str, Profile]]]],
    names: Sequence[str],
) -> BetweenGroups:
    """One row from the profiles of its pairs: each CCA over pooled tasks, and the other measures
    task by task.
    """
    values: dict[str, dict[str, list[float]]] = {
        measure: {name: [] for name in names} for measure in MEASURES
    }
    floors: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    for pooled, tasks in pairs:
        for name in names:
            for measure in MEASURES:
                found = (
                    [pooled[name]]
                    if measure == "cca_pooled"
                    else [task[measure][name] for task in tasks]
                )
                values[measure][name].append(sum(row.similarity for row in found) / len(found))
                floors[measure].append(sum(row.floor.median for row in found) / len(found))
    over_body = {
        m: [sum(column) / len(names) for column in zip(*by_layer.values(), strict=True)]
        for m, by_layer in values.items()
    }
    return BetweenGroups(
        groups,
        len(pairs),
        {
            name: {measure: MeanStd.of(values[measure][name]) for measure in MEASURES}
            for name in names
        },
        {measure: MeanStd.of(over_body[measure]) for measure in MEASURES},
        {measure: sum(found) / len(found) for measure, found in floors.items()},
    )
