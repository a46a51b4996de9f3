"""CIFAR-FS and FC100: the published class lists, and CIFAR-100's own layout read by torchvision."""

import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest
from torchvision.datasets import CIFAR100

from metalearn.data.cifar import ALL, CIFAR_FS, FC100, SUPERCLASSES
from metalearn.tasks import cifar_fs, fc100


@pytest.mark.parametrize(("splits", "counts"), [(CIFAR_FS, (64, 16, 20)), (FC100, (60, 20, 20))])
def test_the_splits_are_disjoint_and_hold_all_hundred_classes(splits, counts):
    assert tuple(len(splits[name]) for name in ("train", "validation", "test")) == counts
    assert (
        Counter(name for names in splits.values() for name in names) == dict.fromkeys(ALL, 1)
        and len(ALL) == 100
    )


def test_every_superclass_has_five_classes_and_fc100_cuts_none():
    assert len(SUPERCLASSES) == 20 and all(
        len(names.split()) == 5 for names in SUPERCLASSES.values()
    )
    home = {name: split for split, names in FC100.items() for name in names}
    assert all(len({home[name] for name in names.split()}) == 1 for names in SUPERCLASSES.values())


@pytest.fixture
def root(tmp_path, monkeypatch):
    """CIFAR-100 in its own layout with three images a class, the class's number in every pixel; the
    checksums are those of these files.
    """
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()

    def write(name: str, content: dict) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def half(each: int) -> dict:
        labels = [c for c in range(100) for _ in range(each)]
        return {
            "data": np.repeat(np.array(labels, dtype=np.uint8)[:, None], 3072, axis=1),
            "fine_labels": labels,
        }

    monkeypatch.setattr(CIFAR100, "train_list", [write("train", half(2))])
    monkeypatch.setattr(CIFAR100, "test_list", [write("test", half(1))])
    name, md5 = write("meta", {"fine_label_names": ALL})
    monkeypatch.setattr(CIFAR100, "meta", {"filename": name, "key": "fine_label_names", "md5": md5})
    return tmp_path


@pytest.mark.parametrize("load", [cifar_fs, fc100])
def test_a_split_takes_its_classes_from_both_halves_of_cifar(root, load):
    splits = {split: load(root, split) for split in ("train", "validation", "test")}
    assert sum(len(data) for data in splits.values()) == 300
    for split, data in splits.items():
        assert data.images.shape[1:] == (3, 32, 32) and data.labels.bincount().eq(3).all()
        assert data.description == {"source": load.__name__, "split": split}
        assert all(
            ALL[int(image[0, 0, 0])] == data.names[label]
            for image, label in zip(data.images, data.labels, strict=True)
        )


def test_missing_or_altered_files_say_what_to_put_where(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cifar-100-python.tar.gz.*download=True.*glyphs"):
        cifar_fs(tmp_path / "none")
    (root / CIFAR100.base_folder / "train").write_bytes(b"altered")
    with pytest.raises(FileNotFoundError, match="not found or corrupted"):
        fc100(root)


def test_without_a_network_the_message_says_so(tmp_path, monkeypatch):
    def offline(self: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR100, "download", offline)
    with pytest.raises(
        FileNotFoundError, match=r"could not be downloaded to .* \(no route to host\)"
    ):
        cifar_fs(tmp_path, download=True)


def test_a_split_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="split='dev' is not one of train, validation, test"):
        cifar_fs(tmp_path, "dev")
