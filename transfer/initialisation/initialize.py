"""A strategy carried out on a network, with a report of every tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from metalearn.network.layers import assign, is_inside, owners
from metalearn.network.layers import head as find_head
from metalearn.network.layers import layers as layer_names
from metalearn.runtime.checks import whole_number

from .order import check_network, ordered
from .report import Initialisation, Row, listed
from .sources import FromWeights, Slot, Source, Start, Unfit, fresh, gabor
from .weights import Pretrained

Strategy: TypeAlias = Mapping[str, Source] | Callable[[nn.Module, str], Mapping[str, Source]]
"""{path: source}, or a function of the model and the path of its head that makes one."""

MISFITS = 3  # that a message describes


def initialize(
    model: nn.Module, strategy: Strategy, seed: int = 0, *, head: str | None = None
) -> Initialisation:
    """Give every layer of `model` its start, in place.

    Args:
        model: the network.
        strategy: `everywhere(...)`, `transfusion(...)`, or a mapping from module or tensor paths to
            sources, the longest match winning: `{"layer1": copied(weights), "": fresh()}`. The head
            stays fresh unless a path reaches it and nothing else.
        seed: draws depend on it and on the tensor's name only, not on the other tensors or on the
            device.
        head: the path of the head; by default the last Linear or Conv2d.

    Returns:
        A report of every tensor.

    Raises:
        TypeError: an argument or a source is of another kind.
        ValueError: a layer does not exist (names near matches), no source reaches a tensor, or
            tensors are missing in the weights or of another shape there (counts those that match).
            The model is then unchanged.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> old = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 9))
        >>> new = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> from transfer import transfusion
        >>> report = initialize(new, transfusion(old))
        >>> report["0.weight"].how, report["2.weight"].how, report.parameters()
        ('copied', 'fresh', {'copied': 9, 'fresh': 8})
        >>> torch.equal(new[0].weight, old[0].weight)
        True
    """
    check_network("initialize()", model, head=head)
    seed = whole_number("seed", seed, least=0)
    # All starts are made before the first is taken: an error leaves the model unchanged.
    plan = _Plan.of(model, strategy, find_head(model, head))
    starts = plan.starts(seed)
    with torch.no_grad():
        for name, start in starts.items():
            if start.value is not None:
                plan.slots[name].tensor.copy_(start.value)
    rows = plan.rows(starts)
    return Initialisation(rows, plan.unused(rows), seed)


@dataclass(frozen=True)
class _Plan:
    """A source for every tensor of a network.

    Attributes:
        model: the network.
        head: the path of its head.
        sources: of every tensor, in the order of layers.
        matches: for each set of weights, the name there of each tensor here.
        slots: the tensors.
    """

    model: nn.Module
    head: str
    sources: Mapping[str, Source]
    matches: Mapping[Pretrained, Mapping[str, str]]
    slots: Mapping[str, Slot]

    @classmethod
    def of(cls, model: nn.Module, strategy: Strategy, head: str) -> _Plan:
        """Which source each tensor has under a strategy, and what the weights have for it."""
        sources = _spread(model, _mapping(model, strategy, head), head)
        # Weights from another library may have other names, so each set is matched once.
        matches: dict[Pretrained, dict[str, str]] = {}
        for source in sources.values():
            weights = _weights(source)
            if weights and weights not in matches:
                matches[weights] = weights.matched(model)
        # Gabor filters and averaged channels are for the convolution that reads the images.
        first = next(
            (path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)), None
        )
        slots = {}
        for name, source in sources.items():
            path, _, attribute = name.rpartition(".")
            module = model.get_submodule(path)
            weights = _weights(source)
            given = None
            if weights and name in matches[weights]:
                given = weights.tensors[matches[weights][name]]
            slots[name] = Slot(
                name,
                getattr(module, attribute),
                module,
                given,
                first=path == first and attribute == "weight",
            )
        return cls(model, head, sources, matches, slots)

    def starts(self, seed: int) -> dict[str, Start]:
        """What every tensor starts from; raises ValueError if a source does not fit."""
        starts: dict[str, Start] = {}
        misfits: dict[str, str] = {}
        for name, slot in self.slots.items():
            # A generator for each tensor: its draws do not depend on the others.
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
            try:
                starts[name] = self.sources[name](slot, generator)
            except Unfit as reason:
                misfits[name] = str(reason)  # one message names several of them
                continue
            value = starts[name].value
            if value is not None and not value.isfinite().all():
                raise ValueError(
                    f"{self.sources[name]} gives {name} values that are not finite; are its"
                    " weights those of a run that diverged?"
                )
        if misfits:
            raise ValueError(self._misfit_message(misfits))
        filtered = [name for name, source in self.sources.items() if isinstance(source, gabor)]
        if filtered and not any(self.slots[name].first for name in filtered):
            raise ValueError(
                "gabor() does not reach the first convolution; give it to the layer that reads the"
                " images"
            )
        return starts

    def _misfit_message(self, misfits: Mapping[str, str]) -> str:
        """Which tensors do not fit the weights of the first misfit, and how many do."""
        weights = _weights(self.sources[next(iter(misfits))])
        names = [name for name, source in self.sources.items() if _weights(source) is weights]
        failed = [name for name in names if name in misfits]
        fitting = [
            name for name in names if name not in misfits and self.slots[name].given is not None
        ]
        reasons = []
        for name in failed[:MISFITS]:
            reasons.append(misfits[name])
            near = ""
            if weights and self.slots[name].given is None:
                near = weights.nearest(name)
            if near:
                reasons[-1] += f" (nearest there: {near})"
        if len(failed) > MISFITS:
            reasons.append(f"and {len(failed) - MISFITS} more")
        network = type(self.model).__name__
        return (
            f"{weights} does not fit this {network}: {len(fitting)} of {len(names)} tensors match."
            f" {'; '.join(reasons)}. Build the network that the weights are of, or"
            " copy fewer layers: transfusion(weights, through=...)"
        )

    def rows(self, starts: Mapping[str, Start]) -> tuple[Row, ...]:
        """A row for every tensor, once it has its start."""
        owner = owners(self.model)
        return tuple(self._row(name, owner[name], start) for name, start in starts.items())

    def _row(self, name: str, layer: str, start: Start) -> Row:
        tensor = self.slots[name].tensor
        shape = tuple(tensor.shape)
        notes = [start.note] if start.note else []
        if is_inside(name, self.head) and start.how == "fresh":
            notes.append("the head")
            for weights, match in self.matches.items():
                if name in match:
                    other = tuple(weights.tensors[match[name]].shape)
                    if other != shape:
                        notes.append(f"{other} in the weights")
        # Of the distribution if the source knows it, else of the values.
        mean = None
        variance = None
        if start.how == "drawn":
            values = tensor.detach().double()
            mean = values.mean().item() if start.mean is None else start.mean
            variance = start.variance
            if variance is None:
                variance = values.var(correction=0).item()
        return Row(
            name=name,
            layer=layer,
            shape=shape,
            parameters=tensor.numel() if isinstance(tensor, nn.Parameter) else 0,
            how=start.how,
            source=repr(self.sources[name]),
            mean=mean,
            variance=variance,
            note="; ".join(notes),
        )

    def unused(self, rows: Sequence[Row]) -> tuple[dict[str, Any], ...]:
        """The tensors of each set of weights that were not used.

        The same weights in several sources count as one set.
        """
        # (name, digest) -> tensors; each use takes one away.
        unused: dict[tuple[str, str], set[str]] = {}
        for weights, match in self.matches.items():
            names = unused.setdefault((weights.name, weights.digest), set(weights.tensors))
            for row in rows:
                used = row.how in ("copied", "drawn")
                if used and _weights(self.sources[row.name]) is weights:
                    names.discard(match[row.name])
        return tuple(
            {"name": name, "digest": digest, "unused": sorted(names)}
            for (name, digest), names in unused.items()
        )


def _mapping(model: nn.Module, strategy: Strategy, head: str) -> Mapping[str, Source]:
    """The strategy as a mapping; raises TypeError for other kinds of strategies and sources."""
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
    """The source of every tensor, layer by layer.

    The head's are fresh unless a path of the mapping reaches the head and nothing else.
    """
    names = ordered(model)
    # A strategy that names every tensor decides about the head itself.
    if mapping.keys() == set(names):
        return {name: mapping[name] for name in names}
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    # assign() knows parameters only; buffers follow below.
    sources = assign(
        model, {path: source for path, source in mapping.items() if path not in buffers}
    )
    for name in names:
        paths = [path for path in mapping if is_inside(name, path)]
        if not paths:
            continue
        if name in buffers:
            sources[name] = mapping[max(paths, key=len)]  # the longest match wins
        if is_inside(name, head) and not any(_within(names, path, head) for path in paths):
            sources[name] = fresh()
    missing = [name for name in names if name not in sources]
    if missing:
        raise ValueError(
            f"the strategy leaves {listed(missing)} without a source; give the rest one: {{...,"
            " '': fresh()}"
        )
    return {name: sources[name] for name in names}


def _within(names: Sequence[str], path: str, head: str) -> bool:
    """Whether all tensors below a path are the head's."""
    return all(is_inside(name, head) for name in names if is_inside(name, path))


def _weights(source: Source) -> Pretrained | None:
    return source.weights if isinstance(source, FromWeights) else None
