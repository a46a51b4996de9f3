"""Convolution, and batch norm with max-pool and ReLU, as operations that are quick to differentiate
twice on a CPU.

The inner loop differentiates a gradient. torch does that through many small operations, each of
which goes over memory anew; here the first and the second derivative are written out in as few
passes as they take. With channels last in memory the convolution library and the pooling are
quickest. But `.view` fails on such maps, so only networks of this package get them, by
`in_channels_last`. Every operation keeps the memory format that it is given, as torch's own do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten
Pair = tuple[int, int]

SMALL = (
    2**16
)  # values below which torch's own operation is quicker, since it holds Python's lock for less of its time


class Convolutions(TorchFunctionMode):
    """While it is on, `F.conv2d` of maps with channels last on a CPU is `convolution`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (convolution if func is torch.conv2d else func)(*args, **(kwargs or {}))


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d`, the same numbers, with a second derivative that is quick on a CPU if channels are
    last in memory.

    Args:
        input: (examples, channels, height, width).
        weight: As in `F.conv2d`, like all the others.
        bias: (channels,) or None.
        stride: A number or a pair.
        padding: A number, a pair, or a name.
        dilation: A number or a pair.
        groups: A number.

    Returns:
        Tensor: (examples, channels, height, width), in the memory format that `F.conv2d` gives.

    Example:
        >>> x, w = torch.rand(2, 3, 8, 8), torch.rand(4, 3, 3, 3)
        >>> torch.allclose(convolution(x, w, padding=1), F.conv2d(x, w, padding=1), atol=1e-5)
        True
    """
    if _is_quick(input, weight, padding):
        cast = _autocast(input, weight, bias)
        if len({tensor.dtype for tensor in cast if tensor is not None}) == 1:
            size = _pair(stride), _pair(padding), _pair(dilation)
            outputs: Tensor = _Convolution.apply(*cast, *size, groups)
            return outputs
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def in_channels_last(function: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    """`function(maps)`, computed with channels last in memory.

    Neither the output nor the gradient of `maps` shows it.

    Args:
        function: From maps to maps; it must not depend on the memory format of what it is given.
        maps: (examples, channels, height, width).

    Returns:
        Tensor: The function's output in the memory format of `maps`.

    Example:
        >>> maps = torch.rand(4, 3, 8, 8)
        >>> in_channels_last(torch.nn.MaxPool2d(2), maps).is_contiguous()
        True
    """
    if maps.device.type != "cpu" or maps.ndim != 4 or _has_channels_last(maps):
        return function(maps)
    return _contiguous(function(_Reordered.apply(maps, True)))


def in_fastest_format(function: Callable[[Tensor], Tensor], maps: Tensor, channels: int) -> Tensor:
    """`function(maps)` with channels last if its convolution is large, and contiguous if it is
    small.

    With channels last, torch's own convolution would lay out the gradient of its weight like that
    too. `convolution` does not, and is for large ones.

    Args:
        function: As for `in_channels_last`.
        maps: (examples, channels, height, width).
        channels: Of the convolution's output.

    Returns:
        Tensor: The function's output; contiguous if `maps` are.

    Example:
        >>> in_fastest_format(torch.nn.MaxPool2d(2), torch.rand(4, 3, 8, 8), channels=3).shape
        torch.Size([4, 3, 4, 4])
    """
    if maps.device.type == "cpu" and maps.ndim == 4 and not _is_large(maps, channels):
        return function(_contiguous(maps))
    return in_channels_last(function, maps)


def norm_pool_relu(maps: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Batch norm by the batch's own statistics, 2x2 max-pool and ReLU -> (examples, channels,
    height / 2, width / 2).

    `relu(weight * (max-pool(maps) - mean) / sqrt(variance + eps) + bias)`, with the smallest in
    place of the largest value where a channel's weight is negative: the normalised maps, four times
    as large as the pooled ones, are never made.

    Arguments:
        maps: (examples, channels, height, width).
        weight, bias: (channels,) of the norm.

    Example:
        >>> maps, norm = torch.rand(3, 4, 6, 6), torch.nn.BatchNorm2d(4)
        >>> expected = torch.nn.functional.max_pool2d(norm(maps), 2).relu()
        >>> torch.allclose(norm_pool_relu(maps, norm.weight, norm.bias), expected, atol=1e-5)
        True
    """
    if maps.numel() < SMALL:
        return F.max_pool2d(
            F.batch_norm(maps, None, None, weight, bias, training=True, eps=eps), 2
        ).relu()
    pooled, mean, variance, _ = _PooledMoments.apply(maps, weight.detach())
    scale = weight * (variance + eps).rsqrt()
    return (
        torch.addcmul(_channels(bias - scale * mean), pooled, _channels(scale))
        .relu()
        .to(maps.dtype)
    )


def _is_quick(input: Any, weight: Any, padding: Any) -> bool:
    """Whether the written-out derivatives are for this convolution. All others are torch's own."""
    if type(input) is not Tensor or not isinstance(weight, Tensor) or isinstance(padding, str):
        return False
    if not input.device.type == weight.device.type == "cpu" or not input.ndim == weight.ndim == 4:
        return False
    if forward_ad._current_level >= 0:  # forward-mode derivatives, which are not written out
        return False
    return (
        input.is_floating_point()
        and _has_channels_last(input)
        and _is_large(input, weight.shape[0])
    )


def _is_large(maps: Tensor, channels: int) -> bool:
    return maps.numel() >= SMALL * maps.shape[1] / max(channels, 1)


def _contiguous(maps: Tensor) -> Tensor:
    return _Reordered.apply(maps, False) if maps.ndim == 4 and _has_channels_last(maps) else maps


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in the precision of `torch.autocast`, which leaves double precision alone."""
    if not torch.is_autocast_enabled("cpu"):
        return list(tensors)
    dtype = torch.get_autocast_dtype("cpu")
    return [
        tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)
        for tensor in tensors
    ]


class _Reordered(Function):
    """The same maps with channels last in memory, or contiguous; the gradient is turned back."""

    @staticmethod
    def forward(maps: Tensor, last: bool) -> Tensor:
        own = maps.clone(memory_format=torch.contiguous_format)
        return _channels_last(own) if last else own

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.last = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Reordered.apply(gradient, not ctx.last), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return _task_by_task(_Reordered.apply, info, in_dims, inputs)


class _Convolution(Function):
    """`y = conv(x, w) + b`."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None, *how: Any) -> Tensor:
        return _convolve(x, w, b, how)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, w, b, *how = inputs
        ctx.save_for_backward(x, w)
        ctx.how, ctx.biased = how, b is not None

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        wanted = (
            ctx.needs_input_grad[0],
            ctx.needs_input_grad[1],
            ctx.biased and ctx.needs_input_grad[2],
        )
        return *_ConvolutionGradient.apply(g, x, w, wanted, *ctx.how), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return _task_by_task(_Convolution.apply, info, in_dims, inputs)


class _ConvolutionGradient(Function):
    """`x' = conv^T(g, w)`, `w' = corr(g, x)`, `b' = sum g`: each linear in g, and the first two in
    w and x.
    """

    @staticmethod
    def forward(g: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, bool, bool], *how: Any) -> Any:
        gx, gw, gb = _convolve_back(g, x, w, wanted, how)
        return gx, None if gw is None else _in_format_of(w, gw), gb

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        g, x, w, _, *how = inputs
        ctx.save_for_backward(g, x, w)
        ctx.how = how
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gx: Tensor | None, gw: Tensor | None, gb: Tensor | None) -> Any:
        g, x, w = ctx.saved_tensors
        of_g, of_x, of_w = ctx.needs_input_grad[:3]
        to_g = [convolution(x, gw, None, *ctx.how)] if of_g and gw is not None else []
        to_g += [convolution(gx, w, None, *ctx.how)] if of_g and gx is not None else []
        to_g += [_channels(gb).expand_as(g)] if of_g and gb is not None else []
        to_x = to_w = None
        if of_x and gw is not None:
            to_x = _ConvolutionGradient.apply(g, x, gw, (True, False, False), *ctx.how)[0]
        if of_w and gx is not None:
            to_w = _ConvolutionGradient.apply(g, gx, w, (False, True, False), *ctx.how)[1]
        return sum(to_g[1:], to_g[0]) if to_g else None, to_x, to_w, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return _task_by_task(_ConvolutionGradient.apply, info, in_dims, inputs)


class _PooledMoments(Function):
    """Maps z -> (p, m, v, where p is): max-pooled, or min-pooled where the sign is negative; each
    channel's mean and biased variance.
    """

    @staticmethod
    def forward(maps: Tensor, sign: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z = _channels_last(maps)
        mean, variance = _moments(z)
        negative = sign < 0
        if not negative.any():
            pooled, places = _aten.max_pool2d_with_indices(z, [2, 2])
        else:
            flip = _channels(torch.where(negative, -1.0, 1.0).to(z.dtype))
            pooled, places = _aten.max_pool2d_with_indices(z * flip, [2, 2])
            pooled = pooled * flip
        return _in_format_of(maps, pooled), mean, variance, places

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, mean, _, places = output
        ctx.mark_non_differentiable(places)
        ctx.save_for_backward(inputs[0], mean, places)

    @staticmethod
    def backward(ctx: Any, gp: Tensor, gm: Tensor, gv: Tensor, _: Any) -> Any:
        return _PooledMomentsGradient.apply(gp, gm, gv, *ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return _task_by_task(_PooledMoments.apply, info, in_dims, inputs)


class _PooledMomentsGradient(Function):
    """`z' = P^T p' + (m' + 2 v' (z - m)) / n`, where P picks the pooled positions and n is how many
    values a channel has.
    """

    @staticmethod
    def forward(
        gp: Tensor, gm: Tensor, gv: Tensor, z: Tensor, mean: Tensor, places: Tensor
    ) -> Tensor:
        z, n = _channels_last(z), z.numel() // z.shape[1]
        gz = _aten.max_pool2d_with_indices_backward(
            _channels_last(gp), z, [2, 2], [2, 2], [0, 0], [1, 1], False, places
        )
        slope = 2 * gv / n
        return gz.addcmul_(z, _channels(slope)).add_(_channels(gm / n - slope * mean))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, _, gv, z, mean, places = inputs
        ctx.save_for_backward(gv, z, mean, places)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        gv, z, mean, places = ctx.saved_tensors
        n, slope = z.numel() // z.shape[1], 2 * gv / (z.numel() // z.shape[1])
        total = u.sum((0, 2, 3))
        product = (u * z).sum((0, 2, 3)) - mean * total
        return (
            _picked(u, places),
            total / n,
            2 * product / n,
            u * _channels(slope),
            -slope * total,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return _task_by_task(_PooledMomentsGradient.apply, info, in_dims, inputs)


def _moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's mean and biased variance, of maps with their channels last.

    torch adds a channel's values up one after the other, and loses digits. So every column of the
    maps first has moments of its own.
    """
    number, channels, height, width = z.shape
    columns = z.permute(0, 2, 3, 1).reshape(number, height, 1, width * channels).permute(0, 3, 1, 2)
    means, variances = (
        found.view(width, channels)
        for found in torch.batch_norm_update_stats(columns, None, None, 0.0)
    )
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)


