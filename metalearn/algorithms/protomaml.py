"""ProtoMAML: MAML whose head starts from the prototypes of the task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metalearn.engine.labels import check_classes
from metalearn.engine.solver import Adapted
from metalearn.episodes import Examples
from metalearn.network.functional import Functional
from metalearn.network.layers import is_inside
from metalearn.network.module_call import Weights

from .base import explained
from .features import check_stack_classes, class_means, flat_features
from .maml import MAML


class ProtoMAML(MAML):
    """MAML with a head from prototypes (Triantafillou et al., ICLR 2020, arXiv:1903.03096).

        W_k = 2 c_k,  b_k = -|c_k|^2

    with `c_k` the mean feature of the support examples of class k. Then `W f(x) + b` equals the
    logits of `ProtoNet`, `-|f(x) - c_k|^2`, plus `|f(x)|^2`, which softmax ignores. The inner loop
    moves the head and the body from there. The outer gradient flows through the prototypes, too.
    Tasks may have any number of ways: the weights of the model's own head are neither used nor
    trained.

    The arguments are those of `MAML`.

    Raises:
        ValueError: the head is not a Linear with a bias, or a class has no support example.

    Example:
        >>> import torch
        >>> from metalearn.models import MLP
        >>> learner = ProtoMAML(MLP(4, 2), lr=0.1)
        >>> support = Examples(torch.rand(6, 4), torch.tensor([0, 1, 2] * 2))
        >>> learner.predict(learner.adapt(support), torch.rand(5, 4)).shape
        torch.Size([5, 3])
    """

    computes_only = True
    needs_head = True

    def check_head(self, head: str | None) -> str:
        """The path of the head, if prototypes can be its weights."""
        path = super().check_head(head)
        module = self.model.get_submodule(path)
        if not isinstance(module, nn.Linear) or module.bias is None:
            raise ValueError(
                f"ProtoMAML sets the weight and the bias of its head, and {path!r} is {module};"
                " name a Linear with a bias with head="
            )
        return path

    def check_stack(self, targets: Tensor, first: int = 0) -> None:
        """Check that the support sets of a stack have examples of all their classes."""
        check_stack_classes(targets, first)

    @explained
    def solve(self, network: Functional, support: Examples) -> Adapted:
        """A support set -> adapted weights, with a row of the head for each of its classes."""
        if self.guessed:
            self.settle_head(network.first_task(support.inputs))
        self.check_support(network, support)
        return self.fit(
            network,
            support,
            lambda weights: network(weights, support.inputs),
            self.first_head(network, support),
        )

    def first_head(self, network: Functional, support: Examples) -> Weights:
        """The weight (..., ways, features) and the bias (..., ways) of the head before a step."""
        ways = network.classes
        if ways is None:
            ways = int(support.targets.max()) + 1
            check_classes(support.targets, ways)
        # The model's own tensors, and not those that move: the inner loop must not differentiate
        # the head by the body.
        features = flat_features(network, network.weights(), support.inputs)
        means = class_means(Examples(features, support.targets), ways)
        return {
            f"{network.head}.weight": 2 * means,
            f"{network.head}.bias": -means.square().sum(-1),
        }

    def check_targets(
        self, network: Functional, support: Tensor, query: Tensor | None, logits: torch.Size
    ) -> None:
        """Check the labels of a stack before recorded operations run on it (see `Learner`)."""
        self.check_stack(support)
        super().check_targets(network, support, query, logits)

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains: all but the head's."""
        return {
            name: parameter
            for name, parameter in super().meta_parameters().items()
            if not is_inside(name.removeprefix("model."), self.head)
        }
