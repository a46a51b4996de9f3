"""Omniglot: folders read as they lie, the published splits, rotations as classes, and the cache of
decoded images.
"""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from metalearn.data import decoding
from metalearn.tasks import FewShot, omniglot

COUNTS = {"vinyals": (1028, 172, 423), "finn": (1100, 100, 423), "lake": (813, 151, 659)}


@pytest.fixture
def real(data: Path) -> str:
    return str(data)


def draw(path: Path, seed: int) -> None:
    pixels = np.full((105, 105), 255, dtype=np.uint8)
    y, x = np.random.default_rng(seed).integers(10, 60, 2)
    pixels[y : y + 30, x : x + 8] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert("1").save(path)


@pytest.fixture
def alphabets(tmp_path) -> Path:
    """26 characters of three drawings in two alphabets."""
    for a in ("Alpha", "Beta"):
        for c in range(13):
            for d in range(3):
                draw(tmp_path / "data" / a / f"character{c:02}" / f"{d}.png", 100 * c + d)
    return tmp_path / "data"


def test_ink_is_one_on_paper_of_zero_and_sits_where_it_was_drawn(alphabets):
    images = omniglot(alphabets, protocol="finn", rotations=False)
    assert images.images.shape[1:] == (1, 28, 28) and images.images.dtype == torch.uint8
    name = images.names[0]
    source = np.asarray(Image.open(alphabets / name / "0.png").convert("L")) == 0
    ink = images[0][0][0].numpy()
    assert ink.max() == 1 and ink.min() == 0
    assert ink.mean() == pytest.approx(source.mean(), rel=0.1)
    assert np.argwhere(ink > 0.5).mean(0) * 105 / 28 + 1.4 == pytest.approx(
        np.argwhere(source).mean(0), abs=2
    )


def test_the_three_splits_share_no_character_and_leave_none_out(alphabets):
    splits = [
        omniglot(alphabets, split, protocol="finn", rotations=False)
        for split in ("train", "validation", "test")
    ]
    names = [name for split in splits for name in split.names]
    assert len(names) == len(set(names)) == 26 and sum(map(len, splits)) == 78
    assert [len(split.names) for split in splits] == [18, 1, 7]
    assert splits[1].description == {
        "source": "omniglot",
        "split": "validation",
        "protocol": "finn",
        "rotations": False,
        "characters": 1,
        "size": 28,
    }


def test_rotations_are_classes_for_training_unless_said_otherwise(alphabets):
    train, test = (omniglot(alphabets, split, protocol="finn") for split in ("train", "test"))
    assert len(train.names) == 4 * 18 and len(test.names) == 7
    assert train.names[18] == f"{train.names[0]} turned 90" and len(set(train.names)) == 72
    upright = train.images[train.labels == 2]
    assert all(
        torch.equal(train.images[train.labels == 2 + 18 * k], upright.rot90(k, (2, 3)))
        for k in range(4)
    )
    assert train.labels.bincount().tolist() == [3] * 72
    assert len(omniglot(alphabets, "test", protocol="finn", rotations=True).names) == 28


@pytest.mark.parametrize(
    "inside", ["omniglot-py/images_background", "images_background", "omniglot-py"]
)
def test_every_layout_reads_the_same(alphabets, tmp_path, inside):
    reference = omniglot(alphabets, protocol="finn")
    root = tmp_path / "other"
    (root / inside).parent.mkdir(parents=True, exist_ok=True)
    alphabets.rename(root / inside)
    again = omniglot(root, protocol="finn")
    assert torch.equal(again.images, reference.images) and again.names == reference.names


def never(*_: object) -> torch.Tensor:
    raise AssertionError("decoded although there is a cache")


def test_the_second_start_reads_the_cache(alphabets, monkeypatch):
    first = omniglot(alphabets, protocol="finn")
    monkeypatch.setattr(decoding, "decode", never)
    second = omniglot(alphabets, protocol="finn")
    assert torch.equal(first.images, second.images)
    with pytest.raises(AssertionError, match="decoded although"):
        omniglot(alphabets, protocol="finn", cache=False)


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_a_damaged_cache_is_said_and_made_again(alphabets, caplog, monkeypatch, damage):
    first = omniglot(alphabets, protocol="finn")
    (path,) = (alphabets / ".metalearn").iterdir()
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[:-100],
            "altered": content[:-1] + bytes([content[-1] ^ 1]),
            "empty": b"",
        }[damage]
    )
    second = omniglot(alphabets, protocol="finn")
    assert torch.equal(first.images, second.images)
    assert "cache is damaged" in caplog.text and str(path) in caplog.text
    monkeypatch.setattr(decoding, "decode", never)
    assert torch.equal(first.images, omniglot(alphabets, protocol="finn").images)


