"""Which layers need how much data?

Raghu, Unterthiner, Kornblith, Zhang and Dosovitskiy 2021 (arXiv:2108.08810) compare each layer of a
vision transformer that was trained on a share of the data with the network of all data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metalearn.analysis.networks.layerwise import compare_layers
from metalearn.analysis.networks.probes import linear_probes
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.network.layers import layers as layer_names
from metalearn.runtime.checks import sequence
from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import Table, Tabular, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Train = Callable[[nn.Module, Tensor, Tensor, int], Any]


@dataclass(frozen=True)
class ShareOfData:
    """The networks of one share of the training data.

    Attributes:
        share: of the training examples.
        examples: how many those are.
        similarity: {layer: similarity to the networks of all data of other seeds}.
        probes: {layer: accuracy of a linear probe}; empty without labelled examples.
    """

    share: float
    examples: int
    similarity: dict[str, MeanStd]
    probes: dict[str, MeanStd]


@dataclass(frozen=True)
class DataScale(Pictured, Tabular):
    """Similarity of every layer to the networks of all data, over shares; prints as a table.

    Attributes:
        shares: a row for each share, rising. The last, all data, is the ceiling: networks of other
            seeds.
        measure: the measure.
    """

    shares: tuple[ShareOfData, ...]
    measure: str

    def records(self) -> list[dict[str, Any]]:
        """A row for each share and layer."""
        records = []
        for row in self.shares:
            for layer, value in row.similarity.items():
                record = {"share": row.share, "examples": row.examples, "layer": layer}
                records.append({**record, "similarity": value, "probe": row.probes.get(layer)})
        return plain(records)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        return plain(self)

    def table(self) -> Table:
        """A row for each layer: its similarity at each share, then its probes."""
        columns = ["layer"]
        columns += [f"{100 * row.share:g} % of the data" for row in self.shares]
        probed = [row for row in self.shares if row.probes]
        columns += [f"probe, {100 * row.share:g} %" for row in probed]
        rows = []
        for layer in self.shares[0].similarity:
            cells = [row.similarity[layer].text(1, 3, "pair") for row in self.shares]
            cells += [row.probes[layer].text(100, 1, "seed") for row in probed]
            rows.append((layer, *cells))
        note = f"{self.measure} with the networks of all data of other seeds; probes in %"
        return Table(columns, rows, note=note)

    def __str__(self) -> str:
        return str(self.table())

    def figure(self) -> Figure:
        """Similarity over depth, a line for each share, as a matplotlib `Figure`."""
        from metalearn.analysis.plotting.scale import similarity_over_depth

        lines = {}
        for row in self.shares:
            lines[f"{100 * row.share:g} %"] = [value.mean for value in row.similarity.values()]
        return similarity_over_depth(list(self.shares[0].similarity), lines, self.measure)


def data_scale(
    build: Callable[[], nn.Module],
    inputs: Tensor,
    targets: Tensor,
    train: Train,
    test: Tensor,
    *,
    shares: Sequence[float] = (0.1, 0.3, 1.0),
    seeds: Sequence[int] = (0, 1),
    layers: Sequence[str] | None = None,
    measure: str = "linear_cka",
    labelled: tuple[Any, Any] | None = None,
    shots: int = 10,
    **options: Any,
) -> DataScale:
    """Train on shares of the data, and compare each layer with the networks of all data.

    A network is compared with the networks of all data of the *other* seeds, so that a common
    initialisation does not count. The row of all data is then the ceiling.

    Args:
        build: returns a network; called under `torch.manual_seed(seed)`.
        inputs: (examples, ...), all training inputs.
        targets: (examples,), their labels. The first examples of a mixed order make a share, so a
            smaller share lies within a larger one.
        train: `train(network, inputs, targets, seed)` trains a network in place.
        test: (examples, ...), what layers are compared on.
        shares: of the training data, rising to 1.
        seeds: one network of each share for each seed.
        layers: names of layers; by default `metalearn.layers(network)`.
        measure: a measure of `compare_layers`.
        labelled: training and test examples for linear probes; none without them.
        shots: training examples a class of the probes.
        **options: further arguments of `compare_layers`; `draws=0` unless given.

    Raises:
        ValueError: Fewer than two seeds, or shares that do not rise to 1.

    Example:
        >>> x, y = torch.randn(60, 4), torch.arange(60) % 2
        >>> def train(network, inputs, targets, seed):
        ...     nn.functional.cross_entropy(network(inputs), targets).backward()
        >>> build = lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> result = data_scale(build, x, y, train, torch.randn(50, 4), shares=(0.5, 1.0))
        >>> [row.examples for row in result.shares]
        [30, 60]
    """
    shares = sequence("shares", shares, "(0.1, 0.3, 1.0)")
    rising = shares == sorted(set(shares))
    if not shares or not rising or not shares[0] > 0 or shares[-1] != 1:
        raise ValueError(f"shares={tuple(shares)}; give rising shares above 0, the last of them 1")
    if len(seeds) < 2:
        raise ValueError(f"{len(seeds)} seeds; the networks of all data need at least two")
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    trained: dict[float, dict[int, nn.Module]] = {}
    for share in shares:
        chosen = order[: max(1, round(share * len(order)))]
        for seed in seeds:
            torch.manual_seed(seed)
            network = build()
            train(network, inputs[chosen], targets[chosen], seed)
            trained.setdefault(share, {})[seed] = network
    whole = trained[1]
    names = layer_names(whole[seeds[0]]) if layers is None else list(layers)
    compare = partial(
        compare_layers, inputs=test, layers=names, **{"draws": 0, **options, "measure": measure}
    )
    rows = []
    for share in shares:
        similarity = over_pairs(trained[share], whole, compare)
        probes = {}
        if labelled is not None:
            probes = probed(trained[share].values(), labelled, names, shots)
        count = max(1, round(share * len(order)))
        rows.append(ShareOfData(float(share), count, similarity, probes))
    return DataScale(tuple(rows), measure)


def over_pairs(
    networks: dict[int, nn.Module], whole: dict[int, nn.Module], compare: Callable[..., Any]
) -> dict[str, MeanStd]:
    """Similarity of each layer over all pairs of networks of different seeds."""
    values: dict[str, list[float]] = {}
    for first, second in permutations(whole, 2):
        for row in compare(networks[first], whole[second]).layers:
            values.setdefault(row.layer, []).append(row.similarity)
    return {layer: MeanStd.of(similarities) for layer, similarities in values.items()}


def probed(
    networks: Any, labelled: tuple[Any, Any], layers: Sequence[str], shots: int
) -> dict[str, MeanStd]:
    """The accuracy of a linear probe on each layer, over networks."""
    values: dict[str, list[float]] = {}
    for network in networks:
        for row in linear_probes(network, *labelled, layers, shots).layers:
            values.setdefault(row.layer, []).append(row.accuracy.mean)
    return {layer: MeanStd.of(scores) for layer, scores in values.items()}
