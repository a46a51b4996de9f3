"""Reading weights, from a file, a state dict, a model, torchvision or timm, without running what a
file holds.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import pickle
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from metalearn.network.layers import head, is_inside
from metalearn.runtime.files import Damaged, Record, content, open_file, unreadable
from metalearn.training import checkpoints

from . import registry

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

REFUSALS = (
    "Unsupported",
    "unsupported",
    "TorchScript",
)  # what torch.load says of a file that holds more than tensors
SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".npz", ".safetensors", ".tar")
INFLATION = 100  # a file whose tensors are so many times as large as itself is no file of weights
SMALL = 2**26  # bytes that are read whatever their file's size


class Normalization(NamedTuple):
    """The mean and standard deviation of each channel that a network's images were normalised with.

    Example:
        >>> Normalization.parse("0.5/0.25")
        Normalization(mean=(0.5,), std=(0.25,))
        >>> str(Normalization.parse("imagenet"))
        '0.485,0.456,0.406/0.229,0.224,0.225'
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        return "/".join(",".join(f"{value:g}" for value in values) for values in self)

    @classmethod
    def parse(cls, text: str) -> Normalization | None:
        """ "imagenet", "MEAN/STD" with commas between channels, or "none" (images in 0 to 1).

        Raises:
            ValueError: For another text, or a deviation that is not positive.
        """
        if not isinstance(text, str):
            raise TypeError(
                f"normalize={text!r} is a {type(text).__name__}, not a text such as {IMAGENET}"
            )
        if text == "none":
            return None
        if text == "imagenet":
            return IMAGENET
        try:
            mean, std = ([float(value) for value in part.split(",")] for part in text.split("/"))
        except ValueError:
            mean, std = [], []
        finite = all(map(math.isfinite, [*mean, *std]))
        if not mean or len(mean) != len(std) or not finite or min(std) <= 0:
            raise ValueError(
                f"normalize={text!r}; choose imagenet or none, or write MEAN/STD by channel, such"
                f" as {IMAGENET}"
            )
        return cls(tuple(mean), tuple(std))


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = Normalization((0.0,), (1.0,))  # images in 0 to 1


