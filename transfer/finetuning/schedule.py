"""Freeze training: which layers are held from which step on.

Raghu et al. 2017 (arXiv:1706.05806) freeze layers from the bottom up while the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

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