def _convolve(x: Tensor, w: Tensor, b: Tensor | None, how: Any) -> Tensor:
    stride, padding, dilation, groups = how
    found: Tensor = _aten.convolution(x, w, b, stride, padding, dilation, False, (0, 0), groups)
    return found


def _convolve_back(g: Tensor, x: Tensor, w: Tensor, wanted: Any, how: Any) -> Any:
    stride, padding, dilation, groups = how
    return _aten.convolution_backward(
        g, x, w, [w.shape[0]], stride, padding, dilation, False, (0, 0), groups, wanted
    )


def _picked(maps: Tensor, places: Tensor) -> Tensor:
    """The values of maps at the places that a pooling chose: (examples, channels, height, width) ->
    the places' shape.
    """
    number, channels, height, width = places.shape
    rows, order = (t.permute(0, 2, 3, 1).reshape(number, -1, channels) for t in (maps, places))
    return rows.gather(1, order).view(number, height, width, channels).permute(0, 3, 1, 2)


def _channels(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def _channels_last(maps: Tensor) -> Tensor:
    if maps.shape[1] == 1 and maps.is_contiguous():
        # One channel comes first and last: only these strides have torch take it as last.
        _, _, height, width = maps.shape
        return maps.as_strided(maps.shape, (height * width, 1, width, 1))
    return maps.contiguous(memory_format=torch.channels_last)


def _has_channels_last(maps: Tensor) -> bool:
    return maps.stride(1) == 1 and maps.shape[2] * maps.shape[3] > 1


def _in_format_of(like: Tensor, maps: Tensor) -> Tensor:
    return _channels_last(maps) if _has_channels_last(like) else maps.contiguous()


def _task_by_task(function: Callable[..., Any], info: Any, in_dims: Any, inputs: Any) -> Any:
    """What vmap over tasks asks for.

    On a CPU one large operation a task is as quick as one for all of them.
    """

    def of(task: int) -> Any:
        return function(
            *(
                x.select(dim, task) if isinstance(dim, int) else x
                for x, dim in zip(inputs, in_dims, strict=True)
            )
        )

    found = [of(task) for task in range(info.batch_size)]
    if isinstance(found[0], Tensor):
        return torch.stack(found), 0
    stacked = tuple(
        None if parts[0] is None else torch.stack(parts) for parts in zip(*found, strict=True)
    )
    return stacked, tuple(None if part is None else 0 for part in stacked)
