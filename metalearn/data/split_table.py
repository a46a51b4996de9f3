"""CSV files that assign each image to a split and a class."""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from .csv_rows import Row as Line
from .csv_rows import csv_rows

FOLDERS = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}
"""The names of each split in files, folders and CSV files, in any case; the first is the usual."""

COLUMNS = ("filename", "label", "split")
LAYOUT = (
    "needs a first line with the columns filename and label (and split), and a line for each image"
)


class Row(NamedTuple):
    """One image of a table, and the line that lists it."""

    place: str
    path: Path
    label: str
    split: str


def listed(top: Path, table: Path, wanted: str) -> dict[str, dict[str, list[Path]]]:
    """List the files of every class of every split.

    Fields are separated by commas, semicolons or tabs. The file is UTF-8 or UTF-16, with any line
    ends.

    Args:
        top: the folder that the file names are relative to; no file may lie outside it.
        table: a CSV file with the columns filename, label and split; or a folder with train.csv,
            val.csv and test.csv, which need no column split.
        wanted: the split whose files must exist.

    Raises:
        FileNotFoundError: if there is no such table, or a file that it lists does not exist.
        ValueError: if a row is incomplete, a file lies outside of `top`, or a class or a file is in
            two splits. The message names the line.
    """
    rows: list[Row] = []
    if table.is_dir():
        tables = _tables(table)
        if not tables:
            raise FileNotFoundError(
                f"{table} holds no split file: it needs train.csv, val.csv and test.csv"
            )
        for split, path in tables.items():
            rows += _rows(path, top, wanted, split)
    else:
        rows = _rows(table, top, wanted, _split_named(table.stem))
    _check_apart(rows)
    splits: dict[str, dict[str, set[Path]]] = {}
    for row in rows:
        splits.setdefault(row.split, {}).setdefault(row.label, set()).add(row.path)
    return {split: _in_order(classes) for split, classes in splits.items()}


def _in_order(classes: dict[str, set[Path]]) -> dict[str, list[Path]]:
    """The classes by name, each with its files by name."""
    return {label: sorted(classes[label]) for label in sorted(classes)}


def _tables(folder: Path) -> dict[str, Path]:
    """The CSV file of each split in a folder."""
    tables = {}
    for split, aliases in FOLDERS.items():
        paths = [folder / f"{alias}.csv" for alias in aliases]
        existing = [path for path in paths if path.is_file()]
        if existing:
            tables[split] = existing[0]
    return tables


def _rows(table: Path, top: Path, wanted: str, named: str | None) -> list[Row]:
    """The rows of one table, which are all of the split `named` if it has no column split."""
    if not table.is_file():
        raise FileNotFoundError(
            f"there is no split file {table}: it needs the columns filename, label and split"
        )
    rows = []
    has_splits = True
    for line in csv_rows(table, ("filename", "label"), LAYOUT):
        row = _row(line, top, named)
        if row.split in ("", wanted) and not row.path.is_file():
            raise FileNotFoundError(f"{row.place} lists {row.path}, which does not exist")
        has_splits = "split" in line.values
        rows.append(row)
    if not rows:
        raise ValueError(f"{table} {LAYOUT}")
    if not has_splits and named is None:
        raise ValueError(
            f"{table} has no column split, so its rows would be in every split; add the column with"
            " train, val or test, or give a folder with train.csv, val.csv and test.csv"
        )
    return rows


def _row(line: Line, top: Path, named: str | None) -> Row:
    """One line of a table; `named` is the split that its file stands for, if any."""
    place, values = line
    # An empty field is an error also in the column split, not a missing split.
    empty = [name for name in COLUMNS if name in values and not values[name]]
    if empty:
        raise ValueError(f"{place} has no {empty[0]}; fill it in, or delete the line")
    # The column decides, but must agree with a file that stands for one split.
    split = named
    if "split" in values:
        split = _split_named(values["split"])
        if split is None or (named is not None and split != named):
            allowed = _allowed(named)
            raise ValueError(f"{place} has the split {values['split']!r}; it may be {allowed}")
    return Row(place, file_within(top, values["filename"], place), values["label"], split or "")


def _allowed(named: str | None) -> str:
    """What the column split may hold in a file that stands for the split `named`, if any."""
    if named is not None:
        return ", ".join(FOLDERS[named])
    return ", ".join(aliases[0] for aliases in FOLDERS.values())


def file_within(top: Path, name: str, place: str) -> Path:
    """The path of a file in `top` that a table lists; it may have Windows' separators.

    Args:
        top: the folder.
        name: of the file, relative to it or absolute.
        place: the line that lists it, for messages.

    Raises:
        ValueError: if the name is no path on this machine, or lies outside `top`.
    """
    if "\0" in name:
        raise ValueError(f"{place} has a file name with a zero byte; mend this line")
    if PureWindowsPath(name).drive and os.name != "nt":
        raise ValueError(
            f"{place} lists {name}, a path of another machine; write it relative to {top}"
        )
    # A backslash may be part of a name on other systems, so it is tried as it is first.
    path = _within(top, name)
    if "\\" in name and (path is None or not path.is_file()):
        path = _within(top, name.replace("\\", "/"))
    if path is None:
        raise ValueError(
            f"{place} lists {name}, which lies outside {top}; list files within it, or give the"
            " folder above both"
        )
    return path


def _within(top: Path, name: str) -> Path | None:
    """The path of a file in `top`, by its relative or absolute name; None for one outside."""
    # A link is not followed, but `top` itself may be reached through one.
    absolute = Path(os.path.abspath(top / name))
    for root in (os.path.abspath(top), os.path.realpath(top)):
        if absolute.is_relative_to(root):
            return top / absolute.relative_to(root)
    return None


def _check_apart(rows: list[Row]) -> None:
    """Raise ValueError if a class is in two splits, or a file has two classes or splits."""
    classes: dict[str, Row] = {}
    paths: dict[Path, Row] = {}
    for row in rows:
        first = classes.setdefault(row.label, row)
        if first.split != row.split:
            raise ValueError(
                f"{row.place} has class {row.label!r} in {row.split}, but {first.place} has it in"
                f" {first.split}; give each class one split, since tests need unseen classes"
            )
        first = paths.setdefault(row.path.resolve(), row)
        if first.label != row.label:
            raise ValueError(
                f"{row.place} lists {row.path} as {row.label!r} ({row.split}), but {first.place}"
                f" has it as {first.label!r} ({first.split}); give each file one class"
            )


def _split_named(name: str) -> str | None:
    """The split that a name in a file or a file's own name stands for."""
    for split, aliases in FOLDERS.items():
        if name.strip().lower() in aliases:
            return split
    return None
