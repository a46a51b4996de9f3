"""A learning rate for every row: the choice, finished parts, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from metalearn.data.sequences import bit_xor
from transfer import finetune
from transfer.comparison.rates import sweep_rates
from transfer.finetuning.curve import Curve
from transfer.finetuning.optimizers import clipped

BEST = {"low": 0.001, "high": 0.1}


class Runs:
    """Rows whose validation score falls with the distance from a best rate."""

    def __init__(self) -> None:
        self.done: list[tuple[str, float, int]] = []

    def row(self, name: str) -> object:
        def run(rate: float, seed: int) -> Curve:
            self.done.append((name, rate, seed))
            score = 1 - abs(math.log10(rate / BEST[name])) / 10
            test = score - seed / 100
            return Curve("accuracy", (0, 9), {"accuracy": (0.0, test)}, validation=(0.0, score))

        return run

    def rows(self) -> dict:
        return {name: self.row(name) for name in BEST}


RATES = [0.001, 0.01, 0.1, 1.0]


def test_each_row_gets_its_own_rate_from_validation() -> None:
    runs = Runs()
    result = sweep_rates(runs.rows(), RATES, seeds=[0, 1, 2])
    assert result["low"].rate == 0.001 and result["low"].at_edge
    assert result["high"].rate == 0.1 and not result["high"].at_edge
    assert result["high"].tests == pytest.approx((1.0, 0.99, 0.98))
    assert result["high"].test.mean == pytest.approx(0.99)
    assert len(runs.done) == 2 * 4 * 3
    assert "0.001 (edge)" in str(result) and result.records()[1]["row"] == "high"


def test_seeds_that_are_not_swept_train_at_the_chosen_rate() -> None:
    runs = Runs()
    result = sweep_rates({"high": runs.row("high")}, RATES, seeds=[0, 1, 2], swept=1)
    assert len(result["high"].tests) == 3
    assert [run for run in runs.done if run[2]] == [("high", 0.1, 1), ("high", 0.1, 2)]


def test_a_stopped_sweep_goes_on(tmp_path: Path) -> None:
    runs = Runs()
    whole = sweep_rates(runs.rows(), RATES, [0, 1], folder=tmp_path, settings={"steps": 9})
    files = sorted(tmp_path.iterdir())
    assert len(files) == 16
    for path in files[:5]:
        path.unlink()
    again = Runs()
    result = sweep_rates(again.rows(), RATES, [0, 1], folder=tmp_path, settings={"steps": 9})
    assert len(again.done) == 5 and result.records() == whole.records()
    with pytest.raises(ValueError, match="steps is 8 but was 9"):
        sweep_rates(again.rows(), RATES, [0, 1], folder=tmp_path, settings={"steps": 8})
    sorted(tmp_path.iterdir())[0].write_text("{")
    with pytest.raises(ValueError, match="is no training of a sweep; delete it"):
        sweep_rates(again.rows(), RATES, [0, 1], folder=tmp_path, settings={"steps": 9})


def test_a_rate_that_is_not_finite_is_not_chosen(tmp_path: Path) -> None:
    def run(rate: float, seed: int) -> Curve:
        if rate > 0.05 and seed == 1:
            raise FloatingPointError("the loss is nan at step 3")
        return Curve("accuracy", (0,), {"accuracy": (rate,)}, validation=(rate,))

    for _ in range(2):  # from the trainings, then from their files
        result = sweep_rates({"a": run}, [0.01, 0.1], [0, 1], folder=tmp_path)
        assert result["a"].rate == 0.01 and math.isnan(result["a"].validation[0.1][1])
    with pytest.raises(
        ValueError, match=r"no rate of 0\.1 gives a finite training of a; try lower"
    ):
        sweep_rates({"a": run}, [0.1], [0, 1])


def test_what_cannot_be_swept_is_refused() -> None:
    rows = Runs().rows()

    def without(rate: float, seed: int) -> Curve:
        return Curve("accuracy", (0,), {"accuracy": (0.5,)})

    with pytest.raises(ValueError, match="no validation scores to choose a rate by"):
        sweep_rates({"a": without}, [0.1], [0])
    with pytest.raises(ValueError, match="repeat; give each once"):
        sweep_rates(rows, [0.1, 0.1], [0])
    with pytest.raises(ValueError, match="at least one row"):
        sweep_rates(rows, [], [0])
    with pytest.raises(ValueError, match="rate=0"):
        sweep_rates(rows, [0.0], [0])
    with pytest.raises(KeyError, match="there is no row 'b'"):
        sweep_rates({"low": Runs().row("low")}, [0.1], [0])["b"]


def test_gradients_are_clipped_before_a_step() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = clipped("sgd", 0.5)([weight], lr=1.0)
    (weight * torch.tensor([30.0, 40.0])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.3, -0.4]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="optimizer='adamm'; choose adam"):
        clipped("adamm")
    with pytest.raises(ValueError, match="norm=0"):
        clipped("adam", 0)
    data = bit_xor(8)
    train = finetune(data, data, steps=1, optimizer=clipped("adam", 1.0))
    assert train.settings["optimizer"] == "clipped(optimizer='adam', norm=1.0)"
