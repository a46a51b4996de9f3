"""What each layer of a network starts from, carried out with a report of every tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from metalearn.network.layers import assign, is_inside, owners, resolve
from metalearn.network.layers import head as find_head
from metalearn.network.layers import layers as layer_names
from metalearn.runtime.checks import whole_number
from metalearn.runtime.tables import Tabular, aligned, plain

from .sources import FromWeights, Slot, Source, Start, Unfit, copied, fresh, gabor
from .weights import Pretrained, Weights, aliases, read

Strategy: TypeAlias = Mapping[str, Source] | Callable[[nn.Module, str], Mapping[str, Source]]
Matches: TypeAlias = dict[Pretrained, dict[str, str]]


@dataclass(frozen=True, repr=False)
class everywhere:
    """Every layer starts from `source`; the head only where `head=True` asks for it."""

    source: Source
    head: bool = False

    def __repr__(self) -> str:
        return f"everywhere({self.source}{', head=True' * self.head})"

    def __call__(self, model: nn.Module, head: str) -> dict[str, Source]:
        return {"": self.source, **({head: self.source} if self.head else {})}


@dataclass(frozen=True, init=False, repr=False)
class transfusion:
    """Copy parameters and buffers of every layer up to and including `through`; the rest is fresh
    (Raghu et al. 2019, arXiv:1902.07208).

    Layers are in order of registration. The paper's conv1 of a ResNet is `through="bn1"`.

    Arguments:
        weights: a path, a state dict, a model or learner, or a torchvision `Weights` member; see
            `transfer.initialisation.weights.read`.
        through: a module path. None copies all but the head; naming the head copies it too.
        down_to: instead of `through`, copy from the top: every layer from this one to the last
            before the head.
        average_channels: see `copied`.
    """

    weights: Pretrained
    through: str | None = None
    down_to: str | None = None
    average_channels: bool = False

    def __init__(
        self,
        weights: Weights,
        through: str | None = None,
        *,
        down_to: str | None = None,
        average_channels: bool = False,
    ) -> None:
        if through is not None and down_to is not None:
            raise ValueError(
                f"through={through!r} copies from the bottom and down_to={down_to!r} from the top;"
                " name one of the two"
            )
        for name, value in (
            ("weights", read(weights)),
            ("through", through),
            ("down_to", down_to),
            ("average_channels", average_channels),
        ):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        options = {
            "through": self.through,
            "down_to": self.down_to,
            "average_channels": self.average_channels,
        }
        return f"transfusion({', '.join([str(self.weights), *(f'{name}={value!r}' for name, value in options.items() if value)])})"

    def __call__(self, model: nn.Module, head: str) -> dict[str, Source]:
        taken = set(
            through_layer(model, self.through, head)
            if self.down_to is None
            else down_to_layer(model, self.down_to, head)
        )
        source = copied(self.weights, self.average_channels)
        return {name: source if name in taken else fresh() for name in ordered(model)}


@dataclass(frozen=True)
class Row:
    """How one tensor started: `how` is "copied", "drawn" (from `mean` and `variance`), "fresh" or
    "skipped", and `note` says why.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    parameters: int
    how: str
    source: str
    mean: float | None = None
    variance: float | None = None
    note: str = ""


