"""Convolution, and batch norm with max-pool and ReLU, of many tasks at once, each task with weights
of its own: for a GPU.

Under vmap such a convolution becomes a grouped one, which cuDNN runs slowly, and whose second
derivative torch takes group by group. As weights times patches it is one batched matrix product,
forward and in every derivative. In memory a task's channels come before its images: (tasks,
channels, images, height, width), so that the product's rows and a channel's statistics lie side by
side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

Pair = tuple[int, int]


class StackedConvolutions(TorchFunctionMode):
    """While it is on, `F.conv2d` under vmap is a matrix product wherever every task has its own
    weights.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (
            conv2d(*args, **(kwargs or {}))
            if func is torch.conv2d
            else func(*args, **(kwargs or {}))
        )


def conv2d(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d`, to be called under vmap over tasks."""
    found: Tensor = _UnderVmap.apply(inputs, weight, bias, stride, padding, dilation, groups)
    return found


def convolution(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The convolution of every task's images with its own weights.

    Arguments:
        inputs: (tasks, images, channels, height, width).
        weight: (tasks, outputs, channels, kernel height, kernel width).
        bias: (tasks, outputs), or None.

    Example:
        >>> x, w = torch.rand(2, 3, 1, 8, 8), torch.rand(2, 4, 1, 3, 3)
        >>> torch.allclose(convolution(x, w, None, (1, 1), (1, 1), (1, 1))[1], F.conv2d(x[1], w[1], padding=1), atol=1e-6)
        True
    """
    if torch.is_autocast_enabled(inputs.device.type):
        dtype = torch.get_autocast_dtype(inputs.device.type)
        inputs, weight, bias = (
            inputs.to(dtype),
            weight.to(dtype),
            None if bias is None else bias.to(dtype),
        )
    window = Window(
        (inputs.shape[3], inputs.shape[4]),
        (weight.shape[3], weight.shape[4]),
        stride,
        padding,
        dilation,
    )
    found: Tensor = _Convolution.apply(inputs, weight, bias, window)
    return found


def conv_norm_pool_relu(
    maps: Tensor, conv: torch.nn.Conv2d, norm: torch.nn.BatchNorm2d, pool: bool
) -> Tensor:
    """Convolution, batch norm by the batch's own statistics, 2x2 max-pool (or none) and ReLU, under
    vmap over tasks or not.

    The largest normalised value is the normalised largest value where the norm's weight is not
    negative, so that the maps are pooled before they are normalised. A negative weight is a
    positive one with the signs of the convolution turned.
    """
    sign = torch.where(norm.weight.detach() < 0, -1.0, 1.0).to(norm.weight.dtype)
    bias = None if conv.bias is None else conv.bias * sign
    maps = F.conv2d(
        maps,
        conv.weight * sign.view(-1, 1, 1, 1),
        bias,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )  # type: ignore[arg-type]
    pooled, mean, variance, _ = _PooledMoments.apply(maps, pool)
    factor = norm.weight * sign * (variance + norm.eps).rsqrt()
    shift = norm.bias - factor * mean
    return (
        torch.addcmul(shift.view(1, -1, 1, 1), pooled, factor.view(1, -1, 1, 1))
        .relu()
        .to(maps.dtype)
    )


class Window(NamedTuple):
    """Where a convolution looks: the size of its inputs, and of its kernel, with stride, padding
    and dilation.
    """

    size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def places(self) -> Pair:
        """Height and width of the outputs."""
        each = zip(*self, strict=True)
        height, width = (
            (size + 2 * pad - apart * (kernel - 1) - 1) // step + 1
            for size, kernel, step, pad, apart in each
        )
        return height, width

    def transposed(self) -> Window | None:
        """The window that gives the inputs' gradient as a convolution of the outputs', if there is
        one.
        """
        padding = self.kernel[0] - 1 - self.padding[0], self.kernel[1] - 1 - self.padding[1]
        plain = self.stride == (1, 1) == self.dilation and min(padding) >= 0
        return Window(self.places(), self.kernel, (1, 1), padding, (1, 1)) if plain else None


# The three derivatives of <convolution(x, w), g>, which is linear in the inputs x, the weights w
# and the outputs' gradient g: each of them
# is linear in two of the three, so that its own derivatives are the other two.


class _Convolution(Function):
    """From x and w (and a bias) to outputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, window: Window) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.window = window
        outputs = _product(x, w, b, window)
        # A tensor of its own on the same memory: a view that comes out of a Function may not be
        # written into, as an in-place ReLU does.
        own = outputs.new_empty(0)
        return own.set_(
            outputs.untyped_storage(), outputs.storage_offset(), outputs.shape, outputs.stride()
        )

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x, w), (of_x, of_w, of_b, _) = ctx.saved_tensors, ctx.needs_input_grad
        gx = _InputGradient.apply(g, w, ctx.window) if of_x else None
        gw = _WeightGradient.apply(x, g, ctx.window) if of_w else None
        return gx, gw, g.sum((1, 3, 4)) if of_b else None, None


class _InputGradient(Function):
    """From g and w to inputs."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.window, around = window, window.transposed()
        if around:
            return _product(g, w.flip(3, 4).transpose(1, 2), None, around)
        return _images(w.flatten(2).mT @ _rows(g), window, g.shape[1])

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> Any:
        g, w = ctx.saved_tensors
        gg = _Convolution.apply(x, w, None, ctx.window) if ctx.needs_input_grad[0] else None
        return (
            gg,
            _WeightGradient.apply(x, g, ctx.window) if ctx.needs_input_grad[1] else None,
            None,
        )


class _WeightGradient(Function):
    """From x and g to weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.window = window
        groups = _groups(*x.shape[:2])
        rows = g.unflatten(1, (groups, -1)).transpose(2, 3).reshape(len(g) * groups, g.shape[2], -1)
        parts = rows @ _patches(x, window, groups).mT
        return (
            parts.view(len(g), groups, -1)
            .sum(1)
            .view(len(g), g.shape[2], x.shape[2], *window.kernel)
        )

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> Any:
        x, g = ctx.saved_tensors
        gx = _InputGradient.apply(g, w, ctx.window) if ctx.needs_input_grad[0] else None
        return (
            gx,
            _Convolution.apply(x, w, None, ctx.window) if ctx.needs_input_grad[1] else None,
            None,
        )


def _product(x: Tensor, w: Tensor, b: Tensor | None, window: Window) -> Tensor:
    patches, rows = _patches(x, window), w.flatten(2)
    outputs = rows @ patches if b is None else torch.baddbmm(b.unsqueeze(2), rows, patches)
    return outputs.view(len(x), w.shape[1], x.shape[1], *window.places()).transpose(1, 2)


def _rows(maps: Tensor) -> Tensor:
    """(tasks, images, channels, height, width) -> (tasks, channels, all the values of a channel)."""
    return maps.transpose(1, 2).flatten(2)


def _patches(x: Tensor, window: Window, groups: int = 1) -> Tensor:
    """What every weight is multiplied with: (tasks * groups of images, channels * kernel, images of
    a group * places).
    """
    (_, kernel, stride, padding, dilation), images = window, x.transpose(1, 2)
    padded = F.pad(images, (padding[1], padding[1], padding[0], padding[0])).contiguous()
    task, channel, image, down, right = padded.stride()
    number = padded.shape[2] // groups
    size = (len(x), groups, padded.shape[1], *kernel, number, *window.places())
    strides = (
        task,
        image * number,
        channel,
        down * dilation[0],
        right * dilation[1],
        image,
        down * stride[0],
        right * stride[1],
    )
    return padded.as_strided(size, strides).reshape(
        len(x) * groups, padded.shape[1] * kernel[0] * kernel[1], -1
    )


def _groups(tasks: int, images: int) -> int:
    """Into how many groups a task's images are parted, whose sums over images are taken side by
    side: a GPU has over a hundred units.
    """
    return next(
        groups
        for groups in range(1, images + 1)
        if images % groups == 0 and (groups == images or tasks * groups >= 128)
    )


def _images(patches: Tensor, window: Window, number: int) -> Tensor:
    """The transpose of `_patches`: every pixel is the sum of its copies."""
    (size, kernel, stride, padding, dilation), (rows, columns) = window, window.places()
    parts = patches.view(len(patches), -1, *kernel, number, rows, columns)
    images = patches.new_zeros(
        *parts.shape[:2], number, size[0] + 2 * padding[0], size[1] + 2 * padding[1]
    )
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            below, beyond = top + stride[0] * (rows - 1) + 1, left + stride[1] * (columns - 1) + 1
            images[..., top : below : stride[0], left : beyond : stride[1]] += parts[:, :, i, j]
    inside = images[..., padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    return inside.transpose(1, 2)


class _UnderVmap(Function):
    """`F.conv2d` with a rule of its own for vmap.

    The rule is made of differentiable operations, so that autograd sees those.
    """

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return F.conv2d(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, *how: Any
    ) -> tuple[Tensor, int]:
        stride, padding, dilation, groups = how
        if in_dims[1] is None or groups != 1 or isinstance(padding, str):
            return (
                torch.vmap(lambda x, w, b: F.conv2d(x, w, b, *how), in_dims=in_dims[:3])(
                    inputs, weight, bias
                ),
                0,
            )
        x, w, b = (
            (
                None
                if tensor is None
                else (
                    tensor.expand(info.batch_size, *tensor.shape)
                    if dim is None
                    else tensor.movedim(dim, 0)
                )
            )
            for tensor, dim in zip((inputs, weight, bias), in_dims, strict=False)
        )
        assert x is not None and w is not None
        return convolution(x, w, b, _pair(stride), _pair(padding), _pair(dilation)), 0


class _PooledMoments(Function):
    """Maps z -> (p, m, v, where p is): max-pooled, or z itself; each channel's mean and biased
    variance.

    Any dimensions come before the four of z.
    """

    @staticmethod
    def forward(z: Tensor, pool: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = z if z.dtype in (torch.float32, torch.float64) else z.float()
        variance, mean = torch.var_mean(exact, (-4, -2, -1), correction=0)
        if not pool:
            return z.clone(), mean, variance, mean.new_empty(0)
        order = _order(z)
        planes, places = F.max_pool2d(_planes(z, order).unsqueeze(0), 2, return_indices=True)
        return _unplanes(planes[0], z, order), mean, variance, places[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, mean, _, places = output
        ctx.mark_non_differentiable(places)
        ctx.save_for_backward(inputs[0], mean, places)

    @staticmethod
    def backward(ctx: Any, gp: Tensor, gm: Tensor, gv: Tensor, _: Any) -> Any:
        return _PooledMomentsGradient.apply(gp, gm, gv, *ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, z: Tensor, pool: bool) -> Any:
        pooled, mean, variance, places = _PooledMoments.apply(z.movedim(in_dims[0], 0), pool)
        return (pooled, mean, variance, places), (0, 0, 0, None)


class _PooledMomentsGradient(Function):
    """`z' = P^T p' + (m' + 2 v' (z - m)) / n`, where P picks the pooled positions and n is how many
    values a channel has.
    """

    @staticmethod
    def forward(
        ctx: Any, gp: Tensor, gm: Tensor, gv: Tensor, z: Tensor, mean: Tensor, places: Tensor
    ) -> Tensor:
        ctx.save_for_backward(gv, z, mean, places)
        slope = 2 * gv / _count(z)
        gz = torch.addcmul(_channels(gm / _count(z) - slope * mean), z, _channels(slope)).to(
            z.dtype
        )
        if not places.numel():
            return gz.add_(gp)
        order = _order(z)
        planes = _planes(gz, order).contiguous()
        planes.flatten(1).scatter_add_(1, places.flatten(1), _planes(gp, order).flatten(1))
        return _unplanes(planes, z, order)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        gv, z, mean, places = ctx.saved_tensors
        slope, order = 2 * gv / _count(z), _order(z)
        total = u.sum((-4, -2, -1), dtype=mean.dtype)
        product = (u * z).sum((-4, -2, -1), dtype=mean.dtype) - mean * total
        picked = u
        if places.numel():
            picked = _unplanes(
                _planes(u, order).flatten(1).gather(1, places.flatten(1)).view(places.shape),
                z,
                order,
            )
        return (
            picked,
            total / _count(z),
            2 * product / _count(z),
            (u * _channels(slope)).to(z.dtype),
            -slope * total,
            None,
        )


def _count(maps: Tensor) -> int:
    return maps.shape[-4] * maps.shape[-2] * maps.shape[-1]


def _channels(values: Tensor) -> Tensor:
    return values[..., None, :, None, None]


def _order(maps: Tensor) -> list[int]:
    """The dimensions before height and width, from the outermost in memory to the innermost."""
    return sorted(range(maps.dim() - 2), key=lambda dim: -maps.stride()[dim])


def _planes(maps: Tensor, order: list[int]) -> Tensor:
    """All the planes (number, height, width) of maps, in an order of memory."""
    return maps.permute(*order, -2, -1).flatten(0, -3)


def _unplanes(planes: Tensor, like: Tensor, order: list[int]) -> Tensor:
    """Planes in that order -> maps with the dimensions of `like` before height and width."""
    maps = planes.view(*(like.shape[dim] for dim in order), *planes.shape[1:])
    return maps.permute(*(order.index(dim) for dim in range(len(order))), -2, -1)
