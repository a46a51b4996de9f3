"""Names of outputs: path, entry and tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metalearn.network.activations import representations
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


class Recurrent(nn.Module):
    """Takes (examples, time steps, features), whatever its recurrent module takes."""

    def __init__(self, kind: type[nn.RNNBase], *, batch_first: bool, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(2, 3, batch_first=batch_first, **options)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.rnn.batch_first:
            return self.rnn(inputs)[0][:, -1]
        return self.rnn(inputs.transpose(0, 1))[0][-1]


KINDS = [nn.LSTM, nn.GRU, nn.RNN]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [5, 4])  # as many steps as examples cannot be told by the shape
def test_time_steps_are_the_same_for_time_first(kind: type[nn.RNNBase], steps: int) -> None:
    inputs = torch.rand(4, steps, 2)
    names = ["rnn:0", "rnn:0@3", "rnn:0@1:", "rnn:0@mean"]
    seen = []
    for batch_first in (True, False):
        model = Recurrent(kind, batch_first=batch_first)
        with representations(model, names) as outputs:
            model(inputs)
        seen.append(dict(outputs))
    for name in names:
        torch.testing.assert_close(seen[0][name], seen[1][name])
    assert seen[1]["rnn:0"].shape == (4, steps, 3)
    assert seen[1]["rnn:0@3"].shape == (4, 3)


@pytest.mark.parametrize("batch_first", [True, False])
def test_last_states_have_examples_first(batch_first: bool) -> None:
    model, inputs = Recurrent(nn.GRU, batch_first=batch_first, num_layers=2), torch.rand(4, 5, 2)
    with representations(model, ["rnn:1", "rnn:1@-1"]) as outputs:
        last = model(inputs)
    assert outputs["rnn:1"].shape == (4, 2, 3)
    torch.testing.assert_close(outputs["rnn:1@-1"], last)  # of the last layer


def test_both_directions_of_a_step_are_features() -> None:
    model = Recurrent(nn.LSTM, batch_first=True, bidirectional=True)
    with representations(model, ["rnn:0@2"]) as outputs:
        model(torch.rand(4, 5, 2))
    assert outputs["rnn:0@2"].shape == (4, 6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_steps_of_several_layers_are_refused(kind: type[nn.RNNBase], bidirectional: bool) -> None:
    model = Recurrent(kind, batch_first=True, num_layers=3, bidirectional=bidirectional)
    message = rf"'rnn' is one {kind.__name__} of num_layers=3.*nn\.{kind.__name__}\(num_layers=1\)"
    with pytest.raises(ValueError, match=message):
        named_output(model, "rnn:0@3")
    assert named_output(model, "rnn:0").entry == "0"  # the outputs of the last layer


@pytest.mark.parametrize(
    "name", ["layers.1@0", "layers.1.norm1@0", "@mean", "layers.0.self_attn:0@0"]
)
def test_transformers_with_positions_first_are_refused(name: str) -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 8), 2, enable_nested_tensor=False
    )
    with pytest.raises(ValueError, match="build it with batch_first=True"):
        named_output(model, name)
    block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    assert named_output(model, name).tokens in ("0", "mean")
