"""Tasks cut from one labelled set by its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.data.cifar import SUPERCLASSES
from metalearn.data.class_tasks import (
    alphabet_superclasses,
    cifar100_superclasses,
    mini_imagenet_shift,
    mixed,
    shifted,
    split_classes,
)
from metalearn.data.images import LabelledImages
from metalearn.data.labelled_sets import Split


def parts(classes: int = 6, each: int = 10) -> Split:
    """Images whose every pixel is the number of their class."""
    labels = torch.arange(classes).repeat_interleave(each)
    names = [f"class {i}, kind of {i}" for i in range(classes)]

    def images() -> LabelledImages:
        pixels = labels.to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
        return LabelledImages(pixels, labels, names)

    return Split(images(), images(), images())


def pixels(images: LabelledImages, label: int) -> list[int]:
    return images.images[images.labels == label, 0, 0, 0].unique().tolist()


def test_labels_count_from_zero_in_every_task_in_the_order_given() -> None:
    first, second = split_classes(parts(), [range(3), [5, "class 3"]])
    assert [pixels(first.train, label) for label in range(3)] == [[0], [1], [2]]
    assert [pixels(second.test, label) for label in range(2)] == [[5], [3]]
    assert second.validation is not None and len(second.validation) == 20
    assert second.train.names == ("class 5, kind of 5", "class 3, kind of 3")


def test_a_shift_keeps_the_labels_and_changes_the_classes_behind_them() -> None:
    tasks = shifted(parts(), {"low": [[0, 1], [2]], "high": [[3], [4, "class 5, kind of 5"]]})
    assert [pixels(tasks[0].train, label) for label in range(2)] == [[0, 1], [3]]
    assert [pixels(tasks[1].train, label) for label in range(2)] == [[2], [4, 5]]
    assert tasks[0].train.names == tasks[1].train.names == ("low", "high")


@pytest.mark.parametrize(("share", "near"), [(0.0, 0), (0.25, 2), (0.5, 5), (1.0, 10)])
def test_a_mixture_takes_its_share_from_the_near_task(share: float, near: int) -> None:
    tasks = split_classes(parts(), [[0, 1], [2, 3]])
    task = mixed(tasks[0], tasks[1], share, seed=1)
    of_first = task.train.images[task.train.labels == 0, 0, 0, 0]
    assert len(of_first) == 10 and int((of_first == 0).sum()) == near
    again = mixed(tasks[0], tasks[1], share, seed=1)
    assert torch.equal(again.train.images, task.train.images)


def test_superclasses_of_cifar_100_and_alphabets_of_omniglot() -> None:
    five = cifar100_superclasses()
    assert len(five) == 5 and five["fish"] == [["aquarium_fish", "flatfish"], ["ray", "shark"]]
    assert len(SUPERCLASSES) == 20
    assert len(" ".join(SUPERCLASSES.values()).split()) == 100
    names = [f"{alphabet}/character{i}" for alphabet in "ABC" for i in range(6 + ord(alphabet) % 2)]
    groups = alphabet_superclasses(names, 2, each=3)
    assert list(groups) == ["A", "B"] and groups["B"][1] == [f"B/character{i}" for i in (3, 4, 5)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_classes(parts(), [[0]]), "task 0 has 1 class: there is nothing"),
        (lambda: split_classes(parts(), [[0, 9]]), "no class 9: there are 6, 0 to 5"),
        (lambda: split_classes(parts(), [["clas 1, kind of 1", 0]]), "did you mean class 1"),
        (lambda: split_classes(parts(), [[0, 0]]), "repeat"),
        (lambda: shifted(parts(), {"a": [[0], [1]], "b": [[2]]}), "other numbers of tasks"),
        (lambda: shifted(parts(), {"a": [[0], [1]], "b": [[1], [2]]}), "'class 1, .*' is used"),
        (lambda: shifted(parts(), {"a": [[0], [1]]}), "give two or more"),
        (lambda: shifted(parts(), {"a": [[0], []], "b": [[1], [2]]}), "'a' has a task without"),
        (lambda: cifar100_superclasses(["fishes"]), "no superclass 'fishes'; it has aquatic"),
        (lambda: cifar100_superclasses(each=3), "CIFAR-100 has 5"),
        (lambda: alphabet_superclasses(["A/1"], 2), "take a smaller each="),
        (lambda: mixed(parts(), parts(4), 0.5), "6 classes are near and 4 far"),
        (lambda: mixed(parts(), parts(), 1.5), "share=1.5; give a number from 0"),
    ],
)
def test_bad_tasks_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_other_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match="give a Split"):
        split_classes(parts().train, [range(3)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="give a dictionary"):
        shifted(parts(), [[0], [1]])  # type: ignore[arg-type]


@pytest.mark.data
def test_mini_imagenet_has_two_kinds_of_each_superclass(data: Path) -> None:
    first, second = mini_imagenet_shift(data, size=32, progress=False)
    assert first.train.names == second.train.names == ("dog", "bird", "container", "vehicle")
    assert first.train.images.shape[1:] == second.test.images.shape[1:] == (3, 32, 32)
