"""How a transformer takes embeddings: which of its modules, and how they are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.network.modes import evaluation_mode
from metalearn.network.norm import is_norm, norm_parameters

CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Kind:
    """A way of taking embeddings.

    Attributes:
        name: in words.
        run: from a module and embeddings (examples, tokens, width) to the same shape.
    """

    name: str
    run: Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Body:
    """A transformer, or the part of one that takes embeddings.

    Attributes:
        module: the part, with the paths of the whole, so that weights of the whole fit it by name.
        kind: how it takes embeddings.
        width: of the embeddings.
    """

    module: nn.Module
    kind: Kind
    width: int


def width_of(body: nn.Module) -> int:
    """The size of a transformer's last norm.

    Raises:
        ValueError: there is no norm.

    Example:
        >>> width_of(nn.TransformerEncoderLayer(8, 2))
        8
    """
    norms = norm_parameters(body)
    if not norms:
        raise ValueError(
            f"{type(body).__name__} has no normalisation layer that says its width; give width="
        )
    return body.get_parameter(norms[-1]).numel()


def body_of(model: nn.Module, width: int) -> Body:
    """The part of a transformer that takes embeddings of this width.

    It is the first of these that runs: the model called with `inputs_embeds=`, if it has such an
    argument; the model called with the embeddings; the stack of blocks and the norm behind it, as
    in a vision transformer.

    Raises:
        ValueError: none runs, or the examples of a batch change each other's output.
    """
    reasons: list[str] = []
    candidates: list[tuple[nn.Module, Kind]] = []
    if "inputs_embeds" in inspect.signature(model.forward).parameters:
        candidates.append((model, EMBEDS))
    else:
        candidates.append((model, DIRECT))
        part = _blocks_of(model)
        if part is not None:
            candidates.append((part, BLOCKS))
    for module, kind in candidates:
        reason = _misfit(module, kind, width)
        if not reason:
            return Body(module, kind, width)
        reasons.append(f"{kind.name}: {reason}")
    raise ValueError(
        f"{type(model).__name__} takes no embeddings of width {width} ({'; '.join(reasons)}). Give"
        " a body without its head that takes (examples, tokens, width) or inputs_embeds=, such as"
        " nn.TransformerEncoder, transformers' GPT2Model, or a vision transformer; width= is the"
        " size of its embeddings"
    )


def _direct(body: nn.Module, stream: Tensor) -> Tensor:
    return _tensor(body(stream))


def _embeds(body: nn.Module, stream: Tensor) -> Tensor:
    return _tensor(body(inputs_embeds=stream))


def _run_blocks(body: nn.Module, stream: Tensor) -> Tensor:
    """Run the modules of `_blocks_of`: the stack, then the norm."""
    for module in _leaves(body):
        parts = module if isinstance(module, CONTAINERS) else (module,)
        for part in parts:
            stream = _tensor(part(stream))
    return stream


DIRECT = Kind("called with embeddings", _direct)
EMBEDS = Kind("called with inputs_embeds", _embeds)
BLOCKS = Kind("its blocks", _run_blocks)


def _tensor(output: Any) -> Tensor:
    """The features of a body's output: a tensor, or the first entry."""
    if isinstance(output, Tensor):
        return output
    features = getattr(output, "last_hidden_state", None)
    if features is None:
        features = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(features, Tensor):
        raise ValueError(f"it returned a {type(output).__name__} without last_hidden_state")
    return features


class _Part(nn.Module):
    """Modules of a network under their own paths, without the rest."""


def _blocks_of(model: nn.Module) -> nn.Module | None:
    """The stack of blocks of a network and the norm behind it, under their own paths."""
    stacks = [
        path
        for path, module in model.named_modules()
        if path and type(module) in CONTAINERS and _is_stack(module)
    ]
    if not stacks:
        return None
    path = stacks[0]
    part = _Part()
    _put(part, path, model.get_submodule(path))
    parent, _, name = path.rpartition(".")
    siblings = dict(model.get_submodule(parent).named_children())
    behind = list(siblings)[list(siblings).index(name) + 1 :]
    for sibling in behind:
        if is_norm(siblings[sibling]):
            _put(part, f"{parent}.{sibling}".lstrip("."), siblings[sibling])
            break
    return part


def _is_stack(module: nn.Module) -> bool:
    """Whether a container holds blocks of one class, each with a norm inside."""
    blocks = list(module.children())
    same = len({type(block) for block in blocks}) == 1
    return same and bool(norm_parameters(blocks[0])) and not is_norm(blocks[0])


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register a module under a path of several names."""
    *above, name = path.split(".")
    for step in above:
        if step not in dict(root.named_children()):
            root.add_module(step, _Part())
        root = root.get_submodule(step)
    root.add_module(name, module)


def _leaves(part: nn.Module) -> list[nn.Module]:
    """The modules that `_put` registered, in order."""
    leaves: list[nn.Module] = []
    for child in part.children():
        leaves += _leaves(child) if isinstance(child, _Part) else [child]
    return leaves


def _misfit(module: nn.Module, kind: Kind, width: int) -> str:
    """Why a module cannot be run on embeddings in this way, or ""."""
    parameter = next(module.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    # Two examples of three tokens, then another second example.
    stream = torch.randn(3, 3, width, generator=generator).to(parameter)
    try:
        with evaluation_mode([module]), torch.no_grad(), torch.random.fork_rng(devices=[]):
            first = kind.run(module, stream[:2])
            second = kind.run(module, stream[[0, 2]])
    except Exception as error:  # any network may be tried, and fail in its own way
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return lines[0]
    if first.shape != (2, 3, width):
        return f"it returned {tuple(first.shape)} for embeddings (2, 3, {width})"
    if not torch.allclose(first[0], second[0], rtol=1e-4, atol=1e-5):
        return "one example changes the output for another; build it with batch_first=True"
    return ""
