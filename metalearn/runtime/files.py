"""Files that are whole or absent: written atomically, checked by a sum when read, and never
unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import safetensors
import safetensors.torch
import torch
from torch import Tensor

Record = dict[str, Any]

KINDS = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer, fetch the file itself with `git lfs pull`",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "gzipped, unpack it first",
    b"\x89HDF": "an HDF5 file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"%PDF": "a PDF",
    b"\x80": "a pickle",
    b"{": "JSON text",
}
"""What the first bytes of a file say that it is, in words."""


class Damaged(ValueError):
    """A file that is truncated, altered, or not one of ours; the message names it and the cure."""


class Foreign(Damaged):
    """A whole file that metalearn did not write."""


def file_path(path: str | os.PathLike[str]) -> Path:
    """A path that may be a file's. Raises TypeError or ValueError with the value."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{path!r} is a {type(path).__name__}, not the path of a file")
    text = os.fspath(path)
    if not Path(text).name or "\0" in text:
        raise ValueError(f"{text!r} is not the path of a file")
    return Path(text)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises FileNotFoundError only if there is no such file, and otherwise OSError with the reason
    (permission, too many open files, a folder, ...), which is not damage.
    """
    path = file_path(path)
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "it is a device or a pipe")
        return open(path, "rb")
    except (
        FileNotFoundError,
        NotADirectoryError,
    ) as error:  # the latter: a part of the path is a file
        raise FileNotFoundError(f"there is no file {path}") from error
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str | os.PathLike[str], error: OSError) -> OSError:
    """The error of a file that may be whole but cannot be read now."""
    reason = error.strerror or str(error)
    return OSError(
        error.errno or errno.EIO,
        f"could not read {path} ({reason}); the file was left as it is. Mend the reason and run the"
        " same again",
    )


def content(start: bytes) -> str:
    """What a file is by its first bytes, in words; "" if they do not tell.

    Example:
        >>> content(b""), content(b"<!DOCTYPE html><html>")
        ('empty', 'a web page')
    """
    if not start:
        return "empty"
    if start[8:9] == b"{":  # the header of safetensors, after its length
        return ""
    plain = start.lstrip().lower()
    for magic, kind in KINDS.items():
        if start.startswith(magic) or plain.startswith(magic):
            return kind
    return ""


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from `path` while the block runs, with a lock beside it.

    The lock ends with the process, however it ends. Raises OSError saying which process holds it.
    """
    path = file_path(path)
    lock = filelock.FileLock(f"{path}.lock")
    holder = path.with_name(f".{path.name}.holder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise BlockingIOError(
            errno.EAGAIN,
            f"{path} is in use by {_holder(holder)}; wait for it, stop it, or name another path",
        ) from error
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    try:
        return path.read_text(errors="replace") or "another process"
    except OSError:  # between the lock and the line that names its holder
        return "another process"


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, flush it to the disk, and rename it into
    place.

    A crash, a kill or a full disk leaves the old file as it was. Raises OSError naming the path.
    """
    path = file_path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if not isinstance(error, OSError):
            temporary.unlink(missing_ok=True)
            raise
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> OSError:
    """The error of a file that cannot be written, with the cure."""
    cure = "Free some space or name another folder"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        cure = f"{_file_above(path)} is a file, not a folder: name another folder"
    return OSError(
        error.errno,
        f"could not write {path} ({error.strerror}); what was there before is untouched. {cure}",
    )


def _file_above(path: Path) -> Path:
    """The part of a path that is a file though it has to be a folder."""
    return next((above for above in path.parents if above.is_file()), path.parent)


def save(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], record: Record | None = None
) -> None:
    """Save named tensors and a JSON-able record as one safetensors file that carries its own
    SHA-256.

    Any safetensors reader opens it. Tensors that share memory are stored once each.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/x.safetensors", {"weight": torch.ones(2)}, {"step": 3})
        ...     load(f"{folder}/x.safetensors")
        ({'weight': tensor([1., 1.])}, {'step': 3})
    """
    for name, tensor in _named(tensors):
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(f"a file holds tensors by name, not {name!r}: {type(tensor).__name__}")
    stored = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    try:
        text = json.dumps(record or {}, sort_keys=True)
    except (TypeError, ValueError, RecursionError, RuntimeError) as error:
        raise TypeError(f"the record of {path} is not JSON ({error}); give plain values") from error
    write_atomically(
        path, safetensors.torch.save(stored, {"record": text, "sha256": _checksum(stored, text)})
    )


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Record]:
    """Read what `save` wrote -> (tensors, record).

    Raises FileNotFoundError; Damaged if the file is not whole, Foreign if it is not ours; OSError
    with the reason if it cannot be read now.
    """
    with open_file(path) as file:
        start = file.read(64)
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as stored:
            metadata = stored.metadata() or {}
            names = stored.keys()
            tensors = {name: stored.get_tensor(name) for name in names}
    except safetensors.SafetensorError as error:
        what = content(start)
        reason = f"it is {what}" if what else str(error)
        raise Damaged(
            f"{path} is truncated or not a safetensors file ({reason}); expected is a file that "
            "metalearn wrote, such as a checkpoint of metalearn train"
        ) from error
    except OSError as error:  # the reader calls every file that it cannot open a missing one
        raise unreadable(path, OSError(errno.EIO, str(error))) from error
    if "sha256" not in metadata or "record" not in metadata:
        raise Foreign(
            f"{path} carries no checksum, so metalearn did not write it; load plain weights with"
            " --weights or metalearn.models.weights.read"
        )
    if _checksum(tensors, metadata["record"]) != metadata["sha256"]:
        raise Damaged(
            f"{path} does not match its own checksum: it was altered or damaged after metalearn "
            "wrote it; take it from a copy, or make it again"
        )
    try:
        record = json.loads(metadata["record"])
    except (ValueError, RecursionError) as error:
        raise Damaged(f"the record of {path} is not JSON ({error}); make the file again") from error
    if not isinstance(record, dict):
        raise Damaged(f"the record of {path} is a {type(record).__name__}, not a mapping")
    return tensors, record


def _named(tensors: Any) -> list[tuple[Any, Any]]:
    if not isinstance(tensors, Mapping):
        raise TypeError(
            f"a file holds tensors by name, not a {type(tensors).__name__}: {tensors!r}"
        )
    return list(tensors.items())


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
