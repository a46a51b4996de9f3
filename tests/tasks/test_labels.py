"""Labels of any kind are numbered from 0 and recorded, and what is no label is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from metalearn.data.images import in_memory_together
from metalearn.data.labelled_sets import medmnist, medmnist_file
from metalearn.tasks import (
    FewShot,
    LabelledImages,
    Sinusoid,
    chestx,
    cifar_fs,
    crop_disease,
    cub,
    eurosat,
    fc100,
    glyphs,
    image_folder,
    isic,
    meta_album,
    mini_imagenet,
    omniglot,
    tiered_imagenet,
)
from tests.helpers import Listed


def labelled(labels: list[Any]) -> Listed:
    """The image of item i has the value i / 100."""
    return Listed([(torch.full((1, 2, 2), i / 100), label) for i, label in enumerate(labels)])


@pytest.mark.parametrize(
    ("labels", "record"),
    [
        ([0, 1, 0, 1], None),
        ([1, 2, 1, 2], {"1": 0, "2": 1}),
        ([7, 0, 7, 0], {"0": 0, "7": 1}),
        ([-1, 1, -1, 1], {"-1": 0, "1": 1}),
        (["dog", "cat", "dog", "cat"], {"cat": 0, "dog": 1}),
        ([True, False, True, False], None),
        ([1.0, 2.0, 1.0, 2.0], {"1": 0, "2": 1}),
        ([np.uint8(3), np.uint8(9)] * 2, {"3": 0, "9": 1}),
        ([np.bool_(True), np.bool_(False)] * 2, None),
        ([torch.tensor([4]), torch.tensor(2)] * 2, {"2": 0, "4": 1}),
        ([np.array([[5]]), np.str_("6")] * 2, TypeError),
        ([10**12, 1] * 2, {"1": 0, "1000000000000": 1}),
    ],
)
def test_labels_of_any_kind_are_numbered_and_recorded(labels: list[Any], record: Any) -> None:
    # sicara/easy-few-shot-learning#126: which class is label 0 of a task?
    if record is TypeError:
        with pytest.raises(TypeError, match="labels of Listed mix int and str; make all"):
            FewShot(labelled(labels), 2, 1, 1, tasks=1)
        return
    tasks = FewShot(labelled(labels), 2, 1, 1, tasks=20)
    assert tasks.settings()["data"].get("labels") == record
    for support, query in (tasks[i] for i in range(20)):
        assert support.targets.tolist() == query.targets.tolist() == [0, 1]
        items = (
            (support.inputs[:, 0, 0, 0] * 100).round().int().tolist(),
            (query.inputs[:, 0, 0, 0] * 100).round().int().tolist(),
        )
        assert [labels[a] == labels[b] for a, b in zip(*items, strict=True)] == [True, True]
    images = LabelledImages(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), labels)
    assert images.description.get("labels") == record and set(images.labels.tolist()) == {0, 1}
    expected = [label if isinstance(label, str) else str(int(label)) for label in labels]
    assert [images.names[number] for number in images.labels] == expected


@pytest.mark.parametrize(
    "label",
    [0.5, math.nan, math.inf, None, (1, 2), torch.tensor([0, 1]), b"cat", 1j, torch.zeros(0)],
)
def test_what_names_no_class_is_named(label: Any) -> None:
    with pytest.raises(TypeError, match=r"item 1 of Listed is .*; number the classes"):
        FewShot(labelled([0, label]), 1, 1, 1, tasks=1)


def test_a_class_without_images_is_named() -> None:
    images = LabelledImages(
        torch.zeros(4, 1, 2, 2, dtype=torch.uint8),
        torch.tensor([0, 0, 2, 2]),
        ("cat", "dog", "owl"),
    )
    assert FewShot(images, 2, 1, 1, tasks=1).settings()["data"]["absent_classes"] == ["dog"]
    with pytest.raises(ValueError, match=r"2 classes with images \('dog' has none\) but ways=3"):
        FewShot(images, 3, 1, 1, tasks=1)


def test_training_and_test_sets_number_their_labels_together() -> None:
    train, test = labelled(["owl", "cat", "dog"]), labelled(["owl", "dog"])
    (first, second), names, record = in_memory_together(train, test)
    assert names == ("cat", "dog", "owl") and record == {"labels": {"cat": 0, "dog": 1, "owl": 2}}
    assert first[1].tolist() == [2, 0, 1] and second[1].tolist() == [2, 1]
    (_, second), names, _ = in_memory_together(labelled([1, 2, 9]), labelled([9, 1]))
    assert names == ("1", "2", "9") and second[1].tolist() == [2, 0]
    pair = [
        LabelledImages(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), n)
        for n in (("x", "x"), ("x", "y"))
    ]
    with pytest.raises(ValueError, match="two classes are named 'x'"):
        in_memory_together(*pair)


def arrays(labels: Any = (1, 2, 1), **changed: np.ndarray) -> dict[str, np.ndarray]:
    images, numbers = np.zeros((3, 8, 8), dtype=np.uint8), np.array(labels).reshape(-1, 1)
    stored = {
        f"{part}_{kind}": value
        for part in ("train", "test")
        for kind, value in (("images", images), ("labels", numbers))
    }
    return stored | changed


@pytest.mark.parametrize(
    "labels",
    [(1, 2, 1), (10**12, -5, 10**12), ("b", "a", "b"), (True, False, True), (1.0, 3.0, 1.0)],
)
def test_a_file_of_images_may_have_any_labels(tmp_path: Path, labels: tuple[Any, ...]) -> None:
    np.savez(tmp_path / "own.npz", **arrays(labels))
    split = medmnist_file(tmp_path / "own.npz")
    assert len(split.train.names) == 2 and split.test.names == split.train.names
    assert [split.train.names[i] for i in split.train.labels] == [
        str(label if isinstance(label, str) else int(label)) for label in labels
    ]


def test_medmnist_has_larger_images_by_name(tmp_path: Path) -> None:
    # MedMNIST/MedMNIST#35
    for size in (64, 128, 224):
        np.savez(
            tmp_path / f"pneumoniamnist_{size}.npz",
            **arrays(train_images=np.zeros((3, size, size), dtype=np.uint8)),
        )
        for name in (f"pneumoniamnist_{size}", f"PneumoniaMNIST-{size}"):
            assert medmnist(name, tmp_path).train.images.shape == (3, 1, size, size)
    with pytest.raises(
        FileNotFoundError, match=r"there is no .*pneumoniamnist.npz; put MedMNIST's file there"
    ):
        medmnist("pneumoniamnist_28", tmp_path)
    with pytest.raises(ValueError, match="28, 64, 128, 224 pixels; write pneumoniamnist_64"):
        medmnist("pneumoniamnist_100", tmp_path)
    with pytest.raises(ValueError, match="holds volumes, which are not read here"):
        medmnist("organmnist3d_64", tmp_path)


def test_a_small_file_that_claims_much_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    import io
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (20_000_000, 32, 32)}
    )
    path = tmp_path / "claims.npz"
    np.savez_compressed(
        path, **{name: value for name, value in arrays().items() if name != "train_images"}
    )
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", header.getvalue() + bytes(40_000))
    with pytest.raises(
        ValueError,
        match=(r"claims.npz .*claims 20,480,000,000 bytes"),
    ):
        medmnist_file(path)
    np.savez(path, **arrays())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("more.npy", b"\x93NUMPY")
    with pytest.raises(
        ValueError, match=r"more.npy is compressed in a way that numpy does not write"
    ):
        medmnist_file(path)


SIX = LabelledImages(
    torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.arange(2).repeat_interleave(3)
)


@pytest.mark.parametrize("name", ["ways", "shots", "queries", "tasks", "seed"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, 2.0, "2", None, math.nan])
def test_odd_numbers_of_tasks_are_named(name: str, value: Any) -> None:
    options = {"ways": 2, "shots": 1, "queries": 1, "tasks": 4, "seed": 0}
    if name == "seed" and value == 0 and value is not False:
        return
    with pytest.raises((ValueError, TypeError), match=rf"{name}={value!r}"):
        FewShot(SIX, **{**options, name: value})
    if name != "ways":
        with pytest.raises((ValueError, TypeError), match=rf"{name}={value!r}"):
            Sinusoid(**{name: value})


def test_numbers_of_numpy_and_torch_are_whole_numbers() -> None:
    assert len(FewShot(SIX, np.int64(2), torch.tensor(1), 1, tasks=np.uint8(3))) == 3


@pytest.mark.parametrize("bad", [Listed(), TensorDataset(torch.zeros(0, 1, 2, 2), torch.zeros(0))])
def test_an_empty_data_set_is_named(bad: Any) -> None:
    with pytest.raises(ValueError, match="is empty: there is nothing to draw tasks from"):
        FewShot(bad, 1, 1, 1, tasks=1)


def test_tasks_are_asked_for_by_whole_numbers() -> None:
    tasks = FewShot(SIX, 2, 1, 1, tasks=4)
    for index in (0.0, "0", slice(2), None):
        with pytest.raises(TypeError, match=r"is not a whole number; take one task by its number"):
            tasks[index]
    with pytest.raises(ValueError, match=r"stack\(\[\]\) has no task"):
        tasks.stack([])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"amplitude": (5, 1)}, r"amplitude=\(5, 1\) is not a range"),
        ({"phase": 3.0}, "phase=3.0 is not a range"),
        ({"phase": (0, 1, 2)}, r"phase=\(0, 1, 2\) is not a range"),
        ({"inputs": ("a", "b")}, r"inputs=\('a', 'b'\) is not a range"),
        ({"inputs": (0, math.nan)}, r"inputs=\(0, nan\) is not a range"),
        ({"dtype": torch.int64}, r"dtype=torch.int64 .*floating-point"),
        ({"dtype": "float32"}, r"dtype='float32' .*floating-point"),
    ],
)
def test_odd_sinusoids_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Sinusoid(**changed)


@pytest.mark.parametrize(
    "source",
    [
        chestx,
        cifar_fs,
        crop_disease,
        cub,
        eurosat,
        fc100,
        image_folder,
        isic,
        meta_album,
        mini_imagenet,
        omniglot,
        tiered_imagenet,
    ],
)
@pytest.mark.parametrize(
    ("root", "split"),
    [
        ("/nowhere", "train"),
        (None, "train"),
        (3, "train"),
        ("/nowhere", "tset"),
        ("/nowhere", None),
    ],
)
def test_data_sets_with_odd_roots_and_splits_are_named(source: Any, root: Any, split: Any) -> None:
    with pytest.raises((FileNotFoundError, ValueError, TypeError), match=r"nowhere|root=|split="):
        source(root, split)


@pytest.mark.parametrize(
    "changed",
    [
        {"classes": 0},
        {"classes": True},
        {"drawers": -1},
        {"size": 0},
        {"classes": 1.5},
        {"seed": -1},
    ],
)
def test_odd_glyphs_are_named(changed: dict[str, Any]) -> None:
    ((name, value),) = changed.items()
    with pytest.raises((ValueError, TypeError), match=f"{name}={value}"):
        glyphs("test", **changed)
