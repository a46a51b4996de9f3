"""An import path of an earlier version says where its module is now."""

from __future__ import annotations

import importlib

import pytest

import metalearn  # noqa: F401
import transfer  # noqa: F401
from metalearn.runtime.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_a_module_that_has_moved_names_its_new_place(old: str) -> None:
    with pytest.raises(ImportError, match=rf"{old} has moved; import {MOVED[old]} instead"):
        importlib.import_module(old)
    importlib.import_module(MOVED[old])


def test_importing_it_from_its_package_says_the_same() -> None:
    with pytest.raises(ImportError, match=r"metalearn\.kernels\.conv_cpu"):
        from metalearn import operations  # noqa: F401
    with pytest.raises(ImportError, match=r"transfer\.initialisation\.sources"):
        import transfer.sources  # noqa: F401


def test_a_name_that_never_was_is_not_found_as_usual() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'metalearn\.nothing'"):
        importlib.import_module("metalearn.nothing")
