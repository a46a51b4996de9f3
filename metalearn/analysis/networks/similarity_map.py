"""Every layer of one network against every layer of another, in one pass over a loader."""

from __future__ import annotations

import math
import operator
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.analysis.checks import check_draws, check_kind, listed
from metalearn.analysis.measures.chance import Floor, chosen_draws, rearranged
from metalearn.analysis.measures.inputs import Rounding, real_tensor
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.network.activations import _split, layer_output
from metalearn.network.forward import Inputs, arguments
from metalearn.network.layers import layers
from metalearn.network.modes import evaluation_mode
from metalearn.runtime import progress as _progress
from metalearn.runtime.tables import Tabular, plain

from .batches import ToInputs, count, inputs_of, is_one_batch, loader_of, running, to_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Paths: TypeAlias = dict[
    str, tuple[str, str]
]  # name of a layer -> its module, and which entry of what that puts out

CONVENTION = (
    "debiased minibatch linear CKA; an image a row, all its channels and positions as features"
)
FEWEST = 4  # images in a batch: the U-statistic divides by n - 3
STRIPES = (
    4  # in which a Gram matrix is taken: most of what lies above its diagonal need not be computed
)
COARSE = 4e-6  # rounding of a float32 Gram matrix that would show in a similarity
CHUNK = 2**20  # numbers in float64 at a time
PAIRS = 1024  # of images at a time, in all draws at once


