"""Lake et al.'s one-shot runs: read from the archive or its folder, and refused where they are not
as published.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.one_shot import one_shot
from metalearn import ProtoNet, evaluate
from metalearn.models import Conv4
from metalearn.tasks import omniglot, one_shot_runs

Files = dict[str, bytes]
LABELS = "run02/class_labels.txt"


def drawing(run: int, name: int) -> bytes:
    """A one-bit image with a black rectangle whose place tells the run and the class."""
    pixels = np.full((105, 105), 255, dtype=np.uint8)
    pixels[5 * run : 5 * run + 5, 5 * name : 5 * name + 5] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def published() -> Files:
    """An archive as the published one; the test image i of run r is of class i + r."""
    files: Files = {}
    for run in range(20):
        lines = []
        for item in range(20):
            label = (item + run) % 20
            files[f"run{run + 1:02}/training/class{item + 1:02}.png"] = drawing(run, item)
            files[f"run{run + 1:02}/test/item{item + 1:02}.png"] = drawing(run, label)
            lines.append(
                f"run{run + 1:02}/test/item{item + 1:02}.png"
                f" run{run + 1:02}/training/class{label + 1:02}.png"
            )
        files[f"run{run + 1:02}/class_labels.txt"] = "\n".join([*lines, ""]).encode()
    return files


def pack(files: Files, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def unpack(files: Files, folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_twenty_tasks_of_twenty_ways_with_one_query_a_class(
    published: Files, tmp_path: Path
) -> None:
    runs = one_shot_runs(pack(published, tmp_path / "all_runs.zip"))
    assert len(runs) == len(list(runs)) == 20
    support, query = runs[3]
    assert support.inputs.shape == query.inputs.shape == (20, 1, 28, 28)
    assert support.inputs.dtype == torch.float32
    assert support.targets.tolist() == list(range(20))
    assert query.targets.tolist() == [(item + 3) % 20 for item in range(20)]
    # each test image is the training image of its class
    assert torch.equal(support.inputs[query.targets], query.inputs)
    assert torch.equal(runs[-1].query.targets, runs[19].query.targets)
    with pytest.raises(IndexError, match="task 20 does not exist"):
        runs[20]


def test_ink_is_one_and_images_are_resized_as_omniglots_are(
    published: Files, tmp_path: Path
) -> None:
    drawn = tmp_path / "characters"
    for character in range(20):
        unpack(
            {
                f"Alpha/character{character:02}/{run}.png": drawing(run, character)
                for run in range(20)
            },
            drawn,
        )
    characters = omniglot(drawn, protocol="finn", rotations=False, size=20, cache=False)
    runs = one_shot_runs(pack(published, tmp_path / "all_runs.zip"), size=20)
    assert characters.names
    for number, name in enumerate(characters.names):
        images = torch.stack(
            [characters[i][0] for i in (characters.labels == number).nonzero().flatten()]
        )
        drawings = torch.stack([runs[run].support.inputs[int(name[-2:])] for run in range(20)])
        # omniglot's images are in the order of their names, 0.png, 1.png, 10.png, ...
        assert torch.equal(images, drawings[sorted(range(20), key=str)])
    whole = one_shot_runs(tmp_path, size=105)[0].support.inputs[2]
    assert whole.unique().tolist() == [0, 1]
    assert whole.sum() == 25


def test_evaluate_takes_them_and_records_what_they_are(published: Files, tmp_path: Path) -> None:
    runs = one_shot_runs(unpack(published, tmp_path / "all_runs"))
    torch.manual_seed(0)
    learner = ProtoNet(Conv4(20, hidden=8))
    found = evaluate(learner, runs)
    assert found.mean == 1  # the test images are the training images
    about = {
        "ways": 20,
        "shots": 1,
        "queries": 1,
        "tasks": 20,
        "data": {"source": "one_shot_runs", "runs": 20, "size": 28},
    }
    assert found.settings["episodes"] == about
    assert evaluate(learner, DataLoader(runs, batch_size=8)).mean == 1


@pytest.mark.parametrize("place", ["all_runs.zip", "omniglot-py/all_runs.zip"])
def test_archives_are_found_below_the_root(published: Files, tmp_path: Path, place: str) -> None:
    pack(published, tmp_path / place)
    assert len(one_shot_runs(tmp_path)) == 20
    assert len(one_shot_runs(str(tmp_path / place))) == 20


@pytest.mark.parametrize("place", [".", "all_runs", "omniglot-py/all_runs", "all_runs/all_runs"])
def test_folders_are_found_below_the_root(published: Files, tmp_path: Path, place: str) -> None:
    unpack(published, tmp_path / place)
    (tmp_path / place / ".DS_Store").write_bytes(b"")
    (tmp_path / place / "run01" / "test" / "Thumbs.db").write_bytes(b"")
    assert len(one_shot_runs(tmp_path)) == 20


def test_an_archive_packed_again_on_a_mac_reads_the_same(published: Files, tmp_path: Path) -> None:
    files = {f"all_runs/{name}": content for name, content in published.items()}
    files["__MACOSX/all_runs/run01/test/._item01.png"] = b"attributes"
    files["all_runs/run01/test/.DS_Store"] = b""
    files["all_runs/" + LABELS] = b"\xef\xbb\xbf" + published[LABELS].replace(b"\n", b"\r\n")
    again = one_shot_runs(pack(files, tmp_path / "again.zip"))
    assert torch.equal(
        again.images, one_shot_runs(pack(published, tmp_path / "all_runs.zip")).images
    )


def without(name: str) -> Callable[[Files], Files]:
    return lambda files: {key: value for key, value in files.items() if not key.startswith(name)}


def edited(name: str, old: bytes, new: bytes) -> Callable[[Files], Files]:
    return lambda files: {**files, name: files[name].replace(old, new)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("run13/"), "run13 is missing"),
        (lambda files: {**files, "run21/class_labels.txt": b""}, "run21 is not one of them"),
        (without(LABELS), "run02/class_labels.txt is missing"),
        (without("run02/test/"), "run02/test/? has 0 images and not 20"),
        (without("run02/training/class20"), "run02/training/? has 19 images and not 20"),
        (
            lambda files: {**files, "run02/test/item21.png": drawing(0, 0)},
            "run02/test/? has 21 images and not 20",
        ),
        (
            edited(LABELS, b"test/item05", b"test/item55"),
            r"class_labels.txt has the line .*item55.* does not name",
        ),
        (
            edited(LABELS, b"run02/test/item05.png", b"/etc/passwd"),
            r"class_labels.txt has the line .*passwd",
        ),
        (
            edited(LABELS, b"run02/test/item05.png", b"run08/test/item05.png"),
            "has the line .*run08",
        ),
        (
            edited(LABELS, b"item05", b"item06"),
            r"class_labels.txt names an image of the line .*item06.* twice",
        ),
        (
            edited(LABELS, b"class05", b"class06"),
            r"class_labels.txt names an image of the line .*class06.* twice",
        ),
        (
            lambda files: {**files, LABELS: b"".join(files[LABELS].splitlines(True)[:-1])},
            "has 19 pairs of images and not 20",
        ),
        (lambda files: {**files, LABELS: b"\x89PNG\xff\xfe"}, "class_labels.txt has the line"),
        (lambda files: {**files, LABELS: b""}, "has 0 pairs"),
        (
            lambda files: {**files, "run02/test/item03.png": b"not an image"},
            "item03.png is not a readable image",
        ),
        (
            lambda files: {**files, "run02/test/item03.png": drawing(0, 0)[:60]},
            "item03.png is not a readable image",
        ),
        (lambda files: {**files, "run02/test/item03.png": b""}, r"item03.png is empty \(0 bytes\)"),
    ],
)
def test_what_is_not_as_published_is_named(
    published: Files, tmp_path: Path, change: Callable[[Files], Files], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        one_shot_runs(pack(change(published), tmp_path / "all_runs.zip"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("run13/"), "run13 is missing"),
        (without(LABELS), "run02/class_labels.txt is missing"),
        (without("run02/test/item03"), "run02/test has 19 images and not 20"),
        (
            lambda files: {**files, "run02/test/item03.png": b"not an image"},
            "item03.png is not a readable image",
        ),
    ],
)
def test_a_folder_that_is_not_as_published_is_named(
    published: Files, tmp_path: Path, change: Callable[[Files], Files], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        one_shot_runs(unpack(change(published), tmp_path / "all_runs"))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_archive_is_named_with_the_cure(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "all_runs.zip").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"all_runs.zip is not a readable zip archive .*brendenlake/omniglot"
    ):
        one_shot_runs(tmp_path)


def test_a_damaged_archive_names_the_file_in_it(published: Files, tmp_path: Path) -> None:
    path = pack(published, tmp_path / "all_runs.zip")
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("run02/test/item01.png").header_offset
    content = bytearray(path.read_bytes())
    content[start + 100] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run02/test/item01.png is damaged in .*all_runs.zip"):
        one_shot_runs(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a readable zip archive"):
        one_shot_runs(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_is_twice_in_the_archive_is_named(published: Files, tmp_path: Path) -> None:
    path = pack(published, tmp_path / "all_runs.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("run02/test/item01.png", drawing(3, 3))
    with pytest.raises(ValueError, match=r"run02/test/item01.png is twice in .*all_runs.zip"):
        one_shot_runs(path)


def test_an_empty_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"all_runs.zip.*run01 is missing; take it from"):
        one_shot_runs(pack({}, tmp_path / "all_runs.zip"))


@pytest.mark.parametrize("root", ["", "missing", "missing/all_runs.zip"])
def test_nothing_there_says_what_to_put_where(tmp_path: Path, root: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no one-shot runs in .*all_runs.zip of https.*omniglot-py"
    ):
        one_shot_runs(tmp_path / root)


def test_what_is_no_path_and_no_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="root=3 is not a path"):
        one_shot_runs(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size"):
        one_shot_runs(tmp_path, size=0)


@pytest.mark.data
def test_the_real_archive_has_400_test_images_of_characters_that_look_like_their_class(
    data: Path,
) -> None:
    try:
        runs = one_shot_runs(data)
    except FileNotFoundError:
        pytest.skip("the folder of real data sets has no all_runs.zip")
    assert runs.images.shape == (20, 40, 1, 28, 28)
    assert 0.06 < runs.images.float().mean() / 255 < 0.13
    # run 1, test image 1 is of class 8: a pairing by position would say 1
    assert runs[0].query.targets[:4].tolist() == [7, 8, 1, 18]
    assert runs.labels.sort(1).values.eq(torch.arange(20)).all()
    # pixels alone are better than chance (5 %)
    nearest = torch.stack(
        [
            torch.cdist(query.inputs.flatten(1), support.inputs.flatten(1)).argmin(1)
            for support, query in runs
        ]
    )
    assert nearest.eq(runs.labels).float().mean() > 0.15


@pytest.mark.data
def test_the_real_runs_are_drawings_of_the_evaluation_alphabets(data: Path) -> None:
    try:
        runs, drawings = one_shot_runs(data), omniglot(data, "test", protocol="lake")
    except FileNotFoundError:
        pytest.skip("the folder of real data sets has no all_runs.zip, or no Omniglot")
    known = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(drawings.images, drawings.labels, strict=True)
    }
    for run in range(20):
        # (40,): the characters of the training images, then of the test images
        characters = torch.tensor([known[image.numpy().tobytes()] for image in runs.images[run]])
        assert torch.equal(characters[20:], characters[runs.labels[run]])
        assert len({drawings.names[number].split("/")[0] for number in characters.tolist()}) == 1


@pytest.mark.data
def test_the_benchmark_keeps_a_row_with_everything_behind_it(
    published: Files, tmp_path: Path, data: Path
) -> None:
    rows = tmp_path / "one_shot.jsonl"
    archive = pack(published, tmp_path / "all_runs.zip")
    settings = {
        "root": str(data),
        "steps": 2,
        "hidden": 4,
        "meta_batch": 1,
        "train_queries": 1,
        "execution": "loop",
        "runs": str(tmp_path),
    }
    one_shot(
        "protonet", seeds="0,1", archive=str(archive), progress=False, results=str(rows), **settings
    )
    (row,) = map(json.loads, rows.read_text().splitlines())
    assert row["algorithm"] == "protonet"
    assert row["error"] < 0.2  # the test images are the training images
    assert row["error"] == pytest.approx(np.mean(row["errors"]))
    assert np.shape(row["errors"]) == (2, 20)
    assert row["split"]["protocol"] == "lake"
    assert row["split"]["characters"] == 813
    assert {
        "seeds",
        "queries",
        "norm",
        "machine",
        "versions",
        "interval",
        "training_commands",
        "command",
    } <= row.keys()
