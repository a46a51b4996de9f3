"""Freeze training: which layers are held from which step on.

Raghu et al. 2017 (arXiv:1706.05806) freeze layers from the bottom up while the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from metalearn.network.layers import assign, check_reached, is_inside, resolve
from metalearn.network.norm import statistics_of
from metalearn.runtime.checks import whole_number


class FreezeSchedule:
    """Holds the layers of a model from their steps on.

    A layer that is held keeps its parameters to the last bit: they require no gradient, and the
    optimizer forgets them, so that neither momentum nor weight decay moves them. Norms with running
    statistics keep these and normalise by them.

    Args:
        model: the network that trains.
        steps: {module or parameter path: number of updates after which it is held}; 0 is from the
            start, the longest match wins.

    Raises:
        ValueError: a path that does not exist, with near names, or that holds nothing; or all
            parameters are held.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> schedule = FreezeSchedule(model, {"0": 10})
        >>> schedule.hold(9), schedule.hold(10)
        ([], ['0.weight', '0.bias'])
    """

    def __init__(self, model: nn.Module, steps: Mapping[str, int]) -> None:
        for path in steps:
            resolve(model, path, parameters=True)
        self.model = model
        self.parameters = assign(model, steps)
        self.norms = _statistics(model, steps)
        # A norm without parameters has statistics to hold.
        held = [name for name, module in model.named_modules() if statistics_of(module)]
        check_reached(
            model,
            [path for path in steps if not any(is_inside(name, path) for name in held)],
            "frozen",
        )
        self._check_something_trains(steps)

    def _check_something_trains(self, steps: Mapping[str, int]) -> None:
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        due = [self.parameters.get(name, math.inf) for name in trained]
        if trained and steps and max(due) < math.inf:
            raise ValueError(
                f"frozen= holds all parameters from step {max(due)} on, so nothing is left to"
                " train; leave out a layer, such as the head"
            )

    def hold(self, step: int, optimizer: Optimizer | None = None) -> list[str]:
        """Hold what is due after `step` updates.

        Args:
            step: the number of updates so far.
            optimizer: forgets what is held.

        Returns:
            The names of the parameters that are held from now on.
        """
        held = []
        for name, parameter in self.model.named_parameters():
            # A training that continues holds what was due before, too.
            due = self.parameters.get(name, math.inf) <= step
            if due and parameter.requires_grad:
                parameter.requires_grad = False
                # A gradient of zeros would still be moved by momentum and weight decay.
                parameter.grad = None
                if optimizer is not None:
                    optimizer.state.pop(parameter, None)
                held.append(name)
        for module, first in self.norms:
            if first <= step:
                module.eval()
        return held


def from_below(layers: Sequence[str], steps: int, scale: float = 1.0) -> dict[str, int]:
    """The linear schedule of freeze training, from the lowest layer up.

    Layer `l` of `L` is held from step `scale * steps * l / L` on, counted from 1. The last layer is
    left out: it always trains.

    Args:
        layers: names of layers, the lowest first.
        steps: of the training.
        scale: 1 spreads the steps over the whole training, a smaller number freezes earlier.

    Raises:
        ValueError: `scale` is not between 0 and 1, or there are fewer than two layers.

    Example:
        >>> from_below(["block1", "block2", "head"], steps=300)
        {'block1': 100, 'block2': 200}
        >>> from_below(["block1", "block2", "head"], steps=300, scale=0.5)
        {'block1': 50, 'block2': 100}
    """
    if not 0 < scale <= 1:
        raise ValueError(f"scale={scale}; give a number above 0, up to 1")
    if len(layers) < 2:
        raise ValueError(f"layers={list(layers)}; give at least two, since the last always trains")
    schedule = {}
    for number, layer in enumerate(layers[:-1], 1):
        schedule[layer] = round(scale * steps * number / len(layers))
    return schedule


def check_steps(frozen: Mapping[str, int], steps: int) -> dict[str, int]:
    """The steps of a schedule as ints.

    Raises:
        ValueError: a step lies past the end of the training.
        TypeError: a step is not a whole number.
    """
    checked = {}
    for path, step in frozen.items():
        checked[path] = whole_number(f"frozen[{path!r}]", step, least=0)
        if checked[path] >= steps:
            raise ValueError(
                f"frozen={{{path!r}: {step}}} lies past the end of {steps} steps; give a step below"
                f" {steps}, or leave the layer out"
            )
    return checked


def _statistics(model: nn.Module, steps: Mapping[str, int]) -> list[tuple[nn.Module, int]]:
    """The modules with running statistics that are held, and from which step."""
    norms = []
    for name, module in model.named_modules():
        paths = [path for path in steps if is_inside(name, path)]
        if statistics_of(module) and paths:
            norms.append((module, steps[max(paths, key=len)]))
    return norms
