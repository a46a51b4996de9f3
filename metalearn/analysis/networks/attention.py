"""How far each attention head looks, and what the residual stream of a transformer carries.

Raghu, Unterthiner, Kornblith, Zhang and Dosovitskiy 2021 (arXiv:2108.08810).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.analysis.checks import check_kind
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.network.forward import Inputs, arguments, tensors_of
from metalearn.network.layer_names import has_positions_first
from metalearn.network.layers import resolve
from metalearn.network.modes import evaluation_mode
from metalearn.network.transformers import Branch, attention, may_be_norm, stream
from metalearn.runtime.checks import whole_number
from metalearn.runtime.tables import Tabular, aligned, plain

from .batches import ToInputs, count, inputs_of, loader_of, running, tensor_of, to_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Tokens that are not patches: a class token, a distillation token, registers.
MOST_SPECIAL = 16


class PatchGrid(NamedTuple):
    """Where the patches of a vision transformer lie among its tokens.

    Attributes:
        height: rows of patches.
        width: columns of patches.
        special: tokens before the patches: class, distillation and register tokens.
        patch: height and width of a patch in pixels.
    """

    height: int
    width: int
    special: int
    patch: tuple[float, float]

    def distances(self) -> Tensor:
        """Distances between the centres of patches, (patches, patches), in pixels, float64."""
        rows = torch.arange(self.height, dtype=torch.float64) * self.patch[0]
        columns = torch.arange(self.width, dtype=torch.float64) * self.patch[1]
        centres = torch.cartesian_prod(rows, columns)  # (patches, 2)
        return torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")


@dataclass(frozen=True)
class AttentionDistances(Pictured, Tabular):
    """How far each head of each layer looks; prints as a table.

    Attributes:
        layers: paths of the attention modules, in running order.
        distances: for each layer (heads,), mean distance in pixels.
        entropies: for each layer (heads,), mean entropy of a row, in nats.
        uniform: the distance under uniform attention over the same grid, in pixels.
        grid: where the patches lie.
        images: how many images were taken.
        renormalise: whether rows were renormalised over the patches.
    """

    layers: tuple[str, ...]
    distances: tuple[np.ndarray, ...]
    entropies: tuple[np.ndarray, ...]
    uniform: float
    grid: PatchGrid
    images: int
    renormalise: bool

    @property
    def uniform_entropy(self) -> float:
        """The entropy of uniform attention over the patches, in nats."""
        return math.log(self.grid.height * self.grid.width)

    def records(self) -> list[dict[str, Any]]:
        """A row for each head."""
        records = []
        for layer, distances, entropies in zip(
            self.layers, self.distances, self.entropies, strict=True
        ):
            for head, (distance, entropy) in enumerate(zip(distances, entropies, strict=True)):
                record = {"layer": layer, "head": head, "distance": float(distance)}
                records.append({**record, "entropy": float(entropy)})
        return records

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        return plain({**vars(self), "grid": self.grid, "uniform_entropy": self.uniform_entropy})

    def __str__(self) -> str:
        rows = []
        for layer, distances, entropies in zip(
            self.layers, self.distances, self.entropies, strict=True
        ):
            spread = (np.nanmin(distances), np.nanmedian(distances), np.nanmax(distances))
            cells = [f"{value:.1f}" for value in spread]
            rows.append((layer, *cells, f"{np.nanmean(entropies):.2f}", str(len(distances))))
        columns = ("layer", "nearest head", "median", "farthest head", "entropy", "heads")
        special = f"{self.grid.special} other tokens left out"
        rule = "rows renormalised" if self.renormalise else "rows as they are"
        return (
            f"{aligned(columns, rows)}\n(mean distance in pixels over {self.images} images, grid"
            f" {self.grid.height} x {self.grid.width}, {special}, {rule}; uniform attention:"
            f" {self.uniform:.1f} pixels, entropy {self.uniform_entropy:.2f})"
        )

    def figure(self) -> Figure:
        """Every head of every layer, and uniform attention, as a matplotlib `Figure`."""
        from metalearn.analysis.plotting.attention import head_distances

        return head_distances(self.layers, self.distances, self.uniform)


def attention_distances(
    model: nn.Module,
    loader: Any,
    *,
    patch: int | tuple[int, int] | None = None,
    grid: tuple[int, int] | None = None,
    special: int | None = None,
    renormalise: bool = True,
    to_inputs: ToInputs | None = None,
) -> AttentionDistances:
    """The mean attention distance of every head of a vision transformer.

    For a head with weights `A`: the mean over images and query patches `i` of
    `sum_j A_ij d(i, j)`, with `d` the Euclidean distance between the centres of patches in pixels.
    Class, distillation and register tokens are left out as queries and as keys.

    Args:
        model: a vision transformer, see `metalearn.network.transformers.attention`.
        loader: one batch of images (images, channels, height, width), or batches.
        patch: height and width of a patch in pixels; by default image size over grid.
        grid: rows and columns of patches; by default those of the patch embedding.
        special: number of tokens that are not patches; by default all that the grid leaves over.
        renormalise: divide each row by its sum over the patches, so that attention to the class
            token does not make a head look near. Much public code does not.
        to_inputs: from a batch to what the network is called with, for batches of another form.

    Raises:
        ValueError: The network has no attention that can be read, its attention is in windows, or
            the grid does not fit the tokens or the images.

    Example:
        >>> from metalearn.models import SmallViT
        >>> found = attention_distances(SmallViT(width=12, depth=2), torch.rand(4, 3, 32, 32))
        >>> found.layers, round(found.uniform, 4)
        (('blocks.0.attention', 'blocks.1.attention'), 16.5459)
    """
    check_kind(model, nn.Module, "model", "give a vision transformer")
    sums: dict[str, list[Tensor]] = {}
    layout: PatchGrid | None = None
    images = 0
    for inputs, size in _batches(model, loader, to_inputs):
        if layout is None:
            layout = patch_grid(model, inputs, patch=patch, grid=grid, special=special)
        scale = layout.distances()
        reader = _HeadSums(layout, scale, size, renormalise=renormalise)
        with attention(model, reader) as found:
            _run(model, inputs)
        images += size
        for path, sum_of_batch in found.items():
            sums.setdefault(path, []).append(sum_of_batch)
    if layout is None:
        raise ValueError("the loader gave no batch (an iterator gives its batches only once)")
    totals = [torch.stack(batches).sum(0) for batches in sums.values()]  # each (3, heads)
    return AttentionDistances(
        tuple(sums),
        tuple((distance / rows).numpy() for distance, _, rows in totals),
        tuple((entropy / rows).numpy() for _, entropy, rows in totals),
        float(layout.distances().mean()),
        layout,
        images,
        renormalise,
    )


class _HeadSums:
    """From an attention map to sums over images and queries: distance, entropy and rows."""

    def __init__(
        self, grid: PatchGrid, distances: Tensor, images: int, *, renormalise: bool
    ) -> None:
        self.grid = grid
        self.distances = distances
        self.images = images
        self.renormalise = renormalise

    def __call__(self, weights: Tensor) -> Tensor:
        """Weights (images, heads, tokens, tokens) -> (3, heads), float64."""
        tokens = self.grid.special + self.grid.height * self.grid.width
        if len(weights) != self.images or weights.shape[2:] != (tokens, tokens):
            raise ValueError(
                f"an attention map has shape {tuple(weights.shape)} for {self.images} images of"
                f" {tokens} tokens; attention in windows, or to other tokens, has no map over the"
                " whole image: take a transformer with global self-attention"
            )
        start = self.grid.special
        patches = weights[:, :, start:, start:].to("cpu", torch.float64)
        mass = patches.sum(-1, keepdim=True)  # (images, heads, patches, 1)
        if self.renormalise:
            patches = patches / mass
        distance = (patches * self.distances).sum(-1)  # (images, heads, patches)
        entropy = torch.special.entr(patches).sum(-1)
        # A row whose mass is all on special tokens has no distance.
        defined = mass.squeeze(-1) > 0
        sums = [
            torch.where(defined, values, 0).sum((0, 2))
            for values in (distance, entropy, torch.ones_like(distance))
        ]
        return torch.stack(sums)


@dataclass(frozen=True)
class BranchNorm:
    """One branch: how much larger the stream is than what the branch adds to it.

    Attributes:
        branch: path of the module that was added.
        class_token: mean over images of `||z|| / ||f||` at the first token; NaN without one.
        patches: the same, over images and patches.
    """

    branch: str
    class_token: float
    patches: float


@dataclass(frozen=True)
class StreamNorms(Pictured, Tabular):
    """`||z|| / ||f||` of every branch of a transformer; prints as a table."""

    branches: tuple[BranchNorm, ...]
    images: int
    special: int

    def records(self) -> list[dict[str, Any]]:
        """A row for each branch."""
        return [dict(vars(branch)) for branch in self.branches]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values; NaN is None."""
        return plain(self)

    def __str__(self) -> str:
        rows = [(row.branch, _ratio(row.class_token), _ratio(row.patches)) for row in self.branches]
        table = aligned(("branch", "class token", "patches"), rows)
        return (
            f"{table}\n(norm of the stream over norm of what the branch adds, mean over"
            f" {self.images} images)"
        )

    def figure(self) -> Figure:
        """The ratios over depth, as a matplotlib `Figure`."""
        from metalearn.analysis.plotting.attention import stream_ratios

        return stream_ratios(
            [row.branch for row in self.branches],
            [row.class_token for row in self.branches],
            [row.patches for row in self.branches],
        )


