"""The rows of a CSV file, each with the line that it stands in."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One line of a table: where it stands, for messages, and its values by column."""

    place: str
    values: dict[str, str]


def csv_rows(table: Path, columns: Sequence[str], layout: str) -> Iterator[Row]:
    """Read the lines of a CSV file that are not empty.

    Fields are separated by commas, semicolons or tabs. The file is UTF-8 or UTF-16, with any line
    ends. Columns are named in small letters, and values have no spaces around them.

    Args:
        table: the file.
        columns: the names that the first line must have, in small letters.
        layout: what the file needs, for messages; it follows the name of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the first line lacks a column, or a line has another number of fields. The
            message names the line.
    """
    text = _text(table)
    # The separator is the candidate that the first line has most of.
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        needs = f"{layout}; its first line is {first.strip()[:80]!r}"
        header = _header(table, next(reader, []), columns, needs)
        for fields in reader:
            if any(field.strip() for field in fields):  # not an empty line
                yield _row(header, fields, f"{table} line {reader.line_num}")
    except csv.Error as error:
        raise ValueError(
            f"{table} line {reader.line_num} cannot be read ({error}); mend the quotes of this line"
        ) from error


def _header(table: Path, fields: list[str], columns: Sequence[str], layout: str) -> list[str]:
    """The columns of a table by its first line."""
    header = [name.strip().lower() for name in fields]
    if not set(columns) <= set(header):
        raise ValueError(f"{table} {layout}")
    repeated = [name for name in header if header.count(name) > 1 and name]
    if repeated:
        raise ValueError(f"{table} has the column {repeated[0]} twice; keep one of them")
    return header


def _row(header: list[str], fields: list[str], place: str) -> Row:
    if len(fields) != len(header):
        raise ValueError(
            f"{place} has {len(fields)} fields, but the first line names {len(header)} columns;"
            " mend this line"
        )
    values = {name: value.strip() for name, value in zip(header, fields, strict=True)}
    return Row(place, values)


def _text(table: Path) -> str:
    """The text of a file in UTF-8 or UTF-16, with line ends of one kind."""
    content = table.read_bytes()
    encoding = "utf-8-sig"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # a byte order mark
        encoding = "utf-16"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{table} line {line} is not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
