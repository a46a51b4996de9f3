"""Data sets by name in experiments: their protocols, sizes, and images that are read as drawn."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from metalearn import experiments
from metalearn.data import published
from metalearn.data.cross_domain import LESIONS
from metalearn.data.published import class_table
from metalearn.experiments import images, results
from metalearn.experiments.experiment import Experiment
from metalearn.tasks import ImageFiles

FEW = {"queries": 2, "train_queries": 2, "test_tasks": 3, "steps": 2, "hidden": 4, "size": 16}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CUB with three images of each class, and ISIC 2018 with four."""
    top = tmp_path_factory.mktemp("data")
    table = Path(published.__file__).with_name("cub.csv")
    for number, row in enumerate(csv.DictReader(table.read_text().splitlines())):
        folder = top / "CUB_200_2011" / "images" / row["class"]
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (9, 7), (number, 60 * i, 0)).save(folder / f"{i}.png")
    lines = [f"image,{','.join(LESIONS)}"]
    (top / "ISIC2018_Task3_Training_Input").mkdir()
    for number in range(4 * len(LESIONS)):
        path = top / "ISIC2018_Task3_Training_Input" / f"ISIC_{number:07}.jpg"
        Image.new("RGB", (9, 7), (9 * number, 0, 0)).save(path)
        marks = ["1.0" if i == number % len(LESIONS) else "0.0" for i in range(len(LESIONS))]
        lines.append(f"{path.stem},{','.join(marks)}")
    (top / "ISIC2018_Task3_Training_GroundTruth.csv").write_text("\n".join(lines))
    return top


def test_the_protocol_of_cub_is_recorded_and_decides_its_classes(root: Path) -> None:
    for asked, protocol in ((None, "chen2019"), ("ye2020", "ye2020")):
        experiment = Experiment(dataset="cub", root=str(root), protocol=asked, **FEW)
        expected = class_table("cub.csv", protocol)
        assert list(experiment.data("test").names) == expected["test"]
        assert experiment.to_dict("maml")["protocol"] == protocol
        assert f"split by protocol {protocol}" in results.protocol(experiment)
    with pytest.raises(ValueError, match="protocol='finn' is not for cub; choose chen2019 or"):
        Experiment(dataset="cub", protocol="finn")
    with pytest.raises(ValueError, match="protocol='ye2020' is not for omniglot; choose vinyals"):
        Experiment(dataset="omniglot", protocol="ye2020")


def test_a_run_is_tested_on_the_classes_of_its_own_protocol(root: Path, tmp_path: Path) -> None:
    experiment = Experiment(
        dataset="cub", root=str(root), protocol="ye2020", runs=str(tmp_path), **FEW
    )
    experiment.train("anil", progress=False)
    checkpoint = experiment.checkpoint("anil")
    assert experiments.restored(checkpoint, root=str(root)).experiment.protocol == "ye2020"
    with pytest.raises(ValueError, match=r"protocol='ye2020', .*protocol='chen2019' tests on"):
        experiments.restored(checkpoint, root=str(root), protocol="chen2019")
    other = experiments.restored(checkpoint, root=str(root), dataset="isic")
    assert other.experiment.protocol is None
    support, _ = other.experiment.testing_tasks()[0]
    assert support.inputs.shape == (5, 3, 16, 16)


def test_images_read_as_they_are_drawn_give_the_same_run(root: Path, tmp_path: Path) -> None:
    weights = []
    for stored in (True, False):
        experiment = Experiment(
            dataset="cub",
            root=str(root),
            in_memory=stored,
            runs=str(tmp_path / str(stored)),
            channels=1,
            **FEW,
        )
        assert isinstance(experiment.data("train"), ImageFiles) is not stored
        learner, curve = experiment.train("maml", progress=False)
        weights.append((learner.state_dict(), curve.losses))
        assert experiment.checkpoint("maml").stem.startswith("cub-5way-1shot-maml-seed0-")
    (ours, our_losses), (theirs, their_losses) = weights
    assert our_losses == their_losses
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_set_is_decoded_in_the_size_of_the_network(root: Path) -> None:
    # Larger than the usual 84, from the files themselves and not from their small copies.
    loaded = images.load("isic", "test", str(root), size=100, in_memory=False)
    assert loaded.image_shape == (3, 100, 100) and "resized" not in loaded.description
    with pytest.raises(ValueError, match=r"in_memory=False reads image files .* glyphs has none"):
        images.load("glyphs", "test", str(root), in_memory=False)


def test_every_name_is_read_from_the_root(tmp_path: Path) -> None:
    for name in images.DATASETS:
        if name != "glyphs":
            with pytest.raises(FileNotFoundError, match=str(tmp_path)):
                images.load(name, "test", str(tmp_path))
