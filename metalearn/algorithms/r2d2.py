"""R2-D2: a head solved in closed form by ridge regression."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.episodes import Examples
from metalearn.padding import is_padding

from .features import FeatureLearner, class_members
from .losses import Loss


class R2D2(FeatureLearner):
    """Ridge regression differentiable discriminator (Bertinetto et al., 2019, arXiv:1805.08136).

        W = argmin |X W - Y|^2 + ridge |W|^2 = X^T (X X^T + ridge I)^-1 Y
        logits = scale * X' W + shift

    with `X` the support features and a column of ones for the bias (shots, features + 1), `Y` the
    one-hot labels (shots, ways), and `X'` the same of the queries. The system has the size of the
    support set and not of the features (Woodbury). There is no inner loop, the model's head is not
    used, and tasks may have any number of ways.

    The outer loop trains the body, the logarithm of `ridge` (so that it stays positive), `scale`
    and `shift`. Softmax ignores `shift`; it counts under other losses.

    Args:
        model: any module with one tensor in and one out; its head is not used.
        ridge: the first strength of the regulariser, above 0.
        scale: the first factor of the logits.
        head: as for `Learner`.
        loss: as for `Learner`.
        execution: as for `Learner`.
        output: as for `Learner`.

    Raises:
        ValueError: `ridge` is not above 0, or `scale` is not finite.

    Example:
        >>> from metalearn.models import MLP
        >>> net = R2D2(MLP(4, 2))
        >>> inputs = torch.eye(4)[:3]
        >>> net.predict(net.adapt(Examples(inputs, torch.arange(3))), inputs).argmax(-1)
        tensor([0, 1, 2])
    """

    computes_only = True
    takes_padding = True

    def __init__(
        self,
        model: nn.Module,
        ridge: float = 1.0,
        scale: float = 10.0,
        *,
        head: str | None = None,
        loss: Loss = F.cross_entropy,
        execution: str = "auto",
        output: str | None = None,
    ) -> None:
        super().__init__(model, head=head, loss=loss, execution=execution, output=output)
        if not (ridge > 0 and math.isfinite(ridge)):
            raise ValueError(f"ridge={ridge!r}; give a finite number above 0")
        if not math.isfinite(scale):
            raise ValueError(f"scale={scale!r}; give a finite number")
        self.start = {"ridge": float(ridge), "scale": float(scale)}
        like = next(model.parameters(), torch.empty(()))
        self.log_ridge = nn.Parameter(like.new_tensor(math.log(ridge)))
        self.scale = nn.Parameter(like.new_tensor(scale))
        self.shift = nn.Parameter(like.new_zeros(()))

    def readout(self, support: Examples, queries: Tensor, ways: int) -> Tensor:
        """Logits (..., queries, ways) of the ridge regression of the support set."""
        # A linear system is not solved in half precision.
        with torch.autocast(queries.device.type, enabled=False):
            inputs = _with_ones(support.inputs)  # (..., shots, features + 1)
            # A row of zeros adds nothing to the regression.
            inputs = inputs.masked_fill(is_padding(support.targets).unsqueeze(-1), 0)
            labels = class_members(Examples(inputs, support.targets), ways)  # (..., shots, ways)
            weight = ridge_weight(inputs, labels, self.log_ridge.exp())
            return self.scale * (_with_ones(queries) @ weight) + self.shift

    def settings(self) -> dict[str, Any]:
        """The settings as plain values; ridge and scale are those of the start."""
        return {**super().settings(), **self.start}


def ridge_weight(inputs: Tensor, targets: Tensor, ridge: Tensor | float) -> Tensor:
    """The weight of a ridge regression without a bias.

    `X^T (X X^T + ridge I)^-1 Y`, which equals `(X^T X + ridge I)^-1 X^T Y`.

    Args:
        inputs: X (..., examples, features).
        targets: Y (..., examples, outputs).
        ridge: the strength of the regulariser, above 0.

    Returns:
        The weight (..., features, outputs).

    Example:
        >>> ridge_weight(torch.eye(2), torch.eye(2), 1.0)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    kernel = inputs @ inputs.mT  # (..., examples, examples)
    identity = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
    # The matrix is positive definite, so there is nothing to check; a check waits for the device.
    dual, _ = torch.linalg.solve_ex(kernel + ridge * identity, targets)
    return inputs.mT @ dual


def _with_ones(features: Tensor) -> Tensor:
    """Features (..., n, features) with a column of ones, in single precision or better."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.pad(features, (0, 1), value=1.0)
