"""Operations that are written out: the same values and derivatives, of first and second order, as
torch's own.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.kernels import conv_cpu
from metalearn.kernels.conv_cpu import Convolutions, convolution, norm_pool_relu


@pytest.fixture(autouse=True)
def _every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_cpu, "SMALL", 0)


def derivatives(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The value, the gradient of a quadratic of it, and the gradient of a quadratic of that
    gradient.
    """
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    gradient = torch.autograd.grad(
        (value * torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value)).sum()
        + (value**2).sum(),
        leaves,
        create_graph=True,
    )
    second = torch.autograd.grad(
        sum(
            ((g + 1) ** 2 * torch.linspace(0, 1, g.numel(), dtype=g.dtype).view_as(g)).sum()
            for g in gradient
        ),
        leaves,
    )
    return [value.detach(), *(g.detach() for g in gradient), *second]


def same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-11) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.abs().max()))
        )


def draw(*shape: int) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64
    )


def last(maps: Tensor) -> Tensor:
    """The maps with channels last in memory, which the written-out convolution is for."""
    return conv_cpu._Reordered.apply(maps, torch.channels_last)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(
    "how", [{}, {"padding": 1}, {"stride": 2, "padding": (1, 0)}, {"dilation": 2, "padding": 2}]
)
def test_convolution_and_its_derivatives(channels: int, how: dict[str, int]) -> None:
    inputs = draw(3, channels, 8, 7), draw(4, channels, 3, 3), draw(4)
    same(
        derivatives(lambda x, w, b: convolution(last(x), w, b, **how), *inputs),
        derivatives(lambda x, w, b: F.conv2d(x, w, b, **how), *inputs),
    )


def test_convolution_in_groups_and_with_padding_by_name() -> None:
    inputs = draw(3, 4, 6, 6), draw(4, 2, 3, 3)
    same(
        derivatives(lambda x, w: convolution(last(x), w, groups=2), *inputs),
        derivatives(lambda x, w: F.conv2d(x, w, groups=2), *inputs),
    )
    x, w = inputs[0], draw(4, 4, 3, 3)
    assert torch.equal(
        convolution(last(x), w, padding="same"), F.conv2d(last(x), w, padding="same")
    )


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, 1)])
def test_norm_pool_relu_and_its_derivatives(size: tuple[int, int], signs: tuple[int, ...]) -> None:
    weight = torch.tensor(signs) * (draw(3).abs() + 0.5)
    inputs = 3 + draw(4, 3, *size), weight, draw(3)

    def native(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.max_pool2d(F.batch_norm(z, None, None, weight, bias, training=True), 2).relu()

    same(derivatives(norm_pool_relu, *inputs), derivatives(native, *inputs))


def test_gradients_against_finite_differences() -> None:
    x, w, b = (t.requires_grad_() for t in (draw(2, 2, 5, 5), draw(2, 2, 3, 3), draw(2)))
    assert torch.autograd.gradgradcheck(
        lambda x, w, b: convolution(last(x), w, b, padding=1), (x, w, b)
    )
    weight = draw(2).abs().add(0.5).requires_grad_()
    assert torch.autograd.gradcheck(
        norm_pool_relu, (x, weight, b)
    ) and torch.autograd.gradgradcheck(norm_pool_relu, (x, weight, b))


def test_under_vmap_every_task_has_its_own_numbers() -> None:
    z, x, weights, weight, bias = (
        draw(3, 4, 2, 6, 6),
        draw(4, 2, 6, 6),
        draw(3, 5, 2, 3, 3),
        draw(3, 2),
        draw(2),
    )
    found = torch.vmap(convolution, in_dims=(None, 0))(last(x), weights)
    torch.testing.assert_close(found, torch.stack([F.conv2d(x, w) for w in weights]))
    found = torch.vmap(norm_pool_relu, in_dims=(0, 0, None))(z, weight, bias)
    torch.testing.assert_close(
        found, torch.stack([norm_pool_relu(a, b, bias) for a, b in zip(z, weight, strict=True)])
    )


def test_single_precision_is_as_exact_as_torchs_own() -> None:
    z, weight, bias = 30 + draw(6, 4, 10, 10), draw(4).abs(), draw(4)
    exact = norm_pool_relu(z, weight, bias)
    theirs = F.max_pool2d(
        F.batch_norm(z.float(), None, None, weight.float(), bias.float(), training=True), 2
    ).relu()
    ours = norm_pool_relu(z.float(), weight.float(), bias.float())
    assert (ours - exact).abs().max() <= 4 * (theirs - exact).abs().max() + 1e-6


def test_moments_of_many_maps_far_from_zero_keep_their_digits() -> None:
    torch.manual_seed(0)
    maps = (torch.randn(75, 8, 28, 28) + 8 * torch.randn(1, 8, 1, 1)).contiguous(
        memory_format=torch.channels_last
    )
    mean, variance = conv_cpu._moments(maps)
    exact = torch.var_mean(maps.double(), (0, 2, 3), correction=0)
    assert (
        float(((mean - exact[1]).abs() / exact[0].sqrt()).max()) < 1e-5
    )  # torch's own, over all maps at once: 4e-5
    assert float(((variance - exact[0]).abs() / exact[0]).max()) < 2e-6


def test_the_mode_reaches_whatever_network_has_channels_last() -> None:
    net, x = torch.nn.Conv2d(1, 3, 3).double(), draw(2, 1, 6, 6)
    with Convolutions():
        inside, contiguous = net(last(x)), net(x)
    assert type(inside.grad_fn).__name__ == "_ConvolutionBackward"
    for plain in (contiguous, net(last(x))):
        assert type(plain.grad_fn).__name__ == "ConvolutionBackward0"
        torch.testing.assert_close(inside, plain)


def test_small_maps_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    z, w, weight, bias = last(draw(3, 2, 6, 6)), draw(4, 2, 3, 3).requires_grad_(), draw(2), draw(2)
    written = convolution(z, w), norm_pool_relu(z, weight, bias)
    monkeypatch.setattr(conv_cpu, "SMALL", 2**16)
    assert type(convolution(z, w).grad_fn).__name__ != "_ConvolutionBackward"
    same(
        [x.detach() for x in written], [convolution(z, w).detach(), norm_pool_relu(z, weight, bias)]
    )


def test_autocast_computes_in_its_own_precision() -> None:
    x, w = last(draw(2, 3, 6, 6).float()), draw(4, 3, 3, 3).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = convolution(x, w)
    found.float().sum().backward()
    assert found.dtype == torch.bfloat16 and w.grad is not None and w.grad.dtype == torch.float32
    torch.testing.assert_close(found.float(), F.conv2d(x, w), rtol=0.05, atol=0.2)
