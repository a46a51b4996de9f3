"""The outputs of the layers of a network, of a network under other weights, or captured earlier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.analysis.checks import listed
from metalearn.analysis.measures.inputs import count_not_finite, real_tensor
from metalearn.network.activations import representations
from metalearn.network.forward import Inputs, arguments
from metalearn.network.layers import layers as layer_names
from metalearn.network.modes import evaluation_mode

from .batches import count, running, to_device

Network: TypeAlias = nn.Module | tuple[nn.Module, Mapping[str, Tensor]] | Mapping[str, Tensor]

# The name of a layer in the first network, and in the second.
Pair: TypeAlias = tuple[str, str]


def layer_pairs(before: Network, after: Network, layers: Sequence[str | Pair] | None) -> list[Pair]:
    """The layers to compare.

    Args:
        before: the first network.
        after: the second network.
        layers: names or pairs of names; None takes the names that both networks have.

    Raises:
        TypeError: an entry of `layers` is neither.
        ValueError: the networks share no name.
    """
    if layers is not None:
        return [_pair(layer) for layer in listed(layers, "layers")]
    names_before = _layer_names(before)
    names_after = _layer_names(after)
    shared = [name for name in names_before if name in names_after]
    if not shared:
        raise ValueError(
            f"the two networks share no layer name ({', '.join(names_before)} against"
            f" {', '.join(names_after)}); name pairs: layers=[(a, b), ...]"
        )
    return [(name, name) for name in shared]


def _pair(layer: Any) -> Pair:
    if isinstance(layer, str):
        return layer, layer
    is_pair = isinstance(layer, tuple) and len(layer) == 2
    if not is_pair or not all(isinstance(name, str) for name in layer):
        raise TypeError(
            f"layers holds {layer!r}; each is a name, or a pair (name in before, name in after)"
        )
    return layer


def _layer_names(network: Network) -> list[str]:
    if isinstance(network, Mapping):
        return list(network)
    module, _ = _module_and_weights(network)
    return layer_names(module)


def pair_name(pair: Pair) -> str:
    """What a pair of layers is called in tables and errors."""
    before, after = pair
    return before if before == after else f"{before} / {after}"


@contextmanager
def naming(layer: str) -> Iterator[None]:
    """Errors inside name the layer."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"layer {layer}: {error}") from error


def _module_and_weights(network: Network) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """A network's module, and the weights that replace its own, if any."""
    module, weights = network if isinstance(network, tuple) else (network, {})
    if not isinstance(module, nn.Module):
        raise TypeError(
            "a network is a module, (module, weights) or captured outputs {layer: tensor}, not"
            f" {type(network).__name__}"
        )
    return module, weights


def check_same_device(before: Network, after: Network) -> None:
    """Raise ValueError if two networks are on different devices."""
    first = _device(before)
    second = _device(after)
    if first is not None and second is not None and first != second:
        raise ValueError(
            f"before is on {first} and after is on {second}; move one of them:"
            f" after.to({str(first)!r})"
        )


def _device(network: Network) -> torch.device | None:
    """The network's device; None for captured outputs and networks without tensors."""
    if isinstance(network, Mapping):
        return None
    tensor = _any_tensor(network)
    return None if tensor is None else tensor.device


def _any_tensor(network: Network) -> Tensor | None:
    """A tensor on the network's device and in its precision; None if it holds none."""
    module, weights = _module_and_weights(network)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        return weights.get(name, tensor)
    return None


def layer_outputs(
    network: Network, names: Sequence[str], inputs: Inputs | None, side: str
) -> Mapping[str, Tensor]:
    """The outputs of the named layers (examples, ...).

    Args:
        network: a network, or captured outputs.
        names: the layers.
        inputs: what the network runs on; unused for captured outputs.
        side: what the network is called in errors.

    Raises:
        ValueError: a layer does not exist, ran twice or never, or has no row for each example; or
            its output is not finite. Of those, the first is named, which the later ones follow.
    """
    if isinstance(network, Mapping):
        outputs = _captured(network, names)
    else:
        outputs = _run(network, names, inputs, side)
    for name in names:
        wrong = count_not_finite(outputs[name])
        if wrong:
            raise ValueError(
                f"{side}: layer {name!r} outputs {wrong} values that are NaN or infinite; check its"
                " weights and what enters it"
            )
    return outputs


def _captured(outputs: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Tensor]:
    missing = [name for name in names if name not in outputs]
    if missing:
        raise ValueError(
            f"no outputs of layer {missing[0]!r} were captured; there are"
            f" {', '.join(outputs) or 'none'}"
        )
    tensors = {name: real_tensor(outputs[name], f"the output of layer {name!r}") for name in names}
    for name, output in tensors.items():
        if not output.ndim or not output.numel():
            raise ValueError(
                f"the output of layer {name!r} is {tuple(output.shape)}, not (examples, ...) with"
                " at least one example"
            )
    return tensors


def _run(
    network: Network, names: Sequence[str], inputs: Inputs | None, side: str
) -> Mapping[str, Tensor]:
    module, weights = _module_and_weights(network)
    if inputs is None:
        raise ValueError(
            "inputs=None: networks that are not captured outputs need inputs (examples, ...) to"
            " run on"
        )
    inputs = to_device(inputs, _any_tensor(network))
    args, kwargs = arguments(inputs)
    with (
        evaluation_mode([module]),
        torch.no_grad(),
        running(module, inputs, side),
        representations(module, names) as outputs,
    ):
        functional_call(module, dict(weights), args, kwargs)
    for name, output in outputs.items():
        if not output.ndim or len(output) != count(inputs):
            raise ValueError(
                f"layer {name!r} outputs {tuple(output.shape)} for {count(inputs)} examples;"
                " compare a layer whose first dimension is the examples, or capture the outputs"
                " and transpose them: {layer: (examples, ...)}"
            )
    return outputs