def test_a_changed_folder_is_decoded_anew(alphabets, caplog):
    before = omniglot(alphabets, "test", protocol="finn")
    draw(alphabets / before.names[0] / "0.png", 7)
    after = omniglot(alphabets, "test", protocol="finn")
    assert "have changed" in caplog.text
    changed = [i for i in range(len(after)) if not torch.equal(after.images[i], before.images[i])]
    assert changed == [0]


def test_a_root_that_cannot_be_written_takes_the_users_cache_folder_and_says_so(
    alphabets, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (alphabets / ".metalearn").write_text("in the way")
    first = omniglot(alphabets, protocol="finn")
    (path,) = (tmp_path / "home").rglob("*.safetensors")
    assert f"kept in {path} instead" in caplog.text
    monkeypatch.setattr(decoding, "decode", never)
    assert torch.equal(omniglot(alphabets, protocol="finn").images, first.images)


def test_a_cache_folder_of_ones_own(alphabets, tmp_path):
    omniglot(alphabets, protocol="finn", cache=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["omniglot-28.safetensors"]
    assert not (alphabets / ".metalearn").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        omniglot(alphabets, protocol="finn", cache=tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"not a png", "is not a readable image"),
        (None, "is not a readable image"),
    ],
)
def test_a_broken_image_is_named_and_no_cache_is_left(alphabets, content, message):
    broken = alphabets / "Beta" / "character03" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60] if content is None else content)
    with pytest.raises(ValueError, match=rf"Beta/character03/1.png {message}"):
        omniglot(alphabets, protocol="finn")
    assert not (alphabets / ".metalearn").exists()


def test_a_character_without_drawings_is_named(alphabets):
    (alphabets / "Beta" / "character99").mkdir()
    with pytest.raises(ValueError, match="Beta/character99 has no images"):
        omniglot(alphabets, protocol="finn")


def test_nothing_there_says_what_to_put_where_and_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "Omniglot", never)
    with pytest.raises(
        FileNotFoundError, match=r"no Omniglot in .*download=True.*--dataset glyphs"
    ):
        omniglot(tmp_path)


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("Error downloading")])
def test_without_a_network_the_message_says_what_to_put_where(tmp_path, monkeypatch, error):
    def offline(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torchvision.datasets, "Omniglot", offline)
    with pytest.raises(
        FileNotFoundError,
        match=(rf"\({error}\): put .*omniglot-py.*--dataset glyphs"),
    ):
        omniglot(tmp_path, download=True)


def test_a_folder_that_is_there_is_not_downloaded_again(alphabets, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "Omniglot", never)
    assert len(omniglot(alphabets, "test", protocol="finn", download=True)) == 21


@pytest.mark.parametrize("protocol", ["vinyals", "lake"])
def test_a_published_split_of_an_incomplete_folder_is_refused(alphabets, protocol):
    with pytest.raises(
        ValueError, match=f"26 characters, .*protocol='{protocol}'.*protocol='finn'"
    ):
        omniglot(alphabets, protocol=protocol)


@pytest.mark.parametrize("wrong", [{"split": "dev"}, {"protocol": "Vinyals"}])
def test_names_that_do_not_exist_are_refused_with_the_choices(tmp_path, wrong):
    with pytest.raises(ValueError, match="is not one of"):
        omniglot(tmp_path, **wrong)


@pytest.mark.data
@pytest.mark.slow  # reads all images three times
def test_the_real_splits_have_the_published_counts(real):
    for protocol, counts in COUNTS.items():
        splits = [
            omniglot(real, split, protocol=protocol, rotations=False)
            for split in ("train", "validation", "test")
        ]
        assert tuple(len(split.names) for split in splits) == counts
        assert len({name for split in splits for name in split.names}) == 1623
        assert all(split.labels.bincount().eq(20).all() for split in splits)


@pytest.mark.data
def test_the_real_vinyals_split_is_the_published_one(real):
    validation, test = (omniglot(real, split) for split in ("validation", "test"))
    assert {name.split("/")[0] for name in validation.names} == {
        "Armenian",
        "Bengali",
        "Early_Aramaic",
        "Hebrew",
        "Mkhedruli_(Georgian)",
    }
    assert (
        test.names[:4] == tuple(f"Gurmukhi/character{i}" for i in range(42, 46))
        and test.names[-1] == "ULOG/character26"
    )
    train = omniglot(real)
    assert (
        len(train.names) == 4112
        and train.images.shape == (82240, 1, 28, 28)
        and 0.06 < train.images.float().mean() / 255 < 0.11
    )
    assert FewShot(train, 20, 5, 15, tasks=3)[2].query.inputs.shape == (300, 1, 28, 28)


@pytest.mark.data
def test_the_real_second_start_takes_less_than_two_seconds(real):
    omniglot(real)
    began = time.process_time()  # not the wall clock, which counts whatever else the machine does
    omniglot(real)
    assert time.process_time() - began < 2
