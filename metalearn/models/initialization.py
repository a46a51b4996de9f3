"""The initial weights of the few-shot papers' networks."""

from __future__ import annotations

from torch import nn


def xavier_(model: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers from Xavier's uniform distribution.

    Their biases become zero.
    """
    # The order of the modules is that of the draws.
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
