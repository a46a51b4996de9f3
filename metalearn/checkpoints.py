"""Checkpoints of a training run: everything that decides its next step, in one file that is whole or absent."""

from __future__ import annotations

import os
import platform
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from metalearn import files
from metalearn.files import Damaged, Foreign, Record

Module = TypeVar("Module", bound=nn.Module)

WEIGHTS = "learner."


def save(path: str | os.PathLike[str], tensors: dict[str, Tensor], record: Record) -> None:
    """Write a checkpoint, keeping the one before as `<path>.previous`.

    A crash or a full disk at any moment leaves at least one whole checkpoint under one of the two names. Raises OSError naming the path.
    """
    newest, previous, coming = (Path(f"{os.fspath(path)}{ending}") for ending in ("", ".previous", ".next"))
    files.save(coming, tensors, record)
    if newest.exists():
        os.replace(newest, previous)
    os.replace(coming, newest)


def load(path: str | os.PathLike[str], *, set_aside: bool = False) -> tuple[dict[str, Tensor], Record]:
    """The newest whole checkpoint at `path` -> (tensors, record).

    If the newest is damaged the previous one is used, with a warning that says so; `set_aside` renames the damaged one to
    `<its name>.damaged`, so that the next `save` does not take it for a good one. Only a file that is not whole is damaged: one that
    cannot be read now stops with the reason. Raises FileNotFoundError if there is none, Damaged if no whole one is left,
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
            why = damage[0] if damage else f"{path} is missing, as after a kill while it was written"
            warnings.warn(f"{why}; the previous good checkpoint {previous} (step {record.get('step')}) is used instead", stacklevel=2)
        return tensors, record
    if damage:
        raise Damaged(f"{'; '.join(damage)}. No whole checkpoint is left at {path}: start again without it, or from another path")
    raise FileNotFoundError(f"there is no checkpoint {path}")


def restore(module: Module, path: str | os.PathLike[str]) -> Module:
    """Give `module` the weights of a checkpoint, in place, and return it: a learner, or the model inside one.

    Nothing else of the checkpoint is taken. Raises FileNotFoundError, `files.Damaged`, or ValueError naming the weights that do not fit.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/run", {"learner.weight": torch.ones(1, 2), "learner.bias": torch.zeros(1)}, {})
        ...     restore(nn.Linear(2, 1), f"{folder}/run").weight.tolist()
        [[1.0, 1.0]]
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"weights go into a torch.nn.Module, not a {type(module).__name__}: {module!r}")
    weights = read_weights(path)
    inner = {name.removeprefix("model."): tensor for name, tensor in weights.items() if name.startswith("model.")}
    load_weights(module, inner if module.state_dict().keys() <= inner.keys() else weights, str(path))
    return module


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The learner's parameters and buffers by name, as its `state_dict()` has them (those of the model begin with `model.`)."""
    tensors, _ = load(path)
    return of_learner(tensors)


def of_learner(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors of a checkpoint that are the learner's, by their names in it."""
    return {name.removeprefix(WEIGHTS): tensor for name, tensor in tensors.items() if name.startswith(WEIGHTS)}


def read_settings(path: str | os.PathLike[str]) -> Record:
    """The settings under which a checkpoint was trained: the learner's, the episodes', the training's, and the caller's own under "run"."""
    return load(path)[1]["settings"]


def load_weights(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy weights into `module` by name. Raises ValueError, changing nothing, naming what is missing, left over, or of another shape."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"weights go into a torch.nn.Module, not a {type(module).__name__}: {module!r}")
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise TypeError(f"weights are tensors by name, not {weights!r}")
    own = module.state_dict()
    wrong = [f"{name} is only in the model" for name in own.keys() - weights.keys()]
    wrong += [f"{name} is only in the file" for name in weights.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(weights[name].shape)} in the file and {tuple(own[name].shape)} in the model"
        for name in own.keys() & weights.keys()
        if weights[name].shape != own[name].shape
    ]
    if wrong:
        listed = "; ".join(sorted(wrong)[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise ValueError(
            f"{source} holds the weights of another network: {listed}. "
            "Build the one that metalearn.checkpoints.read_settings(path) describes"
        )
    module.load_state_dict(weights)


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Nested plain values and tensors -> what JSON can hold; each tensor goes into `tensors` under the name of its place.

    Example:
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
        return {kind: [[pack(key, name, tensors), pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    raise TypeError(f"{name} is a {type(value).__name__}; a checkpoint holds tensors, numbers, texts, lists, tuples and dicts of them only")


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


def generators(device: torch.device) -> Record:
    """The states of torch's (and this CUDA device's), numpy's and Python's global generators, as plain values."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 (the global generator is the one whose state a run depends on)
    version, state, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [kind, np.array(keys).tolist(), *rest],
        "python": [version, list(state), gauss],
    }
    return {**states, "cuda": torch.cuda.get_rng_state(device).tolist()} if device.type == "cuda" else states


def set_generators(states: Record, device: torch.device) -> None:
    """Put the global generators into the states that `generators` returned."""
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    np.random.set_state(tuple(states["numpy"]))  # noqa: NPY002
    version, state, gauss = states["python"]
    random.setstate((version, tuple(state), gauss))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8), device)


def versions() -> dict[str, str]:
    """The versions of Python, torch, numpy and this package."""
    from metalearn import __version__  # not there yet while the package itself is imported

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "metalearn": __version__}


def check_same(settings: Record, stored: Record, path: str | os.PathLike[str]) -> None:
    """Raise ValueError naming each setting that differs from the checkpoint's, with both values and the cure.

    Under "training" only what both have is compared: versions of torch add options to their optimizers. What a caller puts under "notes"
    is kept and not compared.
    """
    ours, theirs = dict(flat(settings)), dict(flat(stored))
    both = {name for name in ours.keys() & theirs.keys() if name.startswith("training.")}
    compared = both | {name for name in ours.keys() | theirs.keys() if not name.startswith(("training.", "run.notes."))}
    different = [
        f"{name} is {ours.get(name, 'not set')!r} but was {theirs.get(name, 'not set')!r}"
        for name in sorted(compared)
        if name not in ours or name not in theirs or ours[name] != theirs[name]
    ]
    if different:
        raise ValueError(
            f"{path} was written by a run with other settings: {'; '.join(different)}. Ask for the settings it had to resume it, "
            "or name another checkpoint to start a new run"
        )


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested record, each under the path of its keys.

    Example:
        >>> dict(flat({"learner": {"lr": 0.1}}))
        {'learner.lr': 0.1}
    """
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
