"""Data sets as users have them: dictionaries, strings, gaps, subsets, and several in one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from metalearn.tasks import FewShot

PIXELS = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 1, 2, 2)
LABELS = [i % 3 for i in range(12)]


class Rows(Dataset[Any]):
    """A data set in columns, with items that are dictionaries, as Hugging Face's are."""

    def __init__(self, labels: list[Any], keys: tuple[str, str] = ("image", "label")) -> None:
        class ClassLabel:
            names = ("ant", "bee", "cow")

        self.column_names = list(keys)
        self.features = {keys[0]: None, keys[1]: ClassLabel()}
        self.columns = {keys[0]: list(PIXELS), keys[1]: labels}

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return self.columns[index]
        return {key: values[index] for key, values in self.columns.items()}


def inputs(tasks: FewShot) -> list[list[float]]:
    return [tasks[i].query.inputs[:, 0, 0, 0].tolist() for i in range(5)]


REFERENCE = inputs(FewShot(TensorDataset(PIXELS, torch.tensor(LABELS)), 3, 1, 2, tasks=5))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("labels", [LABELS, [10 * i for i in LABELS], ["abc"[i] for i in LABELS]])
def test_dictionaries_give_the_tasks_of_pairs(labels: list[Any], in_memory: bool) -> None:
    tasks = FewShot(Rows(labels), 3, 1, 2, tasks=5, in_memory=in_memory)
    assert inputs(tasks) == REFERENCE
    other = Rows(labels, ("img", "fine_label"))
    keys = ("img", "fine_label")
    assert inputs(FewShot(other, 3, 1, 2, tasks=5, keys=keys, in_memory=in_memory)) == REFERENCE


def test_missing_keys_are_listed() -> None:
    with pytest.raises(KeyError, match=r"item 0 of Rows has no key 'image'; its keys are 'img', "):
        FewShot(Rows(LABELS, ("img", "fine_label")), 3, 1, 2, tasks=5)


def test_names_come_from_features_and_through_subsets() -> None:
    few = Subset(Rows(LABELS), [0, 1, 2, 3, 4, 5, 6, 7, 9])  # three of each, but two of cow
    with pytest.raises(ValueError, match="class 'cow' has 2 images"):
        FewShot(few, 3, 1, 2, tasks=5)


@pytest.mark.parametrize("in_memory", [True, False])
def test_subsets_and_unions_are_read_as_the_items_they_hold(in_memory: bool) -> None:
    whole = TensorDataset(PIXELS, torch.tensor(LABELS))
    halves = [Subset(whole, range(6)), Subset(whole, range(6, 12))]
    tasks = FewShot(ConcatDataset(halves), 3, 1, 2, tasks=5, in_memory=in_memory)
    assert inputs(tasks) == REFERENCE


def test_a_union_of_different_classes_with_one_number_is_refused() -> None:
    class Other(Rows):
        classes = ("ant", "wasp", "cow")

    with pytest.raises(ValueError, match=r"the label 1 for 'wasp', but another part for 'bee'"):
        FewShot(ConcatDataset([Rows(LABELS), Other(LABELS)]), 3, 1, 2, tasks=5)


def test_a_list_of_labels_that_disagrees_with_the_items_is_not_used() -> None:
    class Stale(Rows):
        column_names: Any = ()

        def __init__(self) -> None:
            super().__init__(LABELS)
            self.column_names = []
            self.targets = [0] * 12

    assert inputs(FewShot(Stale(), 3, 1, 2, tasks=5, in_memory=False)) == REFERENCE