def stream_norms(
    model: nn.Module,
    loader: Any,
    *,
    grid: tuple[int, int] | None = None,
    special: int | None = None,
    to_inputs: ToInputs | None = None,
) -> StreamNorms:
    """How much of the residual stream each branch of a pre-norm transformer leaves as it was.

    `||z|| / ||f||` per token, with `z` the stream before a branch and `f` what the branch adds:
    large where the skip connection carries the token, small where the branch replaces it. The class
    token and the patches are averaged apart.

    Args:
        model: a vision transformer whose blocks add `f(norm(z))` to `z`.
        loader: one batch of images, or batches.
        grid: rows and columns of patches; by default those of the patch embedding.
        special: number of tokens that are not patches; by default all that the grid leaves over.
        to_inputs: from a batch to what the network is called with, for batches of another form.

    Raises:
        ValueError: The network is not a pre-norm transformer of tokens.

    Example:
        >>> from metalearn.models import SmallViT
        >>> found = stream_norms(SmallViT(width=12, depth=2), torch.rand(4, 3, 32, 32))
        >>> [row.branch for row in found.branches][:2]
        ['blocks.0.attention', 'blocks.0.mlp']
    """
    check_kind(model, nn.Module, "model", "give a vision transformer")
    sums: dict[str, Tensor] = {}
    layout: PatchGrid | None = None
    images = 0
    for inputs, size in _batches(model, loader, to_inputs):
        if layout is None:
            layout = patch_grid(model, inputs, patch=None, grid=grid, special=special)
        with stream(model, _BranchSums(layout)) as found:
            _run(model, inputs)
        images += size
        for path, ratios in found:
            sums[path] = sums.get(path, 0) + ratios
    if layout is None:
        raise ValueError("the loader gave no batch (an iterator gives its batches only once)")
    rows = [
        BranchNorm(path, float(first) / images, float(rest) / images)
        for path, (first, rest) in sums.items()
    ]
    return StreamNorms(tuple(rows), images, layout.special)


