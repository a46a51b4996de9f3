"""Convolution, and batch norm with max-pool and ReLU, fast to differentiate twice on a CPU.

The inner loop differentiates a gradient. torch does that through many small operations, and each
of them passes over memory again. Here both derivatives are written out in as few passes as
possible. The convolution library and the pooling are fastest with channels last in memory. But
`.view` fails on such maps, so only networks of this package use them, through `in_channels_last`.
Every operation keeps the memory format of its input, as torch's own operations do.

The derivatives are written as adjoints: x' is the gradient of a scalar loss by x. Each function
with a second derivative is a pair of classes, the function and its gradient, and the gradient's own
`backward` is the second derivative.
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

# Below so many values torch's own operation is faster: it holds Python's lock for less of its time.
SMALL = 2**16

NOT_TRANSPOSED = (False, (0, 0))  # transposed, output padding


class Convolutions(TorchFunctionMode):
    """While it is active, `F.conv2d` is `convolution`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function = convolution if func is torch.conv2d else func
        return function(*args, **(kwargs or {}))


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d` with a fast second derivative if channels are last in memory on a CPU.

    The numbers are those of `F.conv2d`.

    Args:
        input: (examples, channels, height, width).
        weight: (outputs, channels / groups, kernel height, kernel width).
        bias: (outputs,), or None.
        stride: a number or a pair.
        padding: a number, a pair, or a name.
        dilation: a number or a pair.
        groups: a number.

    Returns:
        (examples, outputs, height, width), in the memory format that `F.conv2d` gives.

    Example:
        >>> x, w = torch.rand(2, 3, 8, 8), torch.rand(4, 3, 3, 3)
        >>> torch.allclose(convolution(x, w, padding=1), F.conv2d(x, w, padding=1), atol=1e-5)
        True
    """
    if _is_supported(input, weight, padding):
        cast = _autocast(input, weight, bias)
        if len({tensor.dtype for tensor in cast if tensor is not None}) == 1:
            size = _pair(stride), _pair(padding), _pair(dilation)
            outputs: Tensor = _Convolution.apply(*cast, *size, groups)
            return outputs
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def in_channels_last(function: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    """`function(maps)`, computed with channels last in memory.

    The output and the gradient of `maps` have the memory format of `maps`.

    Args:
        function: from maps to maps; its values must not depend on the memory format.
        maps: (examples, channels, height, width).

    Returns:
        The function's output in the memory format of `maps`.

    Example:
        >>> maps = torch.rand(4, 3, 8, 8)
        >>> in_channels_last(torch.nn.MaxPool2d(2), maps).is_contiguous()
        True
    """
    if maps.device.type != "cpu" or maps.ndim != 4 or _has_channels_last(maps):
        return function(maps)
    return _contiguous(function(_Reordered.apply(maps, torch.channels_last)))


def in_fastest_format(function: Callable[[Tensor], Tensor], maps: Tensor, channels: int) -> Tensor:
    """`function(maps)`, with channels last if its convolution is large, else contiguous.

    Small convolutions are torch's own. With channels last, torch would give the gradient of the
    weight that format too, which `convolution` does not.

    Args:
        function: as for `in_channels_last`.
        maps: (examples, channels, height, width).
        channels: the number of the convolution's output channels.

    Returns:
        The function's output; contiguous if `maps` are.

    Example:
        >>> in_fastest_format(torch.nn.MaxPool2d(2), torch.rand(4, 3, 8, 8), channels=3).shape
        torch.Size([4, 3, 4, 4])
    """
    if maps.device.type == "cpu" and maps.ndim == 4 and not _is_large(maps, channels):
        return function(_contiguous(maps))
    return in_channels_last(function, maps)


def norm_pool_relu(maps: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Batch norm by the batch's own statistics, 2x2 max-pool and ReLU.

    With the mean m and the biased variance v of each channel,

        relu(weight * (max-pool(maps) - m) / sqrt(v + eps) + bias)

    equals normalising first and pooling afterwards, because the norm rises with its input. In a
    channel with a negative weight it falls, and the smallest value is pooled instead. The
    normalised maps, four times as large as the pooled ones, are never made.

    Args:
        maps: (examples, channels, height, width).
        weight: (channels,) of the norm.
        bias: (channels,) of the norm.
        eps: of the norm.

    Returns:
        (examples, channels, height / 2, width / 2).

    Example:
        >>> maps, norm = torch.rand(3, 4, 6, 6), torch.nn.BatchNorm2d(4)
        >>> expected = torch.nn.functional.max_pool2d(norm(maps), 2).relu()
        >>> torch.allclose(norm_pool_relu(maps, norm.weight, norm.bias), expected, atol=1e-5)
        True
    """
    if maps.numel() < SMALL:
        normalised = F.batch_norm(maps, None, None, weight, bias, training=True, eps=eps)
        return F.max_pool2d(normalised, 2).relu()
    pooled, mean, variance, _ = _PooledMoments.apply(maps, weight.detach())
    # weight * (pooled - mean) / sqrt(variance + eps) + bias = scale * pooled + shift
    scale = weight * (variance + eps).rsqrt()  # (channels,)
    shift = bias - scale * mean
    normalised = torch.addcmul(_channels(shift), pooled, _channels(scale))
    return normalised.relu().to(maps.dtype)


def _is_supported(input: Any, weight: Any, padding: Any) -> bool:
    """Whether `_Convolution` can and should compute this; torch computes all others."""
    if type(input) is not Tensor or not isinstance(weight, Tensor) or isinstance(padding, str):
        return False
    if not input.device.type == weight.device.type == "cpu" or not input.ndim == weight.ndim == 4:
        return False
    if forward_ad._current_level >= 0:  # forward-mode derivatives are not written out
        return False
    return (
        input.is_floating_point()
        and _has_channels_last(input)
        and _is_large(input, weight.shape[0])
    )


def _is_large(maps: Tensor, channels: int) -> bool:
    """Whether a convolution of these maps has at least `SMALL` outputs, at stride 1."""
    return maps.numel() >= SMALL * maps.shape[1] / max(channels, 1)


def _contiguous(maps: Tensor) -> Tensor:
    if maps.ndim == 4 and _has_channels_last(maps):
        return _Reordered.apply(maps, torch.contiguous_format)
    return maps


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in the precision of `torch.autocast`, which does not change float64."""
    if not torch.is_autocast_enabled("cpu"):
        return list(tensors)
    dtype = torch.get_autocast_dtype("cpu")
    return [
        tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)
        for tensor in tensors
    ]


class _Reordered(Function):
    """The same maps in another memory format; the gradient gets the format of the input."""

    @staticmethod
    def forward(maps: Tensor, format: torch.memory_format) -> Tensor:
        copied = maps.clone(memory_format=torch.contiguous_format)
        return _channels_last(copied) if format == torch.channels_last else copied

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.format = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if ctx.format == torch.channels_last:
            return _Reordered.apply(gradient, torch.contiguous_format), None
        return _Reordered.apply(gradient, torch.channels_last), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return _task_by_task(_Reordered.apply, info, in_dims, inputs)


class _Convolution(Function):
    """`y = conv(x, w) + b`, linear in x and in w.

    x is (examples, channels, height, width) and w (outputs, channels / groups, kernel height,
    kernel width); `options` are stride, padding, dilation and groups.
    """

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None, *options: Any) -> Tensor:
        stride, padding, dilation, groups = options
        outputs: Tensor = _aten.convolution(
            x, w, b, stride, padding, dilation, *NOT_TRANSPOSED, groups
        )
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, w, b, *options = inputs
        ctx.save_for_backward(x, w)
        ctx.options = options
        ctx.has_bias = b is not None

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        needs_x, needs_w, needs_b = ctx.needs_input_grad[:3]
        needed = (needs_x, needs_w, ctx.has_bias and needs_b)
        gradients = _ConvolutionGradient.apply(g, x, w, needed, *ctx.options)
        return *gradients, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return _task_by_task(_Convolution.apply, info, in_dims, inputs)


class _ConvolutionGradient(Function):
    """The gradients of `_Convolution` for the gradient g of its outputs.

    With the transposed convolution conv^T and the correlation corr of inputs and gradients,

        x' = conv^T(g, w)      linear in g and w
        w' = corr(g, x)        linear in g and x
        b' = sum of g over examples and places

    `needed` says which of the three to compute.
    """

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, w: Tensor, needed: tuple[bool, bool, bool], *options: Any
    ) -> Any:
        stride, padding, dilation, groups = options
        gx, gw, gb = _aten.convolution_backward(
            g, x, w, [w.shape[0]], stride, padding, dilation, *NOT_TRANSPOSED, groups, needed
        )
        if gw is not None:
            gw = _in_format_of(w, gw)
        return gx, gw, gb

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        g, x, w, _, *options = inputs
        ctx.save_for_backward(g, x, w)
        ctx.options = options
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, v: Tensor | None, c: Tensor | None) -> Any:
        """The second derivative, with u, v and c the gradients by x', w' and b'.

        The loss is <x', u> + <w', v> + <b', c>. By the adjoint of a convolution,
        <conv^T(g, w), u> = <g, conv(u, w)> and <corr(g, x), v> = <g, conv(x, v)>, therefore

            by g: conv(x, v) + conv(u, w) + c at every place
            by x: conv^T(g, v)
            by w: corr(g, u)
        """
        g, x, w = ctx.saved_tensors
        needs_g, needs_x, needs_w = ctx.needs_input_grad[:3]
        by_g = by_x = by_w = None
        if needs_g:
            terms = []
            if v is not None:
                terms.append(convolution(x, v, None, *ctx.options))
            if u is not None:
                terms.append(convolution(u, w, None, *ctx.options))
            if c is not None:
                terms.append(_channels(c).expand_as(g))
            by_g = sum(terms[1:], terms[0]) if terms else None
        if needs_x and v is not None:
            only_x = (True, False, False)
            by_x = _ConvolutionGradient.apply(g, x, v, only_x, *ctx.options)[0]
        if needs_w and u is not None:
            only_w = (False, True, False)
            by_w = _ConvolutionGradient.apply(g, u, w, only_w, *ctx.options)[1]
        return by_g, by_x, by_w, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return _task_by_task(_ConvolutionGradient.apply, info, in_dims, inputs)


class _PooledMoments(Function):
    """From maps z to what the norm needs: (p, m, v, places).

        p = P z                      the pooled maps, (examples, channels, height / 2, width / 2)
        m = (sum of z) / n           the mean of each channel, (channels,)
        v = (sum of (z - m)^2) / n   its biased variance, (channels,)

    P picks the largest value of each 2x2 window, or the smallest in channels with a negative
    `sign`; `places` are the indices of the picked values in their plane. n is the number of values
    of a channel.
    """

    @staticmethod
    def forward(maps: Tensor, sign: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z = _channels_last(maps)
        mean, variance = _moments(z)
        negative = sign < 0  # (channels,)
        if not negative.any():
            pooled, places = _aten.max_pool2d_with_indices(z, [2, 2])
        else:
            # min z = -max(-z)
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
    """The gradient of `_PooledMoments` for the gradients gp, gm and gv of its outputs.

        z' = P^T gp + gm / n + 2 gv (z - m) / n

    from dm/dz = 1 / n and dv/dz = 2 (z - m) / n.
    """

    @staticmethod
    def forward(
        gp: Tensor, gm: Tensor, gv: Tensor, z: Tensor, mean: Tensor, places: Tensor
    ) -> Tensor:
        z = _channels_last(z)
        n = z.numel() // z.shape[1]
        # P^T gp: each pooled gradient goes to the place that was picked
        gz = _aten.max_pool2d_with_indices_backward(
            _channels_last(gp), z, [2, 2], [2, 2], [0, 0], [1, 1], ceil_mode=False, indices=places
        )
        # + slope z + (gm / n - slope m), with slope = 2 gv / n
        slope = 2 * gv / n
        return gz.addcmul_(z, _channels(slope)).add_(_channels(gm / n - slope * mean))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, _, gv, z, mean, places = inputs
        ctx.save_for_backward(gv, z, mean, places)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        """The second derivative, with u the gradient by z'.

        The loss is <z', u> = <gp, P u> + sum over channels of
        (gm (sum of u) + 2 gv (sum of u (z - m))) / n, therefore

            by gp: P u
            by gm: (sum of u) / n
            by gv: 2 (sum of u (z - m)) / n
            by z:  2 gv u / n
            by m: -2 gv (sum of u) / n
        """
        gv, z, mean, places = ctx.saved_tensors
        n = z.numel() // z.shape[1]
        slope = 2 * gv / n
        total = u.sum((0, 2, 3))  # (channels,)
        product = (u * z).sum((0, 2, 3)) - mean * total  # sum of u (z - m)
        by_z = u * _channels(slope)
        return _picked(u, places), total / n, 2 * product / n, by_z, -slope * total, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return _task_by_task(_PooledMomentsGradient.apply, info, in_dims, inputs)


def _moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's mean and biased variance, of maps with channels last.

    torch sums a channel's values one after the other, which loses digits. So each column of the
    maps first has moments of its own, and with columns of one size

        mean = average of the columns' means
        variance = average of (the columns' variances + (the columns' means - mean)^2)
    """
    examples, channels, height, width = z.shape
    # Each pair of column and channel poses as a channel: (examples, width * channels, height, 1).
    rows = z.permute(0, 2, 3, 1).reshape(examples, height, 1, width * channels)
    columns = rows.permute(0, 3, 1, 2)
    means, variances = torch.batch_norm_update_stats(columns, None, None, 0.0)
    means = means.view(width, channels)
    variances = variances.view(width, channels)
    mean = means.mean(0)  # (channels,)
    return mean, (variances + (means - mean).square()).mean(0)


def _picked(maps: Tensor, places: Tensor) -> Tensor:
    """P maps: the values at the places that a pooling picked, in the shape of `places`."""
    examples, channels, height, width = places.shape
    values = maps.permute(0, 2, 3, 1).reshape(
        examples, -1, channels
    )  # (examples, pixels, channels)
    indices = places.permute(0, 2, 3, 1).reshape(examples, -1, channels)
    picked = values.gather(1, indices)  # (examples, pooled pixels, channels)
    return picked.view(examples, height, width, channels).permute(0, 3, 1, 2)


def _channels(values: Tensor) -> Tensor:
    """(channels,) -> (1, channels, 1, 1)."""
    return values.view(1, -1, 1, 1)


def _channels_last(maps: Tensor) -> Tensor:
    if maps.shape[1] == 1 and maps.is_contiguous():
        # A single channel is both first and last; torch takes it as last only by these strides.
        _, _, height, width = maps.shape
        return maps.as_strided(maps.shape, (height * width, 1, width, 1))
    return maps.contiguous(memory_format=torch.channels_last)


def _has_channels_last(maps: Tensor) -> bool:
    return maps.stride(1) == 1 and maps.shape[2] * maps.shape[3] > 1


def _in_format_of(like: Tensor, maps: Tensor) -> Tensor:
    return _channels_last(maps) if _has_channels_last(like) else maps.contiguous()


def _task_by_task(function: Callable[..., Any], info: Any, in_dims: Any, inputs: Any) -> Any:
    """A rule for vmap: the function of each task alone, stacked.

    On a CPU, one large operation for each task is as fast as one for all of them.
    """
    results = []
    for task in range(info.batch_size):
        arguments = [
            value.select(dim, task) if isinstance(dim, int) else value
            for value, dim in zip(inputs, in_dims, strict=True)
        ]
        results.append(function(*arguments))
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    # Several outputs, some of which may be None for every task.
    outputs: list[Tensor | None] = []
    for parts in zip(*results, strict=True):
        outputs.append(None if parts[0] is None else torch.stack(parts))
    return tuple(outputs), tuple(None if output is None else 0 for output in outputs)
