"""Every layer of one network against every layer of another, in one pass over a loader."""

from __future__ import annotations

import math
import operator
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.analysis.checks import check_draws, check_kind, listed
from metalearn.analysis.measures.chance import Floor, chosen_draws, rearranged
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.network.forward import Inputs
from metalearn.network.layer_names import named_output
from metalearn.network.layers import layers
from metalearn.network.modes import evaluation_mode
from metalearn.runtime import progress as _progress
from metalearn.runtime.tables import Tabular, plain

from .batches import ToInputs, count, inputs_of, is_one_batch, loader_of, shown_batches
from .gram import GramReader, shuffled_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONVENTION = (
    "debiased minibatch linear CKA; an image a row, all its channels and positions as features"
)

# Images in a batch: the U-statistic divides by n - 3.
FEWEST = 4

# Pairs of images at a time, in all draws at once.
PAIRS = 1024

# Characters of a line below the printed table.
LINE = 120


@dataclass(frozen=True)
class SimilarityMap(Pictured, Tabular):
    """The similarity of every pair of layers; prints as a table.

    `result["layer1.0", "encoder.ln"]` is the similarity of one pair.

    Attributes:
        values: (layers of a, layers of b), float64, at most 1 and about 0 for unrelated layers; NaN
            if a layer has no similarity.
        layers_a: the names of the layers of a, in order.
        layers_b: the names of the layers of b, in order.
        examples: the number of images.
        batches: the number of batches.
        chance: (draws, layers of a, layers of b), the same with the images of b shuffled within
            each batch.
        networks: the classes of the two networks.
        notes: which layers have no similarity, and why.
    """

    values: np.ndarray
    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    examples: int
    batches: int
    chance: np.ndarray
    networks: tuple[str, str]
    notes: tuple[str, ...] = ()

    @property
    def floor(self) -> Floor:
        """The chance level: median and 95 % quantile over all pairs of layers and draws."""
        return Floor.of(self.chance[np.isfinite(self.chance)])._replace(draws=len(self.chance))

    def __getitem__(self, pair: tuple[str, str]) -> float:
        layer_a, layer_b = pair
        row = _index(layer_a, self.layers_a)
        column = _index(layer_b, self.layers_b)
        return float(self.values[row, column])

    def __str__(self) -> str:
        width = max(map(len, self.layers_a))
        numbers = " ".join(f"{number:3d}" for number in range(1, len(self.layers_b) + 1))
        lines = [f"{'':{width + 4}} {numbers}"]
        for number, (name, row) in enumerate(zip(self.layers_a, self.values, strict=True), 1):
            cells = " ".join(_hundredths(value) for value in row)
            lines.append(f"{number:3d} {name:{width}} {cells}")
        for paragraph in self._caption():
            lines += textwrap.wrap(paragraph, LINE, break_long_words=False)
        return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")

    def _caption(self) -> Iterator[str]:
        """What the table shows; no-break spaces keep a column's number beside its name."""
        names = enumerate(self.layers_b, 1)
        columns = ", ".join(f"{number}\N{NO-BREAK SPACE}{name}" for number, name in names)
        if self.layers_a == self.layers_b:
            columns = "the same layers"
        yield (
            f"hundredths; rows: a ({self.networks[0]}); columns: b ({self.networks[1]}), {columns}"
        )
        basis = f"{CONVENTION}; {self.examples} images in {shown_batches(self.batches)}"
        median, upper, draws = self.floor
        if np.isfinite(median):
            basis += (
                f"; chance, with one side's images shuffled: {median:.3f} (median) and"
                f" {upper:.3f} (95 %), {draws} draws"
            )
        yield basis
        yield from self.notes

    def records(self) -> list[dict[str, Any]]:
        """A row for each pair of layers."""
        records = []
        for i, layer_a in enumerate(self.layers_a):
            for j, layer_b in enumerate(self.layers_b):
                similarity = float(self.values[i, j])
                records.append({"layer_a": layer_a, "layer_b": layer_b, "similarity": similarity})
        return records

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values, with the chance level for its draws; NaN is None."""
        return plain(
            {
                "measure": CONVENTION,
                "values": self.values,
                "layers_a": self.layers_a,
                "layers_b": self.layers_b,
                "examples": self.examples,
                "batches": self.batches,
                "floor": self.floor,
                "networks": self.networks,
                "notes": self.notes,
                "draws": len(self.chance),
            }
        )

    def figure(self) -> Figure:
        """The heatmap as a matplotlib `Figure`."""
        from metalearn.analysis.plotting.heatmap import heatmap

        return heatmap(self.values, (self.layers_a, self.layers_b), self.networks, self.floor.upper)


def _index(layer: str, names: tuple[str, ...]) -> int:
    if layer not in names:
        raise KeyError(f"no layer {layer!r} was compared; these were: {', '.join(names)}")
    return names.index(layer)


def _hundredths(value: float) -> str:
    return "  -" if np.isnan(value) else f"{round(100 * value):3d}"


def similarity_map(
    a: nn.Module,
    b: nn.Module,
    loader: Tensor | Mapping[str, Any] | Iterable[Any],
    layers_a: Sequence[str] | None = None,
    layers_b: Sequence[str] | None = None,
    *,
    to_inputs: ToInputs | None = None,
    draws: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> SimilarityMap:
    """Debiased minibatch CKA of every layer of `a` against every layer of `b`.

    `sum_b HSIC_1(K_b, L_b) / sqrt(sum_b HSIC_1(K_b, K_b) sum_b HSIC_1(L_b, L_b))` with `K_b`, `L_b`
    the linear Gram matrices of the flattened activations of batch b, and HSIC_1 the U-statistic
    times n (n - 3), so a short last batch counts for less (Nguyen et al. 2021, arXiv:2010.15327).
    With one batch it equals `linear_cka`, to 1e-5.

    Both networks see the same batch, in evaluation mode and under no_grad, so the loader may
    shuffle; if `a is b`, it runs once. Gram matrices are computed while the layers run, so
    activations are not held. They are float32, or float64 if the rounding of float32 would show (or
    torch is set to TF32 or bfloat16 products); the batch in which it shows runs twice. Sums are
    float64. On a CPU, images are converted to channels-last order, which is faster, unless the
    network cannot `view` its activations in it. Memory: layers x n² x 8 bytes for batches of n
    images.

    Args:
        a: a network of any depth and family.
        b: another, on the same device.
        loader: an iterable of batches of at least four images; or one batch: a tensor (n, ...), or
            a dictionary of several inputs. A batch of a loader is a tensor, a dictionary
            (`input_ids`, `attention_mask`, ...; its labels are ignored), or a tuple that begins
            with the inputs: a tensor, a dictionary, or a tuple of inputs by position.
        layers_a: names of modules of `a`, or of one entry of their outputs ("lstm:0"); by default
            `metalearn.layers(a)`.
        layers_b: the same for `b`.
        to_inputs: from a batch to what the networks are called with, for other forms of batches.
        draws: how often chance shuffles the images of `b` within each batch; by default 200 times
            if that is cheap over all pairs of layers and batches, else 20 (`chosen_draws`); 20 for
            a loader without a length. The table prints the number.
        seed: determines the draws.
        progress: show the progress on standard error, if the loader has a length.

    Returns:
        A `SimilarityMap`. A layer whose output is the same for all images has NaN, and a note.

    Raises:
        ValueError: an empty loader; a batch of fewer than 4 images (a last one is ignored, with a
            warning); networks on different devices; a layer that does not exist, ran twice or
            never, does not output one tensor with a row an image, or outputs a value that is not
            finite.
        TypeError: the loader, or a list of names, is something else.

    Example:
        >>> images = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> wide = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
        >>> deep = nn.Sequential(nn.Linear(4, 8), *(nn.Linear(8, 8) for _ in range(3)))
        >>> result = similarity_map(wide, deep, images.split(16))
        >>> result.values.shape, result.examples, -1 < result["1", "3"] < 1
        ((2, 4), 64, True)
    """
    draws, seed = check_draws(draws, seed)
    names_a = _names(a, layers_a, "a")
    names_b = _names(b, layers_b, "b")
    _check_same_device(a, b)
    both = list(dict.fromkeys([*names_a, *names_b]))
    readers = (
        GramReader(a, "a", both if a is b else names_a),
        GramReader(b, "b", names_b),
    )
    return sum_over_batches(
        readers, (names_a, names_b), loader, to_inputs, draws=draws, seed=seed, progress=progress
    )


def sum_over_batches(
    readers: tuple[GramReader, GramReader],
    names: tuple[list[str], list[str]],
    loader: Any,
    to_inputs: ToInputs | None,
    *,
    draws: int | None,
    seed: int,
    progress: bool = False,
) -> SimilarityMap:
    """The map from the Gram matrices of two readers; one reader is asked if both read one network.

    Args:
        readers: of a and of b.
        names: the layers of a and of b.
        loader: as in `similarity_map`, and so are the others.
        to_inputs: from a batch to what the networks are called with.
        draws: how often chance shuffles.
        seed: determines the draws.
        progress: show the progress.
    """
    read_a, read_b = readers
    names_a, names_b = names
    a, b = read_a.network, read_b.network
    total = 1 if is_one_batch(loader) else operator.length_hint(loader, 0)
    shown = progress and total > 0
    sums: _Sums | None = None
    with (
        evaluation_mode([a, b]),
        torch.no_grad(),
        _progress.progress("similarity map", total, unit="batch", shown=shown) as advance,
    ):
        for inputs in _batches(loader, to_inputs):
            left = read_a(inputs)
            right = left if a is b else read_b(inputs)
            if sums is None:
                one_batch = _operations(count(inputs), len(names_a), len(names_b))
                number = chosen_draws(draws, (total or math.inf) * one_batch)
                sums = _Sums(names_a, names_b, number, seed)
            sums.add(left, right, count(inputs))
            advance()
    assert sums is not None  # `_batches` raises if there is none
    return sums.map((type(a).__name__, type(b).__name__))


def _operations(images: int, layers_a: int, layers_b: int) -> float:
    """Of one draw in one batch.

    In each layer of b, every pair of images is read, at the cost of about four operations, and
    multiplied.
    """
    return images**2 / 2 * layers_b * (4 + 2 * layers_a)


class _Sums:
    """Sums over batches, in float64.

    Attributes:
        cross: HSIC_1, but for a factor, of layers of a with those of b (layers of a, layers of b).
        within: of each layer with itself: (layers of a,) and (layers of b,).
        chance: `cross` with shuffled images (draws, layers of a, layers of b).
    """

    def __init__(self, names_a: list[str], names_b: list[str], draws: int, seed: int) -> None:
        self.names = names_a, names_b
        shape = len(names_a), len(names_b)
        self.cross = torch.zeros(shape, dtype=torch.float64)
        self.chance = torch.zeros(draws, *shape, dtype=torch.float64)
        self.within = [torch.zeros(layers, dtype=torch.float64) for layers in shape]
        self.generator = torch.Generator().manual_seed(seed)
        self.examples = 0
        self.batches = 0

    def add(self, a: dict[str, Tensor], b: dict[str, Tensor], images: int) -> None:
        """Add a batch, from the centred pairs of each layer (pairs,)."""
        names_a, names_b = self.names
        left = torch.stack([a[name] for name in names_a])  # (layers of a, pairs)
        right = left
        if a is not b or names_a != names_b:
            right = torch.stack([b[name] for name in names_b])  # (layers of b, pairs)
        # HSIC_1(K, L) is proportional to sum_{i > j} K_ij L_ij.
        products = left @ right.T  # (layers of a, layers of b)
        self.cross += products.cpu()
        squares = [products.diagonal()] * 2
        if right is not left:
            squares = [torch.linalg.vecdot(side, side) for side in (left, right)]
        for within, found in zip(self.within, squares, strict=True):
            within += found.cpu()
        # Chance needs no more digits than float32 has.
        self._add_chance(left.float(), right.float().T.contiguous(), images)
        self.examples += images
        self.batches += 1

    def _add_chance(self, left: Tensor, right: Tensor, images: int) -> None:
        """Add `left` (layers of a, pairs) times the shuffled `right` (pairs, layers of b)."""
        draws = len(self.chance)
        if not draws:
            return
        orders = rearranged(images, images, self.generator, draws)  # (draws, images)
        orders = orders.T.contiguous().to(right.device)
        pairs = torch.tril_indices(images, images, -1, device=right.device)  # (2, all pairs)
        columns = draws * right.shape[1]
        total = torch.zeros(len(left), columns, dtype=torch.float64, device=right.device)
        for part, some in zip(left.split(PAIRS, 1), pairs.split(PAIRS, 1), strict=True):
            sources = shuffled_pairs(orders, some).flatten()  # (some pairs x draws,)
            shuffled = right.index_select(0, sources)  # (some pairs x draws, layers of b)
            by_pair = shuffled.view(part.shape[1], -1)  # (some pairs, draws x layers of b)
            total += part @ by_pair  # (layers of a, draws x layers of b)
        by_draw = total.cpu().unflatten(1, (draws, -1))  # (layers of a, draws, layers of b)
        self.chance += by_draw.movedim(1, 0)

    def map(self, networks: tuple[str, str]) -> SimilarityMap:
        """The result over all batches."""
        notes = [*self._drop_undefined(0, "a"), *self._drop_undefined(1, "b")]
        within_a, within_b = self.within
        # sqrt(HSIC_1(K, K) HSIC_1(L, L)) (layers of a, layers of b)
        scale = torch.outer(within_a.sqrt(), within_b.sqrt())
        values = (self.cross / scale).clamp(-1, 1)
        chance = self.chance / scale
        names_a, names_b = self.names
        return SimilarityMap(
            values=values.numpy(),
            layers_a=tuple(names_a),
            layers_b=tuple(names_b),
            examples=self.examples,
            batches=self.batches,
            chance=chance.numpy(),
            networks=networks,
            notes=tuple(notes),
        )

    def _drop_undefined(self, side: int, network: str) -> Iterator[str]:
        """Set layers without a similarity to NaN, and name them."""
        undefined = self.within[side] == 0
        self.within[side][undefined] = torch.nan
        pairs = zip(self.names[side], undefined, strict=True)
        names = [name for name, is_undefined in pairs if is_undefined]
        if names:
            yield (
                f"no similarity (-) for {', '.join(names)} of {network}: apart from rounding, the"
                " output is constant over the images, or equally far apart for any two of them (a"
                " dead layer?)"
            )


def _batches(loader: Any, to_inputs: ToInputs | None) -> Iterator[Inputs]:
    """The inputs of each batch.

    A last batch of too few images is left out, with a warning. Raises ValueError for any other, and
    for an empty loader.
    """
    short = ""
    number = 0
    for number, batch in enumerate(loader_of(loader), 1):
        if short:
            raise ValueError(f"{short}; take larger batches")
        inputs = inputs_of(batch, f"batch {number} of the loader", to_inputs)
        if count(inputs) >= FEWEST:
            yield inputs
            continue
        short = (
            f"batch {number} has {count(inputs)} images, and the debiased measure needs {FEWEST}"
        )
    if not number:
        raise ValueError("the loader gave no batch; an iterator gives its batches only once")
    if short and number == 1:
        raise ValueError(f"{short}; take larger batches")
    if short:
        warnings.warn(f"{short}: as the last one, it is left out", stacklevel=3)


def _names(network: nn.Module, names: Sequence[str] | None, side: str) -> list[str]:
    """The names of the layers to compare. Raises if one does not exist or is named twice."""
    check_kind(network, nn.Module, side, "give a network (an nn.Module)")
    chosen = layers(network) if names is None else listed(names, f"layers_{side}")
    for name in chosen:
        check_kind(name, str, f"layers_{side} holds {name!r}, which", "give names of modules")
    if not chosen:
        raise ValueError(
            f"{side} ({type(network).__name__}) has no layers to compare; name modules with"
            f" layers_{side}="
        )
    repeated = [name for i, name in enumerate(chosen) if name in chosen[:i]]
    if repeated:
        raise ValueError(f"layers_{side} names {repeated[0]!r} twice")
    for name in chosen:
        named_output(network, name)  # raises, and lists near matches
    return list(chosen)


def _check_same_device(a: nn.Module, b: nn.Module) -> None:
    devices_a = {tensor.device for tensor in (*a.parameters(), *a.buffers())}
    devices_b = {tensor.device for tensor in (*b.parameters(), *b.buffers())}
    if len(devices_a | devices_b) > 1:
        raise ValueError(
            f"a is on {_listed_devices(devices_a)} and b on {_listed_devices(devices_b)}; move both"
            " to one device"
        )


def _listed_devices(devices: set[torch.device]) -> str:
    return " and ".join(sorted(map(str, devices))) or "none"
