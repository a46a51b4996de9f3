"""Weight-standardised convolutions, and Conv4 without batch norm."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import metalearn as ml
from metalearn.data.glyphs import glyphs
from metalearn.experiments.experiment import Experiment
from metalearn.models import Conv4
from metalearn.models.standardised import RELU_GAIN, StandardisedConv2d
from metalearn.network.norm import check_statistics, statistics
from metalearn.tasks import FewShot


def test_each_channel_has_mean_0_and_variance_1_over_fan_in() -> None:
    convolution = StandardisedConv2d(6, 5, 3).double()
    weight = convolution.standardised().flatten(1)  # (outputs, fan-in)
    assert torch.allclose(weight.mean(1), torch.zeros(5).double(), atol=1e-12)
    assert torch.allclose(weight.var(1, correction=0), torch.full((5,), 1 / 54).double())


def test_scale_and_shift_of_a_channel_change_nothing() -> None:
    convolution = StandardisedConv2d(6, 5, 3).double()
    before = convolution.standardised()
    with torch.no_grad():
        factors = torch.rand(5, 1, 1, 1) + 0.5
        convolution.weight.mul_(factors).add_(torch.randn(5, 1, 1, 1))
    assert torch.allclose(convolution.standardised(), before)


def test_the_output_is_that_of_a_convolution_with_that_weight() -> None:
    convolution = StandardisedConv2d(6, 5, 3, stride=2, padding=1).double()
    with torch.no_grad():
        convolution.gain.uniform_(0.5, 2)
    maps = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    expected = F.conv2d(maps, convolution.standardised(), convolution.bias, stride=2, padding=1)
    assert torch.equal(convolution(maps), expected)


def test_the_gradient_agrees_with_central_differences() -> None:
    convolution = StandardisedConv2d(2, 3, 3).double()
    maps = torch.randn(2, 2, 4, 4, dtype=torch.float64)

    def output(weight: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        parts = {"weight": weight, "gain": gain, "bias": convolution.bias}
        return torch.func.functional_call(convolution, parts, maps)

    assert torch.autograd.gradcheck(output, (convolution.weight, convolution.gain))
    assert torch.autograd.gradgradcheck(output, (convolution.weight, convolution.gain))


def test_variance_1_goes_through_every_layer() -> None:
    """Convolution, ReLU and gain keep variance 1, layer after layer, within 5 %."""
    maps = torch.randn(64, 32, 17, 17)
    for _ in range(4):
        convolution = StandardisedConv2d(32, 256, 3)
        torch.nn.init.zeros_(convolution.bias)
        with torch.no_grad():
            maps = RELU_GAIN * convolution(maps).relu()
            # Per channel over images and positions, then the mean over channels.
            assert float(maps.var((0, 2, 3)).mean()) == pytest.approx(1, rel=0.05)
            maps = maps[:, :32]


def test_the_gain_is_that_of_a_rectified_normal() -> None:
    values = torch.randn(2_000_000, dtype=torch.float64).relu()
    assert pytest.approx(1 / float(values.std()), rel=2e-3) == RELU_GAIN


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("pool", [True, False])
def test_no_example_depends_on_the_others(norm: str, pool: bool) -> None:
    model = Conv4(5, hidden=8, pool=pool, norm=norm).double()
    check_statistics(model)
    assert statistics(model) == "no batch norm"
    images = torch.rand(4, 1, 28, 28, dtype=torch.float64)
    assert torch.allclose(model(images)[:2], model(images[:2]), atol=1e-12)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("execution", ["loop", "vectorized"])
def test_maml_trains_without_batch_statistics(execution: str) -> None:
    torch.manual_seed(0)
    tasks = FewShot(glyphs("train", size=16), ways=3, shots=1, queries=3, tasks=400)
    learner = ml.MAML(Conv4(3, hidden=8, size=16, norm="none"), lr=0.1, execution=execution)
    curve = ml.meta_train(learner, tasks, steps=3, optimizer="adam", progress=False)
    assert all(map(math.isfinite, curve.losses))


def test_ways_to_run_agree() -> None:
    tasks = FewShot(glyphs("train", size=16), ways=3, shots=1, queries=3, tasks=4)
    logits = []
    for execution in ("loop", "vectorized"):
        torch.manual_seed(0)
        model = Conv4(3, hidden=8, size=16, norm="none").double()
        learner = ml.MAML(model, lr=0.1, execution=execution)
        stacked = ml.episodes.stack([tasks[i].to(torch.float64) for i in range(4)])
        logits.append(learner(stacked).detach())
    assert torch.allclose(*logits, atol=1e-10)


def test_odd_values() -> None:
    with pytest.raises(ValueError, match=r"norm='layer'; choose batch, group, none"):
        Conv4(5, norm="layer")
    with pytest.raises(ValueError, match=r"one weight.*larger kernel"):
        StandardisedConv2d(1, 4, 1)
    with pytest.raises(ValueError, match=r"norm='none' is a variant of conv4.*norm='batch'"):
        Experiment(model="cifar_resnet20", norm="none").fresh_model()
    assert statistics(Experiment(norm="none", hidden=4).fresh_model()) == "no batch norm"
