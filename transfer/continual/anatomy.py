"""Where in a network a task is forgotten: similarities, resets and probes of one sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from metalearn.analysis import Profile, compare_layers, linear_probes, overlap
from metalearn.analysis.measures.inputs import Undefined
from metalearn.analysis.networks.outputs import layer_outputs
from metalearn.analysis.networks.positions import matrix
from metalearn.episodes import Examples
from metalearn.runtime.statistics import Estimate
from metalearn.runtime.tables import plain
from transfer.continual.checked_tasks import seed_of
from transfer.continual.norms import keeps_running_statistics, reestimated
from transfer.continual.resets import Group, layer_groups, reset
from transfer.continual.sequence import Learner
from transfer.continual.task_sequence import TaskSequence, Weights, head_tensors
from transfer.finetuning.data import rows_at, subset

Outputs: TypeAlias = dict[tuple[str, str], Mapping[str, Tensor]]
"""(network, images) -> {layer: output}."""

ROWS = 10_000  # examples times positions of a layer
DRAWS = 20  # shuffles for a chance level
BOTH = "both tasks, after"
COMPARISONS = {
    "first task, before and after": ("before", "first", "after", "first"),
    "last task, before and after": ("before", "last", "after", "last"),
    BOTH: ("after", "first", "after", "last"),
    "first before, last after": ("before", "first", "after", "last"),
}
"""Name -> (network, images) of one side and of the other."""


@dataclass(frozen=True)
class LayerAnatomy:
    """One layer of one sequence.

    Attributes:
        layer: its name.
        cka: linear CKA (debiased) of the first task's test images before and after the later tasks.
        floor: the 95 % quantile of CKA by chance.
        ceiling: CKA with the network that went on with the first task instead; NaN if not trained.
        subspace: {k: {comparison: similarity of the k leading directions}}; see `COMPARISONS`.
        subspace_floor: the 95 % quantile by chance of the first comparison, for the first k.
        overlap: of the features of both tasks' images, before the later tasks.
        reset_top: accuracy on the first task with this layer and all above put back.
        reset_bottom: with this layer and all below put back.
        reset_single: with this layer alone put back.
        probe_before: accuracy of a linear probe of the first task, before.
        probe_after: after the last task.
        note: why a value is missing.
    """

    layer: str
    cka: float
    floor: float
    ceiling: float
    subspace: Mapping[int, Mapping[str, float]]
    subspace_floor: float
    overlap: float
    reset_top: float
    reset_bottom: float
    reset_single: float
    probe_before: float
    probe_after: float
    note: str = ""


@dataclass(frozen=True)
class Anatomy:
    """One sequence, layer by layer.

    Attributes:
        layers: from the bottom to the top, without the head.
        before: accuracy on the first task before the later ones.
        after: accuracy on it after the last one.
        forgetting: before minus after, with its interval over the test images.
        reset_head: accuracy with the head alone put back.
        reestimated: accuracy after, with the running statistics measured anew on the first task's
            training images; NaN without running statistics.
    """

    layers: tuple[LayerAnatomy, ...]
    before: float
    after: float
    forgetting: Estimate
    reset_head: float
    reestimated: float = math.nan
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-able values."""
        return plain(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Anatomy:
        """What `to_dict` recorded."""
        layers = []
        for row in record["layers"]:
            values = {name: _number(value) for name, value in row.items()}
            values["subspace"] = {
                int(k): _numbers(comparisons) for k, comparisons in row["subspace"].items()
            }
            layers.append(LayerAnatomy(**values))
        names = ("before", "after", "reset_head", "reestimated")
        return cls(
            layers=tuple(layers),
            forgetting=Estimate(**_numbers(record["forgetting"])),
            options=record["options"],
            **{name: _number(record[name]) for name in names},
        )


def anatomy(
    learner: Learner,
    sequence: TaskSequence,
    *,
    layers: Sequence[str] | None = None,
    ceiling: Weights | None = None,
    probe: int = 500,
    k: Sequence[int] = (10,),
) -> Anatomy:
    """What the tasks after the first changed in each layer, and what that did to the first.

    Args:
        learner: that learned the sequence.
        sequence: the tasks, learned.
        layers: from the bottom to the top; by default all but the head.
        ceiling: the weights of the network that went on with the first task instead.
        probe: test images of each task that layers are compared on.
        k: how many principal directions are compared; the first is that of the tables.
    """
    last = len(sequence.stages) - 1
    states = {"before": sequence.state(0, 0), "after": sequence.state(last, 0)}
    networks = {name: learner.network(state).eval() for name, state in states.items()}
    groups = layer_groups(networks["before"], learner.head, layers)
    names = [group.layer for group in groups]
    # Sides of one comparison have equally many images.
    count = min(probe, *(len(learner.trainings[task].test_targets) for task in (0, last)))
    images = {
        task: learner.trainings[number].probe(count)
        for task, number in (("first", 0), ("last", last))
    }
    outputs: Outputs = {}
    for network, module in networks.items():
        for task in images:
            outputs[network, task] = layer_outputs(module, names, images[task], network)
    continued = None
    if ceiling is not None:
        other = learner.network(ceiling).eval()
        continued = layer_outputs(other, names, images["first"], "ceiling")
    probes = {side: _probed(learner, network, names, probe) for side, network in networks.items()}
    resets = _resets(learner, states, groups)
    correct = {side: learner.correct(network, 0) for side, network in networks.items()}
    anew = math.nan
    if keeps_running_statistics(networks["after"]):
        again = reestimated(networks["after"], learner.trainings[0], seed_of(sequence.seed, 0))
        anew = float(learner.correct(again, 0).mean())
    return Anatomy(
        layers=tuple(_rows(outputs, continued, names, probes, resets, k)),
        before=float(correct["before"].mean()),
        after=float(correct["after"].mean()),
        forgetting=Estimate.of(correct["before"] - correct["after"]),
        reset_head=resets["head"][0],
        reestimated=anew,
        options={"probe": count, "k": list(k)},
    )


def _rows(
    outputs: Outputs,
    continued: Mapping[str, Tensor] | None,
    names: Sequence[str],
    probes: Mapping[str, Mapping[str, float]],
    resets: Mapping[str, Sequence[float]],
    k: Sequence[int],
) -> list[LayerAnatomy]:
    """A row for each layer, from the outputs of both networks on the images of both tasks."""
    cka = _compared(outputs["before", "first"], outputs["after", "first"], names, "linear_cka")
    high = None
    if continued is not None:
        high = _compared(outputs["before", "first"], continued, names, "linear_cka")
    spaces = {number: _subspaces(outputs, names, number) for number in k}
    rows = []
    for place, layer in enumerate(names):
        first = spaces[k[0]]["first task, before and after"][layer]
        rows.append(
            LayerAnatomy(
                layer=layer,
                cka=cka[layer].similarity,
                floor=cka[layer].floor.upper,
                ceiling=math.nan if high is None else high[layer].similarity,
                subspace={
                    number: _of_layer(profiles, layer) for number, profiles in spaces.items()
                },
                subspace_floor=first.floor.upper,
                overlap=_overlap(outputs, layer),
                reset_top=resets["top"][place],
                reset_bottom=resets["bottom"][place],
                reset_single=resets["single"][place],
                probe_before=probes["before"][layer],
                probe_after=probes["after"][layer],
                note="; ".join(note for note in (cka[layer].note, first.note) if note),
            )
        )
    return rows


def _compared(
    left: Mapping[str, Tensor],
    right: Mapping[str, Tensor],
    names: Sequence[str],
    measure: str,
    **options: Any,
) -> Profile:
    return compare_layers(
        left, right, None, names, measure=measure, rows=ROWS, draws=DRAWS, **options
    )


def _subspaces(outputs: Outputs, names: Sequence[str], k: int) -> dict[str, Profile]:
    """The four comparisons of the k leading directions; channels are neurons."""
    profiles = {}
    for name, (network, task, other, other_task) in COMPARISONS.items():
        profiles[name] = _compared(
            outputs[network, task],
            outputs[other, other_task],
            names,
            "subspace",
            convention="positions",
            k=k,
        )
    return profiles


def _of_layer(profiles: Mapping[str, Profile], layer: str) -> dict[str, float]:
    return {name: profile[layer].similarity for name, profile in profiles.items()}


def _overlap(outputs: Outputs, layer: str) -> float:
    """The overlap of the features of both tasks in the network of the first."""
    sides = [
        matrix(outputs["before", task][layer], "positions", ROWS, 0) for task in ("first", "last")
    ]
    try:
        return overlap(sides[0].cpu(), sides[1].cpu())
    except Undefined:
        return math.nan


def _probed(
    learner: Learner, network: nn.Module, names: Sequence[str], probe: int
) -> dict[str, float]:
    """The accuracy of a linear probe of the first task on each layer."""
    training = learner.trainings[0]
    targets = training.train_targets
    # Twice as many images to learn from as to test on.
    wanted = max(2 * probe, len(targets.unique()))
    index = subset(targets, wanted if wanted < len(targets) else None, 0)
    device = torch.device(training.device)
    train = Examples(
        training._prepared(rows_at(training.train_inputs, index, device)), targets[index].to(device)
    )
    generator = torch.Generator().manual_seed(0)
    tested = torch.randperm(len(training.test_targets), generator=generator)[:probe]
    tested = tested[torch.isin(training.test_targets[tested], targets[index])]
    test = Examples(
        training._prepared(rows_at(training.test_inputs, tested, device)),
        training.test_targets[tested].to(device),
    )
    rows = linear_probes(network, train, test, names, convention="pool").layers
    return {row.layer: row.accuracy.mean for row in rows}


def _resets(
    learner: Learner, states: Mapping[str, Weights], groups: Sequence[Group]
) -> dict[str, list[float]]:
    """The accuracy on the first task with layers put back: from the top, the bottom, and singly."""
    model = learner.network(states["after"])
    head = set(head_tensors(states["before"], learner.head))

    def accuracy(names: set[str]) -> float:
        reset(model, states["after"], states["before"], names, learner.head)
        return float(learner.correct(model.eval(), 0).mean())

    results: dict[str, list[float]] = {"top": [], "bottom": [], "single": []}
    for place in range(len(groups)):
        # The head is above all layers: it goes with those from the top.
        above = head.union(*(group.names for group in groups[place:]))
        below = set().union(*(group.names for group in groups[: place + 1]))
        results["top"].append(accuracy(above))
        results["bottom"].append(accuracy(below))
        results["single"].append(accuracy(set(groups[place].names)))
    results["head"] = [accuracy(head)]
    return results


def _number(value: Any) -> Any:
    """JSON has no NaN."""
    return math.nan if value is None else value


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in values.items()}
