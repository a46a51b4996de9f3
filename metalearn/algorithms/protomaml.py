"""ProtoMAML: MAML whose head starts from the prototypes of the task."""

from __future__ import annotations

from metalearn.episodes import Examples
from metalearn.network.functional import Functional
from metalearn.network.module_call import Weights

from .features import class_means, flat_features
from .fresh_head import FreshHead
from .maml import MAML


class ProtoMAML(FreshHead, MAML):
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

    def check_head(self, head: str | None) -> str:
        """The path of the head, if prototypes can be its weights."""
        path = super().check_head(head)
        module = self.model.get_submodule(path)
        if module.bias is None:
            raise ValueError(
                f"ProtoMAML sets the weight and the bias of its head, and {path!r} is {module};"
                " name a Linear with a bias with head="
            )
        return path

    def first_weights(self, network: Functional, support: Examples) -> Weights:
        """The head before a step: weight (..., ways, features) and bias (..., ways)."""
        ways = self.ways(network, support)
        # The model's own tensors, and not those that move: the inner loop must not differentiate
        # the head by the body.
        features = flat_features(network, network.weights(), support.inputs)
        means = class_means(Examples(features, support.targets), ways)
        return {
            f"{network.head}.weight": 2 * means,
            f"{network.head}.bias": -means.square().sum(-1),
        }
