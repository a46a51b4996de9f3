"""The first principal component of every layer, and the images that make it.

Nguyen, Raghu and Kornblith 2022 (arXiv:2202.07184): in wide or deep networks a few dominant images
carry the first component of many layers in a row, which is the block structure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.analysis.checks import check_kind, check_seed, listed
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.network.activations import representations
from metalearn.network.forward import arguments, tensors_of
from metalearn.network.layers import head
from metalearn.network.layers import layers as layer_names
from metalearn.network.modes import evaluation_mode
from metalearn.runtime.tables import Tabular, aligned, plain

from .batches import ToInputs, count, inputs_of, loader_of, running, tensor_of, to_device
from .gram import GramReader
from .similarity_map import SimilarityMap, sum_over_batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMORY = 2 * 2**30  # bytes of activations that are held at a time
FEWEST = 4  # images
DIRECT = 1024  # images up to which all eigenvectors are cheap
MOST_STEPS = 300  # of the power iteration
TOLERANCE = 1e-6  # residual at which it stops, as a share of the eigenvalue
STALLED = 20  # steps in float32 without a smaller residual, after which float64 goes on
GUARD = 31  # further vectors in the block: fewer steps, and products of better shape, than with 7
CHUNK = 2**25  # numbers in float64 at a time
DEVIATIONS = 5.0  # robust standard deviations from which an image stands out
ROBUST = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
CONSTANT = 1e-12  # share of the squared norm below which a layer is constant over the images


@dataclass(frozen=True)
class Component:
    """The first principal component of one layer, over the images.

    Attributes:
        layer: the layer.
        share: its share of the variance, `lam_1 / tr G`; NaN for a constant layer.
        participation: `1 / sum_i u_i^4`, the number of images that carry it.
        scores: (images,) its unit vector `u`; the largest absolute score is positive.
        direction: (features,) the unit vector `v` in feature space.
        mean: (features,) the mean over the images.
        residual: `||G u - lam_1 u|| / lam_1`, how far the iteration is from the exact vector.
    """

    layer: str
    share: float
    participation: float
    scores: np.ndarray = field(repr=False)
    direction: np.ndarray = field(repr=False)
    mean: np.ndarray = field(repr=False)
    residual: float


@dataclass(frozen=True)
class Components(Pictured, Tabular):
    """The first component of every layer; prints as a table.

    Attributes:
        layers: one `Component` for each layer, in order.
        images: how many images there were.
        notes: which layers are constant.
        source: the network, the loader and `to_inputs`, for `similarity`.
    """

    layers: tuple[Component, ...]
    images: int
    notes: tuple[str, ...] = ()
    source: tuple[nn.Module, Any, ToInputs | None] | None = field(
        default=None, repr=False, compare=False
    )

    def __getitem__(self, layer: str) -> Component:
        for row in self.layers:
            if row.layer == layer:
                return row
        known = ", ".join(row.layer for row in self.layers)
        raise KeyError(f"no component of layer {layer!r} was taken; these were: {known}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the layers, in order."""
        return tuple(row.layer for row in self.layers)

    @property
    def agreement(self) -> tuple[float, ...]:
        """`cos^2(u_l, u_(l+1))` of each layer with the next; NaN for the last."""
        pairs = zip(self.layers, self.layers[1:], strict=False)
        cosines = [float(first.scores @ second.scores) ** 2 for first, second in pairs]
        return (*cosines, math.nan)

    @property
    def strongest(self) -> Component:
        """The component that holds the largest share of its layer's variance.

        Raises:
            ValueError: All layers are constant.
        """
        known = [row for row in self.layers if not math.isnan(row.share)]
        if not known:
            raise ValueError(
                f"all layers ({', '.join(self.names)}) are constant over the {self.images} images,"
                " so none has a component; check the weights and the images"
            )
        return max(known, key=lambda row: row.share)

    def dominant(
        self, layer: str, share: float | None = None, *, deviations: float = DEVIATIONS
    ) -> np.ndarray:
        """The images that dominate a layer's first component, by falling absolute score.

        Args:
            layer: the layer.
            share: take this share of all images, such as 0.01. By default those are taken whose
                score lies beyond `deviations` robust standard deviations from the median.
            deviations: how many (1.4826 times the median absolute deviation).

        Returns:
            Indices into the images, in the order of the loader; empty if none stands out.

        Raises:
            ValueError: More than a third of the images stand out, so there are too few.
        """
        scores = self[layer].scores
        order = np.argsort(-np.abs(scores), kind="stable")
        if share is not None:
            if not 0 < share < 1:
                raise ValueError(f"share={share}; give a share of the images between 0 and 1")
            return order[: math.ceil(share * self.images)]
        from_median = np.abs(scores - np.median(scores))
        far = from_median > deviations * ROBUST * np.median(from_median)
        number = int(far.sum())
        if 3 * number > self.images:
            raise ValueError(
                f"{number} of {self.images} images stand out in layer {layer!r}, too many to be"
                f" told from the rest; take at least {3 * number} images, or share="
            )
        return np.array([image for image in order if far[image]], dtype=int)

    def carried(self, layer: str, images: Sequence[int] | np.ndarray) -> float:
        """The share of the component that these images carry, `sum u_i^2` over them."""
        return float(np.square(self[layer].scores[np.asarray(images, dtype=int)]).sum())

    def similarity(self, removed: int = 1) -> SimilarityMap:
        """The similarity map of the network with itself, without the first component of each layer.

        `A` becomes `A - lam_1^(1/2) u v^T`, that is `G` becomes `G - lam_1 u u^T`, before the
        batches are compared.

        Args:
            removed: 1; 0 for the map of the layers as they are.

        Raises:
            ValueError: The components were not computed from a network, or `removed` is another
                number.
        """
        if removed not in (0, 1):
            raise ValueError(f"removed={removed}; components holds the first alone: give 0 or 1")
        if self.source is None:
            raise ValueError("these components have no network; call components(network, loader)")
        model, loader, to_inputs = self.source
        names = [row.layer for row in self.layers]
        reader = GramReader(model, "the network", names, self._without if removed else None)
        return sum_over_batches(
            (reader, reader), (names, names), loader, to_inputs, draws=0, seed=0
        )

    def _without(self, layer: str, activations: Tensor) -> Tensor:
        """Activations (images, features) less the mean, without what lies along the component."""
        row = self[layer]
        mean = torch.as_tensor(row.mean, device=activations.device)
        direction = torch.as_tensor(row.direction, device=activations.device)
        centred = activations.double() - mean
        if math.isnan(row.share):
            return centred
        return centred - torch.outer(centred @ direction, direction)

    def records(self) -> list[dict[str, Any]]:
        """A row for each layer."""
        names = ("layer", "share", "participation", "residual")
        records = []
        for row, agreement in zip(self.layers, self.agreement, strict=True):
            record = {name: getattr(row, name) for name in names}
            records.append({**record, "agreement": agreement})
        return records

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values, without the vectors of features."""
        rows = [
            {**record, "scores": row.scores}
            for record, row in zip(self.records(), self.layers, strict=True)
        ]
        return plain({"layers": rows, "images": self.images, "notes": self.notes})

    def __str__(self) -> str:
        rows = []
        for row, agreement in zip(self.layers, self.agreement, strict=True):
            cells = (f"{row.share:.3f}", f"{row.participation:.0f}", f"{agreement:.3f}")
            rows.append((row.layer, *cells, f"{row.residual:.0e}"))
        columns = ("layer", "share", "participation", "cos2 with the next", "residual")
        told = (
            f"(first principal component over {self.images} images: its share of the variance, how"
            " many images carry it, and its agreement with the next layer's)"
        )
        return "\n".join([aligned(columns, rows), told, *self.notes])

    def figure(self) -> Figure:
        """Share and agreement over depth, as a matplotlib `Figure`."""
        from metalearn.analysis.plotting.components import component_shares

        return component_shares(
            [row.layer for row in self.layers],
            [row.share for row in self.layers],
            self.agreement,
            [row.participation / self.images for row in self.layers],
        )


def components(
    model: nn.Module,
    loader: Any,
    layers: Sequence[str] | None = None,
    *,
    to_inputs: ToInputs | None = None,
    memory: float = MEMORY,
    seed: int = 0,
) -> Components:
    """The first principal component of every layer over the images of a loader.

    With activations `A` (images, features), centred over the images: `A A^T u = lam_1 u`. Found by
    block power iteration, or for up to 1,024 images by a full decomposition. Layers whose
    activations fit into `memory` together are read in one pass over the loader.

    Args:
        model: any network; it runs in evaluation mode.
        loader: one batch, or batches in an order that does not change from pass to pass.
        layers: names of layers; by default `metalearn.layers(model)` without the head.
        to_inputs: from a batch to what the network is called with, for batches of another form.
        memory: bytes of activations that are held at a time; one layer is always held whole.
        seed: what the first vectors of the iteration depend on.

    Raises:
        ValueError: Fewer than 4 images, a loader that shuffles or can be read once, or activations
            that are not finite.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = components(network, torch.randn(50, 4), ["0", "1"])
        >>> 0 < found["0"].share < 1, found["0"].scores.shape
        (True, (50,))
    """
    check_kind(model, nn.Module, "model", "give a network (an nn.Module)")
    seed = check_seed(seed)
    names = _names(model, layers)
    reader = _Reader(model, loader, to_inputs)
    rows = []
    notes = []
    for group in reader.groups(names, memory):
        for name, activations in reader.read(group):
            row = _component(name, activations, seed)
            rows.append(row)
            if math.isnan(row.share):
                notes.append(f"layer {name} is constant over the images (a dead layer?)")
    source = (model, loader, to_inputs)
    return Components(tuple(rows), reader.images, tuple(notes), source)


def _names(model: nn.Module, layers: Sequence[str] | None) -> list[str]:
    if layers is not None:
        return list(listed(layers, "layers"))
    known = layer_names(model)
    last = head(model)
    return [name for name in known if name != last] or known


class _Reader:
    """Activations of layers over a loader that is read several times."""

    def __init__(self, model: nn.Module, loader: Any, to_inputs: ToInputs | None) -> None:
        self.model = model
        self.batches = loader_of(loader)
        self.to_inputs = to_inputs
        self.like = tensor_of(model)
        self.images = 0
        if isinstance(self.batches, Iterator):
            raise ValueError(
                "an iterator gives its batches only once, and components reads them several times;"
                " give a list of batches or a DataLoader"
            )

    def groups(self, names: Sequence[str], memory: float) -> list[list[str]]:
        """The layers in order, in groups whose activations fit into `memory` bytes together."""
        sizes: dict[str, int] = {}
        for inputs in self._inputs():
            if not sizes:
                for name, output in self._outputs(names, inputs).items():
                    sizes[name] = output[0].numel() * output.element_size()
            self.images += count(inputs)
        if self.images < FEWEST:
            raise ValueError(
                f"{self.images} images; a component needs at least {FEWEST}: give more images"
            )
        groups: list[list[str]] = []
        held = math.inf
        for name in names:
            size = sizes[name] * self.images
            if held + size > memory:
                groups.append([])
                held = 0
            groups[-1].append(name)
            held += size
        return groups

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Each layer's activations over all images, (images, features)."""
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        for inputs in self._inputs():
            for name, output in self._outputs(names, inputs).items():
                parts[name].append(output.flatten(1).cpu())
        for name in names:
            activations = torch.cat(parts.pop(name))
            wrong = int((~activations.isfinite()).sum())
            if wrong:
                raise ValueError(f"layer {name!r} returned {wrong} values that are not finite")
            if len(activations) != self.images:
                raise ValueError(
                    f"the loader gave {self.images} images at first and {len(activations)} later;"
                    " give the same batches in every pass"
                )
            yield name, activations

    def _inputs(self) -> Iterator[Any]:
        first: Tensor | None = None
        for number, batch in enumerate(self.batches, 1):
            inputs = inputs_of(batch, f"batch {number} of the loader", self.to_inputs)
            if number == 1:
                first = next(iter(tensors_of(inputs)), None)
                self._check_order(first)
            yield to_device(inputs, self.like)
        if first is None:
            raise ValueError("the loader gave no batch")

    def _check_order(self, first: Tensor | None) -> None:
        """Raise ValueError if the first batch is another one than in the first pass."""
        known = getattr(self, "first", None)
        if known is None:
            self.first = first
        elif first is None or not torch.equal(known, first):
            raise ValueError(
                "the loader gives its images in another order in every pass; give a DataLoader with"
                " shuffle=False"
            )

    def _outputs(self, names: Sequence[str], inputs: Any) -> dict[str, Tensor]:
        positional, named = arguments(inputs)
        with (
            evaluation_mode([self.model]),
            torch.no_grad(),
            representations(self.model, names) as seen,
            running(self.model, inputs, "the network"),
        ):
            self.model(*positional, **named)
        return seen


