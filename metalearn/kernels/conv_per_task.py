"""Convolution, and batch norm with max-pool and ReLU, of many tasks with weights of their own.

For a GPU. Under vmap, a convolution with weights for each task becomes a grouped one. cuDNN runs it
slowly, and torch takes its second derivative group by group. As weights times patches it is one
batched matrix product, forward and in every derivative.

In memory a task's channels come before its images, (tasks, channels, images, height, width), which
keeps the rows of the product and the values of a channel contiguous.
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
    """While it is active, `F.conv2d` under vmap is a matrix product if weights differ by task."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function = conv2d if func is torch.conv2d else func
        return function(*args, **(kwargs or {}))


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
    outputs: Tensor = _UnderVmap.apply(inputs, weight, bias, stride, padding, dilation, groups)
    return outputs


def convolution(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The convolution of each task's images with its own weights.

    Args:
        inputs: (tasks, images, channels, height, width).
        weight: (tasks, outputs, channels, kernel height, kernel width).
        bias: (tasks, outputs), or None.
        stride: down and right.
        padding: above and below, left and right.
        dilation: down and right.

    Returns:
        (tasks, images, outputs, height, width).

    Example:
        >>> x, w = torch.rand(2, 3, 1, 8, 8), torch.rand(2, 4, 1, 3, 3)
        >>> outputs = convolution(x, w, None, (1, 1), (1, 1), (1, 1))
        >>> torch.allclose(outputs[1], F.conv2d(x[1], w[1], padding=1), atol=1e-6)
        True
    """
    if torch.is_autocast_enabled(inputs.device.type):
        dtype = torch.get_autocast_dtype(inputs.device.type)
        inputs = inputs.to(dtype)
        weight = weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    size = (inputs.shape[3], inputs.shape[4])
    kernel = (weight.shape[3], weight.shape[4])
    window = Window(size, kernel, stride, padding, dilation)
    outputs: Tensor = _Convolution.apply(inputs, weight, bias, window)
    return outputs


def conv_norm_pool_relu(
    maps: Tensor, conv: torch.nn.Conv2d, norm: torch.nn.BatchNorm2d, *, pool: bool
) -> Tensor:
    """Convolution, batch norm by the batch's own statistics, 2x2 max-pool and ReLU.

    The maps are pooled before they are normalised: with a weight of the norm that is not negative,
    the largest normalised value is the normalised largest value. A negative weight becomes a
    positive one by the signs s of the channels:

        weight * norm(conv(x, w, b)) = (s weight) * norm(conv(x, s w, s b)),  s = sign(weight)

    This works under vmap over tasks and without.

    Args:
        maps: (images, channels, height, width).
        conv: the convolution.
        norm: the norm.
        pool: whether to pool.

    Returns:
        (images, outputs, height, width), halved in height and width by pooling.
    """
    sign = torch.where(norm.weight.detach() < 0, -1.0, 1.0).to(norm.weight.dtype)  # (outputs,)
    weight = conv.weight * sign.view(-1, 1, 1, 1)
    bias = None if conv.bias is None else conv.bias * sign
    geometry: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
    maps = F.conv2d(maps, weight, bias, *geometry)  # (images, outputs, height, width)
    pooled, mean, variance, _ = _PooledMoments.apply(maps, pool)
    # s weight * (pooled - mean) / sqrt(variance + eps) + bias = factor * pooled + shift
    factor = norm.weight * sign * (variance + norm.eps).rsqrt()
    shift = norm.bias - factor * mean
    normalised = torch.addcmul(shift.view(1, -1, 1, 1), pooled, factor.view(1, -1, 1, 1))
    return normalised.relu().to(maps.dtype)


class Window(NamedTuple):
    """The geometry of a convolution; each entry is a pair for height and width.

    Attributes:
        size: of the inputs.
        kernel: the size of the kernel.
        stride: between two outputs.
        padding: on each side.
        dilation: between two weights.
    """

    size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def places(self) -> Pair:
        """Height and width of the outputs."""
        height, width = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(*self, strict=True)
        )
        return height, width

    def transposed(self) -> Window | None:
        """The window of the convolution that maps the outputs' gradient to the inputs'.

        It has the same kernel, turned around, and padding kernel - 1 - padding. None if there is no
        such convolution.
        """
        padding = (self.kernel[0] - 1 - self.padding[0], self.kernel[1] - 1 - self.padding[1])
        if self.stride == (1, 1) == self.dilation and min(padding) >= 0:
            return Window(self.places(), self.kernel, (1, 1), padding, (1, 1))
        return None


# With inputs x, weights w and the outputs' gradient g, the scalar
#
#     f(x, w, g) = <conv(x, w), g>
#
# is linear in each of the three. Its derivatives, with the transposed convolution conv^T and the
# correlation corr of inputs and gradients, are
#
#     by g: conv(x, w)      _Convolution
#     by x: conv^T(g, w)    _InputGradient
#     by w: corr(x, g)      _WeightGradient
#
# Each of the three is linear in two of x, w and g, so its own derivatives are the other two, with
# the gradient that comes in (u, v or g) in the place of the third: <conv^T(g, w), u> = f(u, w, g)
# and <corr(x, g), v> = f(x, v, g).


class _Convolution(Function):
    """`y = conv(x, w) + b`, of shape (tasks, images, outputs, height, width)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, window: Window) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.window = window
        outputs = _product(x, w, b, window)
        # A new tensor on the same memory: the output of a Function may not be a view if it is
        # changed in place later, for example by a ReLU.
        owner = outputs.new_empty(0)
        return owner.set_(
            outputs.untyped_storage(), outputs.storage_offset(), outputs.shape, outputs.stride()
        )

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        needs_x, needs_w, needs_b, _ = ctx.needs_input_grad
        gx = gw = gb = None
        if needs_x:
            gx = _InputGradient.apply(g, w, ctx.window)
        if needs_w:
            gw = _WeightGradient.apply(x, g, ctx.window)
        if needs_b:
            gb = g.sum((1, 3, 4))  # (tasks, outputs)
        return gx, gw, gb, None


