"""CCA and CKA of one task's images, as averaged over tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from metalearn.analysis.measures.chance import chosen_draws

from .layerwise import compare_layers
from .positions import draw_operations, tokens
from .profile import Profile

# How many positions of a task's images CCA takes for each channel, and at least in all, if there
# are as many.
ROWS_PER_FEATURE = 30
FEWEST_ROWS = 1000


def cca_of_task(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    names: Sequence[str],
    *,
    draws: int | None,
    seed: int,
) -> Profile:
    """CCA of one task's images, layer by layer: positions as examples, channels as features.

    Raghu et al. 2020 (arXiv:1909.09157) average this over tasks, so every task has its own linear
    map. There are about 30 examples a channel or more. Chance shuffles whole images.

    Args:
        before: the layers' outputs `{layer: (images, ...)}`.
        after: the outputs of the other network on the same images.
        names: the layers.
        draws: how often chance shuffles.
        seed: determines the draws and the positions.

    Example:
        >>> import torch
        >>> x = {"block": torch.randn(20, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
        >>> cca_of_task(x, {"block": 2 * x["block"]}, ["block"], draws=0, seed=0)["block"].examples
        1000
    """
    layers = []
    for name in names:
        profile = compare_layers(
            {name: before[name]},
            {name: after[name]},
            measure="cca",
            rows=_task_rows(before[name]),
            draws=draws,
            seed=seed,
        )
        layers.append(profile[name])
    return Profile("cca", "positions", tuple(layers))


def cca_draws(
    draws: int | None, outputs: Mapping[str, Tensor], names: Sequence[str], repeats: int
) -> int:
    """How often `cca_of_task` shuffles: `draws`, or as `chosen_draws` decides for all tasks.

    Args:
        draws: the requested number, or None.
        outputs: the layers' outputs on one task.
        names: the layers.
        repeats: how many tasks (times pairs of networks) there are.
    """
    one_task = 0.0
    for name in names:
        output = outputs[name]
        one_task += draw_operations("cca", output, output, "positions", _task_rows(output))
    return chosen_draws(draws, repeats * one_task)


def cka_draws(
    draws: int | None, outputs: Mapping[str, Tensor], names: Sequence[str], repeats: int
) -> int:
    """How often linear CKA shuffles the images of each of `repeats` tasks, as `cca_draws`."""
    one_task = 0.0
    for name in names:
        output = outputs[name]
        one_task += draw_operations("linear_cka", output, output, "flatten", 1)
    return chosen_draws(draws, repeats * one_task)


def _task_rows(output: Tensor) -> int:
    channels = tokens(output).shape[2]
    return max(FEWEST_ROWS, ROWS_PER_FEATURE * channels)