@dataclass(frozen=True, eq=False, repr=False)
class Pretrained:
    """Named tensors, where they come from in words, and how their images were normalised (None: not
    known).
    """

    name: str
    tensors: dict[str, Tensor]
    normalization: Normalization | None = None

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

        Two names are the same when they are equal, or become equal once one prefix is taken off all
        names here (`module.`, `model.`), or off the model's (`backbone.`). The prefix is the one
        under which most names agree; it is tried where they are at least half of either side's, so
        that the inside of one block never passes for a network.
        """
        names = aliases(model)
        known = {alias for group in names.values() for alias in group}
        ours, theirs = max(
            _prefixes(known, set(self.tensors)),
            key=lambda pair: _agreeing(pair, known, self.tensors),
        )
        return {
            name: theirs + alias.removeprefix(ours)
            for name, group in names.items()
            for alias in group
            if alias.startswith(ours) and theirs + alias.removeprefix(ours) in self.tensors
        }

    def nearest(self, name: str) -> str:
        """The name here that is most like `name`, or ""."""
        return next(iter(difflib.get_close_matches(name, self.tensors, n=1, cutoff=0.6)), "")


Module = TypeVar("Module", bound=nn.Module)
Weights: TypeAlias = (
    "Pretrained | Mapping[str, Any] | nn.Module | WeightsEnum | str | os.PathLike[str]"
)


def read(weights: Weights, *, model: str | None = None, download: bool = False) -> Pretrained:
    """Weights from wherever they are -> `Pretrained`, on the CPU if they come from a file.

    A training checkpoint that holds one state dict beside other things gives that one. Nothing is
    unpickled but tensors.

    Args:
        weights: a path (safetensors, a `torch.save`d state dict, an npz of arrays, or a checkpoint
            of `metalearn`), the name of a torchvision `Weights` member
            ("ResNet18_Weights.IMAGENET1K_V1"), "timm:NAME", a state dict, a model or learner (its
            weights as they are now), or a torchvision `Weights` member.
        model: the network's name, by which "DEFAULT" or "IMAGENET1K_V1" alone is understood.
        download: whether what a name stands for may be downloaded; a `Weights` member is fetched if
            it is not in torch's cache.

    Raises:
        FileNotFoundError: If there is no such file, or none in the cache for a name.
        metalearn.runtime.files.Damaged: For a file that is truncated or no weights file.
        ValueError: For a file of pickled objects, no state dict or more than one, and for a name
            that does not exist.
        OSError: If a file cannot be read, or a download fails.

    Example:
        >>> read(nn.Linear(2, 1)).tensors.keys()
        dict_keys(['weight', 'bias'])
    """
    if model is not None and not isinstance(model, str):
        raise TypeError(f"model={model!r} is a {type(model).__name__}, not the name of a network")
    if isinstance(weights, Pretrained):
        return weights
    from torchvision.models import WeightsEnum  # here, since it takes long to import

    if isinstance(weights, WeightsEnum):
        return _member(weights, download=True)
    if isinstance(weights, nn.Module):
        kept = {
            name: tensor.detach().clone()
            for name, tensor in weights.state_dict().items()
            if isinstance(tensor, Tensor)
        }
        return Pretrained(f"a {type(weights).__name__}", kept)
    if isinstance(weights, Mapping):
        return Pretrained("a state dict", _state_dict(weights, "the mapping"))
    if (
        isinstance(weights, str)
        and not os.path.lexists(weights)
        and not _looks_like_a_file(weights)
    ):
        return _named(weights, model, download)
    if isinstance(weights, str | os.PathLike):
        path = Path(weights)
        found, normalization = _file(path)
        tensors = _state_dict(found, str(path))
        _check_size(
            sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), path
        )
        return Pretrained(path.name, tensors, normalization)
    raise TypeError(
        "weights are a path, a name, a state dict, a model or a torchvision Weights member, not"
        f" {type(weights).__name__}"
    )


class Fit(NamedTuple):
    """What became of a network's tensors when it took pretrained weights."""

    copied: int
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        notes = [f"{self.copied} tensors copied"]
        if self.fresh:
            notes.append(f"{', '.join(self.fresh)} stay as built")
        if self.unused:
            more = f" and {len(self.unused) - 3} more" if len(self.unused) > 3 else ""
            notes.append(f"not used of the file: {', '.join(self.unused[:3])}{more}")
        return "; ".join(notes)


