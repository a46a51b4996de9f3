"""The grid of pointer value retrieval: a perfect program, bad settings, and stopped grids."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.data.pointer_value import FUNCTIONS, pointed_windows
from metalearn.models import PointerMLP
from transfer import initialize, transfusion
from transfer.studies import pointer_grid


class Program(nn.Module):
    """Gathers the pointed values and applies the function; its parameter changes nothing."""

    def __init__(self, complexity: int, function: str) -> None:
        super().__init__()
        self.complexity = complexity
        self.function = function
        self.head = nn.Linear(10, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        labels = FUNCTIONS[self.function](pointed_windows(inputs, self.complexity))
        return nn.functional.one_hot(labels, 10).float() + 0 * self.head.weight.sum()


class Constant(Program):
    """Always says 1."""

    def forward(self, inputs: Tensor) -> Tensor:
        labels = torch.ones(len(inputs), dtype=torch.int64)
        return nn.functional.one_hot(labels, 10).float() + 0 * self.head.weight.sum()


def small() -> PointerMLP:
    return PointerMLP(embedding=8, hidden=(64,))


QUICK: dict[str, Any] = {"tests": 200, "steps": 4, "batch": 32}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("complexity", [0, 1, 3])
def test_a_perfect_program_scores_100_percent_under_both_distributions(
    complexity: int, function: str
) -> None:
    grid = pointer_grid(
        lambda: Program(complexity, function), [complexity], [300], [function], **QUICK
    )
    (cell,) = grid.cells
    assert cell.scores.train == cell.scores.iid == 1
    if complexity:
        assert cell.scores.adversarial == cell.scores.same_labels == 1
    else:
        assert math.isnan(cell.scores.adversarial)


def test_a_constant_scores_100_percent_on_adversarial_inputs_and_the_entropy_tells() -> None:
    grid = pointer_grid(lambda: Constant(1, "sum"), [1], [300], ["sum"], **QUICK)
    scores = grid.cells[0].scores
    assert scores.adversarial == scores.same_labels == 1
    assert scores.iid < 0.2
    assert scores.adversarial_entropy == 0 and scores.entropy > 3
    assert "; 0.00" in str(grid)
    assert "constant scores 100 %" in str(grid)


def test_complexity_0_has_one_function_and_is_learned_from_enough_examples() -> None:
    def build() -> PointerMLP:
        return PointerMLP(embedding=16, hidden=(256, 64))

    settings = {"tests": 500, "steps": 500, "batch": 128, "lr": 3e-3}
    grid = pointer_grid(build, [0], [100, 12_000], ["sum", "max"], **settings)
    assert [cell.row for cell in grid.cells] == [(0, "value", 100), (0, "value", 12_000)]
    few, many = (cell.scores for cell in grid.cells)
    assert few.train == 1 and few.iid < 0.4  # memorised
    assert many.iid > 0.95
    assert grid.answer().endswith("value, complexity 0: 12,000.")


def test_the_same_seed_gives_the_same_grid_and_another_seed_another() -> None:
    def scores(seeds: list[int]) -> list[dict[str, Any]]:
        records = pointer_grid(small, [1], [100], ["max"], seeds=seeds, **QUICK).records()
        return [{key: value for key, value in row.items() if key != "seconds"} for row in records]

    both = scores([0, 1])
    assert scores([0]) == both[:1] and scores([1]) == both[1:]
    assert both[0]["iid"] != both[1]["iid"]


def test_a_grid_that_was_stopped_goes_on(tmp_path: Path) -> None:
    first = pointer_grid(small, [0], [100], folder=tmp_path, **QUICK)
    file = first.cells[0].file
    assert file is not None
    written = file.stat().st_mtime_ns
    second = pointer_grid(small, [0, 1], [100], folder=tmp_path, **QUICK)
    assert file.stat().st_mtime_ns == written  # not trained again
    assert second.cells[0] == first.cells[0] and len(second.cells) == 2
    again = pointer_grid(small, [0, 1], [100], folder=tmp_path, **QUICK)
    assert again.cells[0] == first.cells[0]
    assert math.isnan(again.cells[0].scores.adversarial)
    with pytest.raises(ValueError, match=r"m0-value-100-seed0.*train.lr is 0.5 but was 0.001"):
        pointer_grid(small, [0], [100], folder=tmp_path, lr=0.5, **QUICK)
    # The file has the weights, for another training to start from.
    network = initialize(small(), transfusion(file, through="layer1"), seed=0)
    assert network is not None


def test_early_stopping_has_a_validation_set_of_its_own() -> None:
    settings = {**QUICK, "steps": 40, "evaluate_every": 1, "lr": 0.0}
    grid = pointer_grid(small, [0], [100], early_stop=3, **settings)
    assert grid.cells[0].scores.iid < 0.5


def test_training_sets_without_some_class() -> None:
    # The maximum of four digits of 30 examples is hardly ever 0.
    grid = pointer_grid(small, [3], [30], ["max"], **QUICK)
    assert 0 <= grid.cells[0].scores.iid <= 1


def test_table_picture_and_page(tmp_path: Path) -> None:
    grid = pointer_grid(small, [0, 1], [100, 200], ["max"], seeds=[0, 1], **QUICK)
    table = grid.table()
    assert [row[:3] for row in table.rows] == [
        ("0", "value", "100"),
        ("0", "value", "200"),
        ("1", "max", "100"),
        ("1", "max", "200"),
    ]
    assert table.rows[0][5] == "-" and "±" in table.rows[2][5]
    iid, adversarial = grid.figure().axes
    assert len(iid.lines) == 3 and len(adversarial.lines) == 2  # with the chance level
    grid.report(tmp_path / "grid.html")
    page = (tmp_path / "grid.html").read_text()
    assert "windows that training never had" in page and page.count("<img") == 1
    assert len(grid.to_dict()["cells"]) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"complexities": [10]}, "complexity=10.*give 0 to 9"),
        ({"complexities": []}, r"complexities=\[\]: give at least one"),
        ({"sizes": [100, 100]}, "sizes=.*each once"),
        ({"sizes": [0]}, r"sizes\[0\]=0"),
        ({"seeds": []}, r"seeds=\[\]"),
        ({"functions": ["maxx"], "complexities": [0]}, r"'maxx' \(did you mean max"),
        ({"functions": ["sum", "sum"]}, "functions=.*each once"),
        ({"complexities": [8]}, "size=200: .*60 different inputs"),
        ({"holdout": -1}, "holdout=-1"),
        ({"metric": "f1"}, "metric='f1'"),
    ],
)
def test_bad_settings_are_found_before_any_training(settings: dict[str, Any], message: str) -> None:
    given = {"complexities": [1], "sizes": [50], "functions": ["sum"], **QUICK, **settings}
    with pytest.raises(ValueError, match=message):
        pointer_grid(small, **given)


def test_something_else_than_a_function_that_builds() -> None:
    with pytest.raises(TypeError, match="build is a PointerMLP; pass a function"):
        pointer_grid(small(), [0], [50])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="returned a int"):
        pointer_grid(lambda: 3, [0], [50], **QUICK)  # type: ignore[arg-type,return-value]
