"""Convolution and pooled norm of many tasks at once, against torch's own, task by task and to the
second derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.kernels.conv_per_task import StackedConvolutions, conv_norm_pool_relu
from metalearn.models.conv4 import ConvBlock

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    ),
]


def twice_differentiated(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output, its gradients, and theirs."""
    output = function(*inputs)
    first = torch.autograd.grad(output.sin().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum((gradient**2).sum() for gradient in first), inputs)
    return [output, *first, *second]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("kernel", "how"),
    [
        ((3, 3), {"padding": 1}),
        ((3, 3), {"padding": 1, "stride": 2}),
        ((3, 3), {}),
        ((1, 1), {}),
        ((1, 1), {"stride": 2}),
        ((1, 1), {"padding": 1}),
        ((3, 3), {"padding": 3}),
        ((2, 3), {"stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)}),
        ((3, 3), {"padding": "same"}),
        ((3, 3), {"groups": 2}),
    ],
)
def test_convolutions_of_stacked_tasks(
    kernel: tuple[int, int], how: dict[str, Any], device: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    channels = 4 // how.get("groups", 1)
    shapes = (3, 5, 4, 9, 8), (3, 6, channels, *kernel), (3, 6)
    inputs = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(device).requires_grad_()
        for shape in shapes
    ]

    def stacked(*inputs: Tensor) -> Tensor:
        with StackedConvolutions():
            return torch.vmap(lambda x, w, b: F.conv2d(x, w, b, **how))(*inputs)

    def one_by_one(*inputs: Tensor) -> Tensor:
        return torch.stack([F.conv2d(*task, **how) for task in zip(*inputs, strict=True)])

    for ours, theirs in zip(
        twice_differentiated(stacked, *inputs),
        twice_differentiated(one_by_one, *inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pool", [True, False])
def test_blocks_of_stacked_tasks(pool: bool, shared: bool, device: str) -> None:
    torch.manual_seed(0)
    block = ConvBlock(2, 4, pool).double().to(device)
    names = [name for name, _ in block.named_parameters()]
    weights = [
        (p + 0.5 * torch.randn((*(() if shared else (3,)), *p.shape), dtype=p.dtype, device=device))
        for p in block.parameters()
    ]
    weights[names.index("norm.weight")].data[..., 1] *= -1
    maps = torch.randn(3, 5, 2, 9, 8, dtype=torch.float64, device=device)
    inputs = [tensor.detach().requires_grad_() for tensor in (maps, *weights)]

    def run(forward: Callable[[Tensor], Tensor], maps: Tensor, *weights: Tensor) -> Tensor:
        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm, self.pool = block.conv, block.norm, block.pool

            def forward(self, maps: Tensor) -> Tensor:
                return forward(maps)

        return torch.func.functional_call(Block(), dict(zip(names, weights, strict=True)), (maps,))

    def ours(maps: Tensor) -> Tensor:
        return conv_norm_pool_relu(maps, block.conv, block.norm, pool=pool)

    def native(maps: Tensor) -> Tensor:
        return torch.relu(block.pool(block.norm(block.conv(maps))))

    def stacked(*inputs: Tensor) -> Tensor:
        with StackedConvolutions():
            return torch.vmap(
                lambda *i: run(ours, *i), in_dims=(0, *([None if shared else 0] * len(weights)))
            )(*inputs)

    def one_by_one(*inputs: Tensor) -> Tensor:
        return torch.stack(
            [
                run(native, inputs[0][t], *(w if shared else w[t] for w in inputs[1:]))
                for t in range(3)
            ]
        )

    for found, expected in zip(
        twice_differentiated(stacked, *inputs),
        twice_differentiated(one_by_one, *inputs),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    alone = run(ours, inputs[0][0], *(w if shared else w[0] for w in inputs[1:]))
    torch.testing.assert_close(alone, one_by_one(*inputs)[0], rtol=1e-9, atol=1e-9)
