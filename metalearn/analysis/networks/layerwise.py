"""Two networks compared layer by layer: the function that all questions about networks call."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from metalearn.analysis.checks import check_draws, check_whole
from metalearn.analysis.measures.chance import arrangements, check_options, chosen_draws, measured
from metalearn.analysis.measures.inputs import Undefined, cautions
from metalearn.runtime.renamed import warn_renamed

from .batches import ToInputs, inputs_of, is_one_batch
from .outputs import Network, check_same_device, layer_outputs, layer_pairs, naming, pair_name
from .over_loader import LoaderComparison
from .positions import check_convention, draw_operations, matrices
from .profile import LayerSimilarity, Profile


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
    units: int | None = None,
    **options: Any,
) -> Profile:
    """The similarity of each layer's output in two networks on the same inputs.

    Each similarity comes with its chance level, that of unrelated features. Over a loader only sums
    are held (`Streaming`). Both networks see the same batch, so the loader may shuffle. Most
    measures come from moments, (3 + draws) features² numbers a layer, and equal the comparison in
    memory. `linear_cka` of flattened outputs, and `rbf_cka`, are minibatch CKA, which depends on
    the batches. The table says which.

    Args:
        before: a module; a module with the weights to run it under, `(module, {parameter:
            tensor})`; or outputs captured earlier, `{layer: (examples, ...)}`. Modules run in
            evaluation mode, under no_grad.
        after: the other network, in any of these forms.
        inputs: (examples, ...) or a dictionary of several inputs, given to both networks in one
            batch; or a loader, any iterable of batches; None for captured outputs. A batch is a
            tensor, a dictionary (`input_ids`, `attention_mask`, ...; its labels are ignored), or a
            tuple that begins with the inputs: a tensor, a dictionary, or a tuple of inputs by
            position.
        layers: names, or pairs (name in `before`, name in `after`); by default the layers that both
            have. A layer that outputs a tuple or a dictionary is named with its entry, "lstm:0".
        to_inputs: from a batch to what the networks are called with, for other forms of batches.
        measure: "cca", "svcca", "pwcca", "linear_cka", "rbf_cka", "procrustes" or "subspace".
        convention: how (examples, channels, height, width), or tokens (examples, positions,
            features), become a matrix: "flatten" (the default, as Kornblith's and BOIL's CKA),
            "positions" (the default for the CCA family, as SVCCA and ANIL) or "pool".
        groups: how many equal consecutive blocks of examples chance shuffles whole, such as tasks;
            each example is one by default, and always over a loader.
        rows: about how many rows "positions" keeps (over a loader: of its first batch), by taking
            the same random positions of every example.
        draws: how often chance shuffles; by default 200 times if that is cheap over all layers and
            batches, else 20 (`chosen_draws`); 20 over a loader without a length. The table prints
            the number.
        seed: determines the draws and the positions.
        progress: show the progress over a loader on standard error.
        units: the former name of `groups`.
        **options: the options of the measure's function.

    Returns:
        A `Profile`: a row a layer.

    Raises:
        ValueError: naming the layer, if it does not exist, its activations are not finite, the two
            do not fit, or it ran twice or never; networks on different devices; an empty loader.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x = torch.randn(100, 4)
        >>> a = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> b = {name: 2 * weight for name, weight in a.named_parameters()}
        >>> round(compare_layers(a, (a, b), x)["0"].similarity, 4)
        1.0
        >>> round(compare_layers(a, (a, b), x.split(30), measure="procrustes")["0"].similarity, 4)
        1.0
    """
    if units is not None:
        warn_renamed("compare_layers(units=)", "compare_layers(groups=)")
        groups = units
    check_options(measure, options)
    draws, seed = check_draws(draws, seed)
    convention = check_convention(convention, measure)
    rows = check_whole(rows, "rows", 1, "it is about how many rows 'positions' keeps")
    pairs = layer_pairs(before, after, layers)
    check_same_device(before, after)
    if inputs is not None and not is_one_batch(inputs):
        _check_streamable(before, after, groups)
        comparison = LoaderComparison(
            measure, convention, pairs, rows=rows, draws=draws, seed=seed, **options
        )
        return comparison.over(inputs, before, after, to_inputs, progress=progress)
    batch = None if inputs is None else inputs_of(inputs, "inputs", to_inputs)
    left = layer_outputs(before, [pair[0] for pair in pairs], batch, "before")
    right = layer_outputs(after, [pair[1] for pair in pairs], batch, "after")
    one_draw = sum(draw_operations(measure, left[a], right[b], convention, rows) for a, b in pairs)
    draws = chosen_draws(draws, one_draw)
    similarities = []
    for a, b in pairs:
        name = pair_name((a, b))
        with naming(name):
            x, y = matrices(left[a], right[b], convention, rows, seed)
            blocks = len(left[a]) if groups is None else groups
            similarities.append(
                _similarity(name, x, y, measure, groups=blocks, draws=draws, seed=seed, **options)
            )
    return Profile(measure, convention, tuple(similarities))


def _check_streamable(before: Network, after: Network, groups: int | None) -> None:
    if isinstance(before, Mapping) or isinstance(after, Mapping):
        raise ValueError(
            "outputs captured earlier have no batches to run on: give two networks with a"
            " loader, or no inputs"
        )
    if groups is not None:
        raise ValueError(
            f"groups={groups}: over a loader chance shuffles single examples within each batch;"
            " leave groups out"
        )


def _similarity(
    name: str, x: Tensor, y: Tensor, measure: str, *, groups: int, draws: int, **options: Any
) -> LayerSimilarity:
    """One row of the profile, from matrices (rows, features)."""
    features = x.shape[1], y.shape[1]
    try:
        with cautions() as notes:
            value, chance = measured(measure, x, y, groups=groups, draws=draws, **options)
    except Undefined as reason:
        nothing = np.full(draws, np.nan)
        return LayerSimilarity(name, math.nan, nothing, len(x), features, note=str(reason))
    orders = arrangements(x.shape[1] if measure == "subspace" else groups)
    return LayerSimilarity(
        name, value, chance, len(x), features, note="; ".join(notes), orders=orders
    )
