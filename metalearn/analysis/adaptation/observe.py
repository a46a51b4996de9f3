"""One task of `feature_reuse`: features, weights and predictions before and after adaptation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.algorithms.base import Learner
from metalearn.algorithms.features import cosine_readout
from metalearn.analysis.measures.inputs import real_tensor
from metalearn.analysis.networks.layerwise import compare_layers
from metalearn.analysis.networks.per_task import cca_draws, cca_of_task, cka_draws
from metalearn.analysis.networks.positions import sample
from metalearn.analysis.networks.probes import ridge_readout
from metalearn.analysis.networks.profile import Profile
from metalearn.engine.inner_loop import Weights, inner_step
from metalearn.engine.solver import answer, solve
from metalearn.episodes import Episode, Examples
from metalearn.evaluation import check_examples, to_device
from metalearn.network.activations import head_input, representations
from metalearn.network.functional import Functional
from metalearn.network.layers import is_inside, owners

Outputs = Mapping[str, Tensor]


class Similarities(NamedTuple):
    """CKA and CCA of two networks on the query examples of one task, layer by layer."""

    cka: Profile
    cca: Profile


@dataclass(frozen=True)
class Observed:
    """What is kept of one task.

    Attributes:
        similarity: the layers before adaptation against those after.
        sampled: rows of every layer for CCA of the pooled tasks, each (examples, positions,
            channels): before adaptation, after it, and of the other network if there is one.
        unmoved: whether a layer's outputs are equal bit for bit.
        measured: the numbers of every layer by the names of `LayerReuse`'s fields.
        scores: the share of queries that are right, or for real targets the loss, by the names of
            `Accuracies`' fields.
        sizes: ways (0 for real targets), and support and query examples a class (in all, for real
            targets).
        constant: the score without features: 1 / ways, or the loss of predicting the mean of the
            support targets.
        other_seed: the layers against those of another network, both before adaptation; None
            without one.
    """

    similarity: Similarities
    sampled: dict[str, tuple[Tensor, ...]]
    unmoved: dict[str, bool]
    measured: dict[str, dict[str, float]]
    scores: dict[str, float]
    sizes: tuple[int, int, int]
    constant: float
    other_seed: Similarities | None = None


@dataclass(frozen=True)
class OtherNetwork:
    """An independently trained network, to compare with on the same images."""

    learner: Learner
    # The tasks in flight share this one module, and the outputs of its layers are read from it.
    alone: Lock = field(default_factory=Lock)

    def outputs(self, names: Sequence[str], inputs: Tensor) -> Outputs:
        """The outputs of the named layers for these inputs, under the meta-initialisation."""
        network = self.learner.network
        with self.alone, representations(network.module, names) as outputs:
            network(network.weights(), inputs)
        return outputs


class _Pass(NamedTuple):
    """One forward pass: the outputs of the layers, the logits, and the features before the head."""

    outputs: Outputs
    logits: Tensor
    features: Tensor  # (examples, features)


@dataclass(frozen=True)
class _Task:
    """One task, and a learner on one network to run on it."""

    learner: Learner
    network: Functional
    names: Sequence[str]
    support: Examples
    query: Examples

    @property
    def regression(self) -> bool:
        """Whether the targets are real numbers."""
        return self.support.targets.is_floating_point()

    @property
    def ways(self) -> int:
        """The number of classes; 0 for real targets."""
        return 0 if self.regression else int(self.support.targets.max()) + 1

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Ways, and support and query examples a class (in all, for real targets)."""
        classes = max(self.ways, 1)
        return self.ways, len(self.support.targets) // classes, len(self.query.targets) // classes

    def run(self, predict: Callable[..., Tensor], *arguments: Any) -> _Pass:
        """Call `predict(*arguments)`, and keep what passes through the network."""
        with (
            representations(self.network.module, self.names) as outputs,
            head_input(self.network.module, self.network.head) as at_head,
        ):
            logits = predict(*arguments)
        return _Pass(outputs, logits, at_head.features.flatten(1))

    def score(self, logits: Tensor) -> float:
        """The score of these query logits."""
        return query_score(self.learner, self.network, logits, self.query.targets)

    def headless_score(self, weights: Weights, features: Tensor) -> float:
        """The score without a head, from the query features (queries, features)."""
        shots = self.run(self.network, weights, self.support.inputs).features
        if not self.regression:
            support = Examples(shots, self.support.targets)
            return self.score(cosine_readout(support, features, self.ways))
        # Ridge regression of the support targets; leaving one out chooses its strength.
        targets = self.support.targets.reshape(len(shots), -1).double()  # (support, outputs)
        outputs, _ = ridge_readout(shots, targets, features)
        return self.score(outputs.reshape(self.query.targets.shape).to(self.query.targets.dtype))

    def constant_score(self) -> float:
        """The score without features: of guessing, or of the mean of the support targets."""
        if self.regression:
            return self.score(self.support.targets.mean(0).expand_as(self.query.targets))
        return 1 / self.ways


