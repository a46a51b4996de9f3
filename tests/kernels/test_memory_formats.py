"""A convolution gives the memory format that the plain module gives, so `.view` works."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import metalearn as ml
from metalearn.compat.learn2learn import algorithms as compat
from metalearn.compat.learn2learn.vision.models import ConvBase
from metalearn.kernels.conv_cpu import Convolutions, in_channels_last
from metalearn.models import Conv4


class Viewed(nn.Module):
    """`.view` after a convolution, after a pool, and in an attention block."""

    def __init__(self, channels: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32, track_running_stats=False)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=groups)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.norm(self.conv1(x)))
        rows = maps.view(maps.size(0), 32, -1)
        maps = F.avg_pool2d(self.conv2(rows.view_as(maps)), 2)
        tokens = maps.view(maps.size(0), 32, -1)
        return self.head((tokens.softmax(-1) * tokens).sum(-1).view(-1, 32))


def task(channels: int = 1, queries: int = 75, size: int = 16) -> ml.Episode:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5 + queries, channels, size, size, generator=generator)
    labels = torch.arange(5 + queries) % 5
    return ml.Episode(ml.Examples(images[:5], labels[:5]), ml.Examples(images[5:], labels[5:]))


def by_hand(model: nn.Module, episode: ml.Episode, lr: float) -> Tensor:
    weights = dict(model.named_parameters())
    loss = F.cross_entropy(
        functional_call(model, weights, (episode.support.inputs,)), episode.support.targets
    )
    gradients = torch.autograd.grad(loss, list(weights.values()))
    moved = {name: w - lr * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
    return functional_call(model, moved, (episode.query.inputs,)).detach()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_network_that_views_its_maps_adapts_as_by_hand(channels: int, groups: int) -> None:
    torch.manual_seed(0)
    model, episode = Viewed(channels, groups), task(channels)
    for learner in (ml.MAML(model, 0.1), ml.ANIL(model, 0.1), ml.ProtoNet(model)):
        adapted = learner.adapt(episode.support)
        logits = learner.predict(adapted, episode.query.inputs)
        assert logits.shape == (75, 5)
        if type(learner) is ml.MAML:
            torch.testing.assert_close(
                logits.detach(), by_hand(model, episode, 0.1), rtol=1e-4, atol=1e-5
            )
    outer = compat.MAML(model, lr=0.1)
    clone = outer.clone()
    clone.adapt(F.cross_entropy(clone(episode.support.inputs), episode.support.targets))
    torch.testing.assert_close(
        clone(episode.query.inputs).detach(), by_hand(model, episode, 0.1), rtol=1e-4, atol=1e-5
    )


class Tiled(torch.autograd.Function):
    """A user's own Function, which views what it gets in both directions."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        return maps.view(maps.size(0), -1).view(maps.shape).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view(-1).view(gradient.shape)


@pytest.mark.parametrize(
    "build", [Viewed, lambda: nn.Conv2d(1, 32, 3, padding=1), lambda: Conv4(5, hidden=32).block1]
)
def test_the_format_of_outputs_and_gradients_is_the_plain_modules(
    build: Callable[[], nn.Module],
) -> None:
    model, episode = build(), task()
    images = episode.query.inputs.clone().requires_grad_()
    plain = copy.deepcopy(model)
    plain.register_forward_hook(lambda module, inputs, output: None)

    def formats(module: nn.Module) -> list[Any]:
        seen = []
        images.register_hook(lambda gradient: seen.append(gradient.view(-1)))
        output = module(images)
        gradients = torch.autograd.grad(output.square().sum(), [images, *module.parameters()])
        return [output.stride(), *(gradient.view(-1).shape for gradient in gradients)]

    with Convolutions():
        inside = formats(model)
    assert inside == formats(plain)


def test_a_block_or_a_body_of_ours_may_be_viewed_too() -> None:
    images = task(size=28).query.inputs
    model = Conv4(5)
    body = nn.Sequential(model.block1, model.block2)
    assert body(images).view(75, -1).shape == (75, 64 * 7 * 7)
    assert ConvBase(64, layers=2, max_pool=True)(images).view(75, -1).shape == (75, 64 * 7 * 7)
    seen = []
    for block in (model.block1, model.block3):
        block.register_forward_hook(lambda module, inputs, output: seen.append(output.view(75, -1)))
    with Convolutions():
        Tiled.apply(model.block1(images)).sum().backward()
        model(images).sum().backward()
    assert len(seen) == 3


def test_hooks_do_not_change_the_output_of_conv4() -> None:
    images, model = task(size=28).query.inputs, Conv4(5).double()
    expected = model(images.double())
    model.block2.register_forward_hook(lambda module, inputs, output: None)
    torch.testing.assert_close(model(images.double()), expected, rtol=1e-12, atol=1e-12)