@dataclass(frozen=True, repr=False)
class Initialisation(Tabular):
    """Every parameter and buffer of a network and what it started from; prints as a table.

    Skipped is what a source reached and left as built. `weights` has, for each set of weights, its
    name, its digest, and the tensors that nothing took.
    """

    rows: tuple[Row, ...]
    weights: tuple[dict[str, Any], ...]
    seed: int

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(
            f"no tensor {name!r} was initialised; there are"
            f" {', '.join(row.name for row in self.rows)}"
        )

    def parameters(self, layer: str = "") -> dict[str, int]:
        """Numbers of parameters by how they started, in one layer (or below one path) or in all;
        buffers count nothing.
        """
        counts = dict.fromkeys(("copied", "drawn", "fresh", "skipped"), 0)
        for row in self.rows:
            if is_inside(row.layer, layer):
                counts[row.how] += row.parameters
        return {how: count for how, count in counts.items() if count}

    def __repr__(self) -> str:
        return (
            f"Initialisation({_counted(self.parameters())} parameters; seed {self.seed}; print it"
            " for the table)"
        )

    def __str__(self) -> str:
        cells: list[tuple[str, ...]] = []
        for layer, group in groupby(self.rows, key=attrgetter("layer")):
            rows = list(group)
            shared = {row.source for row in rows if row.how != "fresh"}
            source = shared.pop() if len(shared) == 1 else ""
            cells.append((layer, "", _counted(self.parameters(layer)), "", "", "", source))
            cells += [_cells(row, named=bool(shared)) for row in rows]
        table = aligned(("layer", "shape", "parameters", "start", "mean", "variance", ""), cells)
        notes = [
            f"({sum(self.parameters().values()):,} parameters: {_counted(self.parameters())}; seed"
            f" {self.seed})"
        ]
        notes += [
            f"(not used of {found['name']}: {_listed(found['unused'])})"
            for found in self.weights
            if found["unused"]
        ]
        return "\n".join([table, *notes])

    def records(self) -> list[dict[str, Any]]:
        """A row for each tensor."""
        return list(self.to_dict()["tensors"])

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON-able values, with the counts per layer."""
        layers = {row.layer: self.parameters(row.layer) for row in self.rows}
        return plain(
            {
                "seed": self.seed,
                "parameters": self.parameters(),
                "layers": layers,
                "tensors": self.rows,
                "weights": self.weights,
            }
        )


def initialize(
    model: nn.Module, strategy: Strategy, seed: int = 0, *, head: str | None = None
) -> Initialisation:
    """Give every layer of `model` its start, in place -> a report of every tensor.

    Args:
        strategy: `everywhere(...)`, `transfusion(...)`, or a mapping from module or tensor paths to
            sources, the longest match winning: `{"layer1": copied(weights), "": fresh()}`. The head
            stays fresh unless a path reaches it and nothing else.
        seed: what is drawn depends on it and on the tensor's name alone, not on the other tensors
            or on the device.
        head: the path of the head; by default the last Linear or Conv2d.

    Raises:
        ValueError: naming the layer, with near matches, that does not exist; the tensor that no
            source reaches; the tensors that are missing in the weights or of another shape there,
            with how many match. The model is then as it was.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> old, new = (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, outputs)) for outputs in (9, 2))
        >>> report = initialize(new, transfusion(old))
        >>> report["0.weight"].how, report["2.weight"].how, report.parameters()
        ('copied', 'fresh', {'copied': 9, 'fresh': 8})
        >>> torch.equal(new[0].weight, old[0].weight)
        True
    """
    check_network("initialize()", model, head=head)
    seed = whole_number("seed", seed, least=0)
    top = find_head(model, head)
    sources = _spread(model, _mapping(model, strategy, top), top)
    matches = {
        weights: weights.matched(model)
        for weights in dict.fromkeys(map(_weights, sources.values()))
        if weights
    }
    slots = _slots(model, sources, matches)
    starts = _starts(model, slots, sources, seed)
    with torch.no_grad():
        for name, start in starts.items():
            if start.value is not None:
                slots[name].tensor.copy_(start.value)
    owner = owners(model)
    rows = tuple(
        _row(slot, owner[name], sources[name], starts[name], top, matches)
        for name, slot in slots.items()
    )
    return Initialisation(rows, _used(matches, rows, sources), seed)


def check_network(call: str, model: object, **paths: object) -> None:
    """Raise TypeError if `model` is no module or a path is no string, and ValueError if weights are
    not there yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{call} got a {type(model).__name__} for a network; its first argument is a"
            " torch.nn.Module"
        )
    for name, path in paths.items():
        if not (path is None or isinstance(path, str)):
            raise TypeError(
                f"{name}={path!r} is a {type(path).__name__}; name a layer by its path:"
                f" {', '.join(layer_names(model))}"
            )
    lazy = [
        name
        for name, parameter in model.named_parameters()
        if isinstance(parameter, UninitializedParameter)
    ]
    if lazy:
        raise ValueError(
            f"{lazy[0]} has no shape yet; run the network once on an example first: model(inputs)"
        )


def ordered(model: nn.Module) -> list[str]:
    """The parameters and saved buffers of `model`, layer by layer from the bottom.

    Example:
        >>> ordered(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2)))
        ['0.weight', '1.weight', '1.bias']
    """
    place = {layer: number for number, layer in enumerate(layer_names(model))}
    order = {name: number for number, name in enumerate(model.state_dict())}
    owner = owners(model)
    return sorted(aliases(model), key=lambda name: (place[owner[name]], order[name]))


