"""Names of outputs: path, entry and tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metalearn.network.layer_names import LayerOutput, named_output

OUTPUT = torch.arange(24.0).reshape(2, 4, 3)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("0", OUTPUT[:, 0]),
        ("-1", OUTPUT[:, 3]),
        ("1:", OUTPUT[:, 1:]),
        (":2", OUTPUT[:, :2]),
        ("1:3", OUTPUT[:, 1:3]),
        ("mean", OUTPUT.mean(1)),
        ("1:mean", OUTPUT[:, 1:].mean(1)),
        ("1:3:mean", OUTPUT[:, 1:3].mean(1)),
        (":", OUTPUT),
    ],
)
def test_tokens_are_positions(tokens: str, expected: Tensor) -> None:
    model = nn.Sequential(nn.Identity())
    found = named_output(model, f"0@{tokens}")
    assert torch.equal(found.of(OUTPUT), expected)


def test_images_have_positions_too() -> None:
    images = torch.rand(2, 3, 4, 5)
    named = named_output(nn.Sequential(nn.Identity()), "0@7")
    assert torch.equal(named.of(images), images[:, :, 1, 2])


class Odd(nn.Module):
    """A network with a module whose name contains the signs."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("a@0", nn.Linear(2, 2))
        self.add_module("b:1", nn.Linear(2, 2))
        self.rnn = nn.LSTM(2, 3, batch_first=True)


def test_a_module_is_meant_by_its_whole_name() -> None:
    model = Odd()
    assert named_output(model, "a@0") == LayerOutput("a@0", "a@0")
    assert named_output(model, "b:1").path == "b:1"
    assert named_output(model, "a@0@1:") == LayerOutput("a@0@1:", "a@0", "", "1:")
    assert named_output(model, "rnn:0@2") == LayerOutput("rnn:0@2", "rnn", "0", "2")
    assert named_output(model, "").path == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rnn:0@5", "there are 5 positions, 0 to 4"),
        ("rnn:0@9:", "no position is left of 5"),
        ("rnn@0", "'rnn:0'"),
    ],
)
def test_positions_that_are_not_there_are_named(name: str, message: str) -> None:
    model = Odd()
    output = model.rnn(torch.rand(2, 5, 2))
    with pytest.raises(ValueError, match=message):
        named_output(model, name).of(output)


def test_an_output_without_positions_has_no_tokens() -> None:
    named = named_output(nn.Sequential(nn.Linear(2, 2)), "0@0")
    with pytest.raises(ValueError, match=r"has no positions; leave out @0"):
        named.of(torch.rand(3, 2))


@pytest.mark.parametrize("tokens", ["", "x", "1:2:3", "1.5", "1-2", "mean:1", "1 "])
def test_tokens_that_cannot_be_read_are_refused(tokens: str) -> None:
    with pytest.raises(ValueError, match="after @ comes an index"):
        named_output(nn.Sequential(nn.Linear(2, 2)), f"0@{tokens}")


def test_a_path_that_does_not_exist_is_refused_with_near_names() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="encoder"):
        named_output(model, "encodr@0")