def test_inner_gradients_of_conv4_may_be_viewed() -> None:
    def clipped(weights: Any, gradients: Any, rates: Any, state: Any) -> Any:
        norm = torch.cat([gradient.view(-1) for gradient in gradients.values()]).norm()
        return {name: w - rates[name] * gradients[name] / norm for name, w in weights.items()}, None

    learner = ml.MAML(Conv4(5), 0.1, update=clipped, execution="loop")
    assert (
        learner.predict(learner.adapt(task(size=28).support), torch.rand(5, 1, 28, 28))
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_in_channels_last_stays_so(channels: int) -> None:
    conv = nn.Conv2d(channels, 32, 3, padding=1).to(memory_format=torch.channels_last)
    images = task(channels).query.inputs.to(memory_format=torch.channels_last)
    with Convolutions():
        inside = conv(images)
    assert inside.stride() == conv(images).stride()
    torch.testing.assert_close(inside, conv(images))


@pytest.mark.parametrize(
    "dtype", [torch.complex64, torch.complex128, torch.bfloat16, torch.half, torch.float64]
)
@pytest.mark.parametrize("last", [False, True])
def test_every_dtype_gives_what_torch_gives(dtype: torch.dtype, last: bool) -> None:
    torch.manual_seed(0)
    images, weight = torch.randn(75, 4, 16, 16, dtype=dtype), torch.randn(8, 4, 3, 3, dtype=dtype)
    if last and not dtype.is_complex:
        images = images.to(memory_format=torch.channels_last)
    for padding in (1, "same", (2, 1)):
        with Convolutions():
            inside = F.conv2d(images, weight, padding=padding)
        expected = F.conv2d(images, weight, padding=padding)
        assert inside.dtype == dtype and inside.stride() == expected.stride()
        torch.testing.assert_close(inside, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_gives_what_torch_gives(dtype: torch.dtype) -> None:
    images, conv = torch.randn(75, 4, 16, 16, dtype=dtype), nn.Conv2d(4, 8, 3, dtype=dtype)
    images = images.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        expected = conv(images)
        with Convolutions():
            inside = conv(images)
    assert inside.dtype == expected.dtype
    torch.testing.assert_close(inside, expected)


@pytest.mark.parametrize(
    ("images", "weight"),
    [
        (torch.ones(75, 4, 32, 32), torch.ones(8, 4, 3, 3, dtype=torch.float64)),
        (torch.ones(75, 4, 32, 32), torch.ones(8, 3, 3, 3)),
        (torch.ones(75, 4, 32, 32, dtype=torch.int64), torch.ones(8, 4, 3, 3)),
        (torch.ones(75, 4, 32, 32), torch.ones(8, 4, 3)),
    ],
)
def test_errors_are_torchs_own(images: Tensor, weight: Tensor) -> None:
    for images_in_format in (images, images.to(memory_format=torch.channels_last)):
        with pytest.raises(RuntimeError) as expected:
            F.conv2d(images_in_format, weight)
        with Convolutions(), pytest.raises(RuntimeError) as inside:
            F.conv2d(images_in_format, weight)
        assert str(inside.value) == str(expected.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_forward_mode_derivatives_and_empty_batches_pass() -> None:
    images = torch.rand(75, 4, 16, 16).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(4, 8, 3)
    for module in (conv, Conv4(5, channels=4, size=16)):
        module(images[:0])
    with Convolutions():
        _, tangent = torch.func.jvp(conv, (images,), (images,))
        assert conv(images[:0]).shape == (0, 8, 14, 14)
    torch.testing.assert_close(tangent, F.conv2d(images, conv.weight))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv1d(4, 64, 3), (75, 4, 40)),
        (nn.Conv3d(4, 64, 3), (8, 4, 8, 8, 8)),
        (nn.ConvTranspose2d(4, 32, 3), (75, 4, 16, 16)),
        (nn.Conv2d(4, 32, 3, padding_mode="circular", padding=1), (75, 4, 16, 16)),
    ],
)
def test_other_convolutions_are_torchs_own(module: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = torch.rand(shape)
    with Convolutions():
        inside = module(inputs)
    assert torch.equal(inside, module(inputs)) and inside.stride() == module(inputs).stride()


@pytest.mark.parametrize("channels", [1, 4])
def test_in_channels_last_hides_the_format_from_both_sides(channels: int) -> None:
    maps = torch.rand(3, channels, 5, 5, requires_grad=True)
    seen = []
    output = in_channels_last(lambda x: (seen.append(x.stride(1)), x * x)[1], maps)
    gradient = torch.autograd.grad(output.sum(), maps, create_graph=True)[0]
    second = torch.autograd.grad(gradient.square().sum(), maps)[0]
    assert seen == [1]
    assert output.is_contiguous() and gradient.is_contiguous() and second.is_contiguous()
    torch.testing.assert_close(second, 8 * maps.detach())