def fit(model: nn.Module, weights: Pretrained) -> Fit:
    """Copy weights into a network by name, in place -> what was copied.

    A head that the weights lack, or have in another shape, stays as it was built. Names match as in
    `Pretrained.matched`.

    Raises:
        ValueError: Naming the tensor of the body that is missing, has another shape or is not
            finite; nothing is changed then.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 5))
        >>> weights = read({"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3), "2.weight": torch.ones(9, 3), "2.bias": torch.ones(9)})
        >>> print(fit(model, weights))
        2 tensors copied; 2.weight, 2.bias stay as built; not used of the file: 2.bias, 2.weight
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"weights go into a torch.nn.Module, not a {type(model).__name__}: {model!r}"
        )
    names = weights.matched(model)
    own = model.state_dict()
    wanted = {name: own[name] for name in aliases(model)}
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    unfit = {name: _unfit(name, tensor, names, weights) for name, tensor in wanted.items()}
    unfit = {name: reason for name, reason in unfit.items() if reason and name not in counters}
    top = head(model)
    fresh = [
        name
        for name in wanted
        if is_inside(name, top) and any(is_inside(other, top) for other in unfit)
    ]
    wrong = [name for name in unfit if name not in fresh]
    if wrong or len(fresh) == len(wanted):
        fitting = sum(name not in unfit for name in wanted)
        reason = unfit[(wrong or list(unfit))[0]]
        raise ValueError(
            f"{weights} does not fit this {type(model).__name__}: {reason} ({fitting} of"
            f" {len(wanted)} tensors match); name the network that these weights were trained with"
        )
    taken = {name: names[name] for name in wanted if name in names and name not in fresh}
    with torch.no_grad():
        for name, source in taken.items():
            own[name].copy_(weights.tensors[source])
    return Fit(len(taken), tuple(fresh), tuple(sorted(weights.tensors.keys() - taken.values())))


def _unfit(name: str, tensor: Tensor, names: Mapping[str, str], weights: Pretrained) -> str:
    """Why a tensor of the network cannot be copied, or ""."""
    if name not in names:
        near = weights.nearest(name)
        return f"there is no {name} in the weights" + (f" (they have {near})" if near else "")
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
    """Every parameter and saved buffer of `model` by its first name -> all its names (tied tensors
    have several).
    """
    saved = model.state_dict().keys()
    names: dict[int, list[str]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        if name in saved:
            names.setdefault(id(tensor), []).append(name)
    return {group[0]: group for group in names.values()}


def _prefixes(ours: set[str], theirs: set[str]) -> list[tuple[str, str]]:
    enough = min(len(ours), len(theirs)) / 2

    def starts(names: set[str]) -> list[str]:
        split = (name.split(".") for name in names)
        counts = Counter(
            ".".join(parts[:depth]) + "." for parts in split for depth in range(1, len(parts))
        )
        return sorted((start for start, count in counts.items() if count >= enough), key=len)

    pairs = [*(("", start) for start in starts(theirs)), *((start, "") for start in starts(ours))]
    return [("", ""), *(pair for pair in pairs if _agreeing(pair, ours, theirs) >= enough)]


def _agreeing(
    prefixes: tuple[str, str], ours: set[str], theirs: Mapping[str, Any] | set[str]
) -> int:
    mine, other = prefixes
    return sum(name.startswith(mine) and other + name.removeprefix(mine) in theirs for name in ours)


def _state_dict(found: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the one state dict inside a training checkpoint."""
    inner = _inner(found)
    if len(inner) > 1:
        names = ", ".join(map(repr, inner))
        raise ValueError(
            f"{source} holds several state dicts ({names}); pass the state dict itself:"
            " torch.load(path, weights_only=True)[name]"
        )
    if inner:
        found = next(iter(inner.values()))
    tensors = {
        str(name): value.detach() for name, value in found.items() if isinstance(value, Tensor)
    }
    if not tensors:
        names = ", ".join(map(repr, found)) or "nothing"
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


def _inner(found: Mapping[Any, Any]) -> dict[str, Mapping[str, Any]]:
    """The state dicts inside a training checkpoint by their place: those that lie least deep."""
    level = {str(name): value for name, value in found.items() if isinstance(value, Mapping)}
    while level:
        inner = {name: value for name, value in level.items() if _is_state_dict(value)}
        if inner:
            return inner
        below: dict[str, Mapping[Any, Any]] = {}
        for place, group in level.items():
            maps = {name: value for name, value in group.items() if isinstance(value, Mapping)}
            below |= {f"{place}.{name}": value for name, value in maps.items()}
        level = below
    return {}


