"""Baseline and Baseline++: a fresh head for each task, trained on the features of a fixed body."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metalearn.engine.inner_loop import Update, sgd
from metalearn.episodes import Examples
from metalearn.network.cosine_head import CosineHead
from metalearn.network.functional import Functional
from metalearn.network.module_call import Weights

from .anil import ANIL
from .fresh_head import FreshHead
from .losses import Loss
from .rates import LR


class Baseline(FreshHead, ANIL):
    """Fine-tuning (Chen et al., ICLR 2019, arXiv:1904.04232): the body stays, a fresh head trains.

    A head `W_0, b_0` with a row for every class of the task is drawn as torch draws a Linear, the
    same for all tasks, and takes `steps` gradient steps on the features of the support set:

        W <- W - lr * grad_W L_support(W f(x) + b)

    The paper trains the body on all training classes at once
    (`metalearn.experiments.regimes.multiclass`) and then adapts in this way at test. It takes 100
    epochs of batches of 4 with rate 0.01, momentum and weight decay; here a step is on the whole
    support set, without weight decay. Training this learner with `meta_train` is possible, too: the
    outer gradient goes through the steps of the head, and is exact. Tasks may have any number of
    ways. The weights of the model's own head are neither used nor trained.

    Args:
        model: any module with one tensor in and one out, whose head is a Linear or a `CosineHead`.
        lr: the rate of the head (see `ANIL`).
        steps: of the head.
        seed: of the fresh head.
        first_order: as for `MAML`.
        head: as for `Learner`.
        loss: as for `Learner`.
        update: as for `MAML`.
        execution: as for `Learner`.
        output: as for `Learner`.

    Raises:
        ValueError: the head is of another kind, or a class has no support example.

    Example:
        >>> from metalearn.models import MLP
        >>> learner = Baseline(MLP(4, 2), steps=5)
        >>> support = Examples(torch.rand(6, 4), torch.tensor([0, 1, 2] * 2))
        >>> learner.predict(learner.adapt(support), torch.rand(5, 4)).shape
        torch.Size([5, 3])
    """

    computes_only = True

    def __init__(
        self,
        model: nn.Module,
        lr: LR = 0.1,
        steps: int = 100,
        *,
        seed: int = 0,
        first_order: bool = False,
        head: str | None = None,
        loss: Loss = F.cross_entropy,
        update: str | Update = sgd,
        execution: str = "auto",
        output: str | None = None,
    ) -> None:
        super().__init__(
            model,
            lr,
            steps,
            first_order=first_order,
            head=head,
            loss=loss,
            update=update,
            execution=execution,
            output=output,
        )
        self.seed = seed
        # A CUDA graph may not draw on the CPU, so a head is kept from its first use on.
        self._drawn: dict[Any, Weights] = {}

    def first_weights(self, network: Functional, support: Examples) -> Weights:
        """The fresh head: weight (..., ways, features) and bias (..., ways)."""
        own: Weights = dict(self.model.get_submodule(self.head).named_parameters())
        fresh = self._fresh_head(own, self.ways(network, support))
        if network.tasks is not None:
            fresh = {name: t.expand(network.tasks, *t.shape) for name, t in fresh.items()}
        return {f"{self.head}.{name}": tensor for name, tensor in fresh.items()}

    def _fresh_head(self, own: Weights, ways: int) -> Weights:
        """A head of so many ways, as torch draws one, with a generator of its own."""
        like = own["weight"]
        key = ways, like.device, like.dtype, self.seed
        if key not in self._drawn:
            # On the CPU: the same seed gives the same head on every device.
            generator = torch.Generator().manual_seed(self.seed)
            bound = 1 / math.sqrt(like.shape[1])
            self._drawn[key] = {
                name: torch.empty(ways, *tensor.shape[1:], dtype=like.dtype)
                .uniform_(-bound, bound, generator=generator)
                .to(like.device)
                for name, tensor in own.items()
            }
        return self._drawn[key]

    def settings(self) -> dict[str, Any]:
        """The settings as plain values."""
        return {**super().settings(), "seed": self.seed}


class BaselinePlusPlus(Baseline):
    """Baseline++: `Baseline` with a head of cosines (Chen et al. 2019, section 3.2).

        logit_k = scale * <f(x), w_k> / (|f(x)| |w_k|)

    The model's head is a `CosineHead`, for the training on all classes, too;
    `metalearn.network.cosine_head.cosine_head(model)` puts one in the place of a Linear.

    The arguments are those of `Baseline`.

    Raises:
        ValueError: the head is not a `CosineHead`, or a class has no support example.

    Example:
        >>> from metalearn.models import MLP
        >>> from metalearn.network.cosine_head import cosine_head
        >>> learner = BaselinePlusPlus(cosine_head(MLP(4, 2)), steps=5)
        >>> support = Examples(torch.rand(6, 4), torch.tensor([0, 1, 2] * 2))
        >>> learner.predict(learner.adapt(support), torch.rand(5, 4)).shape
        torch.Size([5, 3])
    """

    computes_only = True

    def check_head(self, head: str | None) -> str:
        """The path of the head, if it is a head of cosines."""
        path = super().check_head(head)
        module = self.model.get_submodule(path)
        if not isinstance(module, CosineHead):
            raise ValueError(
                f"the head {path!r} of Baseline++ is {type(module).__name__}; put a head of cosines"
                " there with metalearn.network.cosine_head.cosine_head(model)"
            )
        return path
