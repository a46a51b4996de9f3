"""Files that are whole or absent: written atomically, checked by a sum when read, and never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

Record = dict[str, Any]


class Damaged(ValueError):
    """A file that is truncated, altered, or not one of ours; the message names it and what to do."""


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, flush it to the disk, and rename it into place.

    A crash, a kill or a full disk leaves the old file as it was. Raises OSError naming the path.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(
                error.errno,
                f"could not write {path} ({error.strerror}); what was there before is untouched. Free some space or name another folder",
            ) from error
        raise


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], record: Record | None = None) -> None:
    """Save named tensors and a JSON-able record as one safetensors file that carries its own SHA-256.

    Any safetensors reader opens it. Tensors that share memory are stored once each.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/x.safetensors", {"weight": torch.ones(2)}, {"step": 3})
        ...     load(f"{folder}/x.safetensors")
        ({'weight': tensor([1., 1.])}, {'step': 3})
    """
    stored = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    text = json.dumps(record or {}, sort_keys=True)
    write_atomically(path, safetensors.torch.save(stored, {"record": text, "sha256": _checksum(stored, text)}))


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Record]:
    """Read what `save` wrote -> (tensors, record).

    Raises FileNotFoundError, or Damaged where the file is not whole.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise Damaged(f"{path} is truncated or not a safetensors file ({error}); delete it and make it again") from error
    if "sha256" not in metadata or "record" not in metadata:
        raise Damaged(f"{path} carries no checksum, so metalearn did not write it; load plain weights with safetensors instead")
    if _checksum(tensors, metadata["record"]) != metadata["sha256"]:
        raise Damaged(f"{path} does not match its own checksum: it was altered or damaged; delete it and make it again")
    return tensors, json.loads(metadata["record"])


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
