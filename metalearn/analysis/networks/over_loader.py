"""Comparing the layers of two networks over a loader, from sums over batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from metalearn.analysis.measures.chance import chosen_draws, operations
from metalearn.analysis.measures.inputs import Undefined, cautions
from metalearn.analysis.measures.streaming import Streaming
from metalearn.runtime import progress as _progress

from .batches import ToInputs, count, inputs_of, loader_of, shown_batches
from .outputs import Network, Pair, layer_outputs, naming, pair_name
from .positions import matrices, matrix_sizes
from .profile import LayerSimilarity, Profile

# Bytes of the largest moments of one layer that a comparison begins with.
MOST_MOMENTS = 4 * 2**30


class LoaderComparison:
    """A `Streaming` for each pair of layers.

    Linear CKA of flattened outputs, and RBF CKA, are minibatch CKA; the other measures come from
    moments.

    Args:
        measure: the name of the measure.
        convention: how outputs become matrices.
        pairs: the layers to compare.
        rows: about how many rows "positions" keeps of the first batch.
        draws: how often chance shuffles; None decides by the first batch (`chosen_draws`).
        seed: determines the draws and the positions.
        **options: the options of the measure.
    """

    def __init__(
        self,
        measure: str,
        convention: str,
        pairs: Sequence[Pair],
        *,
        rows: int,
        draws: int | None,
        seed: int,
        **options: Any,
    ) -> None:
        flat_kernel = measure == "linear_cka" and convention == "flatten"
        self.minibatch = measure == "rbf_cka" or flat_kernel
        self.measure = measure
        self.convention = convention
        self.rows = rows
        self.draws = draws
        self.seed = seed
        self.streams = {
            pair: Streaming(measure, minibatch=self.minibatch, seed=seed, **options)
            for pair in pairs
        }
        self.undefined: dict[Pair, str] = {}
        self.sizes: list[int] = []

    def over(
        self,
        loader: Any,
        before: Network,
        after: Network,
        to_inputs: ToInputs | None,
        *,
        progress: bool,
    ) -> Profile:
        """Run both networks over the loader, then compare."""
        names_before = [pair[0] for pair in self.streams]
        names_after = [pair[1] for pair in self.streams]
        batches = _length(loader)
        with _progress.progress(
            "comparing layers", batches, unit="batch", shown=progress
        ) as advance:
            for number, batch in enumerate(loader_of(loader), 1):
                inputs = inputs_of(batch, f"batch {number} of the loader", to_inputs)
                left = layer_outputs(before, names_before, inputs, "before")
                right = layer_outputs(after, names_after, inputs, "after")
                self.sizes.append(count(inputs))
                if number == 1:
                    self._choose_draws(left, right, batches)
                self._add(left, right)
                advance()
        if not self.sizes:
            raise ValueError(
                "the loader gave no batch, so there is nothing to compare; an iterator gives its"
                " batches only once"
            )
        layers = tuple(self._layer(pair) for pair in self.streams)
        return Profile(self.measure, self.convention, layers, self._summary())

    def _choose_draws(
        self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], batches: int
    ) -> None:
        """Decide by the size of the first batch and the number of batches.

        A loader without a length counts as infinite.
        """
        one_batch = sum(self._operations(left[a], right[b]) for a, b in self.streams)
        draws = chosen_draws(self.draws, one_batch * (batches or math.inf))
        for stream in self.streams.values():
            stream.draws = draws

    def _operations(self, before: Tensor, after: Tensor) -> float:
        """Of one draw in one batch of one layer."""
        examples, features = matrix_sizes(before, after, self.convention, self.rows)
        if self.minibatch:
            return operations("rbf_cka", examples, features)
        # Adding moments of features² to the sums costs about as much as ten more examples.
        examples += 10
        return operations(self.measure, examples, features) + 2.0 * examples * math.prod(features)

    def _add(self, left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
        """Add the latest batch to every stream."""
        size = self.sizes[-1]
        # Every batch keeps as many positions an example as the first.
        rows = max(1, self.rows // self.sizes[0]) * size
        for pair, stream in self.streams.items():
            with naming(pair_name(pair)):
                before, after = pair
                x, y = matrices(left[before], right[after], self.convention, rows, self.seed)
                self._check_memory(x.shape[1], y.shape[1], stream.draws)
                try:
                    stream.update(x, y, groups=size)
                except Undefined as reason:
                    self.undefined[pair] = f"{reason} (in a batch)"

    def _check_memory(self, x: int, y: int, draws: int) -> None:
        if self.minibatch:
            return
        size = 8 * (3 + draws) * max(x, y) ** 2
        if size > MOST_MOMENTS:
            raise ValueError(
                f"{x} and {y} features need {size / 2**30:,.0f} GiB of moments; take"
                " convention='pool' or 'positions', linear_cka, or fewer draws"
            )

    def _layer(self, pair: Pair) -> LayerSimilarity:
        stream = self.streams[pair]
        name = pair_name(pair)
        with naming(name):
            try:
                if pair in self.undefined:
                    raise Undefined(self.undefined[pair])
                with cautions() as notes:
                    value = stream.compute()
                    chance = stream.chance()
            except Undefined as reason:
                nothing = np.full(stream.draws, np.nan)
                return LayerSimilarity(
                    name, math.nan, nothing, stream.examples, stream.features, str(reason)
                )
        if stream.draws and not len(chance):
            notes.append(
                "no chance level: every batch holds one example, which has no other place; take"
                " larger batches"
            )
        note = "; ".join(notes)
        return LayerSimilarity(name, value, chance, stream.examples, stream.features, note)

    def _summary(self) -> str:
        """What was summed over which batches."""
        largest = max(self.sizes)
        at_most = "up to " if min(self.sizes) < largest else ""
        batches = f"{shown_batches(len(self.sizes))} of {at_most}{largest}"
        if self.minibatch:
            return f"minibatch CKA over {batches}, and depends on them"
        return f"moments summed over {batches}"


def _length(loader: Iterable[Any]) -> int:
    """How many batches the loader has; 0 if it does not know."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:  # a loader of an iterable data set
        return 0
