"""Whether the installed files are this distribution's: other projects install into the same folders.

PyPI's `metalearn`, `parallel-metalearn` and `transfer` have folders named `metalearn` or `transfer`,
and pip lets the one that is installed last overwrite the files of the one before.
"""

from __future__ import annotations

import base64
import hashlib
import warnings
from collections.abc import Iterable
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
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def warn_of_others() -> None:
    """Warn if a distribution that uses the same folders is installed."""
    found = others_installed()
    if found:
        warnings.warn(
            f"{', '.join(found)} from PyPI is installed in this environment and uses the same"
            f" folders as {DISTRIBUTION}, so files of either may be missing or replaced; {CURE}",
            stacklevel=3,
        )


def replaced_files() -> list[str]:
    """The installed files of this distribution that are gone, or not as they were installed.

    Empty for a checkout that is installed with `pip install -e`, whose files may change.

    Example:
        >>> replaced_files()
        []
    """
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    replaced = []
    for file in files:
        if not str(file).startswith(FOLDERS) or file.hash is None:
            continue
        path = file.locate()
        try:
            content = path.read_bytes()  # type: ignore[attr-defined]
        except OSError:
            replaced.append(str(file))
            continue
        digest = hashlib.new(file.hash.mode, content).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            replaced.append(str(file))
    return replaced


def check_files() -> None:
    """Raise OSError, with the cure, if files of this distribution were replaced or are gone."""
    replaced = replaced_files()
    if not replaced:
        return
    others = others_installed()
    by = f" ({', '.join(others)} is installed here too)" if others else ""
    raise OSError(
        f"{len(replaced)} files are not those of {DISTRIBUTION} {__version__}, such as"
        f" {replaced[0]}{by}; {CURE}"
    )