def _component(name: str, activations: Tensor, seed: int) -> Component:
    """The first component of activations (images, features)."""
    images, features = activations.shape
    mean = _column_sums(activations) / images
    total = float(sum(part.square().sum() for part in _centred(activations, mean)))
    size = float(sum(part.square().sum() for part in _centred(activations, 0 * mean)))
    if total <= CONSTANT * size or total == 0:
        nan = math.nan
        no_scores, no_direction = np.full(images, nan), np.full(features, nan)
        return Component(name, nan, nan, no_scores, no_direction, mean.numpy(), nan)
    if images <= DIRECT:
        value, scores, residual = _by_decomposition(activations, mean)
    else:
        value, scores, residual = leading_component(activations, mean, seed)
    direction = _transposed_product(activations, mean, scores[:, None])[:, 0]
    return Component(
        name,
        value / total,
        float(1 / scores.pow(4).sum()),
        scores.numpy(),
        (direction / direction.norm()).numpy(),
        mean.numpy(),
        residual,
    )


def leading_component(
    activations: Tensor, mean: Tensor, seed: int = 0
) -> tuple[float, Tensor, float]:
    """The largest eigenvalue of `A A^T` and its unit vector, by block power iteration.

    One step takes the block `U` (images, k) to the orthonormal `Q` of `A (A^T U)`, then rotates it
    to the eigenvectors of `Q^T A A^T Q` (Rayleigh and Ritz). Steps in float32, which are faster,
    bring the block near; the steps that decide are summed in float64.

    Args:
        activations: `A` before centring, (images, features), float32 or float64.
        mean: (features,), float64, which is taken from every row.
        seed: what the first block depends on.

    Returns:
        The eigenvalue; the vector (images,), whose largest absolute entry is positive; and the
        residual `||A A^T u - lam u|| / lam`.
    """
    images = len(activations)
    width = min(1 + GUARD, images)
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(images, width, generator=generator, dtype=torch.float64)

    def exactly(block: Tensor) -> Tensor:
        return _product(activations, mean, _transposed_product(activations, mean, block))

    if _float32_holds(activations):
        near = _power_steps(_in_float32(activations, mean), block.float(), STALLED)
        block = near.block.double()
    value, vector, residual, _ = _power_steps(exactly, block, MOST_STEPS)
    return value, _signed(vector), residual