def observe(
    learner: Learner,
    network: Functional,
    names: Sequence[str],
    episode: Episode,
    *,
    rows: int,
    draws: int | None,
    seed: int,
    index: int,
    tasks: int,
    other: OtherNetwork | None,
) -> Observed:
    """Adapt to one task, and compare the named layers on its query examples before and after.

    Args:
        learner: the learner, in evaluation mode.
        network: its network, or a replica of it.
        names: the layers.
        episode: the task, without a task dimension.
        rows: about how many rows of each layer to keep for CCA of the pooled tasks.
        draws: how often chance shuffles; None for a number by its cost over all tasks.
        seed: what the draws and the sampled positions depend on.
        index: the number of the task; its draws differ from those of other tasks.
        tasks: the number of tasks in all.
        other: another network to compare with.
    """
    check_examples(episode, stacked=False)
    support, query = to_device(episode, learner)
    task = _Task(learner, network, names, support, query)

    # The query examples under the meta-initialisation, and under the adapted weights.
    initial = learner.initial_weights(network, support)
    adapted = solve(learner, network, support)
    before = task.run(network, initial, query.inputs)
    after = task.run(answer, learner, network, adapted, query.inputs)

    # Another network is compared before adaptation; it needs no draws, as no table shows them.
    sides = [before.outputs, after.outputs]
    other_seed = None
    if other:
        sides.append(other.outputs(names, query.inputs))
        other_seed = Similarities(
            compare_layers(before.outputs, sides[2], layers=names, draws=0),
            cca_of_task(before.outputs, sides[2], names, draws=0, seed=seed + index),
        )
    # What the inner loop did to the weights, and to the classes.
    gradients = first_gradients(learner, network, support)
    moved = weights_moved(network.module, names, initial, adapted.weights, gradients)
    unmoved = {name: torch.equal(sides[0][name], sides[1][name]) for name in names}
    cosines = {
        name: _class_cosines(sides[0][name], sides[1][name], query.targets, unmoved=unmoved[name])
        for name in names
    }
    return Observed(
        similarity=_similarities(sides[0], sides[1], names, draws, tasks, seed + index),
        sampled=_sampled(sides, names, rows, seed),
        unmoved=unmoved,
        measured={name: moved[name] | cosines[name] for name in names},
        # NIL and ProtoNet predict from the support features that they keep, without a head.
        scores=_scores(
            task, before, after, initial, adapted.weights, uses_head=adapted.support is None
        ),
        sizes=task.sizes,
        constant=task.constant_score(),
        other_seed=other_seed,
    )


def _sampled(
    sides: Sequence[Outputs], names: Sequence[str], rows: int, seed: int
) -> dict[str, tuple[Tensor, ...]]:
    """The same positions of every layer on every side, each (examples, positions, channels)."""
    rows_of_layers = {}
    for name in names:
        # On the CPU, because they are kept for every task.
        rows_of_layers[name] = tuple(sample(side[name], rows, seed).cpu() for side in sides)
    return rows_of_layers


def _similarities(
    before: Outputs,
    after: Outputs,
    names: Sequence[str],
    draws: int | None,
    tasks: int,
    seed: int,
) -> Similarities:
    """CKA and CCA before and after adaptation, with their draws for chance."""
    return Similarities(
        compare_layers(before, after, draws=cka_draws(draws, before, names, tasks), seed=seed),
        cca_of_task(before, after, names, draws=cca_draws(draws, before, names, tasks), seed=seed),
    )


def _scores(
    task: _Task,
    before: _Pass,
    after: _Pass,
    initial: Weights,
    adapted: Weights,
    *,
    uses_head: bool,
) -> dict[str, float]:
    """The query scores by the names of `Accuracies`' fields; NaN for a head that is not used."""
    own = task.score(after.logits)
    head_before = math.nan
    head_after = math.nan
    if uses_head:
        head_before = task.score(before.logits)
        head_after = own
    return {
        "own": own,
        "head_before": head_before,
        "head_after": head_after,
        "headless_before": task.headless_score(initial, before.features),
        "headless_after": task.headless_score(adapted, after.features),
    }


def settle(learner: Learner, task: Episode) -> None:
    """Check on one task, before tasks run in threads, that a guessed head makes the output."""
    check_examples(task, stacked=False)
    learner.settle_head(to_device(task, learner).support.inputs)


def query_score(learner: Learner, network: Functional, logits: Tensor, targets: Tensor) -> float:
    """The share of a task's queries that are right, or for real targets the learner's loss.

    Args:
        learner: the learner whose loss is used.
        network: its network, or a replica of it.
        logits: (queries, ways), or outputs of the targets' shape.
        targets: (queries,) class labels, or real targets.
    """
    if targets.is_floating_point():
        return float(learner.task_loss(network, logits, targets))
    return float((logits.argmax(-1) == targets).double().mean())


