"""What a name of a layer's output means: `path[:entry][@tokens]`.

"blocks.5"          what the module returns
"rnn:0"             one entry of a tuple or a dictionary that it returns
"blocks.5@0"        one position: the class token, or the first time step
"blocks.5@1:"       positions 1 to the last
"blocks.5@mean"     the mean over all positions
"blocks.5@1:mean"   the mean over positions 1 to the last
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .forward import select
from .layers import check_network, resolve

TOKENS = re.compile(r"(?P<start>-?\d+)?(?P<colon>:)?(?P<stop>-?\d+)?(?::?(?P<mean>mean))?")
FORMS = "an index (@0), a slice (@1: or @1:5), @mean, or the mean of a slice (@1:mean)"


@dataclass(frozen=True)
class LayerOutput:
    """One output of a network: of which module, which entry, at which positions.

    Attributes:
        name: the name as it was given.
        path: the module.
        entry: the entry of a tuple or dictionary; "" for the whole.
        tokens: the positions as text; "" for all.
    """

    name: str
    path: str
    entry: str = ""
    tokens: str = ""

    def of(self, output: Any) -> Tensor:
        """The tensor that this name means in what the module returned.

        Raises:
            ValueError: It is not a tensor and no entry is named; or positions are named and there
                are none, or not so many.
        """
        tensor = select(
            output,
            self.entry or None,
            f"layer {self.path!r}",
            lambda entry: f"'{self.path}:{entry}'",
        )
        return self._positions(tensor) if self.tokens else tensor

    def _positions(self, output: Tensor) -> Tensor:
        if output.ndim < 3:
            raise ValueError(
                f"layer {self.name!r}: {self.path!r} returned {tuple(output.shape)}, which has no"
                f" positions; leave out @{self.tokens}"
            )
        every = positions_of(output)
        count = every.shape[1]
        parts = _parsed(self.tokens, self.name)
        if parts["start"] and not parts["colon"] and not parts["mean"]:
            index = int(parts["start"])
            if not -count <= index < count:
                raise ValueError(
                    f"layer {self.name!r}: there are {count} positions, 0 to {count - 1}"
                )
            return every[:, index]  # (examples, features)
        start = int(parts["start"]) if parts["start"] else None
        stop = int(parts["stop"]) if parts["stop"] else None
        chosen = every[:, start:stop]  # (examples, positions, features)
        if not chosen.shape[1]:
            raise ValueError(
                f"layer {self.name!r}: no position is left of {count}, 0 to {count - 1}"
            )
        return chosen.mean(1) if parts["mean"] else chosen


def named_output(model: nn.Module, name: str) -> LayerOutput:
    """What a name means in a model.

    A module whose own name contains ":" or "@" is meant by its whole name.

    Raises:
        ValueError: No such module, with near names; or tokens that cannot be read.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.LSTM(2, 3, batch_first=True))
        >>> last = named_output(model, "0:0@-1")
        >>> last.of(model[0](torch.rand(4, 5, 2))).shape
        torch.Size([4, 3])
    """
    check_network(model)
    known = dict(model.named_modules(remove_duplicate=False))
    if name in known:
        return LayerOutput(name, resolve(model, name))
    rest, at, tokens = name.rpartition("@")
    if not at:
        rest, tokens = name, ""
    elif not tokens or "." in tokens:
        raise ValueError(f"layer {name!r}: after @ comes {FORMS}")
    else:
        _parsed(tokens, name)
    if rest in known:
        return LayerOutput(name, resolve(model, rest), "", tokens)
    path, colon, entry = rest.rpartition(":")
    if not colon:
        return LayerOutput(name, resolve(model, rest), "", tokens)
    return LayerOutput(name, resolve(model, path), entry, tokens)


def positions_of(output: Tensor) -> Tensor:
    """Images, tokens or vectors as (examples, positions, features).

    Args:
        output: (examples, channels, height, width), (examples, positions, features), or (examples,
            features), which is one position.

    Example:
        >>> import torch
        >>> positions_of(torch.rand(2, 3, 4, 4)).shape
        torch.Size([2, 16, 3])
    """
    if output.ndim == 2:
        return output[:, None]
    return output if output.ndim == 3 else output.flatten(2).mT


def _parsed(tokens: str, name: str) -> dict[str, str | None]:
    match = TOKENS.fullmatch(tokens)
    if match is None or (match["stop"] and not match["colon"]):
        raise ValueError(f"layer {name!r}: after @ comes {FORMS}")
    return match.groupdict()