class _Leading(NamedTuple):
    """The largest eigenvalue with its vector (images,), its residual, and the block (images, k)."""

    value: float
    vector: Tensor
    residual: float
    block: Tensor


def _power_steps(multiply: Callable[[Tensor], Tensor], block: Tensor, stalled: int) -> _Leading:
    """Power steps of a block, until the residual is small or stops falling.

    Args:
        multiply: from a block (images, k) to `A A^T` times it.
        block: the first one.
        stalled: how many steps without a smaller residual end it.
    """
    block = torch.linalg.qr(block).Q  # (images, k)
    value, residual, smallest = 0.0, math.inf, math.inf
    vector = block[:, -1]
    since = 0  # steps since the smallest residual
    for _ in range(MOST_STEPS):
        image = multiply(block)
        values, rotation = torch.linalg.eigh(block.mT @ image)  # in rising order
        value = float(values[-1])
        vector = block @ rotation[:, -1]  # (images,)
        change = image @ rotation[:, -1] - value * vector
        residual = float(change.norm()) / max(value, torch.finfo(torch.float64).tiny)
        since = 0 if residual < smallest else since + 1
        smallest = min(smallest, residual)
        if residual <= TOLERANCE or since == stalled:
            break
        block = torch.linalg.qr(image).Q
    return _Leading(value, vector, residual, block)