class _BranchSums:
    """From a branch to its path and sums over images: at the first token, and over patches."""

    def __init__(self, grid: PatchGrid) -> None:
        self.special = grid.special

    def __call__(self, branch: Branch) -> tuple[str, Tensor]:
        before, added = branch.before.double().norm(dim=-1), branch.added.double().norm(dim=-1)
        ratios = before / added  # (images, tokens)
        first = ratios[:, 0].sum() if self.special else ratios.new_tensor(torch.nan)
        return branch.path, torch.stack([first, ratios[:, self.special :].mean(1).sum()]).cpu()


def patch_grid(
    model: nn.Module,
    inputs: Inputs,
    *,
    patch: int | tuple[int, int] | None = None,
    grid: tuple[int, int] | None = None,
    special: int | None = None,
) -> PatchGrid:
    """Where the patches of a vision transformer lie among its tokens.

    The grid is the size of the last map (examples, channels, rows, columns) that a convolution of
    the network returned before its first norm of tokens: its patch embedding.

    Args:
        model: a vision transformer.
        inputs: a batch of images.
        patch: height and width of a patch in pixels, if not image size over grid.
        grid: rows and columns of patches, if the network has no convolution.
        special: number of tokens that are not patches, if not all that the grid leaves over.

    Raises:
        ValueError: The grid cannot be found, or does not fit the number of tokens or the images.

    Example:
        >>> from metalearn.models import SmallViT
        >>> patch_grid(SmallViT(depth=1), torch.rand(1, 3, 32, 32))
        PatchGrid(height=8, width=8, special=1, patch=(4.0, 4.0))
    """
    chosen = None if grid is None else _pair("grid", grid, "(rows, columns), such as (8, 8)")
    size = None if patch is None else _pair("patch", patch, "pixels, such as 16 or (16, 16)")
    images = next((tensor for tensor in tensors_of(inputs) if tensor.ndim == 4), None)
    if images is None:
        raise ValueError(
            "no input has the shape (images, channels, height, width); patches are parts of images"
        )
    pixels = images.shape[-2:]
    tokens, embedded = _token_count(model, inputs)
    height, width = chosen or embedded or _square(tokens, pixels, special or 0)
    left_over = tokens - height * width
    if not 0 <= left_over <= MOST_SPECIAL or (special is not None and special != left_over):
        given = "" if special is None else f" and {special} special tokens"
        raise ValueError(
            f"{tokens} tokens are not a grid of {height} x {width} patches{given}; give"
            " grid=(rows, columns) and special="
        )
    if size is None and (pixels[0] % height or pixels[1] % width):
        raise ValueError(
            f"a grid of {height} x {width} patches does not divide images of {pixels[0]} x"
            f" {pixels[1]} pixels; give patch= in pixels, or grid="
        )
    size = size or (pixels[0] // height, pixels[1] // width)
    return PatchGrid(height, width, left_over, (float(size[0]), float(size[1])))


def _pair(name: str, value: Any, example: str) -> tuple[int, int]:
    """Two whole numbers above 0, or one of them twice for a patch."""
    both = (value, value) if name == "patch" and isinstance(value, int) else value
    if not isinstance(both, tuple | list) or len(both) != 2:
        raise ValueError(f"{name}={value!r}; give {example}")
    first, second = (whole_number(f"{name}[{i}]", number) for i, number in enumerate(both))
    return first, second


def _square(tokens: int, pixels: Sequence[int], special: int) -> tuple[int, int]:
    """The grid of square patches of a square image, if the network has no convolution."""
    if not 0 <= special < tokens:
        raise ValueError(f"special={special}; give a number of the {tokens} tokens, less than all")
    if pixels[0] != pixels[1]:
        raise ValueError(
            f"the grid of {tokens} tokens cannot be told from images of {pixels[0]} x {pixels[1]}"
            " pixels, as the network embeds its patches without a convolution; give grid=(rows,"
            " columns)"
        )
    side = math.isqrt(tokens - special)
    return side, side


def _token_count(model: nn.Module, inputs: Inputs) -> tuple[int, tuple[int, int] | None]:
    """How many tokens enter the first norm of tokens, and the map of the patch embedding."""
    for path, module in model.named_modules():
        if has_positions_first(module):
            raise ValueError(
                f"{path or 'the network'} ({type(module).__name__}) has batch_first=False, so its"
                " tokens are (positions, images, features); build it with batch_first=True"
            )
    tokens: list[int] = []
    maps: list[tuple[int, int]] = []

    def at_norm(module: nn.Module, entering: Any) -> None:
        if entering[0].ndim == 3:
            tokens.append(entering[0].shape[1])

    def at_convolution(module: nn.Module, entering: Any, output: Any) -> None:
        if not tokens and isinstance(output, Tensor) and output.ndim == 4:
            maps.append((output.shape[-2], output.shape[-1]))

    handles = []
    for module in model.modules():
        if may_be_norm(module):
            handles.append(module.register_forward_pre_hook(at_norm))
        elif isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(at_convolution))
    try:
        _run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not tokens:
        raise ValueError(
            f"{type(model).__name__} has no tokens: none of its norms took (examples, tokens,"
            " features), as in a convolutional network, or with attention in windows (Swin), which"
            " has no map over the whole image. Compare layers with similarity_map"
        )
    return tokens[0], maps[-1] if maps else None


