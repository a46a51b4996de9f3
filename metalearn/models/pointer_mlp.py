"""The network of pointer value retrieval: an embedding of each digit and a perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from metalearn.runtime.checks import positive, widths_of_layers


class PointerMLP(nn.Sequential):
    """An embedding of tokens, then linear layers with ReLU on all embeddings side by side.

    Zhang et al. 2021 (arXiv:2107.12580). Layers: embedding, layer1, layer2, ... and head. The
    output of a hidden layer is that of its ReLU.

    Args:
        outputs: of the head.
        tokens: how many different tokens there are.
        length: tokens of an input.
        embedding: features of a token.
        hidden: units of each hidden layer.

    Raises:
        TypeError: a number is not a whole number.
        ValueError: a number is below 1.

    Example:
        >>> import torch
        >>> from metalearn.network.layers import layers
        >>> network = PointerMLP()
        >>> layers(network)
        ['embedding', 'layer1', 'layer2', 'layer3', 'layer4', 'head']
        >>> network(torch.zeros(2, 11, dtype=torch.int64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        outputs: int = 10,
        *,
        tokens: int = 10,
        length: int = 11,
        embedding: int = 64,
        hidden: Sequence[int] = (512, 1024, 512, 64),
    ) -> None:
        super().__init__()
        outputs, tokens = positive(outputs=outputs, tokens=tokens)
        length, embedding = positive(length=length, embedding=embedding)
        hidden = widths_of_layers("hidden", hidden, "(512, 1024, 512, 64)")
        self.add_module("embedding", nn.Embedding(tokens, embedding))
        self.add_module("flatten", nn.Flatten())  # (examples, length * embedding)
        # The inputs of layer n are the outputs of layer n - 1.
        widths = (length * embedding, *hidden)
        for number, (before, after) in enumerate(zip(widths, hidden, strict=False), start=1):
            self.add_module(f"layer{number}", Hidden(before, after))
        self.add_module("head", nn.Linear(widths[-1], outputs))


class Hidden(nn.Module):
    """A linear layer and ReLU, whose output is that of the ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(examples, inputs) -> (examples, outputs)."""
        return self.linear(features).relu()