def through_layer(model: nn.Module, through: str | None, head: str) -> list[str]:
    """The tensors of every layer up to and including `through` (None: all), without the head unless
    `through` is in it.

    Example:
        >>> through_layer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)), "0", head="2")
        ['0.weight', '0.bias']
    """
    check_network("through_layer()", model, through=through)
    names = ordered(model)
    end = len(names) if through is None else _places(model, through, names)[-1] + 1
    return [
        name
        for name in names[:end]
        if not is_inside(name, head) or (through is not None and is_inside(through, head))
    ]


def down_to_layer(model: nn.Module, down_to: str, head: str) -> list[str]:
    """The tensors of every layer from the last one before the head down to `down_to`.

    Example:
        >>> down_to_layer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)), "1", head="2")
        ['1.weight', '1.bias']
    """
    check_network("down_to_layer()", model, down_to=down_to)
    names = ordered(model)
    return [
        name
        for name in names[_places(model, down_to, names)[0] :]
        if not is_inside(name, head) or is_inside(down_to, head)
    ]


def _mapping(model: nn.Module, strategy: Strategy, head: str) -> Mapping[str, Source]:
    if isinstance(strategy, fresh | FromWeights | gabor):
        raise TypeError(
            f"{strategy} is a source, what one tensor starts from; write everywhere({strategy})"
        )
    if not isinstance(strategy, Mapping) and (isinstance(strategy, type) or not callable(strategy)):
        raise TypeError(
            f"the strategy is a {type(strategy).__name__}; write everywhere(fresh()),"
            " transfusion(weights), or {path: source}"
        )
    mapping = strategy if isinstance(strategy, Mapping) else strategy(model, head)
    for path, source in mapping.items():
        if not isinstance(path, str):
            raise TypeError(
                f"the strategy names the layer {path!r}, a {type(path).__name__}; paths are"
                f" strings: {', '.join(layer_names(model))}"
            )
        if isinstance(source, type) or not callable(source):
            raise TypeError(
                f"{path!r} has {source!r} for a source; write fresh(), copied(weights),"
                " mean_var(weights), ..."
            )
    return mapping


def _spread(model: nn.Module, mapping: Mapping[str, Source], head: str) -> dict[str, Source]:
    """Tensor -> its source, layer by layer; the head's are fresh unless a path of the mapping
    reaches nothing else.
    """
    names = ordered(model)
    if mapping.keys() == set(names):
        return {name: mapping[name] for name in names}
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    asked = {
        path
        for path in mapping
        if all(is_inside(name, head) for name in names if is_inside(name, path))
    }
    reached = assign(
        model, {path: source for path, source in mapping.items() if path not in buffers}
    )
    for name in names:
        paths = [path for path in mapping if is_inside(name, path)]
        if name in buffers and paths:
            reached[name] = mapping[max(paths, key=len)]
        if is_inside(name, head) and paths and not any(path in asked for path in paths):
            reached[name] = fresh()
    missing = [name for name in names if name not in reached]
    if missing:
        raise ValueError(
            f"the strategy leaves {_listed(missing)} without a source; give the rest one: {{...,"
            " '': fresh()}"
        )
    return {name: reached[name] for name in names}


def _places(model: nn.Module, path: str, names: Sequence[str]) -> list[int]:
    """Where in `names` the tensors of a layer are."""
    known = aliases(model)
    resolve(model, path)
    places = [
        place
        for place, name in enumerate(names)
        if any(is_inside(alias, path) for alias in known[name])
    ]
    if not places:
        raise ValueError(
            f"{path!r} holds no tensors to copy; name a layer that does:"
            f" {', '.join(layer_names(model))}"
        )
    return places


def _weights(source: Source) -> Pretrained | None:
    return source.weights if isinstance(source, FromWeights) else None


def _slots(model: nn.Module, sources: Mapping[str, Source], matches: Matches) -> dict[str, Slot]:
    first = next(
        (path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)), None
    )
    slots = {}
    for name, source in sources.items():
        path, _, attribute = name.rpartition(".")
        module, weights = model.get_submodule(path), _weights(source)
        given = (
            weights.tensors[matches[weights][name]]
            if weights and name in matches[weights]
            else None
        )
        slots[name] = Slot(
            name,
            getattr(module, attribute),
            module,
            given,
            first=path == first and attribute == "weight",
        )
    return slots


