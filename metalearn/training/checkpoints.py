"""Checkpoints of a training run: everything that decides its next step, in one atomic file."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from metalearn.runtime import files
from metalearn.runtime.files import Damaged, Foreign, Record

Module = TypeVar("Module", bound=nn.Module)

WEIGHTS = "learner."


def save(path: str | os.PathLike[str], tensors: dict[str, Tensor], record: Record) -> None:
    """Write a checkpoint, and keep the one before as `<path>.previous`.

    A crash or a full disk at any moment leaves at least one whole checkpoint under one of the two
    names.

    Raises:
        OSError: it cannot be written; the path is named.
    """
    path = Path(path)
    # At every moment one of the three files is a whole checkpoint.
    following = Path(f"{path}.next")
    files.save(following, tensors, record)
    if path.exists():
        os.replace(path, f"{path}.previous")
    os.replace(following, path)


def load(
    path: str | os.PathLike[str], *, set_aside: bool = False
) -> tuple[dict[str, Tensor], Record]:
    """The newest whole checkpoint at `path`, or the previous one, with a warning.

    Only a file that is not whole counts as damaged. A file that cannot be read at the moment is an
    error.

    Args:
        path: where `save` wrote.
        set_aside: rename a damaged checkpoint to `<its name>.damaged`, so the next `save` does not
            keep it as the previous one.

    Returns:
        The tensors by name, and the record.

    Raises:
        FileNotFoundError: there is no checkpoint.
        Damaged: no whole one is left.
        Foreign: metalearn did not write it.
        OSError: a file cannot be read.
    """
    path = files.file_path(path)
    previous = Path(f"{path}.previous")
    damage: list[str] = []
    newest = _load_whole(path, damage)
    if newest is not None:
        return newest
    is_damaged = bool(damage)
    why = f"{path} is missing, as after a kill while it was written"
    if is_damaged:
        why = damage[0]
    fallback = _load_whole(previous, damage)
    if fallback is not None:
        if is_damaged and set_aside:
            os.replace(path, f"{path}.damaged")
        warnings.warn(
            f"{why}; the previous good checkpoint {previous} (step {fallback[1].get('step')}) is"
            " used instead",
            stacklevel=2,
        )
        return fallback
    if damage:
        raise Damaged(
            f"{'; '.join(damage)}. No whole checkpoint is left at {path}: start again without it,"
            " or from another path"
        )
    raise FileNotFoundError(f"there is no checkpoint {path}")


def _load_whole(path: Path, damage: list[str]) -> tuple[dict[str, Tensor], Record] | None:
    """The checkpoint in a file; None if it is absent, or damaged, which is added to the list."""
    try:
        return files.load(path)
    except FileNotFoundError:
        return None
    except Foreign:
        raise
    except Damaged as error:
        damage.append(str(error))
        return None


def restore(module: Module, path: str | os.PathLike[str]) -> Module:
    """Give a module the weights of a checkpoint, in place.

    Args:
        module: a learner, or the model inside one.
        path: of the checkpoint; nothing else of it is used.

    Returns:
        The module.

    Raises:
        FileNotFoundError: there is no checkpoint.
        Damaged: no whole one is left.
        ValueError: weights do not fit; they are named.

    Example:
        >>> import torch
        >>> import tempfile
        >>> weights = {"learner.weight": torch.ones(1, 2), "learner.bias": torch.zeros(1)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/run", weights, {})
        ...     restore(nn.Linear(2, 1), f"{folder}/run").weight.tolist()
        [[1.0, 1.0]]
    """
    _check_module(module)
    weights = read_weights(path)
    # The model inside a learner has the same names without the prefix.
    of_model = _with_prefix(weights, "model.")
    if module.state_dict().keys() <= of_model.keys():
        weights = of_model
    load_weights(module, weights, str(path))
    return module


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The learner's parameters and buffers by name, as in its `state_dict()`.

    The names of the model's begin with `model.`.
    """
    tensors, _ = load(path)
    return of_learner(tensors)


def of_learner(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The learner's tensors among those of a checkpoint, by their names in the learner."""
    return _with_prefix(tensors, WEIGHTS)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def read_settings(path: str | os.PathLike[str]) -> Record:
    """The settings under which a checkpoint was trained.

    They are the learner's, the episodes', the training's, and the caller's under "run".
    """
    return load(path)[1]["settings"]


def load_weights(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy weights into `module` by name.

    Args:
        module: any module.
        weights: all of its parameters and buffers.
        source: where the weights are from, for the message.

    Raises:
        ValueError: a weight is missing, left over, or of another shape; nothing is changed.
        TypeError: the arguments are of other types.
    """
    _check_module(module)
    if not isinstance(weights, dict) or not all(
        isinstance(tensor, Tensor) for tensor in weights.values()
    ):
        raise TypeError(f"weights are tensors by name, not {weights!r}")
    current = module.state_dict()
    wrong = [f"{name} is only in the model" for name in current.keys() - weights.keys()]
    wrong += [f"{name} is only in the file" for name in weights.keys() - current.keys()]
    for name in current.keys() & weights.keys():
        stored = tuple(weights[name].shape)
        expected = tuple(current[name].shape)
        if stored != expected:
            wrong.append(f"{name} is {stored} in the file and {expected} in the model")
    if wrong:
        listed = "; ".join(sorted(wrong)[:4])
        if len(wrong) > 4:
            listed += f"; and {len(wrong) - 4} more"
        raise ValueError(
            f"{source} holds the weights of another network: {listed}. "
            "Build the one that metalearn.training.checkpoints.read_settings(path) describes"
        )
    module.load_state_dict(weights)


def _check_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"weights go into a torch.nn.Module, not a {type(module).__name__}: {module!r}"
        )


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Pack nested plain values and tensors into what JSON can hold.

    Args:
        value: numbers, texts, tensors, and lists, tuples and dictionaries of them.
        name: what the value is called.
        tensors: gets every tensor under the name of its place.

    Returns:
        The value with references in the place of tensors (see `unpack`).

    Raises:
        TypeError: a part is of another type; it is named.

    Example:
        >>> import torch
        >>> tensors = {}
        >>> packed = pack({0: (0.9, torch.ones(2))}, "optimizer", tensors)
        >>> unpack(packed, tensors), list(tensors)
        ({0: (0.9, tensor([1., 1.]))}, ['optimizer.0.1'])
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, list | tuple):
        items = [pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        if isinstance(value, list):
            return items
        return {"tuple": items}
    if isinstance(value, dict):
        # Pairs, because a key of JSON is always text.
        pairs = [
            [pack(key, name, tensors), pack(item, f"{name}.{key}", tensors)]
            for key, item in value.items()
        ]
        return {"counter" if isinstance(value, Counter) else "dict": pairs}
    raise TypeError(
        f"{name} is a {type(value).__name__}; a checkpoint holds tensors, numbers, texts, lists,"
        " tuples and dicts of them only"
    )


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """The value that `pack` packed.

    Args:
        packed: what `pack` returned.
        tensors: the tensors that it filled.
    """
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    [(kind, content)] = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(unpack(content, tensors))
    items = {unpack(key, tensors): unpack(item, tensors) for key, item in content}
    if kind == "counter":
        return Counter(items)
    return items
