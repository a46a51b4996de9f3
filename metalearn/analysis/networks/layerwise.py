"""How similar each layer is in two networks: the one comparison that every other question here
calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.analysis.checks import check_draws, check_whole, listed
from metalearn.analysis.measures.cca import CCA_FAMILY
from metalearn.analysis.measures.chance import (
    Floor,
    arrangements,
    check_options,
    chosen_draws,
    measured,
    operations,
)
from metalearn.analysis.measures.inputs import Undefined, cautions, real_tensor
from metalearn.analysis.measures.streaming import Streaming
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.network.activations import representations
from metalearn.network.forward import Inputs, arguments
from metalearn.network.layers import layers as layer_names
from metalearn.network.modes import evaluation_mode
from metalearn.runtime import progress as _progress
from metalearn.runtime.statistics import holm, p_value
from metalearn.runtime.tables import Tabular, aligned, plain

from .batches import ToInputs, count, inputs_of, is_one_batch, loader_of, running, to_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Network: TypeAlias = nn.Module | tuple[nn.Module, Mapping[str, Tensor]] | Mapping[str, Tensor]

CONVENTIONS = {
    "flatten": "an example a row, all its channels and positions as features",
    "positions": "a position of an example a row, its channels as features",
    "pool": "an example a row, its channels averaged over positions as features",
}

# Positions of the images of one task that CCA takes: so many for each channel, and at least
# `FEWEST_ROWS`, or all that there are.
PER_FEATURE = 30
FEWEST_ROWS = 1000

# Bytes of one layer's moments over a loader: the largest that is begun.
MOST_MOMENTS = 4 * 2**30


@dataclass(frozen=True)
class LayerSimilarity:
    """One layer of two networks: the similarity, its values with one side shuffled, and the
    `examples` and `features` it was taken over.

    Where the measure says nothing at this size, `similarity` is NaN and `note` says why. `orders`
    is how many different shuffles there are.
    """

    layer: str
    similarity: float
    chance: np.ndarray
    examples: int
    features: tuple[int, int]
    note: str = ""
    orders: float = math.inf

    @property
    def floor(self) -> Floor:
        """Median and 95 % quantile of the shuffled values."""
        return Floor.of(self.chance)

    @property
    def p(self) -> float:
        """The add-one p value under chance, of this layer alone (`p_value`); NaN without a
        similarity or without draws.
        """
        return p_value(self.similarity, self.chance, self.orders)


@dataclass(frozen=True)
class Profile(Pictured, Tabular):
    """Per-layer similarities of two networks under one measure and one convention; prints as a
    table.

    `streamed` says what was summed over which batches, where the inputs were a loader.
    """

    measure: str
    convention: str
    layers: tuple[LayerSimilarity, ...]
    streamed: str = ""

    def __getitem__(self, layer: str) -> LayerSimilarity:
        for row in self.layers:
            if row.layer == layer:
                return row
        raise KeyError(
            f"no layer {layer!r} was compared; these were:"
            f" {', '.join(row.layer for row in self.layers)}"
        )

    @property
    def adjusted(self) -> tuple[float, ...]:
        """The p value of each layer, corrected over the layers (`holm`)."""
        return tuple(holm([row.p for row in self.layers]))

    def __str__(self) -> str:
        rows = [
            (
                row.layer,
                f"{row.similarity:.4f}",
                f"{row.floor.median:.3f}",
                f"{row.floor.upper:.3f}",
                shown_p(p),
                f"{row.examples} x {_width(row.features)}",
                row.note,
            )
            for row, p in zip(self.layers, self.adjusted, strict=True)
        ]
        table = aligned(("layer", self.measure, "chance", "95 %", "p", "n x d", ""), rows)
        shuffled = "neurons" if self.measure == "subspace" else "examples"
        within = " within each batch" if self.streamed and shuffled == "examples" else ""
        draws = max((len(row.chance) for row in self.layers), default=0)
        p = f"{draws} draws for chance; p: {corrected(draws)}"
        chance = f"chance: one side's {shuffled} shuffled{within}"
        convention = f"{self.measure}: {CONVENTIONS[self.convention]}"
        return f"{table}\n({'; '.join(filter(None, (convention, p, self.streamed, chance)))})"

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of numbers and names."""
        return list(self.to_dict()["layers"])

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON-able values; NaN is None."""
        names = ("layer", "similarity", "floor", "p", "examples", "features", "note")
        rows = [
            {**{name: getattr(row, name) for name in names}, "p_adjusted": p}
            for row, p in zip(self.layers, self.adjusted, strict=True)
        ]
        return plain(
            {
                "measure": self.measure,
                "convention": self.convention,
                "streamed": self.streamed,
                "layers": rows,
            }
        )

    def figure(self) -> Figure:
        """The similarity of every layer with the band of chance, as a matplotlib `Figure`."""
        from metalearn.analysis.plotting.layers import similarities

        names = [row.layer for row in self.layers]
        values = [row.similarity for row in self.layers]
        return similarities(names, values, [row.floor for row in self.layers], self.measure)


def shown_p(p: float) -> str:
    """A p value as tables print it.

    Example:
        >>> shown_p(0.0249), shown_p(float("nan"))
        ('0.025', '-')
    """
    return "-" if math.isnan(p) else f"{p:.2g}"


def corrected(draws: int) -> str:
    """What the column of p values holds.

    Example:
        >>> corrected(200)
        'add-one (0.005 or more), corrected over the layers (Holm)'
    """
    return (
        f"add-one ({1 / (1 + draws):.2g} or more), corrected over the layers (Holm)"
        if draws
        else "none without draws"
    )


def compare_layers(
    before: Network,
    after: Network,
    inputs: Tensor | Mapping[str, Any] | Iterable[Any] | None = None,
    layers: Sequence[str | tuple[str, str]] | None = None,
    *,
    to_inputs: ToInputs | None = None,
    measure: str = "linear_cka",
    convention: str | None = None,
    groups: int | None = None,
    rows: int = 30_000,
    draws: int | None = None,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Profile:
    """How similar each layer's output is in two networks on the same inputs, with the floor that
    unrelated features score -> `Profile`.

    Over a loader nothing is held but sums (`Streaming`): both networks see the same batch, so it
    may shuffle. From moments, equal to the comparison in memory, and (3 + draws) features² numbers
    a layer; where `linear_cka` flattens, and for `rbf_cka`, minibatch CKA, which depends on the
    batches. The table says which.

    Args:
        before, after: each a module, a module with the weights to run it under `(module,
            {parameter: tensor})`, or outputs captured earlier `{layer: (examples, ...)}`. Modules
            run in evaluation mode, under no_grad.
        inputs: (examples, ...) or a dictionary of several inputs, given to both networks in one
            batch; or a loader, any iterable of batches; None where both are captured outputs. A
            batch is a tensor, a dictionary (`input_ids`, `attention_mask`, ...; its labels are left
            out), or a tuple that begins with the inputs: a tensor, a dictionary, or a tuple of
            inputs by position.
        to_inputs: from a batch to what the networks are called with, for batches of any other form.
        layers: names, or pairs (name in `before`, name in `after`); by default the layers that both
            have. One that puts out a tuple or a dictionary is named with its entry, "lstm:0".
        measure: "cca", "svcca", "pwcca", "linear_cka", "rbf_cka", "procrustes" or "subspace";
            `options` are that function's.
        convention: how (examples, channels, height, width), or tokens (examples, positions,
            features), become a matrix: "flatten" (the default, as Kornblith's and BOIL's CKA),
            "positions" (the default for the CCA family, as SVCCA and ANIL) or "pool".
        groups: how many equal consecutive blocks of examples the floor shuffles whole, such as
            tasks; each example is one by default, and always over a loader.
        rows: about how many rows "positions" keeps (over a loader: of its first batch), by taking
            the same random positions of every example.
        draws: how often the floor shuffles; by default 200 times if that is cheap over all layers
            and batches, else 20 (`chosen_draws`); 20 over a loader without a length. The table
            prints the number.
        seed: what the floor's draws and the positions depend on.
        progress: show the progress over a loader on standard error.

    Raises:
        ValueError: naming the layer, where it does not exist, its activations are not finite, the
            two do not fit, or it ran twice or never; networks on different devices; an empty
            loader.

    Example:
        >>> a, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(100, 4)
        >>> b = {name: 2 * weight for name, weight in a.named_parameters()}
        >>> round(compare_layers(a, (a, b), x)["0"].similarity, 4)
        1.0
        >>> round(compare_layers(a, (a, b), x.split(30), measure="procrustes")["0"].similarity, 4)
        1.0
    """
    check_options(measure, options)
    draws, seed = check_draws(draws, seed)
    convention = convention or ("positions" if measure in CCA_FAMILY else "flatten")
    if convention not in CONVENTIONS:
        raise ValueError(
            f"there is no convention {convention!r}; there are {', '.join(CONVENTIONS)}"
        )
    rows = check_whole(rows, "rows", 1, "it is about how many rows 'positions' keeps")
    pairs = _pairs(before, after, layers)
    _same_device(before, after)
    if inputs is not None and not is_one_batch(inputs):
        if isinstance(before, Mapping) or isinstance(after, Mapping):
            raise ValueError(
                "outputs captured earlier have no batches to run on: give two networks with a"
                " loader, or no inputs"
            )
        if groups is not None:
            raise ValueError(
                f"groups={groups}: over a loader the floor shuffles single examples within each"
                " batch; leave groups out"
            )
        streams = _Streams(measure, convention, pairs, draws=draws, seed=seed, **options)
        return streams.over(inputs, before, after, to_inputs, rows=rows, progress=progress)
    given = None if inputs is None else inputs_of(inputs, "inputs", to_inputs)
    left = _outputs(before, [a for a, _ in pairs], given, "before")
    right = _outputs(after, [b for _, b in pairs], given, "after")
    draws = chosen_draws(
        draws, sum(_operations(measure, left[a], right[b], convention, rows) for a, b in pairs)
    )
    found = []
    for a, b in pairs:
        with _named(a, b) as name:
            x, y = _matrices(left[a], right[b], convention, rows, seed)
            blocks = len(left[a]) if groups is None else groups
            found.append(
                _layer(name, x, y, measure, groups=blocks, draws=draws, seed=seed, **options)
            )
    return Profile(measure, convention, tuple(found))


@contextmanager
def _named(a: str, b: str) -> Iterator[str]:
    """What a pair of layers is called in the table, and in the errors of what is done with it."""
    name = a if a == b else f"{a} / {b}"
    try:
        yield name
    except ValueError as error:
        raise ValueError(f"layer {name}: {error}") from error


def _operations(measure: str, before: Tensor, after: Tensor, convention: str, rows: int) -> float:
    """Of one draw of a layer's floor; the matrices are made on the meta device, which holds no
    values.
    """
    x, y = (_matrix(output.to("meta"), convention, rows, 0) for output in (before, after))
    return operations(measure, len(x), (x.shape[1], y.shape[1]))


def _layer(
    name: str, x: Tensor, y: Tensor, measure: str, *, groups: int, **options: Any
) -> LayerSimilarity:
    sizes = len(x), (x.shape[1], y.shape[1])
    try:
        with cautions() as notes:
            value, chance = measured(measure, x, y, groups=groups, **options)
    except Undefined as reason:
        return LayerSimilarity(
            name, float("nan"), np.full(options["draws"], np.nan), *sizes, note=str(reason)
        )
    orders = arrangements(x.shape[1] if measure == "subspace" else groups)
    return LayerSimilarity(name, value, chance, *sizes, note="; ".join(notes), orders=orders)


class _Streams:
    """A stream of sums for each pair of layers."""

    def __init__(
        self,
        measure: str,
        convention: str,
        pairs: Sequence[tuple[str, str]],
        *,
        draws: int | None,
        seed: int,
        **options: Any,
    ) -> None:
        self.minibatch = measure == "rbf_cka" or (
            measure == "linear_cka" and convention == "flatten"
        )
        self.measure, self.convention, self.seed, self.draws = measure, convention, seed, draws
        self.streams = {
            pair: Streaming(measure, minibatch=self.minibatch, seed=seed, **options)
            for pair in pairs
        }
        self.undefined: dict[tuple[str, str], str] = {}
        self.sizes: list[int] = []

    def over(
        self,
        loader: Any,
        before: Network,
        after: Network,
        to_inputs: ToInputs | None,
        *,
        rows: int,
        progress: bool,
    ) -> Profile:
        """Run both networks over the loader, then compare."""
        with _progress.progress(
            "comparing layers", _length(loader), unit="batch", shown=progress
        ) as advance:
            for number, batch in enumerate(loader_of(loader), 1):
                inputs = inputs_of(batch, f"batch {number} of the loader", to_inputs)
                left = _outputs(before, [a for a, _ in self.streams], inputs, "before")
                right = _outputs(after, [b for _, b in self.streams], inputs, "after")
                self.sizes.append(count(inputs))
                if number == 1:
                    self._choose_draws(left, right, rows, _length(loader))
                self._add(left, right, max(1, rows // self.sizes[0]) * self.sizes[-1])
                advance()
        if not self.sizes:
            raise ValueError(
                "the loader gave no batch, so there is nothing to compare; an iterator that was"
                " used up gives none either"
            )
        return Profile(
            self.measure,
            self.convention,
            tuple(self._layer(*pair) for pair in self.streams),
            self._how(),
        )

    def _choose_draws(
        self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], rows: int, batches: int
    ) -> None:
        """Decide by the size of the first batch and the number of batches, which a loader without a
        length leaves open.
        """
        one_batch = sum(self._operations(left[a], right[b], rows) for a, b in self.streams)
        draws = chosen_draws(self.draws, one_batch * (batches or math.inf))
        for stream in self.streams.values():
            stream.draws = draws

    def _operations(self, before: Tensor, after: Tensor, rows: int) -> float:
        x, y = (_matrix(output.to("meta"), self.convention, rows, 0) for output in (before, after))
        if self.minibatch:
            return operations("rbf_cka", len(x), (x.shape[1], y.shape[1]))
        # Adding moments of features² to the sums costs about as much as ten examples more.
        return (
            operations(self.measure, len(x) + 10, (x.shape[1], y.shape[1]))
            + 2.0 * (len(x) + 10) * x.shape[1] * y.shape[1]
        )

    def _add(self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], rows: int) -> None:
        for (a, b), stream in self.streams.items():
            with _named(a, b):
                x, y = _matrices(left[a], right[b], self.convention, rows, self.seed)
                size = (
                    0
                    if self.minibatch
                    else 8 * (3 + stream.draws) * max(x.shape[1], y.shape[1]) ** 2
                )
                if size > MOST_MOMENTS:
                    raise ValueError(
                        f"{x.shape[1]} and {y.shape[1]} features need {size / 2**30:,.0f} GiB of"
                        " moments; take convention='pool' or 'positions', linear_cka, or fewer"
                        " draws"
                    )
                try:
                    stream.update(x, y, groups=self.sizes[-1])
                except Undefined as reason:
                    self.undefined[a, b] = f"{reason} (in a batch)"

    def _layer(self, a: str, b: str) -> LayerSimilarity:
        stream = self.streams[a, b]
        with _named(a, b) as name:
            try:
                if (a, b) in self.undefined:
                    raise Undefined(self.undefined[a, b])
                with cautions() as notes:
                    value, chance = stream.compute(), stream.chance()
            except Undefined as reason:
                return LayerSimilarity(
                    name,
                    float("nan"),
                    np.full(stream.draws, np.nan),
                    stream.examples,
                    stream.features,
                    str(reason),
                )
        if stream.draws and not len(chance):
            notes.append(
                "no floor: every batch holds one example, which has no other place; take larger"
                " batches"
            )
        return LayerSimilarity(
            name, value, chance, stream.examples, stream.features, "; ".join(notes)
        )

    def _how(self) -> str:
        largest, count = max(self.sizes), len(self.sizes)
        batches = (
            f"{count} batch{'es' * (count > 1)} of"
            f" {'up to ' * (min(self.sizes) < largest)}{largest}"
        )
        return (
            f"minibatch CKA over {batches}, which it depends on"
            if self.minibatch
            else f"moments summed over {batches}"
        )


def _length(loader: Iterable[Any]) -> int:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:  # a loader of an iterable data set does not know
        return 0


def _pairs(
    before: Network, after: Network, layers: Sequence[str | tuple[str, str]] | None
) -> list[tuple[str, str]]:
    if layers is not None:
        return [_pair(layer) for layer in listed(layers, "layers")]
    first, second = (
        list(side) if isinstance(side, Mapping) else layer_names(_module(side))
        for side in (before, after)
    )
    shared = [name for name in first if name in second]
    if not shared:
        raise ValueError(
            f"the two networks share no layer name ({', '.join(first)} against"
            f" {', '.join(second)}); name pairs: layers=[(a, b), ...]"
        )
    return [(name, name) for name in shared]


def _pair(layer: Any) -> tuple[str, str]:
    pair = (layer, layer) if isinstance(layer, str) else layer
    if (
        not isinstance(pair, tuple)
        or len(pair) != 2
        or not all(isinstance(name, str) for name in pair)
    ):
        raise TypeError(
            f"layers holds {layer!r}; each is a name, or a pair (name in before, name in after)"
        )
    return pair


def _module(network: Network) -> nn.Module:
    module = network[0] if isinstance(network, tuple) else network
    if not isinstance(module, nn.Module):
        raise TypeError(
            "a network is a module, (module, weights) or captured outputs {layer: tensor}, not"
            f" {type(network).__name__}"
        )
    return module


def _same_device(before: Network, after: Network) -> None:
    here, there = (
        None if isinstance(network, Mapping) else _like(network) for network in (before, after)
    )
    if here is not None and there is not None and here.device != there.device:
        raise ValueError(
            f"before is on {here.device} and after is on {there.device}; move one of them:"
            f" after.to({str(here.device)!r})"
        )


def _like(network: Network) -> Tensor | None:
    """A tensor on the network's device and in its precision; None where it holds none."""
    module, weights = network if isinstance(network, tuple) else (_module(network), {})
    return next(
        (
            weights.get(name, tensor)
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        ),
        None,
    )


