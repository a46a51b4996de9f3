"""A head whose logits are cosines."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import head as find_head


class CosineHead(nn.Linear):
    """A linear layer without a bias on features and weights of unit length.

        logit_k = scale * <x, w_k> / (|x| |w_k|)

    The distance head of Chen et al. 2019 (arXiv:1904.04232, section 3.2); `scale` is fixed.

    Args:
        in_features: of the input.
        out_features: the number of classes.
        scale: the factor of the cosines, above 0.

    Example:
        >>> import torch
        >>> head = CosineHead(2, 3, scale=5.0)
        >>> logits = head(torch.rand(4, 2))
        >>> bool((logits.abs() <= 5.0001).all()), torch.allclose(head(torch.ones(1, 2)),
        ...     head(7 * torch.ones(1, 2)))
        (True, True)
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 10.0) -> None:
        super().__init__(in_features, out_features, bias=False)
        if not scale > 0:
            raise ValueError(f"scale={scale!r}; give a number above 0")
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """(examples, features) -> (examples, classes)."""
        directions = F.normalize(self.weight, dim=1)
        return self.scale * F.linear(F.normalize(features, dim=-1), directions)

    def extra_repr(self) -> str:
        """The sizes, and the scale."""
        return f"{self.in_features}, {self.out_features}, scale={self.scale:g}"


def cosine_head(model: nn.Module, head: str | None = None, scale: float = 10.0) -> nn.Module:
    """Replace the head of a model by a `CosineHead` of the same sizes, in place.

    Args:
        model: any module whose head is a Linear.
        head: the path of the head; by default its last Linear.
        scale: the factor of the cosines.

    Returns:
        The model.

    Raises:
        ValueError: the head is not a Linear, or is the model itself.

    Example:
        >>> from metalearn.models import MLP
        >>> cosine_head(MLP(4, 2)).head
        CosineHead(40, 2, scale=10)
    """
    path = find_head(model, head)
    module = model.get_submodule(path)
    if not isinstance(module, nn.Linear) or not path:
        raise ValueError(
            f"the head {path!r} is {type(module).__name__}, and a cosine head replaces a Linear"
            " inside a model; name one with head="
        )
    parent, _, name = path.rpartition(".")
    replaced = CosineHead(module.in_features, module.out_features, scale).to(module.weight)
    setattr(model.get_submodule(parent), name, replaced)
    return model
