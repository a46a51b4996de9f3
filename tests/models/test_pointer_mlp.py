"""The network of pointer value retrieval."""

from __future__ import annotations

import itertools

import pytest
import torch

from metalearn.models import PointerMLP
from metalearn.network.activations import representations
from metalearn.network.layers import layers


def test_it_has_the_layers_and_the_number_of_weights_of_the_paper() -> None:
    network = PointerMLP()
    assert layers(network) == ["embedding", "layer1", "layer2", "layer3", "layer4", "head"]
    widths = (11 * 64, 512, 1024, 512, 64, 10)
    linear = sum(a * b + b for a, b in itertools.pairwise(widths))
    assert sum(parameter.numel() for parameter in network.parameters()) == 10 * 64 + linear


def test_the_output_of_a_hidden_layer_is_that_of_its_relu() -> None:
    network = PointerMLP(outputs=3, tokens=4, length=5, embedding=2, hidden=(6, 7))
    with representations(network, ["embedding", "layer1", "layer2"]) as outputs:
        logits = network(torch.randint(4, (8, 5)))
    assert logits.shape == (8, 3)
    assert outputs["embedding"].shape == (8, 5, 2)
    assert outputs["layer1"].shape == (8, 6) and not (outputs["layer1"] < 0).any()
    assert torch.equal(network.head(outputs["layer2"]), logits)


@pytest.mark.parametrize("settings", [{"hidden": (0,)}, {"embedding": 0}, {"length": -1}])
def test_sizes_below_one(settings: dict) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PointerMLP(**settings)