@dataclass(frozen=True)
class SimilarityMap(Pictured, Tabular):
    """The similarity of every pair of layers; `found["layer1.0", "encoder.ln"]` is one of them, and
    it prints as a table.

    Attributes:
        values: (layers of a, layers of b), float64, at most 1 and about 0 for unrelated layers; NaN
            where a layer has no similarity.
        layers_a, layers_b: their names, in order.
        examples, batches: how many images, in how many batches.
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
        """Median and 95 % quantile of what unrelated layers score, over all pairs and draws."""
        return Floor.of(self.chance[np.isfinite(self.chance)])._replace(draws=len(self.chance))

    def __getitem__(self, pair: tuple[str, str]) -> float:
        for layer, known in zip(pair, (self.layers_a, self.layers_b), strict=True):
            if layer not in known:
                raise KeyError(f"no layer {layer!r} was compared; these were: {', '.join(known)}")
        return float(self.values[self.layers_a.index(pair[0]), self.layers_b.index(pair[1])])

    def __str__(self) -> str:
        width = max(map(len, self.layers_a))
        cells = [
            ["  -" if np.isnan(value) else f"{round(100 * value):3d}" for value in row]
            for row in self.values
        ]
        rows = [
            f"{i:3d} {name:{width}} {' '.join(row)}"
            for i, (name, row) in enumerate(zip(self.layers_a, cells, strict=True), 1)
        ]
        header = (
            f"{'':{width + 4}}"
            f" {' '.join(f'{number:3d}' for number in range(1, len(self.layers_b) + 1))}"
        )
        columns = ", ".join(
            f"{number}\N{NO-BREAK SPACE}{name}" for number, name in enumerate(self.layers_b, 1)
        )
        told = [
            f"hundredths; rows: a ({self.networks[0]}); columns: b ({self.networks[1]}), "
            + ("the same layers" if self.layers_a == self.layers_b else columns),
            (
                f"{CONVENTION}; {self.examples} images in {self.batches}"
                f" batch{'es' * (self.batches > 1)}"
            ),
            *self.notes,
        ]
        if np.isfinite(self.floor.median):
            median, upper, draws = self.floor
            told[1] += (
                f"; with one side's images shuffled {median:.3f} (median) and {upper:.3f} (95 %),"
                f" {draws} draws"
            )
        wrapped = [
            part for line in told for part in textwrap.wrap(line, 120, break_long_words=False)
        ]
        return "\n".join([header, *rows, *wrapped]).replace("\N{NO-BREAK SPACE}", " ")

    def records(self) -> list[dict[str, Any]]:
        """A row for each pair of layers."""
        records = []
        for i, layer_a in enumerate(self.layers_a):
            for j, layer_b in enumerate(self.layers_b):
                similarity = float(self.values[i, j])
                records.append({"layer_a": layer_a, "layer_b": layer_b, "similarity": similarity})
        return records

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values, with the floor for the single draws; NaN is None."""
        names = (
            "values",
            "layers_a",
            "layers_b",
            "examples",
            "batches",
            "floor",
            "networks",
            "notes",
        )
        return plain(
            {
                "measure": CONVENTION,
                **{name: getattr(self, name) for name in names},
                "draws": len(self.chance),
            }
        )

    def figure(self) -> Figure:
        """The heatmap as a matplotlib `Figure`."""
        from metalearn.analysis.plotting.heatmap import heatmap

        return heatmap(self.values, (self.layers_a, self.layers_b), self.networks, self.floor.upper)


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
    """Debiased minibatch CKA of every layer of `a` against every layer of `b`, in one pass over
    `loader` -> `SimilarityMap`.

    `sum_batches HSIC_1(K, L) / sqrt(sum HSIC_1(K, K) sum HSIC_1(L, L))` with `K`, `L` the linear
    Gram matrices of a batch's activations, flattened, and HSIC_1 the U-statistic, not divided by
    n(n-3), so that a short last batch counts for less (Nguyen et al. 2021, arXiv:2010.15327). With
    one batch it is `linear_cka`, to 1e-5.

    Both networks see the same batch, in evaluation mode and under no_grad, whatever the loader's
    shuffle; where `a is b` it runs once. Gram matrices are taken as the layers run, so that
    activations are not held; they are float32, or float64 where that would show (or torch is set to
    TF32 or bfloat16 products), and then the batch in which that shows runs twice. Sums are float64.
    On a CPU images are put in channels-last order, which is faster, unless the network cannot
    `view` its activations then. Memory: layers x n² x 8 bytes for batches of n images.

    Args:
        a, b: networks of any depth and family, on one device.
        loader: an iterable of batches of four images or more each; or one batch: a tensor (n, ...),
            or a dictionary of several inputs. A batch of a loader is a tensor, a dictionary
            (`input_ids`, `attention_mask`, ...; its labels are left out), or a tuple that begins
            with the inputs: a tensor, a dictionary, or a tuple of inputs by position.
        to_inputs: from a batch to what the networks are called with, for batches of any other form.
        layers_a, layers_b: names of modules, or of one entry of what they put out ("lstm:0"); by
            default `metalearn.layers(network)`.
        draws: how often the floor shuffles the images of `b` within each batch; by default 200
            times if that is cheap over all pairs of layers and batches, else 20 (`chosen_draws`; 20
            for a loader without a length). The table prints the number.
        seed: what the floor's draws depend on.
        progress: show the progress on standard error, where the loader has a length.

    Raises:
        ValueError: an empty loader; a batch of fewer than 4 images (one that comes last is left
            out, with a warning); networks on more than one device; a layer that does not exist, ran
            twice or never, puts out something else than one tensor with a row an image, or a value
            that is not finite. A layer that puts out the same for all images has NaN, and a note.
        TypeError: what should be a loader, or a list of names, is something else.

    Example:
        >>> images = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> wide, deep = (nn.Sequential(nn.Linear(4, 8), *(nn.Linear(8, 8) for _ in range(k))) for k in (1, 3))
        >>> found = similarity_map(wide, deep, images.split(16))
        >>> found.values.shape, found.examples, -1 < found["1", "3"] < 1
        ((2, 4), 64, True)
    """
    draws, seed = check_draws(draws, seed)
    paths_a, paths_b = _paths(a, layers_a, "a"), _paths(b, layers_b, "b")
    _same_device(a, b)
    sums: _Sums | None = None
    read_a, read_b = (
        _Reader(a, "a", paths_a | paths_b if a is b else paths_a),
        _Reader(b, "b", paths_b),
    )
    total = 1 if is_one_batch(loader) else operator.length_hint(loader, 0)
    shown = progress and total > 0
    with (
        evaluation_mode([a, b]),
        torch.no_grad(),
        _progress.progress("similarity map", total, unit="batch", shown=shown) as advance,
    ):
        for inputs in _batches(loader, to_inputs):
            left = read_a(inputs)
            right = left if a is b else read_b(inputs)
            if sums is None:
                chosen = chosen_draws(
                    draws,
                    (total or math.inf) * _operations(count(inputs), len(paths_a), len(paths_b)),
                )
                sums = _Sums(list(paths_a), list(paths_b), chosen, seed)
            sums.add(left, right, count(inputs))
            advance()
    assert sums is not None  # `_batches` raises where there is none
    return sums.map((type(a).__name__, type(b).__name__))