def _outputs(
    network: Network, names: Sequence[str], inputs: Inputs | None, side: str
) -> Mapping[str, Tensor]:
    """What the layers put out; the first of them that is not finite is named, which the later ones
    only follow.
    """
    found = (
        _captured(network, names)
        if isinstance(network, Mapping)
        else _run(network, names, inputs, side)
    )
    for name in names:
        # Narrow floats have no isfinite of their own.
        narrow = found[name].is_floating_point() and found[name].itemsize == 1
        wrong = int((~(found[name].float() if narrow else found[name]).isfinite()).sum())
        if wrong:
            raise ValueError(
                f"{side}: layer {name!r} puts out {wrong} values that are NaN or infinite; find"
                " where activations overflow"
            )
    return found


def _captured(outputs: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Tensor]:
    missing = [name for name in names if name not in outputs]
    if missing:
        raise ValueError(
            f"no outputs of layer {missing[0]!r} were captured; there are"
            f" {', '.join(outputs) or 'none'}"
        )
    found = {name: real_tensor(outputs[name], f"the output of layer {name!r}") for name in names}
    for name, output in found.items():
        if not output.ndim or not output.numel():
            raise ValueError(
                f"the output of layer {name!r} is {tuple(output.shape)}, not (examples, ...) with"
                " at least one example"
            )
    return found