def residual_points(model: nn.Module) -> list[str]:
    """The layers of a vision transformer at which the paper compares representations.

    Of each block in running order: the first norm, attention, the second norm, the MLP, and the
    block's output. Names are such that `similarity_map` and `compare_layers` take them.

    Args:
        model: a transformer whose blocks hold two norms each.

    Raises:
        ValueError: No block holds two norms and two further modules with parameters.

    Example:
        >>> from metalearn.models import SmallViT
        >>> residual_points(SmallViT(depth=1))
        ['blocks.0.norm1', 'blocks.0.attention', 'blocks.0.norm2', 'blocks.0.mlp', 'blocks.0']
    """
    points = []
    for path, block in model.named_modules():
        children = [
            (f"{path}.{name}" if path else name, child)
            for name, child in block.named_children()
            if any(True for _ in child.parameters())
        ]
        norms = [name for name, child in children if isinstance(child, nn.LayerNorm | nn.RMSNorm)]
        branches = [(name, child) for name, child in children if name not in norms]
        if len(norms) != 2 or len(branches) < 2:
            continue
        attending, mixing = branches[0], branches[-1]
        entry = ":0" if isinstance(attending[1], nn.MultiheadAttention) else ""
        points += [norms[0], attending[0] + entry, norms[1], mixing[0], path]
    if not points:
        raise ValueError(
            f"{type(model).__name__} has no blocks of two norms, attention and an MLP; name the"
            " layers yourself"
        )
    return points