def _float32_holds(activations: Tensor) -> bool:
    """Whether squared norms of products `A A^T U` neither overflow nor vanish in float32."""
    largest = float(activations.abs().max())
    return largest > 1e-6 and largest**2 * activations.numel() < 1e15


def _in_float32(activations: Tensor, mean: Tensor) -> Callable[[Tensor], Tensor]:
    """`A A^T` times a block, without a copy of the centred activations."""
    rows, level = activations.float(), mean.float()

    def multiply(block: Tensor) -> Tensor:
        directions = rows.mT @ block - torch.outer(level, block.sum(0))  # (features, k)
        return rows @ directions - level @ directions

    return multiply


def _by_decomposition(activations: Tensor, mean: Tensor) -> tuple[float, Tensor, float]:
    """What `leading_component` returns, from all eigenvectors of `A A^T`."""
    images, features = activations.shape
    gram = mean.new_zeros(images, images)
    for columns in torch.arange(features).split(max(1, CHUNK // images)):
        part = activations[:, columns].double() - mean[columns]  # (images, some features)
        gram.addmm_(part, part.mT)
    values, vectors = torch.linalg.eigh(gram)  # in rising order
    value, vector = float(values[-1]), vectors[:, -1]
    return value, _signed(vector), float((gram @ vector - value * vector).norm()) / value


def _signed(vector: Tensor) -> Tensor:
    """A vector as one of length 1 whose largest absolute entry is positive."""
    sign = vector[vector.abs().argmax()].sign()
    return sign * vector / vector.norm()


def _centred(activations: Tensor, mean: Tensor) -> Iterator[Tensor]:
    """Rows of the activations less the mean in float64, a chunk at a time."""
    for part in activations.split(max(1, CHUNK // activations.shape[1])):
        yield part.double() - mean


def _column_sums(activations: Tensor) -> Tensor:
    zero = activations.new_zeros(activations.shape[1], dtype=torch.float64)
    return sum((part.sum(0) for part in _centred(activations, zero)), zero)


def _product(activations: Tensor, mean: Tensor, vectors: Tensor) -> Tensor:
    """`A V` for vectors (features, k) -> (images, k)."""
    return torch.cat([part @ vectors for part in _centred(activations, mean)])


def _transposed_product(activations: Tensor, mean: Tensor, vectors: Tensor) -> Tensor:
    """`A^T U` for vectors (images, k) -> (features, k)."""
    total = vectors.new_zeros(activations.shape[1], vectors.shape[1])
    start = 0
    for part in _centred(activations, mean):
        total += part.mT @ vectors[start : start + len(part)]
        start += len(part)
    return total


class Without:
    """The batches of a loader without some of its images; see `without`."""

    def __init__(self, loader: Any, images: Iterable[int]) -> None:
        self.batches = loader_of(loader)
        self.removed = {int(image) for image in images}

    def __iter__(self) -> Iterator[Any]:
        start = 0
        for batch in self.batches:
            size = count(inputs_of(batch, "a batch of the loader"))
            kept = [i for i in range(size) if start + i not in self.removed]
            start += size
            if kept:
                yield _rows(batch, kept)


def without(loader: Any, images: Iterable[int]) -> Without:
    """A loader without the images of these indices, such as the dominant ones.

    Args:
        loader: one batch, or batches in an order that does not change.
        images: indices into all images, in the order of the loader.

    Example:
        >>> [len(batch) for batch in without(torch.rand(10, 4).split(5), [0, 1, 9])]
        [3, 4]
    """
    return Without(loader, images)


def _rows(batch: Any, rows: list[int]) -> Any:
    """The same batch with these rows of every tensor in it."""
    if isinstance(batch, Tensor):
        return batch[rows]
    if isinstance(batch, dict):
        return {name: _rows(value, rows) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_rows(value, rows) for value in batch)
    return batch