class _InputGradient(Function):
    """`x' = conv^T(g, w)`, of the shape of x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.window = window
        transposed = window.transposed()
        if transposed:
            # the convolution of g with the kernel turned around, inputs and outputs exchanged
            return _product(g, w.flip(3, 4).transpose(1, 2), None, transposed)
        patches = w.flatten(2).mT @ _rows(g)  # (tasks, channels * kernel, images * places)
        return _images(patches, window, g.shape[1])

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        """From <x', u> = f(u, w, g): by g conv(u, w), and by w corr(u, g)."""
        g, w = ctx.saved_tensors
        needs_g, needs_w, _ = ctx.needs_input_grad
        by_g = by_w = None
        if needs_g:
            by_g = _Convolution.apply(u, w, None, ctx.window)
        if needs_w:
            by_w = _WeightGradient.apply(u, g, ctx.window)
        return by_g, by_w, None


class _WeightGradient(Function):
    """`w' = corr(x, g)`, of the shape of w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.window = window
        tasks, images, channels = x.shape[:3]
        outputs = g.shape[2]
        groups = _groups(tasks, images)
        # (tasks, groups, outputs, images of a group, height, width)
        grouped = g.unflatten(1, (groups, -1)).transpose(2, 3)
        rows = grouped.reshape(tasks * groups, outputs, -1)
        # w' = sum over groups of g's rows times the transposed patches
        products = rows @ _patches(x, window, groups).mT
        parts = products.view(tasks, groups, -1)  # (tasks, groups, outputs * channels * kernel)
        total = parts.sum(1)
        return total.view(tasks, outputs, channels, *window.kernel)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        """From <w', v> = f(x, v, g): by x conv^T(g, v), and by g conv(x, v)."""
        x, g = ctx.saved_tensors
        needs_x, needs_g, _ = ctx.needs_input_grad
        by_x = by_g = None
        if needs_x:
            by_x = _InputGradient.apply(g, v, ctx.window)
        if needs_g:
            by_g = _Convolution.apply(x, v, None, ctx.window)
        return by_x, by_g, None


def _product(x: Tensor, w: Tensor, b: Tensor | None, window: Window) -> Tensor:
    """`conv(x, w) + b` as weights times patches."""
    rows = w.flatten(2)  # (tasks, outputs, channels * kernel)
    patches = _patches(x, window)  # (tasks, channels * kernel, images * places)
    products = rows @ patches if b is None else torch.baddbmm(b.unsqueeze(2), rows, patches)
    tasks, images = x.shape[:2]
    maps = products.view(tasks, w.shape[1], images, *window.places())
    return maps.transpose(1, 2)  # (tasks, images, outputs, height, width)


