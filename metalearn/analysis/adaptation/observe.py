"""What is observed of a learner on one task: features, weights and predictions before and after its
inner loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

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


@dataclass(frozen=True)
class Observed:
    """What is kept of one task: CKA and CCA as numbers, sampled rows for CCA of pooled tasks,
    whether layers moved, and the query scores.

    `scores` are the share of queries that are right, or for real targets the loss. `sizes` are ways
    (0 for real targets), and support and query examples a class (in all, for real targets).
    `constant` is what scores without features: 1 / ways, or the loss of predicting the mean of the
    support targets.

    `measured` has the numbers of every layer by the names of `LayerReuse`'s fields; `ceiling` and
    the rows in it are None and empty where there is no other network to compare with, and so is
    `ceiling_cca`.
    """

    profile: Profile
    cca: Profile
    sampled: dict[str, tuple[Tensor, ...]]
    unmoved: dict[str, bool]
    measured: dict[str, dict[str, float]]
    scores: dict[str, float]
    sizes: tuple[int, int, int]
    constant: float
    ceiling: Profile | None = None
    ceiling_cca: Profile | None = None


@dataclass(frozen=True)
class Other:
    """An independently trained network, whose features on the same images are the ceiling."""

    learner: Learner
    # The tasks in flight share this one module, and what its layers put out is read from it.
    alone: Lock = field(default_factory=Lock)

    def outputs(self, names: Sequence[str], inputs: Tensor) -> Outputs:
        """What the named layers put out for these inputs, under the meta-initialisation."""
        network = self.learner.network
        with self.alone, representations(network.module, names) as seen:
            network(network.weights(), inputs)
        return seen


def observe(
    learner: Learner,
    network: Functional,
    names: Sequence[str],
    task: Episode,
    *,
    rows: int,
    draws: int | None,
    seed: int,
    index: int,
    tasks: int,
    other: Other | None,
) -> Observed:
    """Adapt to the `index`-th of the tasks, and look at its query images through the named layers
    before and after.
    """
    check_examples(task, stacked=False)
    support, query = to_device(task, learner)
    regression = support.targets.is_floating_point()
    ways = 0 if regression else int(support.targets.max()) + 1

    def run(
        predict: Callable[..., Tensor], *arguments: Any
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        with (
            representations(network.module, names) as outputs,
            head_input(network.module, network.head) as at_head,
        ):
            logits = predict(*arguments)
        return outputs, logits, at_head.features.flatten(1)

    def score(logits: Tensor) -> float:
        return query_score(learner, network, logits, query.targets)

    def headless(weights: Weights, features: Tensor) -> float:
        shots = run(network, weights, support.inputs)[2]
        if not regression:
            return score(cosine_readout(Examples(shots, support.targets), features, ways))
        # Ridge regression of the support targets, its strength chosen by leaving one out.
        outputs, _ = ridge_readout(
            shots, support.targets.reshape(len(shots), -1).double(), features
        )
        return score(outputs.reshape(query.targets.shape).to(query.targets.dtype))

    initial = network.weights()
    adapted = solve(learner, network, support)
    before, logits_before, features_before = run(network, initial, query.inputs)
    after, own, features_after = run(answer, learner, network, adapted, query.inputs)
    uses_head = (
        adapted.support is None
    )  # the others predict from the support features that they keep
    unmoved = {name: torch.equal(before[name], after[name]) for name in names}
    sides: list[Outputs] = [before, after, *([other.outputs(names, query.inputs)] if other else [])]
    moved = weights_moved(
        network.module, names, initial, adapted.weights, first_gradients(learner, network, support)
    )
    return Observed(
        profile=compare_layers(
            before, after, draws=cka_draws(draws, before, names, tasks), seed=seed + index
        ),
        cca=cca_of_task(
            before, after, names, draws=cca_draws(draws, before, names, tasks), seed=seed + index
        ),
        sampled={
            name: tuple(sample(side[name], rows, seed).cpu() for side in sides) for name in names
        },
        unmoved=unmoved,
        measured={
            name: {
                **moved[name],
                **_classes(before[name], after[name], query.targets, unmoved[name]),
            }
            for name in names
        },
        scores={
            "own": score(own),
            "head_before": score(logits_before) if uses_head else float("nan"),
            "head_after": score(own) if uses_head else float("nan"),
            "headless_before": headless(initial, features_before),
            "headless_after": headless(adapted.weights, features_after),
        },
        sizes=(ways, len(support.targets) // max(ways, 1), len(query.targets) // max(ways, 1)),
        constant=(
            score(support.targets.mean(0).expand_as(query.targets)) if regression else 1 / ways
        ),
        ceiling=compare_layers(before, sides[2], layers=names, draws=0) if other else None,
        ceiling_cca=(
            cca_of_task(before, sides[2], names, draws=0, seed=seed + index) if other else None
        ),
    )


def settle(learner: Learner, task: Episode) -> None:
    """Find out on one task whether a guessed head makes the model's output, before tasks run in
    threads.
    """
    check_examples(task, stacked=False)
    learner.settle_head(to_device(task, learner).support.inputs)


def query_score(learner: Learner, network: Functional, logits: Tensor, targets: Tensor) -> float:
    """The share of a task's queries that are right, or for real targets the learner's loss.

    Args:
        logits: (queries, ways), or outputs of the targets' shape.
        targets: (queries,) class labels, or real targets.
    """
    if targets.is_floating_point():
        return float(learner.task_loss(network, logits, targets))
    return float((logits.argmax(-1) == targets).double().mean())


def first_gradients(learner: Learner, network: Functional, support: Examples) -> Weights:
    """The gradient of the inner loss on the support set at the meta-initialisation, by parameter
    name; of those that have a rate.

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
        network.weights(),
        learner.rates,
        first_order=True,
        update=lambda weights, gradients, rates, state: (gradients, state),
    )
    return {name: gradients[name] for name in learner.rates}


