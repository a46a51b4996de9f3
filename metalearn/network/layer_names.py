"""What a name of a layer's output means: `path[:entry][@tokens]`.

"blocks.5"          what the module returns
"rnn:0"             one entry of a tuple or a dictionary that it returns
"blocks.5@0"        one position: the class token, or the first time step
"blocks.5@1:"       positions 1 to the last
"blocks.5@mean"     the mean over all positions
"blocks.5@1:mean"   the mean over positions 1 to the last

What torch's recurrent modules return comes with the examples first, whatever their `batch_first`:
"rnn:0" as (examples, time steps, features), and "gru:1", the last states, as (examples, layers,
features). With `bidirectional=True` the features of a step are those of both directions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .forward import select
from .layers import check_network, module_at, resolve

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
        swapped: whether the module returns its examples second.
    """

    name: str
    path: str
    entry: str = ""
    tokens: str = ""
    swapped: bool = False

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
        if self.swapped and tensor.ndim == 3:
            tensor = tensor.transpose(0, 1)  # (examples, time steps or layers, features)
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
        ValueError: No such module, with near names; tokens that cannot be read; time steps of a
            recurrent module of several layers, which returns only those of the last; or positions
            of a transformer with `batch_first=False`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.LSTM(2, 3, batch_first=True))
        >>> last = named_output(model, "0:0@-1")
        >>> last.of(model[0](torch.rand(4, 5, 2))).shape
        torch.Size([4, 3])
    """
    check_network(model)
    if not isinstance(name, str) or module_at(model, name) is not None:
        return LayerOutput(name, resolve(model, name))
    rest, at, tokens = name.rpartition("@")
    if not at:
        rest, tokens = name, ""
    elif not tokens or "." in tokens:
        raise ValueError(f"layer {name!r}: after @ comes {FORMS}")
    else:
        _parsed(tokens, name)
    path, colon, entry = rest.rpartition(":")
    if module_at(model, rest) is not None or not colon:
        path, entry = rest, ""
    path = resolve(model, path)
    module = model.get_submodule(path)
    if tokens:
        _check_positions(model, name, path, entry)
    return LayerOutput(name, path, entry, tokens, _returns_examples_second(module, entry))


def _returns_examples_second(module: nn.Module, entry: str) -> bool:
    """Whether an entry of what a recurrent module returns has the examples second."""
    if not isinstance(module, nn.RNNBase):
        return False
    # The last states have them second, whatever `batch_first` is.
    return entry == "1" or (entry == "0" and not module.batch_first)


def _check_positions(model: nn.Module, name: str, path: str, entry: str) -> None:
    """Raise ValueError if the positions of a layer are not those that its name promises."""
    module = model.get_submodule(path)
    kind = type(module).__name__
    if isinstance(module, nn.RNNBase) and entry == "0" and module.num_layers > 1:
        raise ValueError(
            f"layer {name!r}: {path!r} is one {kind} of num_layers={module.num_layers}, which"
            f" returns the time steps of its last layer only; build an nn.{kind}(num_layers=1) for"
            " each layer, and name the one that you mean"
        )
    parts = path.split(".") if path else []
    # The layer and what it is inside of: torch's transformers hand their order of dimensions down.
    for length in range(len(parts) + 1):
        around = ".".join(parts[:length])
        if has_positions_first(model.get_submodule(around)):
            raise ValueError(
                f"layer {name!r}: {around or 'the model'!r}"
                f" ({type(model.get_submodule(around)).__name__}) has batch_first=False, so"
                " its outputs are (positions, examples, features); build it with batch_first=True"
            )


def has_positions_first(module: nn.Module) -> bool:
    """Whether a part of one of torch's transformers takes and returns positions first.

    Example:
        >>> has_positions_first(nn.TransformerEncoderLayer(4, 2, 8))
        True
        >>> has_positions_first(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
        False
    """
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        module = module.layers[0]
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        module = module.self_attn
    return isinstance(module, nn.MultiheadAttention) and not module.batch_first


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
