"""Files that are whole or absent: written atomically, read with a checksum, never unpickled."""

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
"""The first bytes of a file -> its kind, in words."""


class Damaged(ValueError):
    """A file is truncated, altered, or not metalearn's; the message names it and the cure."""


class Foreign(Damaged):
    """A whole file that metalearn did not write."""


def file_path(path: str | os.PathLike[str]) -> Path:
    """Check that `path` can be the path of a file, and return it.

    Raises:
        TypeError: `path` is neither a string nor a path.
        ValueError: it has no name, or a null character.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{path!r} is a {type(path).__name__}, not the path of a file")
    text = os.fspath(path)
    if not Path(text).name or "\0" in text:
        raise ValueError(f"{text!r} is not the path of a file")
    return Path(text)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be opened, for the reason in the message (permission, too many open
            files, a folder, ...). It is not damaged.
    """
    path = file_path(path)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a device or a pipe")
        return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        # NotADirectoryError: a part of the path is a file
        raise FileNotFoundError(f"there is no file {path}") from error
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str | os.PathLike[str], error: OSError) -> OSError:
    """The error for a file that may be whole but cannot be read now."""
    reason = error.strerror or str(error)
    return OSError(
        error.errno or errno.EIO,
        f"could not read {path} ({reason}); the file is unchanged. Fix the reason and run the same"
        " command again",
    )


def content(start: bytes) -> str:
    """The kind of a file by its first bytes, in words; "" if they do not tell.

    Example:
        >>> content(b""), content(b"<!DOCTYPE html><html>")
        ('empty', 'a web page')
    """
    if not start:
        return "empty"
    if start[8:9] == b"{":  # safetensors: eight bytes of length, then a JSON header
        return ""
    lowercase = start.lstrip().lower()
    for magic, kind in KINDS.items():
        if start.startswith(magic) or lowercase.startswith(magic):
            return kind
    return ""


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Lock `path` against other processes while the block runs.

    The lock is a file beside it, and ends with the process, however that ends.

    Raises:
        BlockingIOError: another process holds the lock; the message names it.
        OSError: the lock cannot be written.
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
    """The process that holds a lock, in words."""
    try:
        return path.read_text(errors="replace") or "another process"
    except OSError:  # the lock is taken just before its holder is written
        return "another process"


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole, or leave the old one as it was.

    The content goes to a temporary file beside `path`, which is flushed to the disk and renamed.

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    path = file_path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on the disk before the name points to it
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too leaves no temporary file behind
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def unwritable(path: Path, error: OSError) -> OSError:
    """The error for a file that cannot be written, with the cure."""
    cure = "Free some space or name another folder"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        blocking = next((above for above in path.parents if above.is_file()), path.parent)
        cure = f"{blocking} is a file, not a folder: name another folder"
    return OSError(
        error.errno,
        f"could not write {path} ({error.strerror}); what was there before is unchanged. {cure}",
    )


def save(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], record: Record | None = None
) -> None:
    """Save tensors and a record as one safetensors file with its own SHA-256.

    Any safetensors reader opens it. Tensors that share memory are stored once each.

    Args:
        path: the file.
        tensors: by name.
        record: JSON-able values.

    Raises:
        TypeError: a value is not a tensor, or the record is not JSON-able.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/x.safetensors", {"weight": torch.ones(2)}, {"step": 3})
        ...     load(f"{folder}/x.safetensors")
        ({'weight': tensor([1., 1.])}, {'step': 3})
    """
    _check_named(tensors)
    # Copies: safetensors refuses tensors that share memory.
    stored = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    try:
        text = json.dumps(record or {}, sort_keys=True)
    except (TypeError, ValueError, RecursionError, RuntimeError) as error:
        raise TypeError(f"the record of {path} is not JSON ({error}); give plain values") from error
    metadata = {"record": text, "sha256": _checksum(stored, text)}
    write_atomically(path, safetensors.torch.save(stored, metadata))


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Record]:
    """Read a file that `save` wrote.

    Args:
        path: the file.

    Returns:
        The tensors by name, and the record.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: the file is not whole.
        Foreign: metalearn did not write it.
        OSError: it cannot be read now, for the reason in the message.
    """
    tensors, metadata = _read_safetensors(path)
    if "sha256" not in metadata or "record" not in metadata:
        raise Foreign(
            f"{path} carries no checksum, so metalearn did not write it; load plain weights with"
            " --weights or metalearn.models.weights.read"
        )
    if _checksum(tensors, metadata["record"]) != metadata["sha256"]:
        raise Damaged(
            f"{path} does not match its own checksum: it was altered or damaged after metalearn"
            " wrote it; restore it from a copy, or make it again"
        )
    try:
        record = json.loads(metadata["record"])
    except (ValueError, RecursionError) as error:
        raise Damaged(f"the record of {path} is not JSON ({error}); make the file again") from error
    if not isinstance(record, dict):
        raise Damaged(f"the record of {path} is a {type(record).__name__}, not a mapping")
    return tensors, record


def _check_named(tensors: Any) -> None:
    """Raise TypeError if these are not tensors by name."""
    if not isinstance(tensors, Mapping):
        raise TypeError(
            f"a file holds tensors by name, not a {type(tensors).__name__}: {tensors!r}"
        )
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(f"a file holds tensors by name, not {name!r}: {type(tensor).__name__}")


def _read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of any safetensors file."""
    with open_file(path) as file:
        start = file.read(64)
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as stored:
            names = stored.keys()
            return {name: stored.get_tensor(name) for name in names}, stored.metadata() or {}
    except safetensors.SafetensorError as error:
        kind = content(start)
        reason = f"it is {kind}" if kind else str(error)
        raise Damaged(
            f"{path} is truncated or not a safetensors file ({reason}); give a file that metalearn"
            " wrote, such as a checkpoint of metalearn train"
        ) from error
    except OSError as error:  # the reader reports every file that it cannot open as missing
        raise unreadable(path, OSError(errno.EIO, str(error))) from error


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """The SHA-256 of names, dtypes, shapes and values."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        # the header keeps values of different tensors apart
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