def weights_of(model: nn.Module, layer: str) -> list[str]:
    """The names of the parameters that belong to a layer: those inside it, and bare ones that
    `owners` gives to it.
    """
    owner = owners(model)
    return [
        name
        for name, _ in model.named_parameters()
        if is_inside(name, layer) or owner[name] == layer
    ]


def weights_moved(
    model: nn.Module, layers: Iterable[str], before: Weights, after: Weights, gradients: Weights
) -> dict[str, dict[str, float]]:
    """How far each layer's weights moved, that over the norm they had, and the norm of their
    gradient: Euclidean, all its weights in one.

    A layer that has no rate has gradient 0; one that moved all the same, by a rule of its own, has
    none that is known (NaN).
    """
    found = {}
    for layer in layers:
        names = weights_of(model, layer)
        # Differences of narrow dtypes, and squares beyond their range, are taken in float64.
        distance = _norm(
            after[name].double() - before[name].double()
            for name in names
            if after[name] is not before[name]
        )
        size = _norm(before[name] for name in names)
        known = [gradients[name] for name in names if name in gradients]
        found[layer] = {
            "distance": distance,
            "relative_distance": distance / size if size else math.nan,
            "gradient": _norm(known) if known or not distance else math.nan,
        }
    return found


def class_cosines(features: Tensor, targets: Tensor) -> tuple[float, float]:
    """The mean cosine between features of two different examples of one class, and of two classes
    -> (intra, inter).

    Oh et al. 2021 (arXiv:2008.08882): each example flattened, not centred; every pair counts alike.
    The cosine to features that are all zero is 0. NaN where there is no such pair.

    Args:
        features: (examples, ...).
        targets: (examples,) class labels.

    Example:
        >>> class_cosines(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0, 1]))
        (1.0, 0.0)
    """
    features, targets = real_tensor(features, "features"), real_tensor(targets, "targets")
    if not features.ndim or targets.shape != features.shape[:1] or targets.is_floating_point():
        raise ValueError(
            f"features {tuple(features.shape)} and {targets.dtype} targets {tuple(targets.shape)}"
            " do not fit; give (examples, ...) and an integer label for each"
        )
    units = F.normalize(features.reshape(len(features), -1).double(), dim=1)
    cosines, same = units @ units.mT, targets[:, None] == targets
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    return float(cosines[same & ~itself].mean()), float(cosines[~same].mean())


def _classes(before: Tensor, after: Tensor, targets: Tensor, unmoved: bool) -> dict[str, float]:
    if targets.is_floating_point():  # there are no classes
        return dict.fromkeys(
            ("intra_before", "intra_after", "inter_before", "inter_after"), math.nan
        )
    intra, inter = class_cosines(before, targets)
    intra_after, inter_after = (intra, inter) if unmoved else class_cosines(after, targets)
    return {
        "intra_before": intra,
        "intra_after": intra_after,
        "inter_before": inter,
        "inter_after": inter_after,
    }


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(tensor.double())) for tensor in tensors))
