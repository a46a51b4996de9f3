"""Checks that the installed files are this distribution's own.

PyPI's `metalearn`, `parallel-metalearn` and `transfer` install into folders of the same names, and
pip lets the last one overwrite the files of the others.
"""

from __future__ import annotations

import base64
import hashlib
import warnings
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata

from .version import __version__

DISTRIBUTION = "metalearn-transfer"
SAME_FOLDERS = ("metalearn", "parallel-metalearn", "transfer")
FOLDERS = ("metalearn/", "transfer/")
CURE = (
    f"use an environment of its own: python3 -m venv .venv && .venv/bin/pip install {DISTRIBUTION}"
)


def others_installed(names: Iterable[str] = SAME_FOLDERS) -> list[str]:
    """The distributions of these names in this environment, each with its version."""
    installed = []
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            installed.append(f"{name} {metadata.version(name)}")
    return installed


def warn_of_others() -> None:
    """Warn if a distribution that uses the same folders is installed."""
    others = others_installed()
    if others:
        warnings.warn(
            f"{', '.join(others)} from PyPI is installed in this environment and uses the same"
            f" folders as {DISTRIBUTION}, so files of either may be missing or replaced; {CURE}",
            stacklevel=3,
        )


def replaced_files() -> list[str]:
    """The files of this distribution that are missing or changed since they were installed.

    Empty for a checkout that is installed with `pip install -e`, because its files may change.

    Example:
        >>> replaced_files()
        []
    """
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    checked = [file for file in files if str(file).startswith(FOLDERS) and file.hash is not None]
    return [str(file) for file in checked if not _is_unchanged(file)]


def _is_unchanged(file: metadata.PackagePath) -> bool:
    """Whether an installed file has the hash of pip's record."""
    try:
        content = file.locate().read_bytes()  # type: ignore[attr-defined]
    except OSError:
        return False
    digest = hashlib.new(file.hash.mode, content).digest()  # type: ignore[union-attr]
    encoded = base64.urlsafe_b64encode(digest).rstrip(b"=")  # as pip writes it
    return encoded.decode() == file.hash.value  # type: ignore[union-attr]


def check_files() -> None:
    """Raise OSError, with the cure, if files of this distribution are missing or changed."""
    replaced = replaced_files()
    if not replaced:
        return
    example = replaced[0]
    others = others_installed()
    if others:
        example += f" ({', '.join(others)} is installed here too)"
    raise OSError(
        f"{len(replaced)} files are not those of {DISTRIBUTION} {__version__}, such as {example};"
        f" {CURE}"
    )
