"""A multilayer perceptron with named layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from metalearn.runtime.checks import positive, widths_of_layers


class MLP(nn.Sequential):
    """Linear layers with ReLU between them: layers layer1, layer2, ... and head.

    (40, 40) hidden units are MAML's sinusoid network (Finn et al. 2017).

    Args:
        inputs: features of an example.
        outputs: of the head.
        hidden: units of each hidden layer.

    Example:
        >>> [name for name, _ in MLP(1, 1).named_children()]
        ['layer1', 'relu1', 'layer2', 'relu2', 'head']
    """

    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int] = (40, 40)) -> None:
        super().__init__()
        inputs, outputs = positive(inputs=inputs, outputs=outputs)
        hidden = widths_of_layers("hidden", hidden, "(40, 40)")
        # The inputs of layer n are the outputs of layer n - 1.
        widths = (inputs, *hidden)
        for number, (before, after) in enumerate(zip(widths, hidden, strict=False), start=1):
            self.add_module(f"layer{number}", nn.Linear(before, after))
            self.add_module(f"relu{number}", nn.ReLU())
        self.add_module("head", nn.Linear(widths[-1], outputs))
