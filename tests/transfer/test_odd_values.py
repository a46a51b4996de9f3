"""Odd values given to transfer's public functions: every refusal is one of ours, never a traceback
from inside.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import transfer
from transfer import (
    compare,
    copied,
    everywhere,
    finetune,
    frozen_transformer,
    initialize,
    mean_var,
    parameter_groups,
    transfusion,
)
from transfer.comparison.statistics import over_seeds, paired, seeds_needed, sign_flip
from transfer.finetuning.curve import Curve
from transfer.finetuning.finetune import subset
from transfer.finetuning.scores import auc, scores
from transfer.models import build, cbr, read_channels, slim

HERE = str(Path(transfer.__file__).parents[1])
ODD = [
    None,
    0,
    -1,
    1.5,
    math.nan,
    math.inf,
    "",
    "abc",
    True,
    [],
    {},
    torch.tensor(2),
    torch.rand(2),
    object(),
    b"x",
    [1, 2],
    {"a": 1},
    10**30,
]
REFUSED = (ValueError, TypeError, FloatingPointError, OSError)
LABELS = torch.arange(8) % 2
DATA = torch.utils.data.TensorDataset(torch.rand(8, 1, 6, 6), LABELS)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))


def given(**options) -> Callable[[object], object]:
    """`finetune` with one option set to the odd value."""
    (name,) = options
    return lambda value: finetune(**{"train_set": DATA, "test_set": DATA, "steps": 1, name: value})


def compared(name: str) -> Callable[[object], object]:
    """`compare` with one argument set to the odd value; the training fails, so that nothing runs
    for long.
    """

    def stopped(model: nn.Module, seed: int) -> Curve:
        raise ValueError("a run was begun")

    whole = {
        "strategies": {"a": everywhere(transfer.fresh()), "b": everywhere(transfer.fresh())},
        "build": network,
        "train": stopped,
    }
    whole |= {"probe": torch.rand(4, 1, 6, 6), "seeds": [0]}
    return lambda value: compare(**{**whole, name: value})


CALLS: dict[str, Callable[[object], object]] = {
    **{
        f"finetune {name}": given(**{name: None})
        for name in ("train_set", "test_set", "batch", "lr", "optimizer", "metric", "images")
    },
    **{
        f"finetune {name}": given(**{name: None})
        for name in ("evaluate_every", "early_stop", "balance", "rates", "frozen", "device")
    },
    **{
        f"compare {name}": compared(name)
        for name in (
            "strategies",
            "build",
            "train",
            "probe",
            "seeds",
            "baseline",
            "level",
            "layers",
        )
    },
    "initialize model": lambda value: initialize(value, everywhere(transfer.fresh())),
    "initialize strategy": lambda value: initialize(network(), value),
    "initialize seed": lambda value: initialize(
        network(), everywhere(transfer.fresh()), seed=value
    ),
    "initialize head": lambda value: initialize(
        network(), everywhere(transfer.fresh()), head=value
    ),
    "transfusion weights": lambda value: initialize(network(), transfusion(value)),
    "transfusion through": lambda value: initialize(network(), transfusion(network(), value)),
    "source": lambda value: initialize(network(), {"": value}),
    "copied": lambda value: initialize(network(), everywhere(copied(value))),
    "mean_var": lambda value: initialize(network(), everywhere(mean_var(value))),
    "freeze model": lambda value: transfer.freeze(value),
    "freeze through": lambda value: transfer.freeze(network(), value),
    "linear_probe head": lambda value: transfer.linear_probe(network(), head=value),
    "frozen_transformer model": lambda value: frozen_transformer(value),
    "parameter_groups model": lambda value: parameter_groups(value, {"": 0.1}),
    "parameter_groups rates": lambda value: parameter_groups(network(), value),
    "parameter_groups rate": lambda value: parameter_groups(network(), {"": value}),
    "cbr": lambda value: cbr(value, 2),
    "build": lambda value: build(value, 2),
    "slim": lambda value: slim("resnet18", value, 2),
    "read_channels model": lambda value: read_channels(value, 1),
    "over_seeds": over_seeds,
    "paired": lambda value: paired(value, [1.0]),
    "paired level": lambda value: paired([1.0, 3.0], [1.0, 2.0], value),
    "sign_flip": sign_flip,
    "seeds_needed": seeds_needed,
    "scores": lambda value: scores(value, LABELS),
    "auc": lambda value: auc(torch.rand(8, 2), value),
    "subset labels": lambda value: subset(value, 3, 0),
    "subset images": lambda value: subset(LABELS, value, 0),
    "curve": Curve.from_dict,
}


@pytest.mark.parametrize("call", CALLS)
def test_odd_values_are_refused_in_our_own_words(call: str) -> None:
    from_inside = []
    for value in ODD:
        try:
            CALLS[call](value)
        except REFUSED as error:
            if not traceback.extract_tb(error.__traceback__)[-1].filename.startswith(HERE):
                from_inside.append((value, error))
    assert not from_inside


def test_a_step_count_that_never_ends_is_refused() -> None:
    for steps in (math.inf, math.nan, 1.5, True, "3"):
        with pytest.raises(TypeError, match="steps="):
            finetune(DATA, DATA, steps=steps)


def test_results_have_short_reprs() -> None:
    train = finetune(DATA, DATA, steps=2)
    report = initialize(network(), everywhere(transfer.fresh()))
    curve = train(network(), seed=0)
    for result in (train, report, curve, paired([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])):
        assert len(repr(result)) < 250
    assert "8 images of 2 classes" in repr(train) and "fresh" in repr(report)
