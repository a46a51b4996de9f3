"""EuroSAT: its layouts, tasks of its ten classes, and the set as a target of transfer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from metalearn.data.eurosat import CLASSES
from metalearn.data.labelled_sets import load
from metalearn.experiments import images
from metalearn.experiments.experiment import Experiment
from metalearn.tasks import FewShot, eurosat
from transfer.question import Transfer


def write(folder: Path, each: int = 5, classes: tuple[str, ...] = CLASSES) -> None:
    """Images whose red is the number of their class, `each` of a class."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = np.zeros((64, 64, 3), dtype=np.uint8)
            pixels[..., 0] = 20 * number
            pixels[..., 1] = i
            Image.fromarray(pixels).save(folder / name / f"{name}_{i}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "eurosat" / "2750")
    return tmp_path


@pytest.mark.parametrize("place", ["eurosat/2750", "eurosat", "2750", "."])
def test_every_layout_is_read(tmp_path: Path, place: str) -> None:
    write(tmp_path / place, each=2)
    found = eurosat(tmp_path, progress=False)
    assert found.names == CLASSES and found.images.shape == (20, 3, 64, 64)
    assert found.images[:, 0, 0, 0].tolist() == (20 * found.labels).tolist()
    assert found.description["source"] == "eurosat"
    assert found.description["images_per_class"] == 2


def test_torchvision_reads_the_same_images(root: Path) -> None:
    theirs = datasets.EuroSAT(str(root))
    ours = eurosat(root, progress=False)
    assert tuple(theirs.classes) == ours.names and len(theirs) == len(ours)
    image, label = theirs[23]
    assert label == int(ours.labels[23])
    assert torch.equal(torch.from_numpy(np.array(image)).permute(2, 0, 1), ours.images[23])


def test_all_ten_classes_are_test_classes(root: Path) -> None:
    tasks = FewShot(eurosat(root, progress=False), ways=10, shots=1, queries=2, tasks=3)
    assert tasks[0].support.inputs.shape == (10, 3, 64, 64)
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=r"all for the test.*evaluate --dataset eurosat"):
            eurosat(root, split)


def test_an_experiment_tests_on_it_in_its_own_channels_and_size(root: Path) -> None:
    assert "eurosat" in images.DATASETS
    experiment = Experiment(
        dataset="eurosat", root=str(root), channels=1, size=28, queries=2, test_tasks=2
    )
    support, _ = experiment.testing_tasks()[0]
    assert support.inputs.shape == (5, 1, 28, 28)
    with pytest.raises(ValueError, match="split='train'"):
        experiment.training_tasks()


def test_it_is_a_target_of_transfer(root: Path) -> None:
    parts = load("eurosat", root, held_out=0.4, progress=False)
    assert len(parts.train) == 30 and len(parts.test) == 20 and parts.validation is None
    assert parts.train.names == CLASSES
    assert torch.bincount(parts.test.labels).tolist() == [2] * 10
    question = Transfer(dataset="EuroSAT", root=str(root), pretrain_on="glyphs", size=32)
    grey = question.images_of("EuroSAT", channels=1)
    assert grey.train.images.shape[1:] == (1, 32, 32)


def test_a_missing_set_is_named_with_its_source(tmp_path: Path) -> None:
    for read in (eurosat, lambda folder: load("eurosat", folder)):
        with pytest.raises(FileNotFoundError, match=r"no EuroSAT in .*phelber/EuroSAT.*download"):
            read(tmp_path)


def test_a_set_without_some_classes_names_them(tmp_path: Path) -> None:
    write(tmp_path / "eurosat", classes=CLASSES[:8])
    with pytest.raises(
        ValueError, match=r"8 of the 10 test classes of EuroSAT, without River, SeaLake; complete"
    ):
        eurosat(tmp_path)
    write(tmp_path / "eurosat", classes=CLASSES[8:], each=0)
    with pytest.raises(ValueError, match=r"River has no images"):
        eurosat(tmp_path)


def test_the_real_images(data: Path, tmp_path: Path) -> None:
    if not (data / "eurosat").is_dir():
        pytest.skip("METALEARN_DATA has no eurosat")
    found = eurosat(data, cache=tmp_path, progress=False)
    counts = torch.bincount(found.labels)
    assert found.images.shape[1:] == (3, 64, 64) and found.names == CLASSES
    assert int(counts.min()) == found.description["images_per_class"] >= 300
    # Water is dark and forest is green, in the mean of their pixels.
    red, green, blue = found.images[found.labels == 1].float().mean((0, 2, 3)).tolist()
    assert green > red and blue > red
    brightness = [float(found.images[found.labels == k].float().mean()) for k in range(10)]
    assert sorted(range(10), key=brightness.__getitem__)[:2] in ([1, 9], [9, 1])
