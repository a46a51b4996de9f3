"""What layers put out, what enters the head, and labels read from features."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from metalearn.algorithms.features import cosine_readout
from metalearn.episodes import Examples
from metalearn.models import Conv4
from metalearn.network.activations import features, representations


def test_outputs_are_those_of_the_layers_and_hooks_are_gone() -> None:
    model, inputs = Conv4(5, hidden=4), torch.rand(6, 1, 28, 28)
    with representations(model, ["block2", "block1.conv", "head"]) as seen:
        output = model(inputs)
    assert torch.equal(seen["head"], output)
    assert torch.equal(seen["block1.conv"], model.block1.conv(inputs))
    assert torch.equal(seen["block2"], model.block2(model.block1(inputs)))
    assert not any(module._forward_hooks for module in model.modules())
    copy.deepcopy(model)


def test_an_output_is_kept_as_it_was_though_the_next_layer_writes_into_it() -> None:
    torch.manual_seed(0)
    model, inputs = (
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 2)),
        torch.randn(6, 4),
    )
    with representations(model, ["0", "1"]) as seen:
        model(inputs)
    assert torch.equal(seen["0"], model[0](inputs))
    assert seen["0"].min() < 0
    assert torch.equal(seen["1"], torch.relu(seen["0"]))


def test_hooks_are_gone_after_an_error_too() -> None:
    model = Conv4(5, hidden=4)
    with pytest.raises(ValueError, match="3 channels"), representations(model, ["block1"]):
        model(torch.rand(6, 3, 28, 28))
    assert not model.block1._forward_hooks


def test_layers_that_never_ran_or_ran_twice_are_named() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, shared, nn.Linear(3, 2))
    with pytest.raises(ValueError, match="'0' ran 2 times"), representations(model, ["0"]):
        model(torch.ones(2, 3))
    with pytest.raises(ValueError, match="'2' ran 0 times"), representations(model, ["2"]):
        pass


def test_a_layer_that_puts_out_a_tuple_is_named() -> None:
    model = nn.ModuleDict({"lstm": nn.LSTM(3, 4)})
    with (
        pytest.raises(ValueError, match="'lstm' returned a tuple"),
        representations(model, ["lstm"]),
    ):
        model["lstm"](torch.ones(2, 1, 3))
    assert not model["lstm"]._forward_hooks


def test_entries_of_a_tuple_are_listed_and_can_be_named() -> None:
    model, inputs = (
        nn.ModuleDict({"lstm": nn.LSTM(3, 4), "a:b": nn.Linear(3, 2)}),
        torch.ones(2, 1, 3),
    )
    with (
        pytest.raises(ValueError, match=r"0 \(2 x 1 x 4\), 1 \(tuple\); name one as 'lstm:0'"),
        representations(model, ["lstm"]),
    ):
        model["lstm"](inputs)
    with (
        pytest.raises(ValueError, match="'1' is not a tensor"),
        representations(model, ["lstm:1"]),
    ):
        model["lstm"](inputs)
    with pytest.raises(ValueError, match="no layer 'lstn'"), representations(model, ["lstn:0"]):
        pass
    with representations(model, ["lstm:0", "a:b"]) as seen:
        expected = model["lstm"](inputs)[0].transpose(0, 1)  # examples first
        model["a:b"](inputs)
    assert torch.equal(seen["lstm:0"], expected) and seen["a:b"].shape == (2, 1, 2)


def test_features_enter_the_head() -> None:
    model, inputs = Conv4(5, hidden=4), torch.rand(6, 1, 28, 28)
    torch.testing.assert_close(model.head(features(model, inputs, "head")), model(inputs))


def test_cosine_rules_by_hand() -> None:
    support = Examples(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 0, 1]))
    queries = torch.tensor([[2.0, 0.0]])
    half = 0.5**0.5
    weights = torch.tensor([1.0, half, 0.0]).softmax(0)
    torch.testing.assert_close(
        cosine_readout(support, queries, 2, "sum"), torch.tensor([[1 + half, 0.0]])
    )
    torch.testing.assert_close(
        cosine_readout(support, queries, 2).exp(),
        torch.stack([weights[:2].sum(), weights[2]])[None],
    )
    mean = torch.tensor([1.0, 0.5])
    torch.testing.assert_close(
        cosine_readout(support, queries, 2, "class_mean")[0, 0], mean[0] / mean.norm()
    )


def test_labels_beyond_the_ways_and_unknown_rules_are_refused() -> None:
    support = Examples(torch.eye(3), torch.tensor([0, 1, 5]))
    with pytest.raises(ValueError, match="labels run from 0 to 5, but there are 3 ways"):
        cosine_readout(support, torch.eye(3), 3)
    with pytest.raises(
        ValueError, match="no rule 'nearest'; choose one of softmax, sum, class_mean"
    ):
        cosine_readout(Examples(torch.eye(3), torch.arange(3)), torch.eye(3), 3, "nearest")