def _starts(
    model: nn.Module, slots: Mapping[str, Slot], sources: Mapping[str, Source], seed: int
) -> dict[str, Start]:
    starts: dict[str, Start] = {}
    wrong: dict[str, str] = {}
    for name, slot in slots.items():
        own_seed = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7])
        try:
            starts[name] = sources[name](slot, torch.Generator().manual_seed(own_seed))
        except Unfit as reason:
            wrong[name] = str(reason)
            continue
        value = starts[name].value
        if value is not None and not value.isfinite().all():
            raise ValueError(
                f"{sources[name]} gives {name} values that are not finite; are its weights those of"
                " a run that diverged?"
            )
    if wrong:
        raise ValueError(_misfit(model, wrong, slots, sources))
    filtered = [slot.first for name, slot in slots.items() if isinstance(sources[name], gabor)]
    if filtered and not any(filtered):
        raise ValueError(
            "gabor() does not reach the first convolution; give it to the layer that reads the"
            " images"
        )
    return starts


def _misfit(
    model: nn.Module,
    wrong: Mapping[str, str],
    slots: Mapping[str, Slot],
    sources: Mapping[str, Source],
) -> str:
    weights = _weights(sources[next(iter(wrong))])
    asked = [name for name in slots if _weights(sources[name]) is weights]
    failed = [name for name in asked if name in wrong]
    fitting = [name for name in asked if name not in wrong and slots[name].given is not None]
    reasons = []
    for name in failed[:3]:
        near = weights.nearest(name) if weights and slots[name].given is None else ""
        reasons.append(wrong[name] + (f" (nearest there: {near})" if near else ""))
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    return (
        f"{weights} does not fit this {type(model).__name__}: {len(fitting)} of {len(asked)}"
        f" tensors match. {'; '.join(reasons)}{more}. Build the network that the weights are of, or"
        " copy fewer layers: transfusion(weights, through=...)"
    )


def _row(slot: Slot, layer: str, source: Source, start: Start, head: str, matches: Matches) -> Row:
    notes = [start.note]
    if is_inside(slot.name, head) and start.how == "fresh":
        there = [
            tuple(weights.tensors[match[slot.name]].shape)
            for weights, match in matches.items()
            if slot.name in match
        ]
        notes += [
            "the head",
            *(f"{shape} in the weights" for shape in there if shape != tuple(slot.tensor.shape)),
        ]
    parameters = slot.tensor.numel() if isinstance(slot.tensor, nn.Parameter) else 0
    mean = variance = None
    if start.how == "drawn":
        values = slot.tensor.detach().double()
        mean = values.mean().item() if start.mean is None else start.mean
        variance = values.var(correction=0).item() if start.variance is None else start.variance
    note = "; ".join(filter(None, notes))
    return Row(
        slot.name,
        layer,
        tuple(slot.tensor.shape),
        parameters,
        start.how,
        repr(source),
        mean,
        variance,
        note,
    )


def _used(
    matches: Matches, rows: Sequence[Row], sources: Mapping[str, Source]
) -> tuple[dict[str, Any], ...]:
    """What nothing took of each set of weights; one that several sources read is one."""
    left: dict[tuple[str, str], set[str]] = {}
    for weights, match in matches.items():
        taken = {
            match[row.name]
            for row in rows
            if row.how in ("copied", "drawn") and _weights(sources[row.name]) is weights
        }
        unused = left.setdefault((weights.name, weights.digest), set(weights.tensors))
        unused -= taken
    return tuple(
        {"name": name, "digest": digest, "unused": sorted(unused)}
        for (name, digest), unused in left.items()
    )


def _cells(row: Row, *, named: bool) -> tuple[str, ...]:
    figures = [f"{value:.3g}" if value is not None else "" for value in (row.mean, row.variance)]
    shape = " x ".join(map(str, row.shape)) or "scalar"
    size = f"{row.parameters:,}" if row.parameters else "buffer"
    note = "; ".join(filter(None, (row.source if named and row.how != "fresh" else "", row.note)))
    return "  " + row.name.removeprefix(f"{row.layer}."), shape, size, row.how, *figures, note


def _counted(parameters: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {how}" for how, count in parameters.items()) or "none"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
