"""What is frozen does not move, running statistics included; and every layer has the rate that was
asked for.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from metalearn.models import Conv4
from transfer import freeze, frozen_transformer, linear_probe, parameter_groups
from transfer.models import cbr


def step(model: nn.Module, parameters: object, size: int = 16) -> set[str]:
    """One training step -> the names of the parameters and buffers that it changed."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss = F.cross_entropy(model.train()(torch.rand(4, 3, size, size)), torch.tensor([0, 1, 0, 1]))
    optimizer = torch.optim.AdamW(
        parameters, lr=0.1
    )  # its weight decay would move what has a gradient of zero
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }


@pytest.mark.parametrize("k", range(5))
def test_frozen_layers_do_not_move_in_a_training_step_buffers_included(k: int) -> None:
    model = cbr("tiny", outputs=2)
    held = freeze(model, through=f"block{k}") if k else []
    moved = step(model, model.parameters())
    names = list(model.state_dict())
    frozen = {
        name for name in names if name.startswith(tuple(f"block{j}." for j in range(1, k + 1)))
    }
    assert not moved & frozen
    assert moved == set(names) - frozen
    assert set(held) == {name for name, _ in model.named_parameters()} & frozen


def test_frozen_batch_norm_normalises_by_the_statistics_it_kept() -> None:
    model, images = cbr("tiny", outputs=2), torch.rand(4, 3, 16, 16)
    model.train()(images)
    expected = model.eval().block1(images)
    freeze(model, through="block1")
    torch.testing.assert_close(model.train().block1(images), expected)


def test_a_linear_probe_trains_the_head_alone() -> None:
    model = cbr("tiny", outputs=2)
    linear_probe(model)
    assert step(model, model.parameters()) == {"head.weight", "head.bias"}


def test_batch_norm_on_the_current_batch_is_frozen_as_it_is() -> None:
    model = Conv4(ways=2, channels=3, size=16)
    assert freeze(model, through="block2")[-1] == "block2.norm.bias"
    assert {name.split(".")[0] for name in step(model, model.parameters())} == {
        "block3",
        "block4",
        "head",
    }


def test_freezing_a_layer_that_does_not_exist_names_near_ones() -> None:
    with pytest.raises(ValueError, match="no layer 'blok1'; did you mean block1"):
        freeze(cbr("tiny", 2), through="blok1")


def vit() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(16, 4, 2, 2, 8, 16, num_classes=2)
    nn.init.normal_(
        model.heads.head.weight
    )  # torchvision's is zero, which gives nothing below it a gradient
    return model


def test_a_frozen_transformer_trains_norms_input_and_output_only() -> None:
    model = vit()
    trained = frozen_transformer(model)
    blocks = [
        f"encoder.layers.encoder_layer_{number}.{norm}"
        for number in (0, 1)
        for norm in ("ln_1", "ln_2")
    ]
    norms = [f"{norm}.{kind}" for norm in (*blocks, "encoder.ln") for kind in ("weight", "bias")]
    inputs = ["class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"]
    assert sorted(trained) == sorted([*inputs, *norms, "heads.head.weight", "heads.head.bias"])
    assert step(model, model.parameters()) == set(trained)


def test_a_network_without_norms_is_no_transformer_to_freeze() -> None:
    with pytest.raises(ValueError, match="no normalisation layer"):
        frozen_transformer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def test_every_layer_has_its_rate_and_what_has_none_does_not_move() -> None:
    model = cbr("tiny", outputs=2)
    groups = parameter_groups(model, {"block3": 1e-4, "block3.norm": 1e-2, "head": 1e-3})
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    named = {name: rates.get(id(parameter)) for name, parameter in model.named_parameters()}
    assert (
        named["block3.conv.weight"] == 1e-4
        and named["block3.norm.bias"] == 1e-2
        and named["head.weight"] == 1e-3
    )
    assert named["block1.conv.weight"] is None
    moved = {name for name in step(model, groups) if name in named}
    assert moved == {name for name, rate in named.items() if rate}


def test_frozen_parameters_are_in_no_group() -> None:
    model = cbr("tiny", outputs=2)
    linear_probe(model)
    assert [len(group["params"]) for group in parameter_groups(model, {"": 1e-3})] == [2]
    with pytest.raises(ValueError, match="reach no parameter that trains"):
        parameter_groups(model, {"block1": 1e-3})


@pytest.mark.parametrize("rate", [-1e-3, float("nan"), float("inf")])
def test_rates_that_are_no_rates_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="the rate of 'head' is"):
        parameter_groups(cbr("tiny", 2), {"head": rate})


def test_a_rate_for_a_layer_that_does_not_exist_names_near_ones() -> None:
    with pytest.raises(ValueError, match="no layer 'blok1'; did you mean block1"):
        parameter_groups(cbr("tiny", 2), {"blok1": 1e-3})
