"""Meta-Curvature: MAML that learns how to turn the gradient of every layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.engine.inner_loop import Rates, Update, sgd
from metalearn.network.functional import Functional
from metalearn.network.module_call import Weights

from .losses import Loss
from .maml import MAML
from .rates import LR, Rate, parameter_key


class MetaCurvature(MAML):
    """MAML with a learned transform of every gradient (Park and Oliva, 2019, arXiv:1902.03356).

        phi = theta - lr * MC(grad L_support(theta))
        MC(G) = G x_1 M_o x_2 M_i x_3 M_f

    for a gradient `G` (outputs, inputs, kernel), with a matrix for each of its dimensions, which
    the outer loop trains beside `theta`; those of a kernel are flattened into one. A vector has one
    matrix. The matrices start as identities, so before training Meta-Curvature is MAML. With
    diagonal matrices it would be a factored Meta-SGD.

    Of Meta-Curvature and CAVIA (arXiv:1810.03642) only this one has a file, because it changes the
    update. CAVIA changes the model, and is then MAML: `MAML(model, lr={"context": 1.0})` for a
    model that reads a parameter `context`, zero and with `requires_grad=False`.

    The arguments are those of `MAML`. Layers that get a rate later have no matrices and are
    refused.

    Example:
        >>> from metalearn.models import MLP
        >>> learner = MetaCurvature(MLP(1, 1, hidden=(8,)), lr=0.01)
        >>> [tuple(matrix.shape) for matrix in learner.matrices("head.weight")]
        [(1, 1), (8, 8)]
    """

    computes_only = True

    def __init__(
        self,
        model: nn.Module,
        lr: LR,
        steps: int = 1,
        *,
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
        weights = dict(model.named_parameters())
        curvature = {}
        for name in self.assigned:
            weight = weights[name]
            for place, size in enumerate(_three(weight.detach(), weight.ndim).shape):
                identity = torch.eye(size, dtype=weight.dtype, device=weight.device)
                curvature[f"{parameter_key(name)}/{place}"] = nn.Parameter(identity)
        self.curvature = nn.ParameterDict(curvature)

    def rates_of(self, lr: LR) -> dict[str, Rate]:
        """The rate of every parameter that has one, by name."""
        rates = super().rates_of(lr)
        missing = [name for name in rates if "assigned" in vars(self) and not self._has(name)]
        if missing:
            raise ValueError(
                f"{missing[0]} had no rate when this MetaCurvature was built, so it has no matrices"
                " to turn its gradient; build a new learner"
            )
        return rates

    def _has(self, name: str) -> bool:
        return (
            f"{parameter_key(name)}/0" in self.curvature or not self.model.get_parameter(name).ndim
        )

    def matrices(self, name: str) -> list[Tensor]:
        """The matrices of a parameter, for its outputs, its inputs and its kernel."""
        key = parameter_key(name)
        places = [f"{key}/{place}" for place in range(3)]
        return [self.curvature[place] for place in places if place in self.curvature]

    def turned(self, name: str, gradient: Tensor) -> Tensor:
        """MC of the gradient of a parameter (...), or of a stack of tasks (tasks, ...)."""
        ndim = self.model.get_parameter(name).ndim
        turned = _three(gradient, ndim)  # ([tasks,] outputs, inputs, kernel)
        matrices = self.matrices(name)
        for place, matrix in enumerate(matrices, start=-len(matrices)):
            # The mode product: every vector along this dimension, times the matrix.
            turned = torch.movedim(torch.movedim(turned, place, -1) @ matrix.mT, -1, place)
        return turned.reshape(gradient.shape)

    def update_on(self, network: Functional) -> Update:
        """The inner update, on gradients that are turned."""
        update = super().update_on(network)

        def turning(
            weights: Weights, gradients: Weights, rates: Rates, state: Any
        ) -> tuple[Weights, Any]:
            turned = {name: self.turned(name, gradient) for name, gradient in gradients.items()}
            return update(weights, turned, rates, state)

        return turning

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains, without matrices of frozen layers."""
        moving = tuple(f"curvature.{parameter_key(name)}/" for name in self.rates)
        return {
            name: parameter
            for name, parameter in super().meta_parameters().items()
            if not name.startswith("curvature.") or name.startswith(moving)
        }


def _three(tensor: Tensor, ndim: int) -> Tensor:
    """The dimensions of a kernel, from the third of `ndim` on, as one."""
    return tensor.flatten(tensor.ndim - ndim + 2) if ndim > 3 else tensor
