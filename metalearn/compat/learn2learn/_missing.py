"""Errors for names of learn2learn that do not exist here: the nearest name, or a replacement."""

from __future__ import annotations

import difflib
import dis
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

REAL = "The real learn2learn has an environment from benchmarks/peers/install.sh"


def nearest(
    module: str, names: Iterable[str], instead: Mapping[str, str] | None = None
) -> Callable[[str], NoReturn]:
    """Make a `__getattr__` for a module that raises an error for missing names, with a cure.

    The error is AttributeError, or ImportError for `from module import name`.

    Args:
        module: the module's name.
        names: the names that it offers.
        instead: replacements for names of learn2learn that are omitted on purpose.
    """
    offered = sorted(names)

    def __getattr__(name: str) -> NoReturn:
        if instead is not None and name in instead:
            _refuse(module, name, f": {instead[name]}")
        # Python itself asks modules for names such as __path__, which need no suggestion.
        near = difflib.get_close_matches(name, offered, n=1, cutoff=0.3)
        if near and not name.startswith("__"):
            _refuse(module, name, f"; the nearest name is {near[0]!r}")
        _refuse(module, name, f"; it offers {', '.join(offered)}")

    return __getattr__


def uncovered(module: str, instead: str) -> Callable[[str], NoReturn]:
    """Make a `__getattr__` for a module of learn2learn without a counterpart here.

    Args:
        module: the module's name.
        instead: the replacement, for the message.
    """

    def __getattr__(name: str) -> NoReturn:
        _refuse(module, name, f": {instead}")

    return __getattr__


def _refuse(module: str, name: str, cure: str) -> NoReturn:
    """Raise the error about a missing name."""
    message = f"{module} has no {name!r}{cure}. {REAL}"
    # Python would replace an AttributeError in `from module import name` by a message of its own.
    frame = sys._getframe(2)  # the caller of the module's `__getattr__`
    if dis.opname[frame.f_code.co_code[frame.f_lasti]] == "IMPORT_FROM":
        raise ImportError(message, name=name)
    raise AttributeError(message, name=name, obj=sys.modules[module])
