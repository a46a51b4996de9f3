"""An import path of an earlier version says where its module is now."""

from __future__ import annotations

import importlib

import pytest
import torch

import metalearn as ml
import transfer  # noqa: F401
from metalearn.analysis import Streaming, compare_layers
from metalearn.analysis.measures.chance import measured
from metalearn.models import MLP
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


def test_names_that_changed_still_work_and_warn_with_the_new_name() -> None:
    learner = ml.MAML(MLP(1, 1), 0.1)
    with pytest.warns(FutureWarning, match=r"Learner\.trained is Learner\.meta_parameters now"):
        assert learner.trained().keys() == learner.meta_parameters().keys()
    with pytest.warns(FutureWarning, match="taking is with_steps now"):
        assert learner.taking(3).steps == 3
    with pytest.warns(FutureWarning, match=r"metalearn\.analysis\.MeanStd"):
        from metalearn.analysis import Spread
    assert Spread.of([1.0, 3.0]).mean == 2.0
    with pytest.raises(ImportError, match="cannot import name 'Spreads'"):
        from metalearn.analysis import Spreads  # noqa: F401


def test_units_are_groups_now() -> None:
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    y = x**3
    with pytest.warns(FutureWarning, match=r"measured\(groups=\)"):
        renamed = measured("cca", x, y, units=4, draws=3)[1]
    assert (renamed == measured("cca", x, y, groups=4, draws=3)[1]).all()
    with pytest.warns(FutureWarning, match=r"compare_layers\(groups=\)"):
        profile = compare_layers({"a": x}, {"a": y}, measure="cca", units=4, draws=3)
    assert (renamed == profile["a"].chance).all()
    stream = Streaming("cca", draws=3)
    with pytest.warns(FutureWarning, match=r"Streaming\.update\(groups=\)"):
        stream.update(x, y, units=1)
    assert not len(stream.chance())