def _is_state_dict(value: Any) -> bool:
    """Whether it maps names to tensors; `_extra_state` of a module may be anything."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    plain = [item for name, item in value.items() if not name.endswith("_extra_state")]
    return bool(plain) and all(isinstance(item, Tensor) for item in plain)


def _looks_like_a_file(name: str) -> bool:
    named = name.startswith(registry.TIMM)
    return not named and (name.lower().endswith(SUFFIXES) or os.sep in name)


def _check_size(size: int, path: Path) -> None:
    """Refuse a file that claims far more than it holds, before memory is taken for it."""
    if size > max(SMALL, INFLATION * path.stat().st_size):
        raise Damaged(
            f"{path} has {path.stat().st_size:,} bytes but claims {size:,} bytes of numbers, so it"
            " is damaged or made to fill the memory; fetch or save it again"
        )


def _file(path: Path) -> tuple[Mapping[Any, Any], Normalization | None]:
    """What a file holds, and how its images were normalised if it says so."""
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
        listed = f" such as {', '.join(inside[:3])}" if inside else ""
        raise IsADirectoryError(f"{path} is a folder; name the weights file in it{listed}")
    with open_file(path) as file:
        start = file.read(64)
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
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            if {"record", "sha256"} <= (
                file.metadata() or {}
            ).keys():  # ours: read with its checksum
                tensors, record = checkpoints.load(path)
                return checkpoints.of_learner(tensors) or tensors, _recorded(record)
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, None
    except safetensors.SafetensorError as error:
        raise Damaged(
            f"{path} is truncated or not a safetensors file ({error}); fetch or save it again"
        ) from error


def _recorded(record: Record) -> Normalization | None:
    """How the images of a run of the command line were normalised; None for other files."""
    try:
        text = record["settings"]["run"]["experiment"].get("normalize", "none")
        return Normalization.parse(text) or PLAIN
    except (KeyError, TypeError, AttributeError, ValueError):
        return None


def _arrays(path: Path, archive: zipfile.ZipFile) -> dict[str, Tensor]:
    try:
        _check_size(sum(_claimed(archive, name) for name in archive.namelist()), path)
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
            f"{path} holds something else than whole arrays of numbers ({error}); save plain arrays"
            " with numpy.savez"
        ) from error


def _claimed(archive: zipfile.ZipFile, name: str) -> int:
    """The bytes that the header of an array claims."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(file)
    return math.prod(shape) * dtype.itemsize


def _torch(path: Path, what: str) -> Mapping[Any, Any]:
    try:
        # The open file, since torch.load goes by the ending of a name.
        # Its warnings are about pickle protocols and TorchScript; what matters raises.
        with open_file(path) as file, warnings.catch_warnings(action="ignore"):
            found = torch.load(file, map_location="cpu", weights_only=True)
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
        reason = (
            f"it is {what}"
            if what and what not in ("a pickle", "a zip archive")
            else _reason(error)
        )
        raise Damaged(
            f"{path} is truncated or no weights file ({reason}); fetch or save it again"
        ) from error
    if isinstance(found, Tensor) or not isinstance(found, Mapping):
        raise ValueError(
            f"{path} holds a {type(found).__name__}, not a state dict; save model.state_dict()"
        )
    return found


def _is_pickled(path: Path) -> bool:
    """Whether it is a pickle, or an archive that has one: a page that a failed download left is
    neither.
    """
    with path.open("rb") as file:
        return file.read(2) in (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6)))


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return (
        next((line for line in lines if any(word in line for word in REFUSALS)), lines[0])
        .strip()
        .split(". ")[0]
    )


def _named(name: str, model: str | None, download: bool) -> Pretrained:
    """The weights that a name stands for; "DEFAULT" and the like are those of `model`."""
    import torchvision

    if name.startswith(registry.TIMM):
        return _timm(name.removeprefix(registry.TIMM), download)
    if model in registry.torchvision_names():
        kind = torchvision.models.get_model_weights(model)
        if name in kind.__members__:
            return _member(kind[name], download)
        hint = f"{model} has {', '.join(kind.__members__) or 'none'}"
    elif model is not None and model.startswith(registry.TIMM) and name == "DEFAULT":
        return _timm(model.removeprefix(registry.TIMM), download)
    else:
        hint = "write ResNet18_Weights.IMAGENET1K_V1, timm:NAME, or the path of a file"
    known = _members()
    if name in known:
        return _member(torchvision.models.get_weight(name), download)
    if model is not None and name in {full.partition(".")[2] for full in known}:
        raise ValueError(
            f"weights={name!r} are torchvision's, but the model is {model!r}; name a torchvision"
            " model"
        )
    # A name without a dot, such as IMAGENET1K_V2, is one of the model's own, which the hint lists.
    near = registry.near(name, [*known, *os.listdir()]) if "." in name or model is None else ""
    raise ValueError(
        f"torchvision has no weights {name!r}, and there is no file of that name; {near or hint}"
    )