def _rows(maps: Tensor) -> Tensor:
    """(tasks, images, channels, height, width) -> (tasks, channels, all values of a channel)."""
    return maps.transpose(1, 2).flatten(2)


def _patches(x: Tensor, window: Window, groups: int = 1) -> Tensor:
    """The pixels that each weight is multiplied with.

    Args:
        x: (tasks, images, channels, height, width).
        window: the geometry.
        groups: the number of groups of images.

    Returns:
        (tasks * groups, channels * kernel, images of a group * places).
    """
    _, kernel, stride, padding, dilation = window
    sides = (padding[1], padding[1], padding[0], padding[0])  # left, right, above, below
    padded = F.pad(x.transpose(1, 2), sides).contiguous()  # (tasks, channels, images, ...)
    tasks, channels, images = padded.shape[:3]
    images //= groups
    # A view in which each pixel appears once for each weight that it is multiplied with.
    task, channel, image, down, right = padded.stride()
    size = (tasks, groups, channels, *kernel, images, *window.places())
    strides = (
        task,
        image * images,
        channel,
        down * dilation[0],
        right * dilation[1],
        image,
        down * stride[0],
        right * stride[1],
    )
    copies = padded.as_strided(size, strides)
    return copies.reshape(tasks * groups, channels * kernel[0] * kernel[1], -1)


def _groups(tasks: int, images: int) -> int:
    """The number of groups of a task's images whose weight gradients are computed in parallel.

    It divides the images. A GPU has over a hundred processors, so there should be 128 groups of
    all tasks together.
    """
    for groups in range(1, images):
        if images % groups == 0 and tasks * groups >= 128:
            return groups
    return images


def _images(patches: Tensor, window: Window, images: int) -> Tensor:
    """The transpose of `_patches`: every pixel is the sum of its copies."""
    size, kernel, stride, padding, dilation = window
    rows, columns = window.places()
    # (tasks, channels, kernel height, kernel width, images, rows, columns)
    copies = patches.view(len(patches), -1, *kernel, images, rows, columns)
    tasks, channels = copies.shape[:2]
    padded = patches.new_zeros(
        tasks, channels, images, size[0] + 2 * padding[0], size[1] + 2 * padding[1]
    )
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            # the pixels under weight (i, j), for every place of the window
            top = i * dilation[0]
            left = j * dilation[1]
            down = slice(top, top + stride[0] * (rows - 1) + 1, stride[0])
            right = slice(left, left + stride[1] * (columns - 1) + 1, stride[1])
            padded[..., down, right] += copies[:, :, i, j]
    inner_rows = slice(padding[0], padding[0] + size[0])
    inner_columns = slice(padding[1], padding[1] + size[1])
    return padded[..., inner_rows, inner_columns].transpose(1, 2)


class _UnderVmap(Function):
    """`F.conv2d` with its own rule for vmap.

    The rule consists of differentiable operations, whose derivatives autograd uses.
    """

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return F.conv2d(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
    ) -> tuple[Tensor, int]:
        stride, padding, dilation, groups = options
        if in_dims[1] is None or groups != 1 or isinstance(padding, str):
            torch_rule = torch.vmap(lambda x, w, b: F.conv2d(x, w, b, *options), in_dims[:3])
            return torch_rule(inputs, weight, bias), 0

        def stacked(tensor: Tensor, dim: int | None) -> Tensor:
            if dim is None:
                return tensor.expand(info.batch_size, *tensor.shape)
            return tensor.movedim(dim, 0)

        x = stacked(inputs, in_dims[0])  # (tasks, images, channels, height, width)
        w = stacked(weight, in_dims[1])  # (tasks, outputs, channels, kernel height, kernel width)
        b = None if bias is None else stacked(bias, in_dims[2])  # (tasks, outputs)
        return convolution(x, w, b, _pair(stride), _pair(padding), _pair(dilation)), 0


