"""Names of earlier versions that still work for one release, with a FutureWarning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any


def warn_renamed(old: str, new: str) -> None:
    """Warn, at the line that used it, that the name `old` is `new` now."""
    warnings.warn(
        f"{old} is {new} now; the next release removes the old name", FutureWarning, stacklevel=3
    )


def renamed_attributes(module: str, names: Mapping[str, Any]) -> Callable[[str], Any]:
    """A module's `__getattr__` that returns the value of an old name, with a FutureWarning.

    Args:
        module: the module's name.
        names: the old names, each with its value.

    Example:
        >>> attribute = renamed_attributes("package", {"Old": int})
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", FutureWarning)
        ...     attribute("Old")
        <class 'int'>
    """

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = names[name]
        warn_renamed(f"{module}.{name}", f"{module}.{value.__name__}")
        return value

    return attribute