def first_gradients(learner: Learner, network: Functional, support: Examples) -> Weights:
    """The gradient of the inner loss at the meta-initialisation, of every parameter with a rate.

    Example:
        >>> import torch
        >>> from metalearn import MAML
        >>> model = nn.Linear(1, 1, bias=False)
        >>> learner = MAML(model, lr=0.1, loss=F.mse_loss)
        >>> _ = nn.init.ones_(model.weight)
        >>> support = Examples(torch.tensor([[2.0]]), torch.tensor([[5.0]]))
        >>> first_gradients(learner, learner.network, support)["weight"].item()  # 2 (2 w - 5) 2
        -12.0
    """
    gradients, _ = inner_step(
        lambda weights: learner.task_loss(
            network, network(weights, support.inputs), support.targets
        ),
        learner.initial_weights(network, support),
        learner.rates,
        first_order=True,
        # An update whose result is the gradient itself.
        update=lambda weights, gradients, rates, state: (gradients, state),
    )
    return {name: gradients[name] for name in learner.rates}


def weights_of(model: nn.Module, layer: str) -> list[str]:
    """The names of a layer's parameters: those inside it, and bare ones that it owns (`owners`)."""
    owner = owners(model)
    return [
        name
        for name, _ in model.named_parameters()
        if is_inside(name, layer) or owner[name] == layer
    ]


def weights_moved(
    model: nn.Module, layers: Iterable[str], before: Weights, after: Weights, gradients: Weights
) -> dict[str, dict[str, float]]:
    """How far each layer's weights moved, and how long their first gradient was.

    All norms are Euclidean, over all weights of a layer together.

    Args:
        model: the network.
        layers: the names of the layers.
        before: the weights before adaptation.
        after: the weights after it.
        gradients: the first gradients, of the parameters with a rate.

    Returns:
        For each layer its "distance", its "relative_distance" (over the norm before), and its
        "gradient": 0 if the layer has no rate, but NaN if it moved all the same, by a rule of its
        own.
    """
    numbers = {}
    for layer in layers:
        names = weights_of(model, layer)
        # Differences of narrow dtypes, and squares beyond their range, are taken in float64.
        distance = _norm(
            after[name].double() - before[name].double()
            for name in names
            if after[name] is not before[name]
        )
        size = _norm(before[name] for name in names)
        # Weights without a rate have no gradient here.
        known = [gradients[name] for name in names if name in gradients]
        numbers[layer] = {
            "distance": distance,
            "relative_distance": distance / size if size else math.nan,
            "gradient": _norm(known) if known or not distance else math.nan,
        }
    return numbers


def class_cosines(features: Tensor, targets: Tensor) -> tuple[float, float]:
    """The mean cosine between features of two examples of one class, and of two classes.

    Oh et al. 2021 (arXiv:2008.08882): each example is flattened and not centred, and every pair
    has the same weight. The cosine to features that are all zero is 0.

    Args:
        features: (examples, ...).
        targets: (examples,) class labels.

    Returns:
        The mean within a class, and between classes; NaN if there is no such pair.

    Raises:
        ValueError: the shapes do not fit, or the labels are not integers.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
        >>> class_cosines(features, torch.tensor([0, 0, 1]))
        (1.0, 0.0)
    """
    features = real_tensor(features, "features")
    targets = real_tensor(targets, "targets")
    if not features.ndim or targets.shape != features.shape[:1] or targets.is_floating_point():
        raise ValueError(
            f"features {tuple(features.shape)} and {targets.dtype} targets {tuple(targets.shape)}"
            " do not fit; give (examples, ...) and an integer label for each"
        )
    # cos(a, b) = a / |a| · b / |b|
    directions = F.normalize(features.reshape(len(features), -1).double(), dim=1)
    cosines = directions @ directions.mT  # (examples, examples)
    same = targets[:, None] == targets  # (examples, examples)
    # An example and itself are no pair.
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    return float(cosines[same & ~itself].mean()), float(cosines[~same].mean())


def _class_cosines(
    before: Tensor, after: Tensor, targets: Tensor, *, unmoved: bool
) -> dict[str, float]:
    """The class cosines before and after adaptation; NaN for real targets, without classes."""
    names = ("intra_before", "inter_before", "intra_after", "inter_after")
    if targets.is_floating_point():
        return dict.fromkeys(names, math.nan)
    cosines = class_cosines(before, targets)
    cosines_after = cosines if unmoved else class_cosines(after, targets)
    return dict(zip(names, (*cosines, *cosines_after), strict=True))


def _norm(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm of all entries together."""
    return math.hypot(*(float(torch.linalg.vector_norm(tensor.double())) for tensor in tensors))
