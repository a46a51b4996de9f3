"""How similar each layer is in two networks: the one comparison that every other question here calls."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..evaluation import evaluation_mode
from ..layers import layers as layer_names
from ..representations import representations
from .similarity import CCA_FAMILY, Floor, Undefined, measured
from .tables import aligned, plain

Network: TypeAlias = nn.Module | tuple[nn.Module, Mapping[str, Tensor]] | Mapping[str, Tensor]

CONVENTIONS = {
    "flatten": "an example a row, all its channels and positions as features",
    "positions": "a position of an example a row, its channels as features",
    "pool": "an example a row, its channels averaged over positions as features",
}


@dataclass(frozen=True)
class LayerSimilarity:
    """One layer of two networks: the similarity, its values with one side shuffled, and the `examples` and `features` it was taken over.

    Where the measure says nothing at this size, `similarity` is NaN and `note` says why.
    """

    layer: str
    similarity: float
    chance: np.ndarray
    examples: int
    features: tuple[int, int]
    note: str = ""

    @property
    def floor(self) -> Floor:
        """Median and 95 % quantile of the shuffled values."""
        return Floor.of(self.chance)


@dataclass(frozen=True)
class Profile:
    """Per-layer similarities of two networks under one measure and one convention; prints as a table."""

    measure: str
    convention: str
    layers: tuple[LayerSimilarity, ...]

    def __getitem__(self, layer: str) -> LayerSimilarity:
        for row in self.layers:
            if row.layer == layer:
                return row
        raise KeyError(f"no layer {layer!r} was compared; these were: {', '.join(row.layer for row in self.layers)}")

    def __str__(self) -> str:
        rows = [
            (
                row.layer,
                f"{row.similarity:.4f}",
                f"{row.floor.median:.3f}",
                f"{row.floor.upper:.3f}",
                f"{row.examples} x {_width(row.features)}",
                row.note,
            )
            for row in self.layers
        ]
        table = aligned(("layer", self.measure, "chance", "95 %", "n x d", ""), rows)
        return f"{table}\n({self.measure}: {CONVENTIONS[self.convention]}; chance: one side's examples shuffled)"

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON-able values; NaN is None."""
        rows = [
            {"layer": r.layer, "similarity": r.similarity, "floor": r.floor, "examples": r.examples, "features": r.features, "note": r.note}
            for r in self.layers
        ]
        return plain({"measure": self.measure, "convention": self.convention, "layers": rows})


def compare_layers(
    before: Network,
    after: Network,
    inputs: Tensor | None = None,
    layers: Sequence[str | tuple[str, str]] | None = None,
    *,
    measure: str = "linear_cka",
    convention: str | None = None,
    units: int | None = None,
    rows: int = 30_000,
    draws: int = 20,
    seed: int = 0,
    **options: Any,
) -> Profile:
    """How similar each layer's output is in two networks on the same inputs, with the floor that unrelated features score -> `Profile`.

    Args:
        before, after: each a module, a module with the weights to run it under `(module, {parameter: tensor})`, or outputs captured
            earlier `{layer: (examples, ...)}`. Modules run in evaluation mode, under no_grad, all examples in one batch.
        inputs: (examples, ...), given to both networks; None where both are captured outputs.
        layers: names, or pairs (name in `before`, name in `after`); by default the layers that both have.
        measure: "cca", "svcca", "pwcca", "linear_cka", "rbf_cka" or "procrustes"; `options` are that function's.
        convention: how (examples, channels, height, width), or tokens (examples, positions, features), become a matrix: "flatten" (the
            default, as Kornblith's and BOIL's CKA), "positions" (the default for the CCA family, as SVCCA and ANIL) or "pool".
        units: how many equal consecutive blocks of examples the floor shuffles whole, such as tasks; each example is one by default.
        rows: about how many rows "positions" keeps, by taking the same random positions of every example.
        draws, seed: how often the floor shuffles, and what its draws and the positions depend on.

    Raises:
        ValueError: naming the layer, where activations are not finite or the two do not fit; a layer that does not exist.

    Example:
        >>> a, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(100, 4)
        >>> b = {name: 2 * weight for name, weight in a.named_parameters()}
        >>> round(compare_layers(a, (a, b), x)["0"].similarity, 4)
        1.0
    """
    convention = convention or ("positions" if measure in CCA_FAMILY else "flatten")
    if convention not in CONVENTIONS:
        raise ValueError(f"there is no convention {convention!r}; there are {', '.join(CONVENTIONS)}")
    pairs = _pairs(before, after, layers)
    left, right = _outputs(before, [a for a, _ in pairs], inputs), _outputs(after, [b for _, b in pairs], inputs)
    found = []
    for a, b in pairs:
        name = a if a == b else f"{a} / {b}"
        try:
            x, y = (_matrix(output, convention, rows, seed) for output in (left[a], right[b]))
            blocks = len(left[a]) if units is None else units
            found.append(_layer(name, x, y, measure, units=blocks, draws=draws, seed=seed, **options))
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from error
    return Profile(measure, convention, tuple(found))


