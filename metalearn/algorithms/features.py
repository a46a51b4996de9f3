"""Labels from features without a head: the cosine rules that NIL and the analysis share."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.engine.labels import check_classes
from metalearn.engine.solver import Adapted
from metalearn.episodes import Episode, Examples
from metalearn.network.activations import ending, head_input, output_of
from metalearn.network.forward import Inputs
from metalearn.network.functional import Functional
from metalearn.network.layers import heads, is_inside
from metalearn.network.module_call import Weights
from metalearn.padding import has_padding, is_padding

from .base import Learner, explained

RULES = ("softmax", "sum", "class_mean")


def cosine_readout(support: Examples, queries: Tensor, ways: int, rule: str = "softmax") -> Tensor:
    """Class scores of queries from the cosines of their features and the support features.

    With `c_qi` the cosine of query q and support example i (Raghu et al. 2020, section 5.1, leaves
    the weighting open):

    - "softmax": `log sum_{i of class k} softmax_i(c_q)`, the attention of matching networks; the
      log of a probability.
    - "sum": `sum_{i of class k} c_qi`.
    - "class_mean": the cosine to the mean feature of class k, as in the code of BOIL (Oh et al.
      2021).

    Args:
        support: features (..., shots, features) and labels (..., shots).
        queries: features (..., queries, features).
        ways: the number of classes.
        rule: "softmax", "sum" or "class_mean".

    Returns:
        Scores (..., queries, ways).

    Raises:
        ValueError: the rule is unknown, a label is beyond `ways`, or a class has no support
            example.

    Example:
        >>> support = Examples(torch.eye(2), torch.tensor([0, 1]))
        >>> cosine_readout(support, torch.tensor([[3.0, 0.1]]), ways=2).argmax(-1)
        tensor([0])
    """
    check_classes(support.targets, ways)
    return cosine_scores(support, queries, ways, rule)


def cosine_scores(support: Examples, queries: Tensor, ways: int, rule: str) -> Tensor:
    """The scores of `cosine_readout`, for labels that are checked already."""
    members = class_members(support, ways)  # (..., shots, ways)
    if rule == "class_mean":
        return _cosine(queries, class_means(support, ways))
    cosines = _cosine(queries, support.inputs)  # (..., queries, shots)
    if rule == "sum":
        return cosines @ members
    if rule == "softmax":
        # Padded examples belong to no class, and take no part in the softmax.
        padding = is_padding(support.targets).unsqueeze(-2)  # (..., 1, shots)
        cosines = cosines.masked_fill(padding, -torch.inf)
        # log sum_i a_qi y_ik, with a_qi the softmax over the support set
        shares = cosines.softmax(-1) @ members  # (..., queries, ways)
        # A class of other tasks of a padded stack has no share. The gradient of its log is NaN.
        absent = (members.sum(-2) == 0).unsqueeze(-2)  # (..., 1, ways)
        return shares.masked_fill(absent, 1).log()
    raise ValueError(f"there is no rule {rule!r}; choose one of {', '.join(RULES)}")


def class_members(support: Examples, ways: int) -> Tensor:
    """The one-hot labels of support examples (..., shots, ways), in the dtype of their features.

    Padded examples have zeros.
    """
    padding = is_padding(support.targets)
    labels = F.one_hot(support.targets.long().masked_fill(padding, 0), ways)
    return labels.masked_fill(padding.unsqueeze(-1), 0).to(support.inputs.dtype)


def check_stack_classes(targets: Tensor, first: int = 0) -> None:
    """Raise ValueError if a support set of a stack (tasks, examples) lacks one of its classes."""
    if targets.numel():
        check_classes(targets, int(targets.max()) + 1, first)


def class_means(support: Examples, ways: int) -> Tensor:
    """The mean feature of every class (..., ways, features); zeros for a class without examples.

    Only a padded stack has such classes.
    """
    members = class_members(support, ways)
    counts = members.sum(-2).clamp(min=1).unsqueeze(-1)  # (..., ways, 1)
    # (..., ways, shots) @ (..., shots, features), over the examples of each class
    return members.mT @ support.inputs / counts


def absent_classes(targets: Tensor, ways: int) -> Tensor:
    """Which classes the tasks of a padded stack do not have, a mask (tasks, ways).

    Args:
        targets: the support labels (tasks, examples).
        ways: the number of classes of the largest task.
    """
    numbers = torch.arange(ways, device=targets.device)
    return numbers > targets.amax(-1, keepdim=True)


def check_queries(episodes: Episode) -> None:
    """Raise ValueError if a query of a padded stack is of a class that its task does not have."""
    targets = episodes.query.targets
    if not has_padding(episodes.support.targets):
        return
    largest = episodes.support.targets.amax(-1, keepdim=True)
    beyond = (targets > largest).any(-1).nonzero()
    if len(beyond):
        task = int(beyond[0])
        raise ValueError(
            f"task {task} of the stack has a query of class {int(targets[task].max())}, but the"
            f" classes of its support set end at {int(largest[task])}; label both alike"
        )


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of each row of `a` (..., n, features) and each of `b` (..., m, features)."""
    # a b^T / (|a| |b|), (..., n, m)
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT


