"""Published data sets as they lie after unpacking: where, in which layout, with which classes."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache as memoized
from importlib import resources
from pathlib import Path
from typing import Protocol

from metalearn.runtime.checks import positive

from .csv_rows import Row, csv_rows
from .decoding import NO_FILES, checked_root, folders_in, images_in, split_named
from .image_files import Classes, read_images
from .images import LabelledImages

SPLITS = ("train", "validation", "test")


class Layout(Protocol):
    """How the files of a data set lie in its folder."""

    @property
    def mark(self) -> str:
        """What a folder of the data set must have, for messages."""

    def present(self, folder: Path, names: list[str]) -> bool:
        """Whether a folder holds at least a part of the data set."""

    def files(self, folder: Path, names: list[str], wanted: str, source: str) -> Classes:
        """The files of some classes.

        Args:
            folder: of the data set.
            names: of the classes.
            wanted: what they are, for messages: "the 50 test classes of CUB-200-2011".
            source: what to get, and where, for messages.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a class or an image is missing.
        """


@dataclass(frozen=True)
class Published:
    """A published data set.

    Attributes:
        name: in records and in the names of cache files.
        title: in messages.
        places: where it may lie in the root, the usual place first.
        layout: of its files.
        splits: from its splits to the names of their classes.
        source: what to get, and where, for messages.
        put: what goes where in the root, for messages.
        download: downloads it to the root, with the library that hosts it.
    """

    name: str
    title: str
    places: tuple[str, ...]
    layout: Layout
    splits: Mapping[str, list[str]]
    source: str
    put: str
    download: Callable[[Path], None] | None = None

    def folder(self, root: str | os.PathLike[str], *, download: bool = False) -> Path:
        """The folder of the data set.

        Args:
            root: the folder that holds data sets.
            download: whether it may be downloaded.

        Raises:
            FileNotFoundError: it is missing, or cannot be downloaded.
        """
        top = checked_root(root)
        names = [name for classes in self.splits.values() for name in classes]
        for place in self.places:
            if self.layout.present(top / place, names):
                return top / place
        missing = f"there is no {self.title} in {root}"
        for place in filter(None, self.places):
            if (top / place).is_dir():
                missing += f" ({top / place} has no {self.layout.mark})"
                break
        cure = f"put {self.put} of {self.source}, into {top / self.places[0]}"
        if self.download is None:
            raise FileNotFoundError(f"{missing}: {cure}; no library here downloads it. {NO_FILES}")
        if not download:
            raise FileNotFoundError(f"{missing}: {cure}, or pass download=True; {NO_FILES}")
        try:
            self.download(top)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{self.title} could not be downloaded ({error}): {cure}; {NO_FILES}"
            ) from error
        return top / self.places[0]

    def classes(self, split: str) -> list[str]:
        """The names of the classes of a split. Raises ValueError if it has none."""
        if split not in self.splits:
            raise ValueError(
                f"split={split!r}: the {len(self.splits['test'])} classes of {self.title} are all"
                " for the test, in another domain than that of training. Train on another data"
                f" set, and test with metalearn evaluate --dataset {self.name}; or divide the"
                " classes with --dataset PATH of a folder of class folders"
            )
        return self.splits[split]


def read_published(
    published: Published,
    root: str | os.PathLike[str],
    split: str,
    *,
    size: int,
    in_memory: bool = True,
    download: bool = False,
    cache: bool | str | os.PathLike[str] = True,
    progress: bool = True,
    **record: str,
) -> LabelledImages:
    """The images of one split of a published data set.

    Args:
        published: the data set.
        root: the folder that holds it.
        split: train, validation (or val) or test.
        size: the height and width in pixels.
        in_memory: as in `metalearn.tasks.image_folder`.
        download: whether it may be downloaded.
        cache: as in `metalearn.tasks.image_folder`.
        progress: as in `metalearn.tasks.image_folder`.
        record: entries to add to the description.

    Raises:
        FileNotFoundError: it is missing; the message says what to put where.
        ValueError: it has no such split, or a class or an image is missing or cannot be read.
    """
    split = split_named(split)
    names = published.classes(split)
    (size,) = positive(size=size)
    folder = published.folder(root, download=download)
    wanted = f"the {len(names)} {split} classes of {published.title}"
    classes = published.layout.files(folder, names, wanted, published.source)
    description = {
        "source": published.name.replace("-", "_"),
        "split": split,
        **record,
        "size": size,
        "images_per_class": min(map(len, classes.values())),
    }
    cache_name = "-".join([published.name, *record.values()])
    if len(published.splits) > 1:
        cache_name += f"-{split}"
    return read_images(
        classes,
        folder,
        cache_name,
        description,
        channels=3,
        size=size,
        title=published.title,
        in_memory=in_memory,
        cache=cache,
        progress=progress,
    )


@dataclass(frozen=True)
class ClassFolders:
    """A folder of images for each class.

    Attributes:
        inside: folders that may hold the class folders. A class is read from the first that has it.
    """

    inside: tuple[str, ...] = ("",)
    mark = "class folder of it"

    def present(self, folder: Path, names: list[str]) -> bool:
        """Whether there is a folder of any of the classes."""
        return bool(self._places(folder).keys() & set(names))

    def files(self, folder: Path, names: list[str], wanted: str, source: str) -> Classes:
        """The images of each class folder."""
        places = self._places(folder)
        missing = [name for name in names if name not in places]
        if missing:
            listed = ", ".join(missing[:5]) + ", ..." * (len(missing) > 5)
            raise ValueError(
                f"{folder} has {len(names) - len(missing)} of {wanted}, without {listed}; complete"
                f" it from {source}"
            )
        return {name: images_in(places[name]) for name in names}

    def _places(self, folder: Path) -> dict[str, Path]:
        """The folder of each class."""
        places: dict[str, Path] = {}
        for name in self.inside:
            for place in folders_in(folder / name):
                places.setdefault(place.name, place)
        return places


@dataclass(frozen=True)
class LabelTable:
    """Images of all classes in one folder or several, and a CSV file that lists their classes.

    Attributes:
        tables: the names that the file may have.
        columns: that it must have, in small letters.
        images: patterns of the folders that hold the images.
        labels: from a line to the name of an image file and its class, or None to leave it out.
    """

    tables: tuple[str, ...]
    columns: tuple[str, ...]
    images: tuple[str, ...]
    labels: Callable[[Row], tuple[str, str] | None]

    @property
    def mark(self) -> str:
        """The file that lists the classes."""
        return self.tables[0]

    def present(self, folder: Path, names: list[str]) -> bool:
        """Whether there is the file."""
        return bool(self._tables(folder))

    def files(self, folder: Path, names: list[str], wanted: str, source: str) -> Classes:
        """The images of each class that the file lists."""
        table = self._tables(folder)[0]
        paths = self._images(folder)
        classes: dict[str, list[Path]] = {name: [] for name in names}
        layout = f"needs the columns {', '.join(self.columns)}"
        for row in csv_rows(table, self.columns, layout):
            labelled = self.labels(row)
            if labelled is None:
                continue
            name, label = labelled
            if name not in paths:
                raise FileNotFoundError(
                    f"{row.place} lists {name}, which is in no folder {' or '.join(self.images)} of"
                    f" {folder}; complete it from {source}"
                )
            classes[label].append(paths[name])
        empty = [name for name, listed in classes.items() if not listed]
        if empty:
            raise ValueError(
                f"{table} lists no image of {', '.join(empty)}, of {wanted}; complete it from"
                f" {source}"
            )
        return {name: sorted(listed) for name, listed in classes.items()}

    def _tables(self, folder: Path) -> list[Path]:
        return [folder / name for name in self.tables if (folder / name).is_file()]

    def _folders(self, folder: Path) -> Iterator[Path]:
        for pattern in self.images:
            yield from sorted(path for path in folder.glob(pattern) if path.is_dir())

    def _images(self, folder: Path) -> dict[str, Path]:
        """The path of each image file, by its name."""
        paths: dict[str, Path] = {}
        for place in self._folders(folder):
            with os.scandir(place) as entries:
                for entry in entries:
                    paths.setdefault(entry.name, Path(entry.path))
        return paths


@memoized
def class_table(file: str, column: str) -> dict[str, list[str]]:
    """The classes of each split by one of the tables that come with this package.

    Args:
        file: tiered_imagenet.csv or cub.csv, with the column class.
        column: the one that has the split of each class.
    """
    text = resources.files("metalearn.data").joinpath(file).read_text(encoding="utf-8")
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for row in csv.DictReader(text.splitlines()):
        splits[row[column]].append(row["class"])
    return splits
