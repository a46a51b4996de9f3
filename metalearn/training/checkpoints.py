"""Checkpoints of a training run: everything that decides its next step, in one file that is whole
or absent.
"""

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
    """Write a checkpoint, keeping the one before as `<path>.previous`.

    A crash or a full disk at any moment leaves at least one whole checkpoint under one of the two
    names. Raises OSError naming the path.
    """
    newest, previous, coming = (
        Path(f"{os.fspath(path)}{ending}") for ending in ("", ".previous", ".next")
    )
    files.save(coming, tensors, record)
    if newest.exists():
        os.replace(newest, previous)
    os.replace(coming, newest)


def load(
    path: str | os.PathLike[str], *, set_aside: bool = False
) -> tuple[dict[str, Tensor], Record]:
    """The newest whole checkpoint at `path` -> (tensors, record).

    If the newest is damaged the previous one is used, with a warning that says so; `set_aside`
    renames the damaged one to `<its name>.damaged`, so that the next `save` does not take it for a
    good one. Only a file that is not whole is damaged: one that cannot be read now stops with the
    reason. Raises FileNotFoundError if there is none, Damaged if no whole one is left,
    `files.Foreign` if metalearn did not write it, and OSError if one cannot be read.
    """
    path = files.file_path(path)
    previous = Path(f"{path}.previous")
    damage = []
    for candidate in (path, previous):
        try:
            tensors, record = files.load(candidate)
        except FileNotFoundError:
            continue
        except Foreign:
            raise
        except Damaged as error:
            damage.append(str(error))
            continue
        if candidate == previous:
            if damage and set_aside:
                os.replace(path, f"{path}.damaged")
            why = (
                damage[0] if damage else f"{path} is missing, as after a kill while it was written"
            )
            warnings.warn(
                f"{why}; the previous good checkpoint {previous} (step {record.get('step')}) is"
                " used instead",
                stacklevel=2,
            )
        return tensors, record
    if damage:
        raise Damaged(
            f"{'; '.join(damage)}. No whole checkpoint is left at {path}: start again without it,"
            " or from another path"
        )
    raise FileNotFoundError(f"there is no checkpoint {path}")


def restore(module: Module, path: str | os.PathLike[str]) -> Module:
    """Give `module` the weights of a checkpoint, in place, and return it: a learner, or the model
    inside one.

    Nothing else of the checkpoint is taken. Raises FileNotFoundError, `files.Damaged`, or
    ValueError naming the weights that do not fit.

    Example:
        >>> import torch
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/run", {"learner.weight": torch.ones(1, 2), "learner.bias": torch.zeros(1)}, {})
        ...     restore(nn.Linear(2, 1), f"{folder}/run").weight.tolist()
        [[1.0, 1.0]]
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"weights go into a torch.nn.Module, not a {type(module).__name__}: {module!r}"
        )
    weights = read_weights(path)
    inner = {
        name.removeprefix("model."): tensor
        for name, tensor in weights.items()
        if name.startswith("model.")
    }
    load_weights(
        module, inner if module.state_dict().keys() <= inner.keys() else weights, str(path)
    )
    return module


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The learner's parameters and buffers by name, as its `state_dict()` has them (those of the
    model begin with `model.`).
    """
    tensors, _ = load(path)
    return of_learner(tensors)


def of_learner(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors of a checkpoint that are the learner's, by their names in it."""
    return {
        name.removeprefix(WEIGHTS): tensor
        for name, tensor in tensors.items()
        if name.startswith(WEIGHTS)
    }


def read_settings(path: str | os.PathLike[str]) -> Record:
    """The settings under which a checkpoint was trained: the learner's, the episodes', the
    training's, and the caller's own under "run".
    """
    return load(path)[1]["settings"]


def load_weights(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy weights into `module` by name.

    Raises ValueError, changing nothing, naming what is missing, left over, or of another shape.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"weights go into a torch.nn.Module, not a {type(module).__name__}: {module!r}"
        )
    if not isinstance(weights, dict) or not all(
        isinstance(tensor, Tensor) for tensor in weights.values()
    ):
        raise TypeError(f"weights are tensors by name, not {weights!r}")
    own = module.state_dict()
    wrong = [f"{name} is only in the model" for name in own.keys() - weights.keys()]
    wrong += [f"{name} is only in the file" for name in weights.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(weights[name].shape)} in the file and {tuple(own[name].shape)} in the"
        " model"
        for name in own.keys() & weights.keys()
        if weights[name].shape != own[name].shape
    ]
    if wrong:
        listed = "; ".join(sorted(wrong)[:4]) + (
            f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        )
        raise ValueError(
            f"{source} holds the weights of another network: {listed}. "
            "Build the one that metalearn.training.checkpoints.read_settings(path) describes"
        )
    module.load_state_dict(weights)


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Nested plain values and tensors -> what JSON can hold; each tensor goes into `tensors` under
    the name of its place.

    Example:
        >>> import torch
        >>> tensors = {}
        >>> unpack(pack({0: (0.9, torch.ones(2))}, "optimizer", tensors), tensors), list(tensors)
        ({0: (0.9, tensor([1., 1.]))}, ['optimizer.0.1'])
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, list | tuple):
        items = [pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict):
        kind = "counter" if isinstance(value, Counter) else "dict"
        return {
            kind: [
                [pack(key, name, tensors), pack(item, f"{name}.{key}", tensors)]
                for key, item in value.items()
            ]
        }
    raise TypeError(
        f"{name} is a {type(value).__name__}; a checkpoint holds tensors, numbers, texts, lists,"
        " tuples and dicts of them only"
    )


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """What `pack` packed."""
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
    return Counter(items) if kind == "counter" else items