def _layer(name: str, x: Tensor, y: Tensor, measure: str, **options: Any) -> LayerSimilarity:
    if len(x) != len(y):
        raise ValueError(
            f"{len(x)} rows before and {len(y)} after: the two have other numbers of positions; compare them with convention='pool'"
        )
    sizes = len(x), (x.shape[1], y.shape[1])
    try:
        with warnings.catch_warnings(record=True) if measure in CCA_FAMILY else nullcontext([]) as caught:
            if measure in CCA_FAMILY:  # they warn where the directions leave no freedom; the others run in threads
                warnings.simplefilter("always")
            value, chance = measured(measure, x, y, **options)
    except Undefined as reason:
        return LayerSimilarity(name, float("nan"), np.full(options["draws"], np.nan), *sizes, note=str(reason))
    return LayerSimilarity(name, value, chance, *sizes, note="; ".join(str(warning.message) for warning in caught or []))


def _pairs(before: Network, after: Network, layers: Sequence[str | tuple[str, str]] | None) -> list[tuple[str, str]]:
    if layers is not None:
        return [(layer, layer) if isinstance(layer, str) else layer for layer in layers]
    first, second = (list(side) if isinstance(side, Mapping) else layer_names(_module(side)) for side in (before, after))
    shared = [name for name in first if name in second]
    if not shared:
        raise ValueError(
            f"the two networks share no layer name ({', '.join(first)} against {', '.join(second)}); name pairs: layers=[(a, b), ...]"
        )
    return [(name, name) for name in shared]


def _module(network: Network) -> nn.Module:
    module = network[0] if isinstance(network, tuple) else network
    if not isinstance(module, nn.Module):
        raise TypeError(f"a network is a module, (module, weights) or captured outputs {{layer: tensor}}, not {type(network).__name__}")
    return module


def _outputs(network: Network, names: Sequence[str], inputs: Tensor | None) -> Mapping[str, Tensor]:
    if isinstance(network, Mapping):
        missing = [name for name in names if name not in network]
        if missing:
            raise ValueError(f"no outputs of layer {missing[0]!r} were captured; there are {', '.join(network)}")
        return network
    module = _module(network)
    if inputs is None:
        raise ValueError("inputs=None: networks that are not captured outputs need inputs (examples, ...) to run on")
    with evaluation_mode([module]), torch.no_grad(), representations(module, dict.fromkeys(names)) as seen:
        functional_call(module, dict(network[1]) if isinstance(network, tuple) else {}, (inputs,))
    return seen


def _matrix(output: Tensor, convention: str, rows: int, seed: int) -> Tensor:
    if output.ndim < 2 or convention == "flatten":
        return output.reshape(len(output), -1)
    if convention == "pool":
        return _tokens(output).mean(1)
    return sample(output, rows, seed).flatten(0, 1)


def _tokens(output: Tensor) -> Tensor:
    """Images (examples, channels, height, width), tokens or vectors -> (examples, positions, features)."""
    if output.ndim == 2:
        return output[:, None]
    return output if output.ndim == 3 else output.flatten(2).mT


def sample(output: Tensor, rows: int, seed: int) -> Tensor:
    """The same random positions of every example, about `rows` in all -> (examples, positions, features)."""
    tokens = _tokens(output)
    positions = tokens.shape[1]
    kept = min(positions, max(1, rows // len(tokens)))
    order = torch.randperm(positions, generator=torch.Generator().manual_seed(seed))[:kept].sort().values
    return tokens if kept == positions else tokens[:, order.to(tokens.device)]


def _width(features: tuple[int, int]) -> str:
    return f"{features[0]}" if features[0] == features[1] else f"{features[0]}, {features[1]}"
