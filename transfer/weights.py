"""Reading weights: from a file, a state dict, a model or a torchvision `Weights` member, without ever running what a file holds."""

from __future__ import annotations

import difflib
import hashlib
import os
import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from metalearn import checkpoints
from metalearn.files import Damaged

REFUSALS = ("Unsupported", "unsupported", "TorchScript")  # what torch.load says of a file that holds more than tensors


@dataclass(frozen=True, eq=False, repr=False)
class Pretrained:
    """Named tensors, and where they come from in words."""

    name: str
    tensors: dict[str, Tensor]

    def __repr__(self) -> str:
        return self.name

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of a SHA-256 over names and values, for the record of a result."""
        sha = hashlib.sha256()
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().cpu().contiguous()
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return sha.hexdigest()[:12]

    def matched(self, model: nn.Module) -> dict[str, str]:
        """Parameter or buffer of `model` -> the name here that is the same.

        Two names are the same when they are equal, or become equal once one prefix is taken off all names here (`module.`, `model.`), or
        off the model's (`backbone.`). The prefix is the one under which most names agree; it is tried where they are at least half of
        either side's, so that the inside of one block never passes for a network.
        """
        names = aliases(model)
        known = {alias for group in names.values() for alias in group}
        ours, theirs = max(_prefixes(known, set(self.tensors)), key=lambda pair: _agreeing(pair, known, self.tensors))
        return {
            name: theirs + alias.removeprefix(ours)
            for name, group in names.items()
            for alias in group
            if alias.startswith(ours) and theirs + alias.removeprefix(ours) in self.tensors
        }

    def nearest(self, name: str) -> str:
        """The name here that is most like `name`, or ""."""
        return next(iter(difflib.get_close_matches(name, self.tensors, n=1, cutoff=0.6)), "")


Weights: TypeAlias = Pretrained | Mapping[str, Any] | nn.Module | WeightsEnum | str | os.PathLike[str]


def read(weights: Weights) -> Pretrained:
    """Weights from wherever they are -> `Pretrained`, on the CPU where they come from a file.

    Takes a path (safetensors, a `torch.save`d state dict, an npz of arrays, or a checkpoint of `metalearn`), a state dict, a model or
    learner (its weights as they are now), or a torchvision `Weights` member, which alone is downloaded where it is not in torch's cache.
    A training checkpoint that holds one state dict beside other things gives that one. Nothing is unpickled but tensors.

    Raises FileNotFoundError; `metalearn.files.Damaged` for a file that is truncated or no weights file; ValueError for one that holds
    pickled objects, no state dict, or more than one; OSError for a download that fails.

    Example:
        >>> read(nn.Linear(2, 1)).tensors.keys()
        dict_keys(['weight', 'bias'])
    """
    if isinstance(weights, Pretrained):
        return weights
    if isinstance(weights, WeightsEnum):
        return Pretrained(str(weights), _member(weights))
    if isinstance(weights, nn.Module):
        kept = {name: tensor.detach().clone() for name, tensor in weights.state_dict().items() if isinstance(tensor, Tensor)}
        return Pretrained(f"a {type(weights).__name__}", kept)
    if isinstance(weights, Mapping):
        return Pretrained("a state dict", _state_dict(weights, "the mapping"))
    if isinstance(weights, str | os.PathLike):
        path = Path(weights)
        return Pretrained(path.name, _state_dict(_file(path), str(path)))
    raise TypeError(f"weights are a path, a state dict, a model or a torchvision Weights member, not {type(weights).__name__}")


def aliases(model: nn.Module) -> dict[str, list[str]]:
    """Every parameter and saved buffer of `model` by its first name -> all its names (tied tensors have several)."""
    saved = model.state_dict().keys()
    names: dict[int, list[str]] = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        if name in saved:
            names.setdefault(id(tensor), []).append(name)
    return {group[0]: group for group in names.values()}


def _prefixes(ours: set[str], theirs: set[str]) -> list[tuple[str, str]]:
    enough = min(len(ours), len(theirs)) / 2

    def starts(names: set[str]) -> list[str]:
        split = (name.split(".") for name in names)
        counts = Counter(".".join(parts[:depth]) + "." for parts in split for depth in range(1, len(parts)))
        return sorted((start for start, count in counts.items() if count >= enough), key=len)

    pairs = [*(("", start) for start in starts(theirs)), *((start, "") for start in starts(ours))]
    return [("", ""), *(pair for pair in pairs if _agreeing(pair, ours, theirs) >= enough)]


def _agreeing(prefixes: tuple[str, str], ours: set[str], theirs: Mapping[str, Any] | set[str]) -> int:
    mine, other = prefixes
    return sum(name.startswith(mine) and other + name.removeprefix(mine) in theirs for name in ours)


def _state_dict(found: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the one state dict inside a training checkpoint."""
    tensors = {str(name): value.detach() for name, value in found.items() if isinstance(value, Tensor)}
    if tensors:
        return tensors
    inner = {name: value for name, value in found.items() if _is_state_dict(value)}
    if len(inner) != 1:
        names = ", ".join(repr(name) for name in (inner or found))
        what = f"holds several state dicts ({names})" if inner else f"holds no tensors (only {names or 'nothing'})"
        raise ValueError(f"{source} {what}; pass the state dict itself: torch.load(path, weights_only=True)[name]")
    return _state_dict(next(iter(inner.values())), source)


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _file(path: Path) -> Mapping[Any, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return _safetensors(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if all(name.endswith(".npy") for name in archive.namelist()):
                return _arrays(path)
    return _torch(path)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            if {"record", "sha256"} <= (file.metadata() or {}).keys():  # ours: read with its checksum
                tensors, _ = checkpoints.load(path)
                inside = checkpoints.read_weights(path)
                return inside or tensors
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise Damaged(f"{path} is truncated or not a safetensors file ({error}); fetch or save it again") from error


def _arrays(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path} holds something else than whole arrays of numbers ({error}); save plain arrays with numpy.savez") from error


def _torch(path: Path) -> Mapping[Any, Any]:
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols and TorchScript; what matters raises
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, IndexError, OSError) as error:
        if _is_pickled(path) and any(word in str(error) for word in REFUSALS):
            raise ValueError(
                f"{path} holds more than tensors: pickled Python objects, which can run code when read, so it is not opened "
                f"({_reason(error)}). Where you trust it, save model.state_dict() alone and name that file"
            ) from error
        raise Damaged(f"{path} is truncated or no weights file ({_reason(error)}); fetch or save it again") from error
    if isinstance(found, Tensor) or not isinstance(found, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a state dict; save model.state_dict()")
    return found


def _is_pickled(path: Path) -> bool:
    """Whether it is a pickle, or an archive that has one: a page that a failed download left is neither."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6)))


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line for line in lines if any(word in line for word in REFUSALS)), lines[0]).strip().split(". ")[0]


def _member(member: WeightsEnum) -> dict[str, Tensor]:
    try:
        member.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
    except OSError as error:  # urllib's errors are such
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(member.url).name
        raise OSError(f"could not download {member} ({error}); with a network try again, or put {member.url} at {file}") from error
    name = next(name for name in torchvision.models.list_models() if torchvision.models.get_model_weights(name) is type(member))
    with torch.random.fork_rng(devices=[]):
        # Not the file's own names: torchvision renames old ones while its model loads them.
        return dict(torchvision.models.get_model(name, weights=member).state_dict())
