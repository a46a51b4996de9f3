"""Votes and images of CIFAR-10 meet, whatever the order of the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transfer import disagreement
from transfer.experts import cifar_votes
from transfer.experts.cifar_votes import cifar10_votes, official_order
from transfer.finetuning.ranks import Ranks, correlation

NAMES = ("airplane", "automobile")


def test_the_official_order_of_class_folders() -> None:
    official = torch.tensor([3, 8, 8, 0, 3, 0])
    order = official_order(official.sort().values, official)
    assert order.tolist() == [3, 5, 0, 4, 1, 2]
    assert official_order(official, official).tolist() == list(range(6))


def test_incomplete_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"class 1 has 1 images and 2 labels"):
        official_order([0, 1], [0, 1, 1])


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two classes, whose pixels are the numbers of the images in the official list."""
    official = {"train": [1, 0, 0, 1, 0, 1], "test": [0, 1, 1, 0]}
    for part, labels in official.items():
        seen = [0, 0]
        for number, label in enumerate(labels):
            folder = tmp_path / "cifar10" / part / NAMES[label]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.full((4, 4, 3), number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{seen[label]:04d}.png")
            seen[label] += 1
    votes = tmp_path / "votes"
    votes.mkdir()
    # The raters of image i of the training set: i, then all 9.
    raters = np.array([[number, 9, 9] for number in range(6)], dtype=np.uint8)
    np.savez(votes / "cifar10n.npz", clean=np.array(official["train"], np.uint8), raters=raters)
    counts = np.zeros((4, 10), dtype=np.int64)
    counts[:, 0] = 50
    counts[np.arange(4), np.arange(4)] += 1
    np.save(votes / "cifar10h-counts.npy", counts)
    np.save(votes / "cifar10-test-labels.npy", np.array(official["test"], np.uint16))
    return tmp_path


def check(root: Path) -> None:
    train, test = cifar10_votes(root, progress=False)
    for images in (train, test):
        numbers = images.images[:, 0, 0, 0].long()
        assert (images.counts[torch.arange(len(images)), numbers] % 50 > 0).all()
    assert train.counts.sum(1).tolist() == [3] * 6 and test.counts.sum(1).tolist() == [51] * 4
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    first, votes = train.part(torch.tensor([4]))[0]
    assert first.dtype == torch.uint8 and int(first[0, 0, 0]) == int(votes.nonzero()[0]) == 3


def test_each_image_gets_its_own_votes(small: Path) -> None:
    check(small)


def test_the_original_file_is_read_without_running_code(small: Path) -> None:
    arrays = np.load(small / "votes/cifar10n.npz")
    stored = {"clean_label": arrays["clean"].astype(np.int64)}
    stored |= {f"random_label{i}": arrays["raters"][:, i - 1].astype(np.int64) for i in (1, 2, 3)}
    (small / "votes/cifar10n.npz").unlink()
    path = small / "votes/CIFAR-10_human.pt"
    torch.save(stored, path)
    check(small)
    torch.save({"clean_label": stored["clean_label"]}, path)
    with pytest.raises(ValueError, match=r"no 'random_label1'; get it again from github"):
        cifar10_votes(small, progress=False)
    torch.save({"clean_label": Path("x")}, path)
    with pytest.raises(ValueError, match=r"no dictionary of arrays"):
        cifar10_votes(small, progress=False)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10_human\.pt; get it from github"):
        cifar10_votes(small, progress=False)


def test_damaged_votes_are_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar_votes, "LARGEST", 3)
    with pytest.raises(ValueError, match=r"claims more than 3 bytes"):
        cifar10_votes(small, progress=False)
    (small / "votes/cifar10n.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"cifar10n\.npz cannot be read"):
        cifar10_votes(small, progress=False)


@pytest.mark.data
def test_the_real_votes_are_as_published(data: Path) -> None:
    train, test = cifar10_votes(data, progress=False)
    assert len(train) == 50_000 and len(test) == 10_000
    # CIFAR-10N: all three raters agree on 30,178 images, and two of them on 16,781.
    values, counts = disagreement(train.counts, unbiased=False).unique(return_counts=True)
    assert counts.tolist() == [30_178, 16_781, 3_041]
    np.testing.assert_allclose(values, [0, 4 / 9, 2 / 3])
    right = (test.counts.argmax(1) == test.labels).double().mean()
    assert float(right) == pytest.approx(0.992, abs=5e-4)
    shares = test.counts / test.counts.sum(1, keepdim=True)
    agreement = shares[torch.arange(10_000), test.labels]
    assert float(agreement.mean()) == pytest.approx(0.952, abs=5e-4)
    high = disagreement(test.counts, unbiased=False) > 0.3
    assert float(high.double().mean()) == pytest.approx(0.071, abs=1e-3)
    # Raters err more on images that other raters err on: training labels and votes match.
    wrong = (train.counts.argmax(1) != train.labels).double()
    assert float(wrong.mean()) < 0.2
    ranks = Ranks(disagreement(train.counts).numpy())(), Ranks(wrong.numpy())()
    assert correlation(*ranks) > 0.2
