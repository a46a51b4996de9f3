"""Weights from a file, a state dict, a model, torchvision or timm; no code in a file is run."""

from __future__ import annotations

import difflib
import hashlib
import os
import pickle
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from metalearn.data.normalization import IMAGENET as IMAGENET
from metalearn.data.normalization import PLAIN as PLAIN
from metalearn.data.normalization import Normalization as Normalization
from metalearn.network.layers import head, is_inside
from metalearn.runtime.files import Damaged, Record, content, open_file, unreadable
from metalearn.runtime.npz import array_header
from metalearn.training import checkpoints

from . import registry

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

# Words in torch.load's errors about a file that holds more than tensors.
REFUSALS = ("Unsupported", "unsupported", "TorchScript")
SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".npz", ".safetensors", ".tar")
INFLATION = 100  # a file whose tensors are that many times its own size holds no weights
SMALL = 2**26  # bytes that are read from a file of any size


@dataclass(frozen=True, eq=False, repr=False)
class Pretrained:
    """Named tensors, and where they come from.

    Args:
        name: where they come from, in words.
        tensors: parameters and buffers by name.
        normalization: of the images that they were trained on; None if it is unknown.
    """

    name: str
    tensors: dict[str, Tensor]
    normalization: Normalization | None = None

    def __repr__(self) -> str:
        return self.name

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of a SHA-256 over names and values, to record with a result."""
        sha = hashlib.sha256()
        # The order of a state dict may differ between files of the same weights.
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().cpu().contiguous()
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return sha.hexdigest()[:12]

    def matched(self, model: nn.Module) -> dict[str, str]:
        """Match the names of a network's parameters and buffers with the names here.

        Two names match when they are equal, or become equal once one prefix is removed from all
        names here (`module.`, `model.`), or from the model's (`backbone.`). The prefix is the one
        under which most names agree. It must make at least half of the names of the smaller side
        agree, so the inside of one block never passes for a network.

        Returns:
            The names of the model with a match -> the names here.
        """
        names = aliases(model)
        known: set[str] = set()
        for group in names.values():
            known.update(group)
        # Of equally good prefixes max() takes the first, and none at all comes first.
        removed, added = max(
            _prefixes(known, set(self.tensors)),
            key=lambda pair: _agreeing(pair, known, self.tensors),
        )
        matches = {}
        for name, group in names.items():
            for alias in group:
                source = added + alias.removeprefix(removed)
                if alias.startswith(removed) and source in self.tensors:
                    matches[name] = source
        return matches

    def nearest(self, name: str) -> str:
        """The name here closest to `name`, or ""."""
        return next(iter(difflib.get_close_matches(name, self.tensors, n=1, cutoff=0.6)), "")


Module = TypeVar("Module", bound=nn.Module)
Weights: TypeAlias = (
    "Pretrained | Mapping[str, Any] | nn.Module | WeightsEnum | str | os.PathLike[str]"
)


def read(weights: Weights, *, model: str | None = None, download: bool = False) -> Pretrained:
    """Read weights from any of their sources; those of a file come to the CPU.

    If a training checkpoint holds one state dict beside other things, that one is read. Nothing but
    tensors is unpickled.

    Args:
        weights: a path (safetensors, a `torch.save`d state dict, an npz of arrays, or a checkpoint
            of `metalearn`), the name of a torchvision `Weights` member
            ("ResNet18_Weights.IMAGENET1K_V1"), "timm:NAME", a state dict, a model or learner (its
            weights as they are now), or a torchvision `Weights` member.
        model: the network's name, which completes "DEFAULT" or "IMAGENET1K_V1" alone.
        download: whether the weights that a name stands for may be downloaded. A `Weights` member
            is downloaded in any case, if it is not in torch's cache.

    Raises:
        FileNotFoundError: if there is no such file, or none in the cache for a name.
        metalearn.runtime.files.Damaged: for a file that is truncated or no weights file.
        ValueError: for a file of pickled objects, no state dict or more than one, and for a name
            that does not exist.
        OSError: if a file cannot be read, or a download fails.

    Example:
        >>> read(nn.Linear(2, 1)).tensors.keys()
        dict_keys(['weight', 'bias'])
    """
    if model is not None and not isinstance(model, str):
        raise TypeError(f"model={model!r} is a {type(model).__name__}, not the name of a network")
    if isinstance(weights, Pretrained):
        return weights
    from torchvision.models import WeightsEnum  # here, since importing it takes long

    if isinstance(weights, WeightsEnum):
        return _member(weights, download=True)
    if isinstance(weights, nn.Module):
        tensors = {
            name: tensor.detach().clone()
            for name, tensor in weights.state_dict().items()
            if isinstance(tensor, Tensor)  # the extra state of a module may be anything
        }
        return Pretrained(f"a {type(weights).__name__}", tensors)
    if isinstance(weights, Mapping):
        return Pretrained("a state dict", _state_dict(weights, "the mapping"))
    if (
        isinstance(weights, str)
        and not os.path.lexists(weights)
        and not _looks_like_a_file(weights)
    ):
        return _named(weights, model, download=download)
    if isinstance(weights, str | os.PathLike):
        path = Path(weights)
        entries, normalization = _file(path)
        tensors = _state_dict(entries, str(path))
        _check_size(sum(tensor.nbytes for tensor in tensors.values()), path)
        return Pretrained(path.name, tensors, normalization)
    raise TypeError(
        "weights are a path, a name, a state dict, a model or a torchvision Weights member, not"
        f" {type(weights).__name__}"
    )


class Fit(NamedTuple):
    """The tensors of a network that were copied from pretrained weights, and those that were not.

    Args:
        copied: the number of tensors that were copied.
        fresh: the names of those that stay as the network was built.
        unused: the names of pretrained tensors that the network does not have.
    """

    copied: int
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        notes = [f"{self.copied} tensors copied"]
        if self.fresh:
            notes.append(f"{', '.join(self.fresh)} stay as built")
        if self.unused:
            names = ", ".join(self.unused[:3])
            if len(self.unused) > 3:
                names += f" and {len(self.unused) - 3} more"
            notes.append(f"not used of the file: {names}")
        return "; ".join(notes)


def fit(model: nn.Module, weights: Pretrained) -> Fit:
    """Copy weights into a network by name, in place.

    A head that the weights lack, or have in another shape, stays as it was built.

    Args:
        model: the network.
        weights: names match as in `Pretrained.matched`.

    Returns:
        A report of the tensors that were copied.

    Raises:
        ValueError: if a tensor of the body is missing, has another shape or is not finite. Nothing
            is changed then.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 5))
        >>> other = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 9))
        >>> print(fit(model, read(other)))
        2 tensors copied; 2.weight, 2.bias stay as built; not used of the file: 2.bias, 2.weight
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"weights go into a torch.nn.Module, not a {type(model).__name__}: {model!r}"
        )
    sources = weights.matched(model)
    state = model.state_dict()
    names = list(aliases(model))
    unfit = {}  # name -> why it cannot be copied
    for name in names:
        reason = _unfit(name, state[name], sources, weights)
        # Weights may lack batch norm's counters: they do not change the outputs.
        if reason and not name.endswith("num_batches_tracked"):
            unfit[name] = reason
    top = head(model)
    fresh: list[str] = []
    if any(is_inside(name, top) for name in unfit):  # a head is copied whole or not at all
        fresh = [name for name in names if is_inside(name, top)]
    wrong = [name for name in unfit if name not in fresh]
    if wrong or len(fresh) == len(names):
        reason = unfit[(wrong or list(unfit))[0]]
        raise ValueError(
            f"{weights} does not fit this {type(model).__name__}: {reason}"
            f" ({len(names) - len(unfit)} of {len(names)} tensors match); name the network that"
            " these weights were trained with"
        )
    copied = {name: sources[name] for name in names if name in sources and name not in fresh}
    with torch.no_grad():
        for name, source in copied.items():
            state[name].copy_(weights.tensors[source])
    unused = sorted(weights.tensors.keys() - copied.values())
    return Fit(len(copied), tuple(fresh), tuple(unused))