class _PooledMoments(Function):
    """From maps z to what the norm needs: (p, m, v, places).

        p = P z                      the 2x2 max-pooled maps, or z itself without pooling
        m = (sum of z) / n           the mean of each channel, (..., channels)
        v = (sum of (z - m)^2) / n   its biased variance, (..., channels)

    z is (..., images, channels, height, width). P picks the largest value of each window; `places`
    are the indices of the picked values in their planes. n is the number of values of a channel.
    """

    @staticmethod
    def forward(z: Tensor, pool: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = z if z.dtype in (torch.float32, torch.float64) else z.float()
        variance, mean = torch.var_mean(exact, (-4, -2, -1), correction=0)
        if not pool:
            return z.clone(), mean, variance, mean.new_empty(0)
        order = _order(z)
        planes = _planes(z, order).unsqueeze(0)  # (1, number, height, width)
        pooled, places = F.max_pool2d(planes, 2, return_indices=True)
        return _unplanes(pooled[0], z, order), mean, variance, places[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, mean, _, places = output
        ctx.mark_non_differentiable(places)
        ctx.save_for_backward(inputs[0], mean, places)

    @staticmethod
    def backward(ctx: Any, gp: Tensor, gm: Tensor, gv: Tensor, _: Any) -> Any:
        return _PooledMomentsGradient.apply(gp, gm, gv, *ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, z: Tensor, pool: Any) -> Any:
        pooled, mean, variance, places = _PooledMoments.apply(z.movedim(in_dims[0], 0), pool)
        return (pooled, mean, variance, places), (0, 0, 0, None)


class _PooledMomentsGradient(Function):
    """The gradient of `_PooledMoments` for the gradients gp, gm and gv of its outputs.

        z' = P^T gp + gm / n + 2 gv (z - m) / n

    from dm/dz = 1 / n and dv/dz = 2 (z - m) / n.
    """

    @staticmethod
    def forward(
        ctx: Any, gp: Tensor, gm: Tensor, gv: Tensor, z: Tensor, mean: Tensor, places: Tensor
    ) -> Tensor:
        ctx.save_for_backward(gv, z, mean, places)
        n = _count(z)
        # slope z + (gm / n - slope m), with slope = 2 gv / n
        slope = 2 * gv / n
        gz = torch.addcmul(_channels(gm / n - slope * mean), z, _channels(slope)).to(z.dtype)
        # + P^T gp: each pooled gradient goes to the place that was picked
        if not places.numel():
            return gz.add_(gp)
        order = _order(z)
        planes = _planes(gz, order).contiguous()
        planes.flatten(1).scatter_add_(1, places.flatten(1), _planes(gp, order).flatten(1))
        return _unplanes(planes, z, order)

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
        n = _count(z)
        slope = 2 * gv / n
        total = u.sum((-4, -2, -1), dtype=mean.dtype)  # (..., channels)
        product = (u * z).sum((-4, -2, -1), dtype=mean.dtype) - mean * total  # sum of u (z - m)
        by_z = (u * _channels(slope)).to(z.dtype)
        picked = _picked(u, places, _order(z)) if places.numel() else u
        return picked, total / n, 2 * product / n, by_z, -slope * total, None


def _picked(maps: Tensor, places: Tensor, order: list[int]) -> Tensor:
    """P maps: the values at the places that a pooling picked."""
    pixels = _planes(maps, order).flatten(1)  # (number, height * width)
    values = pixels.gather(1, places.flatten(1)).view(places.shape)
    return _unplanes(values, maps, order)


def _count(maps: Tensor) -> int:
    """The number of values of a channel: images * height * width."""
    return maps.shape[-4] * maps.shape[-2] * maps.shape[-1]


def _channels(values: Tensor) -> Tensor:
    """(..., channels) -> (..., 1, channels, 1, 1)."""
    return values[..., None, :, None, None]


def _order(maps: Tensor) -> list[int]:
    """The dimensions before height and width, from the outermost in memory to the innermost."""
    return sorted(range(maps.dim() - 2), key=lambda dim: -maps.stride()[dim])


def _planes(maps: Tensor, order: list[int]) -> Tensor:
    """All planes of maps, (number, height, width), with the dimensions before them in `order`."""
    return maps.permute(*order, -2, -1).flatten(0, -3)


def _unplanes(planes: Tensor, like: Tensor, order: list[int]) -> Tensor:
    """The reverse of `_planes`: maps with the dimensions of `like` before height and width."""
    maps = planes.view(*(like.shape[dim] for dim in order), *planes.shape[1:])
    back = [order.index(dim) for dim in range(len(order))]
    return maps.permute(*back, -2, -1)
