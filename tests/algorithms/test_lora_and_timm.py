"""Adapters of peft and backbones of timm under the learners and under `finetune`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import metalearn as ml
from metalearn.episodes import Episode, unstack
from tests.helpers import central_difference, made_up_tasks, smooth_network, striped_images
from transfer import finetune

RATES = {"*lora_*": 0.1}


def with_lora(*targets: str, head: str = "6") -> Any:
    """The smooth network with LoRA on some of its layers, and a head that trains."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=list(targets), modules_to_save=[head])
    model = peft.get_peft_model(smooth_network("layer"), config)
    # B starts at zero, where A has no gradient.
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.double()


@pytest.mark.parametrize("target", ["0", "4"], ids=["a convolution", "a linear layer"])
def test_the_inner_loop_moves_the_adapters_alone(target: str) -> None:
    learner = ml.MAML(with_lora(target), RATES, 2)
    assert len(learner.rates) == 2 and all("lora_" in name for name in learner.rates)
    task = unstack(made_up_tasks())[0]
    adapted = learner.adapt(task.support).weights
    moved = [
        name
        for name, parameter in learner.model.named_parameters()
        if not torch.equal(adapted[name], parameter)
    ]
    assert sorted(moved) == sorted(learner.rates)


@pytest.mark.parametrize("lr", [RATES, {"*lora_*": 0.1, "*6.modules_to_save*": 0.3}, 0.1])
def test_its_meta_gradient_is_the_derivative(lr: Any) -> None:
    """Of the adapters and the head: peft froze all other weights, so the outer loop does, too."""
    learner = ml.MAML(with_lora("0", "4"), lr, 2)
    trained = learner.meta_parameters()
    assert len(trained) == 6
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    ml.meta_backward(learner, made_up_tasks())
    generator = torch.Generator().manual_seed(5)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in trained.values()]
    pairs = zip(trained.values(), direction, strict=True)
    exact = sum((p.grad * d).sum().item() for p, d in pairs)
    assert exact == pytest.approx(central_difference(learner, direction), rel=1e-8, abs=1e-9)


def test_anil_takes_the_head_that_trains() -> None:
    learner = ml.ANIL(with_lora("4"), 0.1)
    assert learner(made_up_tasks()).shape == (3, 9, 3)
    assert learner.head == "base_model.model.6.modules_to_save.default"
    assert all(name.startswith(learner.head) for name in learner.rates)


def test_a_wildcard_that_matches_nothing_lists_the_layers() -> None:
    message = r"'\*lora_\*' matches no parameter.*layers are 0, 1, 4, 6"
    with pytest.raises(ValueError, match=message):
        ml.MAML(smooth_network(), RATES)
    data = striped_images((4, 4, 4), size=5)
    train = finetune(data, data, steps=1, rates=RATES)
    with pytest.raises(ValueError, match=message):
        train(smooth_network().float(), 0)


def test_finetune_moves_adapters_at_a_rate_of_their_own() -> None:
    model = with_lora("4").float()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    data = striped_images((4, 4, 4), size=5)
    finetune(data, data, steps=3, batch=4, lr=0.0, rates=RATES)(model, 0)
    moved = [
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    ]
    assert len(moved) == 2 and all("lora_" in name for name in moved)


@pytest.mark.parametrize(
    ("name", "head"), [("test_vit", "head"), ("test_resnet", "fc"), ("test_convnext", "head.fc")]
)
def test_backbones_of_timm(name: str, head: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    size = model.pretrained_cfg["input_size"][1]
    if name == "test_resnet":
        model = ml.batch_statistics(model)
    double = made_up_tasks(tasks=1, shots=1, queries=1, shape=(3, size // 2, size // 2))
    if name == "test_vit":
        model.set_input_size((size // 2, size // 2))
    episodes = Episode(*(part.to(torch.float32) for part in double))
    for learner in (ml.MAML(model, 0.01), ml.ANIL(model, 0.01), ml.ProtoNet(model)):
        assert learner(episodes).shape == (1, 3, 3)
        assert learner.head == head
        ml.meta_backward(learner, episodes)
        gradients = [parameter.grad for parameter in learner.meta_parameters().values()]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        learner.zero_grad()
