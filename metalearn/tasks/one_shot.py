"""The one-shot classification of Lake et al. 2015: 20 published runs, each within one alphabet."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from metalearn.data.decoding import SUFFIXES, checked_root, decode
from metalearn.episodes import Episode, Examples
from metalearn.runtime.checks import positive
from metalearn.runtime.files import Record

from .keyed_random import position

RUNS = WAYS = 20
ARCHIVE = "python/one-shot-classification/all_runs.zip of https://github.com/brendenlake/omniglot"
CURE = f"take it from {ARCHIVE}"
PLACES = ("", "all_runs.zip", "all_runs", "omniglot-py/all_runs.zip", "omniglot-py/all_runs")

Place = Path | zipfile.Path  # a file or a folder, on disk or in an archive


class OneShotRuns(Dataset[Episode]):
    """The 20 runs of Lake et al. as tasks: 20 ways, 1 shot, 1 query a class, labels 0 to 19.

    `[i]` is run i + 1 as a single-task `Episode`. Classes are in the order of the run's training
    images, and queries in the order of its test images.

    Args:
        images: (runs, 40, 1, size, size) uint8, the 20 training images of a run first.
        labels: (runs, 20) int64, the class of each test image.
    """

    draws_by_index = True  # a task depends on the seed and its index alone

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __repr__(self) -> str:
        return f"OneShotRuns({len(self)} runs of {WAYS} classes, {self.images.shape[-1]} pixels)"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Episode:
        run = position(index, len(self))
        support, query = torch.div(self.images[run], 255).split(WAYS)  # (20, 1, size, size) each
        return Episode(
            Examples(support, torch.arange(WAYS)), Examples(query, self.labels[run].clone())
        )

    def settings(self) -> Record:
        """A JSON-able record of the tasks and of the data they come from, for result lines."""
        data = {"source": "one_shot_runs", "runs": len(self), "size": self.images.shape[-1]}
        return {"ways": WAYS, "shots": 1, "queries": 1, "tasks": len(self), "data": data}


def one_shot_runs(root: str | os.PathLike[str], *, size: int = 28) -> OneShotRuns:
    """The one-shot classification runs of Lake et al. 2015, as tasks.

    There are 20 tasks of 20 ways, 1 shot and 1 query a class. All characters of a run are of one
    alphabet; one person drew its training images and another its test images. Images are like those
    of `omniglot`: grey, ink = 1, resized with an antialiased (Lanczos) filter. A learner trained on
    `omniglot(root, protocol="lake")`, whose training characters are of other alphabets, can be
    tested on them by `evaluate`. The error rate of the paper is 1 minus the mean accuracy, over
    20 x 20 test images. A network that normalises by the current batch sees the 20 queries of a run
    together. Nothing is downloaded or unpacked.

    Args:
        root: the archive `all_runs.zip`, the folder it was unpacked into, or a folder that holds
            either one, also in `omniglot-py` (such as the root of `omniglot`).
        size: the height and width in pixels.

    Returns:
        OneShotRuns: the tasks, with a length, an index and `settings()`.

    Raises:
        FileNotFoundError: if there is no archive and no folder of runs.
        ValueError: if the archive or one of its files is damaged, missing, or not as published.

    Example:
        >>> one_shot_runs("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: there are no one-shot runs in /nowhere: put
        python/one-shot-classification/all_runs.zip of ...
    """
    (size,) = positive(size=size)
    top = _find(checked_root(root))
    folders = {folder.name: folder for folder in _entries(top, _is_run)}
    expected = [f"run{number:02}" for number in range(1, RUNS + 1)]
    # Missing runs and unknown ones.
    wrong = sorted(set(expected) ^ folders.keys())
    if wrong:
        kind = "is missing" if wrong[0] in expected else "is not one of them"
        raise ValueError(f"{top} must hold run01 to run{RUNS}, but {wrong[0]} {kind}; {CURE}")
    images, labels = zip(*(_run(folders[name], size) for name in expected), strict=True)
    return OneShotRuns(torch.stack(images), torch.stack(labels))


def _find(root: Path) -> Place:
    """The folder that holds the runs, on disk or in an archive."""
    for path in (root / place for place in PLACES):
        if path.is_file():
            return _inside(_opened(path))
        if path.is_dir() and _entries(_inside(path), _is_run):
            return _inside(path)
    raise FileNotFoundError(
        f"there are no one-shot runs in {root}: put {ARCHIVE} into {root}/omniglot-py, or name the"
        " archive itself"
    )


def _opened(path: Path) -> zipfile.Path:
    """An archive whose checksums agree. Raises ValueError for any other file."""
    try:
        archive = zipfile.ZipFile(path)
        broken = archive.testzip()
    # zipfile raises errors of all these kinds for damaged archives.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is not a readable zip archive ({error}); {CURE}") from error
    twice = [name for name, count in Counter(archive.namelist()).items() if count > 1]
    if broken:
        raise ValueError(f"{broken} is damaged in {path}; {CURE}")
    if twice:
        raise ValueError(f"{twice[0]} is twice in {path}; {CURE}")
    return zipfile.Path(archive)


def _inside(top: Place) -> Place:
    """`top`, or the only folder in it: some programs put one folder around an archive's content."""
    folders = _entries(top, lambda entry: entry.is_dir())
    if len(folders) == 1 and not _is_run(folders[0]):
        return folders[0]
    return top


def _run(folder: Place, size: int) -> tuple[Tensor, Tensor]:
    """The images of a run and the classes of its test images.

    The images are (40, 1, size, size) uint8, training images first; the classes are (20,).
    """
    training = _images(folder / "training")
    test = _images(folder / "test")
    labels = _labels(folder, [path.name for path in training], [path.name for path in test])
    images = torch.stack([decode(path, 1, size) for path in (*training, *test)])
    return 255 - images, torch.tensor(labels)  # the files are black on white; here ink = 255


def _images(folder: Place) -> list[Place]:
    """The 20 images of a folder, by name."""
    images = _entries(
        folder, lambda entry: entry.is_file() and entry.name.lower().endswith(SUFFIXES)
    )
    if len(images) != WAYS:
        raise ValueError(f"{folder} has {len(images)} images and not {WAYS}; {CURE}")
    return images


def _labels(folder: Place, training: list[str], test: list[str]) -> list[int]:
    """The class of each test image, from class_labels.txt.

    Each line names a test image and the training image of the same class.
    """
    path = folder / "class_labels.txt"
    if not path.is_file():
        raise ValueError(f"{path} is missing, so the classes of test images are unknown; {CURE}")
    items = {f"{folder.name}/test/{name}": number for number, name in enumerate(test)}
    classes = {f"{folder.name}/training/{name}": number for number, name in enumerate(training)}
    # A one-to-one map of the 20 test images to the 20 training images.
    pairs: dict[int, int] = {}  # test image -> class
    lines = path.read_bytes().decode("utf-8-sig", errors="replace").splitlines()
    for line in filter(str.strip, lines):
        match line.split():
            case [item, name] if item in items and name in classes:
                if items[item] in pairs or classes[name] in pairs.values():
                    raise ValueError(f"{path} names an image of the line {line!r} twice; {CURE}")
                pairs[items[item]] = classes[name]
            case _:
                raise ValueError(
                    f"{path} has the line {line[:100]!r}, which does not name a test and a training"
                    f" image of the run; {CURE}"
                )
    if len(pairs) != WAYS:
        raise ValueError(f"{path} has {len(pairs)} pairs of images and not {WAYS}; {CURE}")
    return [pairs[number] for number in range(WAYS)]


def _entries(folder: Place, wanted: Callable[[Place], bool]) -> list[Place]:
    """The visible entries of a folder that are wanted, by name; none if it does not exist."""
    # macOS adds a folder __MACOSX to its archives.
    if not folder.is_dir():
        return []
    visible = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
    return sorted(filter(wanted, visible), key=lambda entry: entry.name)


def _is_run(entry: Place) -> bool:
    return entry.is_dir() and re.fullmatch(r"run\d+", entry.name) is not None