def _operations(images: int, layers_a: int, layers_b: int) -> float:
    """Of one draw in one batch: every pair of images is looked up in each layer of b, which takes
    about four, and multiplied.
    """
    return images**2 / 2 * layers_b * (4 + 2 * layers_a)


class _Sums:
    """What is summed over batches, in float64: HSIC_1 (but for a factor) between layers, of each
    with itself, and of shuffled images.
    """

    def __init__(self, names_a: list[str], names_b: list[str], draws: int, seed: int) -> None:
        self.names = names_a, names_b
        self.cross = torch.zeros(len(names_a), len(names_b), dtype=torch.float64)
        self.chance = torch.zeros(draws, *self.cross.shape, dtype=torch.float64)
        self.own = [torch.zeros(len(names), dtype=torch.float64) for names in self.names]
        self.generator = torch.Generator().manual_seed(seed)
        self.examples = self.batches = 0

    def add(self, a: dict[str, Tensor], b: dict[str, Tensor], images: int) -> None:
        left = torch.stack([a[name] for name in self.names[0]])
        right = (
            left
            if a is b and self.names[0] == self.names[1]
            else torch.stack([b[name] for name in self.names[1]])
        )
        self.cross += (left @ right.T).cpu()
        for own, pairs in zip(self.own, (left, right), strict=True):
            own += pairs.square().sum(1).cpu()
        self._add_chance(
            left.float(), right.float().T.contiguous(), images
        )  # which needs no more digits
        self.examples += images
        self.batches += 1

    def _add_chance(self, left: Tensor, right: Tensor, images: int) -> None:
        if not len(self.chance):
            return
        orders = torch.stack(
            [
                _shuffled_pairs(order)
                for order in rearranged(images, images, self.generator, len(self.chance))
            ],
            1,
        ).to(right.device)
        total = torch.zeros(
            len(left), len(self.chance) * right.shape[1], dtype=torch.float64, device=right.device
        )
        for part, order in zip(left.split(PAIRS, 1), orders.split(PAIRS), strict=True):
            total += part @ right.index_select(0, order.flatten()).view(len(order), -1)
        self.chance += total.cpu().unflatten(1, (len(self.chance), -1)).movedim(1, 0)

    def map(self, networks: tuple[str, str]) -> SimilarityMap:
        notes = []
        for side, network in enumerate("ab"):
            lost = self.own[side] == 0
            self.own[side][lost] = torch.nan
            names = [name for name, is_lost in zip(self.names[side], lost, strict=True) if is_lost]
            if names:
                notes.append(
                    f"no similarity (-) for {', '.join(names)} of {network}: but for rounding, what"
                    " it puts out is constant over the images, or as far apart for any two of them"
                    " (a dead layer?)"
                )
        size = torch.outer(*(own.sqrt() for own in self.own))
        values, chance = (self.cross / size).clamp(-1, 1), self.chance / size
        a, b = map(tuple, self.names)
        return SimilarityMap(
            values.numpy(),
            a,
            b,
            self.examples,
            self.batches,
            chance.numpy(),
            networks,
            tuple(notes),
        )