def _members() -> list[str]:
    """The full names of torchvision's weights."""
    import torchvision

    kinds = [torchvision.models.get_model_weights(name) for name in registry.torchvision_names()]
    return [f"{kind.__name__}.{member}" for kind in kinds for member in kind.__members__]


def _member(member: WeightsEnum, download: bool) -> Pretrained:
    import torchvision

    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(member.url).name
    if not download and not file.is_file():
        raise FileNotFoundError(
            f"{member} is not in torch's cache; add --download (download=True in a script), or put"
            f" {member.url} at {file}"
        )
    try:
        member.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
    except OSError as error:  # urllib's errors are such
        raise OSError(
            f"could not download {member} ({error}); with a network try again, or put {member.url}"
            f" at {file}"
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise Damaged(
            f"{file} is truncated or no weights file ({_reason(error)}); fetch {member.url} again"
        ) from error
    name = next(
        name
        for name in torchvision.models.list_models()
        if torchvision.models.get_model_weights(name) is type(member)
    )
    with torch.random.fork_rng(devices=[]):
        # Not the file's own names: torchvision renames old ones while its model loads them.
        tensors = dict(torchvision.models.get_model(name, weights=member).state_dict())
    preset = member.transforms()
    mean, std = getattr(preset, "mean", None), getattr(preset, "std", None)
    known = Normalization(tuple(mean), tuple(std)) if mean and std else None
    return Pretrained(str(member), tensors, known)


def _timm(name: str, download: bool) -> Pretrained:
    registry.timm_architecture(name)
    import timm

    config = timm.models.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise ValueError(f"timm has no weights of {name}; see timm.list_pretrained()")
    tag = f".{config.tag}" if config.tag else ""
    full = f"{registry.TIMM}{config.architecture}{tag}"
    path = _timm_file(config)
    if path is None and not download:
        source = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
        raise FileNotFoundError(
            f"{full} is not in the cache; add --download (download=True in a script), or fetch it"
            f" from {source} and name the file"
        )
    overlay = {} if path is None else {"file": str(path)}
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
    return Pretrained(
        full, dict(model.state_dict()), Normalization(tuple(config.mean), tuple(config.std))
    )


def _timm_file(config: Any) -> Path | None:
    """The file of a pretrained network of timm, if it is in a cache of this machine."""
    if isinstance(config.url, str):
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name
        if file.is_file():
            return file
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    names = (
        [config.hf_hub_filename]
        if config.hf_hub_filename
        else ["model.safetensors", "pytorch_model.bin"]
    )
    for name in names if config.hf_hub_id else []:
        cached = try_to_load_from_cache(config.hf_hub_id, name)
        if isinstance(cached, str):
            return Path(cached)
    return None


def normalize(model: Module, normalization: Normalization) -> Module:
    """Let a network normalise its images itself, before its first layer; changes it in place and
    returns it.

    Images stay in [0, 1] for whoever calls it, and its layers keep their names.

    Example:
        >>> model = normalize(nn.Flatten(), Normalization((0.5,), (0.25,)))
        >>> model(torch.ones(1, 1, 1, 2)).tolist()
        [[2.0, 2.0]]
    """
    hook: Any = _Normalize(normalization)
    model.register_forward_pre_hook(hook)
    return model


class _Normalize(NamedTuple):
    """A forward pre-hook: (images, ...) -> the images normalised by channel, and the rest."""

    normalization: Normalization

    def __call__(self, model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        images, *rest = inputs
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in self.normalization)
        return ((images - mean) / std, *rest)