@contextmanager
def skip(model: nn.Module, layers: Iterable[str]) -> Iterator[None]:
    """Replace the outputs of layers by their inputs for a while: what is left without them?

    Args:
        model: any network.
        layers: paths of modules whose output has the shape of their input, such as residual blocks.

    Raises:
        ValueError: No such layer; or, as the network runs, an output of another shape.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> with skip(network, ["0"]):
        ...     short = network(torch.ones(1, 4))
        >>> torch.equal(short, network[1](torch.ones(1, 4)))
        True
    """

    def hook_of(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            if first.shape != inputs[0].shape:
                raise ValueError(
                    f"layer {path!r} turns {tuple(inputs[0].shape)} into {tuple(first.shape)}, so"
                    " it cannot be skipped; skip layers that keep the shape"
                )
            return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]

        return hook

    paths = [resolve(model, name) for name in layers]
    handles = [model.get_submodule(path).register_forward_hook(hook_of(path)) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def residual_off(model: nn.Module, block: str) -> Iterator[None]:
    """Take the skip connection out of one block of a pre-norm transformer for a while.

    The block's output becomes what its branches add: the output less the stream that entered it.

    Args:
        model: a transformer whose blocks add `f(norm(z))` to `z`.
        block: path of one block.

    Raises:
        ValueError: No such layer; or, as the network runs, a block whose first norm does not take
            the block's input, as in a post-norm transformer or a convolutional network.

    Example:
        >>> from metalearn.models import SmallViT
        >>> network, images = SmallViT(width=12, depth=2).eval(), torch.rand(2, 3, 32, 32)
        >>> with residual_off(network, "blocks.1"), torch.no_grad():
        ...     without = network(images)
        >>> torch.equal(without, network(images))
        False
    """
    path = resolve(model, block)
    module = model.get_submodule(path)
    entered: list[Tensor] = []

    def at_norm(norm: nn.Module, inputs: Any) -> None:
        entered.append(inputs[0])

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        pre_norm = bool(entered) and torch.equal(entered[0], inputs[0])
        entered.clear()
        if not pre_norm:
            raise ValueError(
                f"{path!r} ({type(module).__name__}) does not begin with a norm of its input, so"
                " its skip connection cannot be told apart; give a block of a pre-norm transformer"
            )
        if isinstance(output, tuple):
            return (output[0] - inputs[0], *output[1:])
        return output - inputs[0]

    norms = [inner for inner in module.modules() if may_be_norm(inner)]
    handles: list[Any] = [norm.register_forward_pre_hook(at_norm) for norm in norms]
    handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batches(
    model: nn.Module, loader: Any, to_inputs: ToInputs | None
) -> Iterator[tuple[Inputs, int]]:
    """The inputs of each batch on the network's device, and how many images they hold."""
    like = tensor_of(model)
    for number, batch in enumerate(loader_of(loader), 1):
        inputs = inputs_of(batch, f"batch {number} of the loader", to_inputs)
        yield to_device(inputs, like), count(inputs)


def _run(model: nn.Module, inputs: Inputs) -> None:
    args, kwargs = arguments(inputs)
    with evaluation_mode([model]), torch.no_grad(), running(model, inputs, "the network"):
        model(*args, **kwargs)


def _ratio(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