class _Reader:
    """Runs one network on a batch -> layer: the pairs of its centred Gram matrix.

    A Gram matrix is taken while the layer runs, before what follows can write into its output, in
    float32. A layer of which that turns out too coarse (its activations hardly differ between
    images) is read in float64 from then on, and the batch once more.
    """

    def __init__(self, network: nn.Module, side: str, paths: Paths) -> None:
        self.network, self.side, self.paths = network, side, paths
        self.fine: set[str] = set() if _float32_is_exact() else set(paths)
        self.channels_last = True
        self.like = next((tensor for tensor in (*network.parameters(), *network.buffers())), None)

    def __call__(self, inputs: Inputs) -> dict[str, Tensor]:
        inputs = to_device(inputs, self.like)
        with running(self.network, inputs, self.side):
            if (
                self.channels_last
                and isinstance(inputs, Tensor)
                and inputs.ndim == 4
                and inputs.device.type == "cpu"
            ):
                try:  # pooling and normalisation are faster so
                    return self._read(inputs.contiguous(memory_format=torch.channels_last))
                except RuntimeError as error:
                    if "view size is not compatible" not in str(error):
                        raise
                    self.channels_last = False  # the network asks for another order with view()
            return self._read(inputs)

    def _read(self, inputs: Inputs) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        self._run(inputs, found)
        noise = {}
        for name in [name for name in found if name not in self.fine]:
            found[name], trace = _centred_pairs(found[name])
            # Products are off by about eps |x_i| |x_j|; of that, one part in n falls upon the
            # direction of another layer's matrix.
            noise[name] = float(
                torch.finfo(torch.float32).eps * trace / (count(inputs) * found[name].norm())
            )
        if all(share < COARSE for share in noise.values()):
            return found
        self.fine.update(name for name, share in noise.items() if not share < COARSE / 4)
        return self._read(inputs)

    def _run(self, inputs: Inputs, found: dict[str, Tensor]) -> None:
        hooks = [
            self.network.get_submodule(path).register_forward_hook(
                self._hook(name, path, entry, count(inputs), found)
            )
            for name, (path, entry) in self.paths.items()
        ]
        try:
            args, kwargs = arguments(inputs)
            self.network(*args, **kwargs)
        finally:
            for handle in hooks:
                handle.remove()
        missing = [name for name in self.paths if name not in found]
        if missing:
            raise ValueError(
                f"layer {missing[0]!r} of {self.side} did not run in the forward pass; name a layer"
                " that does"
            )

    def _hook(
        self, name: str, path: str, entry: str, images: int, found: dict[str, Tensor]
    ) -> Callable[[nn.Module, Any, Any], None]:
        def read(module: nn.Module, inputs: Any, output: Any) -> None:
            label = f"layer {name!r} of {self.side}"
            if name in found:
                raise ValueError(
                    f"{label} ran twice in the forward pass, so it has no one output; name a layer"
                    " that runs once"
                )
            rows = _rows(real_tensor(layer_output(output, path, entry), label), images, label)
            rows = rows if rows.is_floating_point() else rows.double()
            if rows.dtype == torch.float64:
                self.fine.add(name)
            found[name] = _fine_pairs(rows, label) if name in self.fine else _product(rows)

        return read


def _rows(output: Tensor, images: int, label: str) -> Tensor:
    """A layer's output as (images, features)."""
    if output.ndim < 1 or len(output) != images:
        raise ValueError(
            f"{label} puts out {tuple(output.shape)} for {images} images: its first dimension is"
            " not the images; name a layer before or after it"
        )
    # The order of features does not matter, and the order in memory (channels last, say) needs no
    # copy.
    order = sorted(range(1, output.ndim), key=output.stride, reverse=True)
    return output.detach().permute(0, *order).reshape(images, -1)


