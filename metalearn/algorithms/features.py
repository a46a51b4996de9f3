"""Labels from features without a head: the cosine rules that NIL and the analysis share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.algorithms.base import Adapted, Learner, explained
from metalearn.engine.inner_loop import Weights
from metalearn.engine.labels import check_classes
from metalearn.engine.recording import value
from metalearn.episodes import Episode, Examples
from metalearn.network.activations import ending, output_of
from metalearn.network.forward import Inputs
from metalearn.network.functional import Functional
from metalearn.network.layers import heads, is_inside

RULES = ("softmax", "sum", "class_mean")


def cosine_readout(support: Examples, queries: Tensor, ways: int, rule: str = "softmax") -> Tensor:
    """Class scores of queries from the cosines between their features and the support features ->
    (..., queries, ways).

    With `c_qi` the cosine of query q and support example i (Raghu et al. 2020, section 5.1, leaves
    the weighting open):

    - "softmax": `log sum_{i of class k} softmax_i(c_q)`, the attention of matching networks; the
      log of a probability.
    - "sum": `sum_{i of class k} c_qi`.
    - "class_mean": the cosine to the mean feature of class k, as in the code of BOIL (Oh et al.
      2021).

    Arguments:
        support: features (..., shots, features) and labels (..., shots).
        queries: features (..., queries, features).
    Raises ValueError for an unknown rule, labels beyond `ways`, and a class without a support
    example.

    Example:
        >>> import torch
        >>> support = Examples(torch.eye(2), torch.tensor([0, 1]))
        >>> cosine_readout(support, torch.tensor([[3.0, 0.1]]), ways=2).argmax(-1)
        tensor([0])
    """
    check_classes(support.targets, ways)
    members = F.one_hot(support.targets.long(), ways).to(queries.dtype)
    if rule == "class_mean":
        return _cosine(queries, members.mT @ support.inputs / members.sum(-2).unsqueeze(-1))
    cosines = _cosine(queries, support.inputs)
    if rule == "sum":
        return cosines @ members
    if rule == "softmax":
        return (cosines.softmax(-1) @ members).log()
    raise ValueError(f"there is no rule {rule!r}; choose one of {', '.join(RULES)}")


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT


class FeatureLearner(Learner):
    """A learner without an inner loop: the support set is kept as features, and the head is not
    used (nor trained).

    The features are what enters the head. A model without a layer that makes its output, or whose
    head is named "", has its output for features; the first run tells.
    """

    needs_head = True

    def check_head(self, head: str | None) -> str:
        """The path of the head, or a guess at it; "" for a model without one."""
        if head is None and not heads(self.model):
            self.guessed = False
            return ""
        return super().check_head(head)

    def prepare(self, episodes: Episode) -> None:
        """What is checked of a stack of tasks before any of them is run."""
        super().prepare(episodes)
        targets = episodes.support.targets
        if targets.device.type == "cpu" and targets.ndim == 2:  # other devices would be waited for
            self.check_stack(targets)

    def settle_head(self, inputs: Inputs) -> None:
        """Find on the support inputs of one task which layer makes the output, if the head was
        guessed; "" if none does.
        """
        if self.guessed:
            run = self._trial(inputs)
            if not ending(self.model, self.head, run).is_output:
                self.head = output_of(self.model, run) or ""
            self.guessed = False

    def adapt(self, support: Examples) -> Adapted:
        """The support set of one task -> its features and labels, with the head found first if it
        was guessed.
        """
        self.settle_head(support.inputs)
        return self.solve(self.network, support)

    @explained
    def solve(self, network: Functional, support: Examples) -> Adapted:
        """A support set -> its features and labels; no weight moves."""
        self.check_support(network, support)
        weights = network.weights()
        return Adapted(
            weights, Examples(flat_features(network, weights, support.inputs), support.targets)
        )

    @explained
    def answer(self, network: Functional, adapted: Adapted, inputs: Inputs) -> Tensor:
        """Query inputs (queries, ...) of that task -> logits (queries, ways), for as many ways as
        the support set has.
        """
        if adapted.support is None:
            raise ValueError(
                f"{type(self).__name__} predicts from support features: pass what its own"
                " adapt(support) returned"
            )
        ways = value(adapted.support.targets.max()) + 1
        return self.readout(adapted.support, flat_features(network, adapted.weights, inputs), ways)

    def check_stack(self, targets: Tensor, first: int = 0) -> None:
        """Raise ValueError naming the task (counted from `first`) and the class, where a support
        set has no example of one.

        `targets` are the support labels of a stack of tasks (tasks, examples).
        """
        if targets.numel():
            check_classes(targets, int(targets.max()) + 1, first)

    def readout(self, support: Examples, queries: Tensor, ways: int) -> Tensor:
        """Features of support and queries (..., examples, features) -> logits (..., queries, ways)."""
        raise NotImplementedError

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains: all but the head's."""
        trained = super().meta_parameters()
        if not self.head:
            return trained
        return {
            name: p
            for name, p in trained.items()
            if not is_inside(name.removeprefix("model."), self.head)
        }


def flat_features(network: Functional, weights: Weights, inputs: Inputs) -> Tensor:
    """What enters the head, a row an example: (examples, features), with the task dimension before
    it if there is one.
    """
    return network.features(weights, inputs).values.flatten(1 + network.task_dims)