def _unfit(name: str, tensor: Tensor, names: Mapping[str, str], weights: Pretrained) -> str:
    """Why a tensor of the network cannot be copied, or ""."""
    if name not in names:
        near = weights.nearest(name)
        hint = f" (they have {near})" if near else ""
        return f"there is no {name} in the weights{hint}"
    other = weights.tensors[names[name]]
    if other.shape != tensor.shape:
        return (
            f"{name} is {tuple(tensor.shape)} in the network and {tuple(other.shape)} in the"
            " weights"
        )
    if other.is_floating_point() != tensor.is_floating_point():
        return f"{name} is {tensor.dtype} in the network and {other.dtype} in the weights"
    if other.is_floating_point() and not other.isfinite().all():
        return f"{name} holds values in the weights that are not finite"
    return ""


def aliases(model: nn.Module) -> dict[str, list[str]]:
    """All names of every parameter and saved buffer, by the first; tied tensors have several."""
    saved = model.state_dict().keys()
    # Tied tensors are one object under several names.
    names: dict[int, list[str]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        if name in saved:
            names.setdefault(id(tensor), []).append(name)
    return {group[0]: group for group in names.values()}


def _prefixes(names: set[str], source_names: set[str]) -> list[tuple[str, str]]:
    """Pairs of a prefix to remove from a network's names and one to add, under which many agree.

    At least half of the names of the smaller side must; no prefix at all comes first.
    """
    enough = min(len(names), len(source_names)) / 2
    pairs = [("", start) for start in _starts(source_names, enough)]
    pairs += [(start, "") for start in _starts(names, enough)]
    return [("", ""), *(pair for pair in pairs if _agreeing(pair, names, source_names) >= enough)]


def _starts(names: set[str], enough: float) -> list[str]:
    """The dotted starts that enough names share, the short ones first."""
    counts: Counter[str] = Counter()
    for name in names:
        *parents, _ = name.split(".")
        counts.update(f"{start}." for start in accumulate(parents, "{}.{}".format))
    return sorted((start for start, count in counts.items() if count >= enough), key=len)


def _agreeing(
    prefixes: tuple[str, str], names: set[str], source_names: Mapping[str, Any] | set[str]
) -> int:
    """How many names are among the others once a prefix is removed and another added."""
    removed, added = prefixes
    starting = [name for name in names if name.startswith(removed)]
    return sum(added + name.removeprefix(removed) in source_names for name in starting)


def _state_dict(entries: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the one state dict inside a training checkpoint."""
    # A training checkpoint has the state dict beside epochs, optimizers and so on.
    inner = _inner(entries)
    if len(inner) > 1:
        names = ", ".join(map(repr, inner))
        raise ValueError(
            f"{source} holds several state dicts ({names}); pass the state dict itself:"
            " torch.load(path, weights_only=True)[name]"
        )
    if inner:
        entries = next(iter(inner.values()))
    tensors = {
        str(name): value.detach() for name, value in entries.items() if isinstance(value, Tensor)
    }
    if not tensors:
        names = ", ".join(map(repr, entries)) or "nothing"
        raise ValueError(
            f"{source} holds no tensors (only {names}); expected are tensors by name, as"
            " model.state_dict() has them: pass the state dict itself"
        )
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
            what = "on the meta device, without values" if tensor.is_meta else "quantized or sparse"
            raise ValueError(
                f"{name} of {source} is {what}; save plain tensors: model.state_dict() of the float"
                " network"
            )
    return tensors


def _inner(entries: Mapping[Any, Any]) -> dict[str, Mapping[str, Any]]:
    """The state dicts inside a training checkpoint, by their place: the least deep ones."""
    # Level by level, until one has state dicts.
    level = {str(name): value for name, value in entries.items() if isinstance(value, Mapping)}
    while level:
        inner = {place: value for place, value in level.items() if _is_state_dict(value)}
        if inner:
            return inner
        below: dict[str, Mapping[Any, Any]] = {}
        for place, group in level.items():
            for name, value in group.items():
                if isinstance(value, Mapping):
                    below[f"{place}.{name}"] = value
        level = below
    return {}


def _is_state_dict(value: Any) -> bool:
    """Whether it maps names to tensors; `_extra_state` of a module may be anything."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    plain = [item for name, item in value.items() if not name.endswith("_extra_state")]
    return bool(plain) and all(isinstance(item, Tensor) for item in plain)


def _looks_like_a_file(name: str) -> bool:
    if name.startswith(registry.TIMM):
        return False
    return name.lower().endswith(SUFFIXES) or os.sep in name


def _check_size(size: int, path: Path) -> None:
    """Raise `Damaged` for a file that claims far more than it holds, before memory is taken."""
    if size > max(SMALL, INFLATION * path.stat().st_size):
        raise Damaged(
            f"{path} has {path.stat().st_size:,} bytes but claims {size:,} bytes of numbers, so it"
            " is damaged or made to fill the memory; fetch or save it again"
        )


def _file(path: Path) -> tuple[Mapping[Any, Any], Normalization | None]:
    """The content of a file, and the normalization of its images if it is recorded."""
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
        example = f" such as {', '.join(inside[:3])}" if inside else ""
        raise IsADirectoryError(f"{path} is a folder; name the weights file in it{example}")
    with open_file(path) as file:
        start = file.read(64)
    # The format is read from the first bytes, since a file may have any name. In safetensors the
    # length of the header (8 bytes) comes before its JSON.
    if start[8:9] == b"{":
        return _safetensors(path)
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                _check_size(sum(entry.file_size for entry in archive.infolist()), path)
                if all(name.endswith(".npy") for name in archive.namelist()):
                    return _arrays(path, archive), None
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise Damaged(
                f"{path} is truncated or no weights file ({error}); fetch or save it again"
            ) from error
    return _torch(path, content(start)), None


def _safetensors(path: Path) -> tuple[dict[str, Tensor], Normalization | None]:
    """The tensors of a safetensors file, and the normalization if the file is a run's."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if {"record", "sha256"} <= metadata.keys():  # a file of ours, with a checksum
                tensors, record = checkpoints.load(path)
                return checkpoints.of_learner(tensors) or tensors, _recorded(record)
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, None
    except safetensors.SafetensorError as error:
        raise Damaged(
            f"{path} is truncated or not a safetensors file ({error}); fetch or save it again"
        ) from error


def _recorded(record: Record) -> Normalization | None:
    """The normalization of the images of a run of the command line; None for other files."""
    try:
        text = record["settings"]["run"]["experiment"].get("normalize", "none")
        return Normalization.parse(text) or PLAIN
    except (KeyError, TypeError, AttributeError, ValueError):
        return None


def _arrays(path: Path, archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """The arrays of an npz file."""
    try:
        claims = [array_header(archive, name).claimed for name in archive.namelist()]
        _check_size(sum(claims), path)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Damaged:
        raise
    except (
        ValueError,
        TypeError,
        EOFError,
        MemoryError,
        OverflowError,
        RuntimeError,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise Damaged(
            f"{path} holds something other than complete arrays of numbers ({error}); save plain"
            " arrays with numpy.savez"
        ) from error


def _torch(path: Path, kind: str) -> Mapping[Any, Any]:
    """The content of a file that torch.save wrote; `kind` is what its first bytes look like."""
    try:
        # The open file, since torch.load goes by the ending of a name.
        # Its warnings are about pickle protocols and TorchScript; what matters raises.
        with open_file(path) as file, warnings.catch_warnings(action="ignore"):
            entries = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise unreadable(path, error) from error
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        MemoryError,
    ) as error:
        if _is_pickled(path) and any(word in str(error) for word in REFUSALS):
            raise ValueError(
                f"{path} holds more than tensors: pickled Python objects, which can run code when"
                f" read, so it is not opened ({_reason(error)}). If you trust it, save"
                " model.state_dict() alone and name that file"
            ) from error
        reason = _reason(error)
        if kind and kind not in ("a pickle", "a zip archive"):
            reason = f"it is {kind}"
        raise Damaged(
            f"{path} is truncated or no weights file ({reason}); fetch or save it again"
        ) from error
    if isinstance(entries, Tensor) or not isinstance(entries, Mapping):
        raise ValueError(
            f"{path} holds a {type(entries).__name__}, not a state dict; save model.state_dict()"
        )
    return entries


def _is_pickled(path: Path) -> bool:
    """Whether it is a pickle, or an archive that may have one.

    The page that a failed download leaves is neither.
    """
    pickles = [bytes([0x80, protocol]) for protocol in range(2, 6)]
    with path.open("rb") as file:
        return file.read(2) in (b"PK", *pickles)


def _reason(error: Exception) -> str:
    """The sentence of an error that says what is wrong."""
    lines = str(error).splitlines() or [type(error).__name__]
    refusals = [line for line in lines if any(word in line for word in REFUSALS)]
    line = (refusals or lines)[0]
    return line.strip().split(". ")[0]


def _named(name: str, model: str | None, *, download: bool) -> Pretrained:
    """The weights that a name stands for; "DEFAULT" and its kin are those of `model`."""
    import torchvision

    if name.startswith(registry.TIMM):
        return _timm(name.removeprefix(registry.TIMM), download=download)
    if model in registry.torchvision_names():
        kind = torchvision.models.get_model_weights(model)
        if name in kind.__members__:
            return _member(kind[name], download=download)
        hint = f"{model} has {', '.join(kind.__members__) or 'none'}"
    elif model is not None and model.startswith(registry.TIMM) and name == "DEFAULT":
        return _timm(model.removeprefix(registry.TIMM), download=download)
    else:
        hint = "write ResNet18_Weights.IMAGENET1K_V1, timm:NAME, or the path of a file"
    # Otherwise a full name, such as ResNet18_Weights.IMAGENET1K_V1.
    known = _members()
    if name in known:
        return _member(torchvision.models.get_weight(name), download=download)
    if model is not None and name in {full.partition(".")[2] for full in known}:
        raise ValueError(
            f"weights={name!r} are torchvision's, but the model is {model!r}; name a torchvision"
            " model"
        )
    # A name without a dot, such as IMAGENET1K_V2, is one of the model's own, which the hint lists.
    if "." in name or model is None:
        hint = registry.near(name, [*known, *os.listdir()]) or hint
    raise ValueError(
        f"torchvision has no weights {name!r}, and there is no file of that name; {hint}"
    )


def _members() -> list[str]:
    """The full names of torchvision's weights."""
    import torchvision

    names: list[str] = []
    for network in registry.torchvision_names():
        kind = torchvision.models.get_model_weights(network)
        names += [f"{kind.__name__}.{member}" for member in kind.__members__]
    return names


def _member(member: WeightsEnum, *, download: bool) -> Pretrained:
    """The weights of torchvision that a member stands for, from the cache or downloaded."""
    import torchvision

    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(member.url).name
    if not download and not file.is_file():
        raise FileNotFoundError(
            f"{member} is not in torch's cache; add --download (download=True in a script), or put"
            f" {member.url} at {file}"
        )
    try:
        member.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
    except OSError as error:  # urllib's errors are OSErrors
        raise OSError(
            f"could not download {member} ({error}); with a network try again, or put {member.url}"
            f" at {file}"
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise Damaged(
            f"{file} is truncated or no weights file ({_reason(error)}); fetch {member.url} again"
        ) from error
    network = next(
        name
        for name in torchvision.models.list_models()
        if torchvision.models.get_model_weights(name) is type(member)
    )
    with torch.random.fork_rng(devices=[]):
        # The tensors of the model, not of the file: torchvision renames old ones as it loads them.
        tensors = dict(torchvision.models.get_model(network, weights=member).state_dict())
    preset = member.transforms()
    mean = getattr(preset, "mean", None)
    std = getattr(preset, "std", None)
    if not mean or not std:
        return Pretrained(str(member), tensors)
    return Pretrained(str(member), tensors, Normalization(tuple(mean), tuple(std)))


def _timm(name: str, *, download: bool) -> Pretrained:
    """The weights of a name of timm, from a cache or downloaded."""
    registry.timm_architecture(name)
    import timm

    config = timm.models.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise ValueError(f"timm has no weights of {name}; see timm.list_pretrained()")
    full = f"{registry.TIMM}{config.architecture}"
    if config.tag:
        full += f".{config.tag}"
    path = _timm_file(config)
    if path is None and not download:
        source = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
        raise FileNotFoundError(
            f"{full} is not in the cache; add --download (download=True in a script), or fetch it"
            f" from {source} and name the file"
        )
    # A file in the cache is read without a request to the hub.
    overlay = {} if path is None else {"file": str(path)}
    # The model is built with random weights first, which must not advance the caller's generator.
    with torch.random.fork_rng(devices=[]):
        try:
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        except OSError as error:
            raise OSError(
                f"could not read or download {full} ({error}); with a network try again, or name a"
                " file"
            ) from error
        except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
            raise Damaged(
                f"{path or full} is truncated or not the weights of {full} ({_reason(error)});"
                " fetch it again"
            ) from error
    normalization = Normalization(tuple(config.mean), tuple(config.std))
    return Pretrained(full, dict(model.state_dict()), normalization)


def _timm_file(config: Any) -> Path | None:
    """The file of a pretrained network of timm, if it is in a cache of this machine."""
    if isinstance(config.url, str):
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name
        if file.is_file():
            return file
    if not config.hf_hub_id:
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    # timm's order of preference.
    names = ["model.safetensors", "pytorch_model.bin"]
    if config.hf_hub_filename:
        names = [config.hf_hub_filename]
    for name in names:
        cached = try_to_load_from_cache(config.hf_hub_id, name)
        if isinstance(cached, str):
            return Path(cached)
    return None


def normalize(model: Module, normalization: Normalization) -> Module:
    """Let a network normalise its images before its first layer, in place.

    The caller still passes images in [0, 1], and the layers keep their names.

    Args:
        model: the network.
        normalization: by which it was trained.

    Returns:
        The same network.

    Example:
        >>> model = normalize(nn.Flatten(), Normalization((0.5,), (0.25,)))
        >>> model(torch.ones(1, 1, 1, 2)).tolist()
        [[2.0, 2.0]]
    """
    hook: Any = _Normalize(normalization)
    model.register_forward_pre_hook(hook)
    return model


class _Normalize(NamedTuple):
    """A forward pre-hook that normalises the first input by channel."""

    normalization: Normalization

    def __call__(self, model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        images, *rest = inputs
        return (self.normalization(images), *rest)
