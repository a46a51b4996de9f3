"""Says of a learn2learn name that is not offered which one is nearest."""

from __future__ import annotations

import difflib
import dis
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn


def nearest(module: str, names: Iterable[str]) -> Callable[[str], NoReturn]:
    """A `__getattr__` for a module: raises AttributeError (ImportError for `from module import name`) naming what was asked for."""
    offered = sorted(names)

    def __getattr__(name: str) -> NoReturn:
        close = difflib.get_close_matches(name, offered, n=1, cutoff=0.3) if not name.startswith("__") else []
        hint = f"the nearest name is {close[0]!r}" if close else f"it offers {', '.join(offered)}"
        message = f"{module} has no {name!r}; {hint}. The real learn2learn has an environment from benchmarks/peers/install.sh"
        frame = sys._getframe(1)
        # Python would replace an AttributeError in `from module import name` by a bare message of its own.
        if dis.opname[frame.f_code.co_code[frame.f_lasti]] == "IMPORT_FROM":
            raise ImportError(message, name=name)
        raise AttributeError(message, name=name, obj=sys.modules[module])

    return __getattr__