def _run(
    network: Network, names: Sequence[str], inputs: Inputs | None, side: str
) -> Mapping[str, Tensor]:
    module = _module(network)
    if inputs is None:
        raise ValueError(
            "inputs=None: networks that are not captured outputs need inputs (examples, ...) to"
            " run on"
        )
    inputs = to_device(inputs, _like(network))
    args, kwargs = arguments(inputs)
    weights = dict(network[1]) if isinstance(network, tuple) else {}
    with (
        evaluation_mode([module]),
        torch.no_grad(),
        representations(module, dict.fromkeys(names)) as seen,
        running(module, inputs, side),
    ):
        functional_call(module, weights, args, kwargs)
    for name, output in seen.items():
        if not output.ndim or len(output) != count(inputs):
            raise ValueError(
                f"layer {name!r} puts out {tuple(output.shape)} for {count(inputs)} examples;"
                " compare a layer whose first dimension is the examples, or capture the outputs"
                " and turn them round: {layer: (examples, ...)}"
            )
    return seen


def _matrices(
    before: Tensor, after: Tensor, convention: str, rows: int, seed: int
) -> tuple[Tensor, Tensor]:
    x, y = (_matrix(output, convention, rows, seed) for output in (before, after))
    if len(x) != len(y) and len(before) == len(after):
        raise ValueError(
            f"{len(x)} rows before and {len(y)} after: the two have other numbers of positions;"
            " compare them with convention='pool'"
        )
    return x, y