def _product(rows: Tensor) -> Tensor:
    """The Gram matrix of (n, features) on and below its diagonal, in float32."""
    n = len(rows)
    step = -(-n // STRIPES)
    gram = torch.empty(n, n, device=rows.device)
    with torch.autocast(rows.device.type, enabled=False):
        rows = rows.float()
        for i in range(0, n, step):
            torch.mm(rows[i : i + step], rows[: i + step].T, out=gram[i : i + step, : i + step])
    return gram


def _fine_pairs(rows: Tensor, label: str) -> Tensor:
    """The pairs of the centred Gram matrix of (n, features), all in float64; 0 where nothing is
    left of it.
    """
    gram, level = _exact_product(rows)
    pairs, trace = _centred_pairs(gram)
    if not bool((trace + level).isfinite()):
        wrong = int((~rows.isfinite()).sum())
        raise ValueError(
            f"{label} puts out {wrong} values that are NaN or infinite; find where activations"
            " overflow"
        )
    digits = (
        4 * torch.finfo(torch.promote_types(rows.dtype, torch.float32)).eps
    )  # of the arithmetic
    stored = max(digits, Rounding.of(rows.dtype).relative)  # of the activations themselves
    lost = trace <= stored**2 * level or pairs.norm() <= digits * trace
    return torch.zeros_like(pairs) if lost else pairs


def _exact_product(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix (n, n) of the centred features in float64, and the squared norm of what
    centring took away.
    """
    n = len(rows)
    rows = rows.cpu() if rows.device.type == "mps" else rows  # which has no float64
    gram, level = rows.new_zeros(n, n, dtype=torch.float64), rows.new_zeros((), dtype=torch.float64)
    for part in rows.split(max(1, CHUNK // n), 1):
        part = part.double()
        mean = part.mean(0)
        part = part - mean
        gram.addmm_(part, part.T)
        level += n * mean.square().sum()
    return gram, level


def _centred_pairs(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs (n (n - 1) / 2,) below the diagonal of a Gram matrix, centred for the U-statistic,
    and its trace, in float64.

    Szekely and Rizzo 2014: the inner product of two such is HSIC_1 but for the factor n(n-3) / 2.
    """
    n = len(gram)
    gram = (gram.cpu() if gram.device.type == "mps" else gram).double()
    trace = gram.trace()
    gram = gram.tril(-1)
    means = (gram.sum(0) + gram.sum(1)) / (n - 2)
    means -= means.sum() / (2 * (n - 1))
    i, j = torch.tril_indices(n, n, -1, device=gram.device)
    return (gram - means[:, None] - means)[i, j], trace


def _float32_is_exact() -> bool:
    """Whether torch multiplies float32 matrices as such, not as TF32 or bfloat16; it raises where
    the setting is a mixture.
    """
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:
        return False


def _shuffled_pairs(order: Tensor) -> Tensor:
    """Where the pairs below the diagonal of a matrix come from when its rows and columns are put in
    another order.
    """
    i, j = torch.tril_indices(len(order), len(order), -1)
    first = order * (order - 1) // 2  # where a row begins; the later it is, the larger
    return (torch.maximum(first[:, None], first) + torch.minimum(order[:, None], order))[i, j]


def _batches(loader: Any, to_inputs: ToInputs | None) -> Iterator[Inputs]:
    """The inputs of each batch.

    Raises where there are none or too few in one; the last is left out, with a warning.
    """
    short, number = "", 0
    for number, batch in enumerate(loader_of(loader), 1):
        if short:
            raise ValueError(f"{short}; take larger batches")
        inputs = inputs_of(batch, f"batch {number} of the loader", to_inputs)
        if count(inputs) < FEWEST:
            short = (
                f"batch {number} has {count(inputs)} images, and the debiased measure needs"
                f" {FEWEST}"
            )
        else:
            yield inputs
    if not number:
        raise ValueError("the loader gave no batch (an iterator gives its batches only once)")
    if short and number == 1:
        raise ValueError(f"{short}; take larger batches")
    if short:
        warnings.warn(f"{short}: as the last one, it is left out", stacklevel=3)


def _paths(network: nn.Module, names: Sequence[str] | None, side: str) -> Paths:
    check_kind(network, nn.Module, side, "give a network (an nn.Module)")
    chosen = layers(network) if names is None else listed(names, f"layers_{side}")
    known = dict(network.named_modules(remove_duplicate=False))
    for name in chosen:
        check_kind(name, str, f"layers_{side} holds {name!r}, which", "give names of modules")
    if not chosen:
        raise ValueError(
            f"{side} ({type(network).__name__}) has no layers to compare; name modules with"
            f" layers_{side}="
        )
    twice = [name for i, name in enumerate(chosen) if name in chosen[:i]]
    if twice:
        raise ValueError(f"layers_{side} names {twice[0]!r} twice")
    return {name: (name, "") if name in known else _split(network, name) for name in chosen}


def _same_device(a: nn.Module, b: nn.Module) -> None:
    devices = [
        {tensor.device for tensor in (*network.parameters(), *network.buffers())}
        for network in (a, b)
    ]
    if len(devices[0] | devices[1]) > 1:
        on_a, on_b = (" and ".join(sorted(map(str, side))) or "none" for side in devices)
        raise ValueError(f"a is on {on_a} and b on {on_b}; move both to one device")