class FeatureLearner(Learner):
    """A learner without an inner loop: the support set is kept as features.

    The features are what enters the head, which is neither used nor trained. If no layer makes the
    model's output, or the head is named "", the features are the output; the first run tells.
    """

    needs_head = True

    def check_head(self, head: str | None) -> str:
        """The path of the head, or a guess at it; "" for a model without one."""
        if head is None and not heads(self.model):
            self.guessed = False
            return ""
        return super().check_head(head)

    def settle_head(self, inputs: Inputs) -> None:
        """Find on the support inputs of one task which layer makes the output; "" if none does.

        A head that was named is taken as it is.
        """
        # Its features are the output if no layer makes it.
        if self.guessed:
            run = self._trial(inputs)
            if not ending(self.model, self.head, run).is_output:
                self.head = output_of(self.model, run) or ""
            self.guessed = False

    def adapt(self, support: Examples) -> Adapted:
        """The support set of one task -> its features and labels; a guessed head is found first."""
        self.settle_head(support.inputs)
        return self.solve(self.network, support)

    @explained
    def solve(self, network: Functional, support: Examples) -> Adapted:
        """A support set -> its features and labels; no weight moves."""
        self.check_support(network, support)
        weights = network.weights()
        features = flat_features(network, weights, support.inputs)
        return Adapted(weights, Examples(features, support.targets))

    @explained
    def answer(self, network: Functional, adapted: Adapted, inputs: Inputs) -> Tensor:
        """Query inputs (queries, ...) of that task -> logits (queries, ways).

        There are as many ways as the support set has classes.
        """
        if adapted.support is None:
            raise ValueError(
                f"{type(self).__name__} predicts from support features: pass the result of its"
                " adapt(support)"
            )
        ways = network.classes
        if ways is None:
            ways = int(adapted.support.targets.max()) + 1
            check_classes(adapted.support.targets, ways)
        queries = flat_features(network, adapted.weights, inputs)
        logits = self.readout(adapted.support, queries, ways)
        # A recording reads no values, and has no padded stacks.
        if network.classes is not None or not has_padding(adapted.support.targets):
            return logits
        # (tasks, 1, ways): the classes that other tasks of the stack have
        absent = absent_classes(adapted.support.targets, ways).unsqueeze(-2)
        return logits.masked_fill(absent, -torch.inf)

    def prepare(self, episodes: Episode) -> None:
        """Check a stack of tasks before any of them runs (see `Learner`)."""
        super().prepare(episodes)
        check_queries(episodes)

    def adapted_model(self, support: Examples) -> nn.Module:
        """A module that predicts as the learner does after the support set of one task.

        It has a copy of the model and the features of the support set, so nothing that happens to
        it reaches the learner. It can be run, hooked, saved, or exported with `torch.export`.

        Args:
            support: a support set without a task dimension.

        Raises:
            ValueError: a class has no support example.

        Example:
            >>> from metalearn import ProtoNet
            >>> from metalearn.models import MLP
            >>> learner = ProtoNet(MLP(4, 2))
            >>> model = learner.adapted_model(Examples(torch.eye(4)[:3], torch.arange(3)))
            >>> model(torch.eye(4)[:3]).argmax(-1)
            tensor([0, 1, 2])
        """
        with torch.no_grad():
            adapted = self.adapt(support)
        assert adapted.support is not None  # see `solve`
        check_classes(support.targets, int(support.targets.max()) + 1)
        return FeatureModel(self, adapted.support)

    def check_stack(self, targets: Tensor, first: int = 0) -> None:
        """Check that the support sets of a stack have examples of all their classes.

        Args:
            targets: the support labels (tasks, examples).
            first: the number of the first task, for the message.

        Raises:
            ValueError: a support set has no example of a class; both are named.
        """
        check_stack_classes(targets, first)

    def check_targets(
        self, network: Functional, support: Tensor, query: Tensor | None, logits: torch.Size
    ) -> None:
        """Check the labels of a stack before recorded operations run on it (see `Learner`)."""
        self.check_stack(support)
        super().check_targets(network, support, query, logits)

    def readout(self, support: Examples, queries: Tensor, ways: int) -> Tensor:
        """Features of support and queries (..., examples, features) -> logits (..., queries, ways).

        The labels are checked already.
        """
        raise NotImplementedError

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains: all but the head's."""
        trained = super().meta_parameters()
        if not self.head:
            return trained
        return {
            name: parameter
            for name, parameter in trained.items()
            if not is_inside(name.removeprefix("model."), self.head)
        }


class FeatureModel(nn.Module):
    """From inputs (examples, ...) to the logits (examples, ways) of one task.

    It has a copy of the learner, and the features and labels of the support set as buffers. What
    `FeatureLearner.adapted_model` returns.

    Args:
        learner: its model has the head that was settled on.
        support: the support set's features (shots, features) and labels (shots,).
    """

    features: Tensor
    labels: Tensor

    def __init__(self, learner: FeatureLearner, support: Examples) -> None:
        super().__init__()
        self.learner = copy.deepcopy(learner)
        self.ways = int(support.targets.max()) + 1
        self.register_buffer("features", support.inputs.detach().clone())
        self.register_buffer("labels", support.targets.clone())

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's inputs -> logits."""
        with head_input(self.learner.model, self.learner.head) as record:
            self.learner.model(*args, **kwargs)
        queries = record.features.flatten(1)  # (examples, features)
        return self.learner.readout(Examples(self.features, self.labels), queries, self.ways)


def flat_features(network: Functional, weights: Weights, inputs: Inputs) -> Tensor:
    """What enters the head, as (examples, features), or (tasks, examples, features) for a stack."""
    return network.features(weights, inputs).values.flatten(1 + network.task_dims)