def _matrix(output: Tensor, convention: str, rows: int, seed: int) -> Tensor:
    if output.ndim < 2 or convention == "flatten":
        return output.reshape(len(output), -1)
    if convention == "pool":
        pooled = tokens(output).to(torch.float64).mean(1)
        return pooled.to(output.dtype) if output.is_floating_point() else pooled
    return sample(output, rows, seed).flatten(0, 1)


def tokens(output: Tensor) -> Tensor:
    """Images (examples, channels, height, width), tokens or vectors -> (examples, positions,
    features).
    """
    if output.ndim == 2:
        return output[:, None]
    return output if output.ndim == 3 else output.flatten(2).mT


def sample(output: Tensor, rows: int, seed: int) -> Tensor:
    """The same random positions of every example, about `rows` in all -> (examples, positions,
    features).
    """
    every = tokens(output)
    positions = every.shape[1]
    kept = min(positions, max(1, rows // len(every)))
    order = (
        torch.randperm(positions, generator=torch.Generator().manual_seed(seed))[:kept]
        .sort()
        .values
    )
    return every if kept == positions else every[:, order.to(every.device)]


def cca_of_task(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    names: Sequence[str],
    *,
    draws: int | None,
    seed: int,
) -> Profile:
    """CCA of one task's images, layer by layer: positions as examples, channels as features, about
    30 examples a channel or more.

    Raghu et al. 2020 (arXiv:1909.09157) average this over tasks, so that every task has a linear
    map of its own. The floor shuffles whole images.

    Args:
        before, after: the layers' outputs on the same images, `{layer: (images, ...)}`.
        names: the layers.
        draws, seed: how often the floor shuffles, and what its draws and the positions depend on.

    Example:
        >>> x = {"block": torch.randn(20, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
        >>> cca_of_task(x, {"block": 2 * x["block"]}, ["block"], draws=0, seed=0)["block"].examples
        1000
    """
    sides = [
        ({name: before[name]}, {name: after[name]}, _task_rows(before[name])) for name in names
    ]
    found = [
        compare_layers(x, y, measure="cca", rows=rows, draws=draws, seed=seed).layers[0]
        for x, y, rows in sides
    ]
    return Profile("cca", "positions", tuple(found))


def cca_draws(
    draws: int | None, outputs: Mapping[str, Tensor], names: Sequence[str], repeats: int
) -> int:
    """How often the floor of `cca_of_task` shuffles in `repeats` tasks (times pairs): `draws`, or
    as `chosen_draws` says for all.
    """
    shapes = [(outputs[name], _task_rows(outputs[name])) for name in names]
    return chosen_draws(
        draws,
        repeats
        * sum(_operations("cca", output, output, "positions", rows) for output, rows in shapes),
    )


def cka_draws(
    draws: int | None, outputs: Mapping[str, Tensor], names: Sequence[str], repeats: int
) -> int:
    """How often the floor of linear CKA shuffles the images of each of `repeats` tasks."""
    shapes = [outputs[name] for name in names]
    return chosen_draws(
        draws,
        repeats * sum(_operations("linear_cka", output, output, "flatten", 1) for output in shapes),
    )


def _task_rows(output: Tensor) -> int:
    return max(FEWEST_ROWS, PER_FEATURE * tokens(output).shape[2])


def _width(features: tuple[int, int]) -> str:
    return f"{features[0]}" if features[0] == features[1] else f"{features[0]}, {features[1]}"
