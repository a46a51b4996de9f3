"""Functions that read, write and build by name answer odd arguments with the value, not with a
traceback of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import metalearn
from metalearn import experiments
from metalearn.experiments.experiment import Experiment
from metalearn.models import registry, weights
from metalearn.runtime import files
from metalearn.training import checkpoints

ODD: list[Any] = [
    None,
    3,
    3.5,
    float("nan"),
    True,
    "",
    "\0",
    ".",
    "..",
    "/",
    b"bytes",
    [],
    {},
    ("a", "b"),
    object(),
    nn.Linear,
    torch.ones(3),
]
ODD += [
    {"a": 1},
    {1: torch.ones(1)},
    {"weight": torch.ones(2, 3)},
    {"weight": torch.ones(2, 3), "bias": torch.ones(2, dtype=torch.int8)},
]
ODD += [
    nn.Identity(),
    nn.Sequential(),
    Path("."),
    -1,
    10**30,
    "timm:",
    "timm",
    ":",
    "a:",
    ":b",
    "os:system:x",
    "DEFAULT",
    ".DEFAULT",
]

CALLS: dict[str, Callable[[Any], Any]] = {
    "files.load": files.load,
    "files.save": lambda odd: files.save("some", odd),
    "record": lambda odd: files.save("some", {}, {"a": odd}),
    "checkpoints.load": checkpoints.load,
    "restore": lambda odd: checkpoints.restore(nn.Linear(3, 2), odd),
    "restore into": lambda odd: checkpoints.restore(odd, "some"),
    "read_settings": checkpoints.read_settings,
    "load_weights": lambda odd: checkpoints.load_weights(nn.Linear(3, 2), odd, "a file"),
    "read": weights.read,
    "read by model": lambda odd: weights.read("DEFAULT", model=odd),
    "fit": lambda odd: weights.fit(nn.Linear(3, 2), weights.read(odd)),
    "fit into": lambda odd: weights.fit(
        odd, weights.read({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    ),
    "normalize": lambda odd: Experiment(normalize=odd),
    "model": lambda odd: Experiment(model=odd, size=28, channels=1, hidden=2).fresh_model(),
    "weights": lambda odd: Experiment(weights=odd, size=28, channels=1, hidden=2).fresh_model(),
    "network": lambda odd: registry.build(odd, 2),
    "outputs": lambda odd: registry.build("squeezenet1_1", odd),
    "restored": experiments.restored,
    "locked": lambda odd: files.locked(odd).__enter__(),
}
ANSWERS = (ValueError, TypeError, OSError, ImportError)


@pytest.mark.parametrize("call", CALLS)
def test_odd_arguments_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.chdir(tmp_path)
    own = str(Path(metalearn.__file__).parent)
    answers = [(odd, _answer(CALLS[call], odd)) for odd in ODD]
    for odd, error in answers:
        if error is not None:
            assert str(error), repr(odd)
            assert _raised_in(error).startswith(own), f"{odd!r}: {error!r}"


def _answer(call: Callable[[Any], Any], odd: Any) -> Exception | None:
    try:
        call(odd)
    except ANSWERS as error:
        return error
    return None


def _raised_in(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_code.co_filename
