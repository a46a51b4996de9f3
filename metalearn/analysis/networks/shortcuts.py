"""What the shortcuts of a residual network carry beside its convolutions.

Raghu, Unterthiner, Kornblith, Zhang and Dosovitskiy 2021 (arXiv:2108.08810) compare these norms
with those of transformers, which `stream_norms` measures token by token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from metalearn.analysis.checks import check_kind
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.network.forward import arguments, tensors_of
from metalearn.network.modes import evaluation_mode
from metalearn.runtime.tables import Tabular, aligned, plain

from .batches import ToInputs, count, inputs_of, loader_of, running, tensor_of, to_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ADDITIONS = {
    torch.add,
    Tensor.add,
    Tensor.add_,
    Tensor.__add__,
    Tensor.__iadd__,
    Tensor.__radd__,
}
# A convolution, or what holds linear layers of its own.
CONVOLUTIONS = {
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    nn.functional.linear,
    nn.functional.multi_head_attention_forward,
}


@dataclass(frozen=True)
class ShortcutNorm:
    """One addition of a branch to a shortcut.

    Attributes:
        block: path of the innermost module in which the two are added.
        ratio: mean over images of `||shortcut|| / ||branch||`.
        projected: whether the shortcut passes a convolution of its own.
    """

    block: str
    ratio: float
    projected: bool


@dataclass(frozen=True)
class ShortcutNorms(Pictured, Tabular):
    """`||shortcut|| / ||branch||` of every block; prints as a table.

    Attributes:
        blocks: in running order.
        images: how many images the means are over.
    """

    blocks: tuple[ShortcutNorm, ...]
    images: int

    def records(self) -> list[dict[str, Any]]:
        """A row for each block."""
        return [dict(vars(block)) for block in self.blocks]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        return plain(self)

    def __str__(self) -> str:
        rows = []
        for row in self.blocks:
            kind = "convolution" if row.projected else "identity"
            rows.append((row.block, kind, f"{row.ratio:.2f}"))
        table = aligned(("block", "shortcut", "norm over branch"), rows)
        return (
            f"{table}\n(norm of the shortcut over norm of what is added to it, mean over"
            f" {self.images} images)"
        )

    def figure(self) -> Figure:
        """The ratios over depth, as a matplotlib `Figure`."""
        from metalearn.analysis.plotting.attention import shortcut_ratios

        return shortcut_ratios(
            [row.block for row in self.blocks], [row.ratio for row in self.blocks]
        )


def shortcut_norms(
    model: nn.Module, loader: Any, *, to_inputs: ToInputs | None = None
) -> ShortcutNorms:
    """How much of each block of a residual network comes through its shortcut.

    `||shortcut|| / ||branch||` for each image: large where the block passes its input on, small
    where the branch replaces it. The two are the sides of an addition of equal shapes, and the
    shortcut is the one that fewer convolutions and linear layers made. So no class of block needs
    to be known, and the output of the network stays the same to the last bit. Sums of sides that
    equally many layers made are left out.

    Args:
        model: a network with residual blocks, of any library.
        loader: one batch of images, or batches.
        to_inputs: from a batch to what the network is called with, for batches of another form.

    Raises:
        ValueError: The network adds no branch to a shortcut, or the loader is empty.

    Example:
        >>> from metalearn.models import cifar_resnet
        >>> norms = shortcut_norms(cifar_resnet(8), torch.rand(4, 3, 32, 32))
        >>> [(row.block, row.projected) for row in norms.blocks]
        [('layer1.0', False), ('layer2.0', False), ('layer3.0', False)]
    """
    check_kind(model, nn.Module, "model", "give a residual network")
    sums: dict[tuple[str, bool], Tensor] = {}
    images = 0
    like = tensor_of(model)
    for number, batch in enumerate(loader_of(loader), 1):
        inputs = inputs_of(batch, f"batch {number} of the loader", to_inputs)
        args, kwargs = arguments(to_device(inputs, like))
        size = count(inputs)
        with (
            evaluation_mode([model]),
            torch.no_grad(),
            running(model, inputs, "the network"),
            _running_modules(model) as stack,
            _Additions(stack, [args, kwargs], size) as additions,
        ):
            model(*args, **kwargs)
        images += size
        for key, ratios in additions.ratios.items():
            sums[key] = sums.get(key, 0) + ratios.sum()
    if not images:
        raise ValueError("the loader gave no batch (an iterator gives its batches only once)")
    if not sums:
        raise ValueError(
            f"{type(model).__name__} adds no branch to a shortcut: no sum of two tensors of one"
            " shape, of which fewer convolutions made one; shortcut_norms is for residual networks"
        )
    rows = [
        ShortcutNorm(block, float(total) / images, projected)
        for (block, projected), total in sums.items()
    ]
    return ShortcutNorms(tuple(rows), images)


class _Additions(TorchFunctionMode):
    """Counts the convolutions behind every tensor, and measures sums of unequal counts.

    Attributes:
        ratios: {(block, whether the shortcut is projected): `||shortcut|| / ||branch||` (images,)}.
    """

    def __init__(self, running: Sequence[RunningModule], inputs: Any, images: int) -> None:
        super().__init__()
        self.running = running
        self.images = images
        self.depths = WeakTensorKeyDictionary()
        self.ratios: dict[tuple[str, bool], Tensor] = {}
        self.additions: Counter[str] = Counter()
        self._set_depth(inputs, 0)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        depth = self._depth([args, kwargs])
        # Before the sum, which may be written into one of its sides.
        if func in ADDITIONS:
            self._measure(args)
        result = func(*args, **kwargs)
        if depth is not None:
            self._set_depth(result, depth + (func in CONVOLUTIONS))
        return result

    def _depth(self, value: Any) -> int | None:
        """How many convolutions made a tensor from the input; None for parameters and constants."""
        depths = [self.depths.get(tensor) for tensor in tensors_of(value)]
        return max((depth for depth in depths if depth is not None), default=None)

    def _set_depth(self, value: Any, depth: int) -> None:
        for tensor in tensors_of(value):
            self.depths[tensor] = depth

    def _measure(self, sides: Sequence[Any]) -> None:
        """Keep the ratio of the sides of a sum, if they are a shortcut and a branch."""
        one, other = sides[:2]
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            return
        if one.shape != other.shape or one.ndim < 2 or len(one) != self.images:
            return
        depth, other_depth = self._depth(one), self._depth(other)
        if depth is None or other_depth is None or depth == other_depth:
            return
        shortcut, branch = (one, other) if depth < other_depth else (other, one)
        norms = [side.double().flatten(1).norm(dim=1) for side in (shortcut, branch)]  # (images,)
        block = self.running[-1]
        projected = min(depth, other_depth) > (self._depth(block.inputs) or 0)
        self.additions[block.path] += 1
        number = self.additions[block.path]
        name = block.path if number == 1 else f"{block.path}, addition {number}"
        self.ratios[name, projected] = norms[0] / norms[1]


class RunningModule(NamedTuple):
    """A module that is running, by its path, and what it was called with."""

    path: str
    inputs: Any


@contextmanager
def _running_modules(model: nn.Module) -> Iterator[list[RunningModule]]:
    """The modules that are running, the innermost last."""
    stack: list[RunningModule] = []

    def entering(path: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, inputs: Any) -> None:
            stack.append(RunningModule(path, inputs))

        return enter

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        stack.pop()

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(entering(path)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()
