"""Errors for the learn2learn names that are not offered: the nearest name, or what serves instead."""

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
    """A `__getattr__` for a module: an error that names what is missing and what to use.

    The error is AttributeError, or ImportError for `from module import name`.

    Args:
        module: The module's name.
        names: The names that it offers.
        instead: For names of learn2learn that are left out on purpose, what serves instead.
    """
    offered = sorted(names)

    def __getattr__(name: str) -> NoReturn:
        if instead is not None and name in instead:
            _refuse(module, name, f": {instead[name]}")
        near = difflib.get_close_matches(name, offered, n=1, cutoff=0.3)
        if near and not name.startswith("__"):
            _refuse(module, name, f"; the nearest name is {near[0]!r}")
        _refuse(module, name, f"; it offers {', '.join(offered)}")

    return __getattr__


def uncovered(module: str, instead: str) -> Callable[[str], NoReturn]:
    """A `__getattr__` for a module of learn2learn that has no counterpart, with what serves
    instead.
    """

    def __getattr__(name: str) -> NoReturn:
        _refuse(module, name, f": {instead}")

    return __getattr__


def _refuse(module: str, name: str, cure: str) -> NoReturn:
    message = f"{module} has no {name!r}{cure}. {REAL}"
    # Python would replace an AttributeError in `from module import name` by a message of its own.
    frame = sys._getframe(2)  # whoever asked the module's `__getattr__`
    if dis.opname[frame.f_code.co_code[frame.f_lasti]] == "IMPORT_FROM":
        raise ImportError(message, name=name)
    raise AttributeError(message, name=name, obj=sys.modules[module])
