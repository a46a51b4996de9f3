"""Results as tables: plain text, HTML, CSV, LaTeX, Markdown, data frames and JSON-able values."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .files import write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
    }
)
"""Characters that LaTeX reads as commands, escaped."""

FORMS = {
    ".txt": "__str__",
    ".csv": "to_csv",
    ".md": "to_markdown",
    ".tex": "to_latex",
    ".html": "to_html",
}
"""The ending of a file -> the method that writes it."""


@dataclass(frozen=True)
class Table:
    """A header and rows of text; prints with its columns lined up.

    Args:
        columns: the header.
        rows: one text for each column.
        title: printed above the table.
        note: printed below the table.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.

    Example:
        >>> table = Table(("layer", "CKA"), (("conv1", "0.99 ± 0.01"),))
        >>> print(table)
        layer  CKA
        conv1  0.99 ± 0.01
        >>> print(table.to_csv(), end="")
        layer,CKA
        conv1,0.99 ± 0.01
        >>> print(table.to_markdown())
        | layer | CKA |
        |---|---|
        | conv1 | 0.99 ± 0.01 |
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"a row has {len(row)} cells for {len(self.columns)} columns:"
                    f" {tuple(row)!r:.200}"
                )

    def __str__(self) -> str:
        parts = (self.title, aligned(self.columns, self.rows), self.note)
        return "\n".join(part for part in parts if part)

    def to_csv(self) -> str:
        """Comma-separated values, the header first."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """A table of GitHub's Markdown."""
        rule = "|" + "---|" * len(self.columns)
        rows = [_markdown_row(row) for row in self.rows]
        return "\n".join([_markdown_row(self.columns), rule, *rows])

    def to_html(self) -> str:
        """A `<table>`, every cell escaped."""
        header = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in self.columns)
        lines = ["<table>", f"<thead><tr>{header}</tr></thead>", "<tbody>"]
        for row in self.rows:
            cells = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row)
            lines.append(f"<tr>{cells}</tr>")
        return "\n".join([*lines, "</tbody>", "</table>"])

    def to_latex(self) -> str:
        r"""A `tabular`, special characters escaped and ± written as `$\pm$`."""
        lines = [rf"\begin{{tabular}}{{{'l' * len(self.columns)}}}", r"\hline"]
        lines += [_latex_row(self.columns), r"\hline"]
        lines += [_latex_row(row) for row in self.rows]
        return "\n".join([*lines, r"\hline", r"\end{tabular}"])

    def write(self, path: str | PathLike[str]) -> None:
        """Write the table to a file, in the form that its ending names.

        An error leaves the old file as it was.

        Raises:
            ValueError: the ending is not .txt, .csv, .md, .tex or .html.
            OSError: the file cannot be written.
        """
        check_table(path)
        form = getattr(self, FORMS[Path(fspath(path)).suffix.lower()])
        write_atomically(path, f"{form().rstrip()}\n".encode())


def check_table(path: str | PathLike[str] | None) -> None:
    """Raise ValueError if no table can be written to this path; None is no file."""
    if path is None:
        return
    file = Path(fspath(path))
    if file.suffix.lower() not in FORMS:
        raise ValueError(
            f"{fspath(path)!r} does not have the ending of a table; use {', '.join(FORMS)}"
        )
    if not file.parent.is_dir():
        raise ValueError(
            f"there is no folder {str(file.parent)!r} for the table {file.name}; make it first, or"
            " name another"
        )
    if file.is_dir():
        raise ValueError(f"{fspath(path)!r} is a folder; name a file")


def _markdown_row(cells: Sequence[str]) -> str:
    # A bar or a line break would end the cell.
    escaped = (str(cell).replace("|", r"\|").replace("\n", " ") for cell in cells)
    return "| " + " | ".join(escaped) + " |"


def _latex_row(cells: Sequence[str]) -> str:
    escaped = [str(cell).translate(LATEX) for cell in cells]
    return " & ".join(escaped) + r" \\"


class Tabular:
    """A result whose numbers are rows."""

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of numbers and names."""
        raise NotImplementedError

    def to_frame(self) -> DataFrame:
        """The rows as a pandas data frame; nested names are joined, as in `accuracy_mean`.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "a data frame needs pandas; install it with pip install"
                " 'metalearn-transfer[pandas]'"
            ) from error
        return pandas.DataFrame([flat_record(record) for record in self.records()])


def flat_record(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested record with one level of names, joined with "_"; a list becomes a text.

    Args:
        record: names and values.
        prefix: stands before every name.

    Example:
        >>> flat_record({"layer": "conv1", "cka": {"mean": 0.9, "interval": 0.1}, "sizes": [3, 4]})
        {'layer': 'conv1', 'cka_mean': 0.9, 'cka_interval': 0.1, 'sizes': '3, 4'}
    """
    flat: dict[str, Any] = {}
    for name, value in plain(record).items():
        if isinstance(value, Mapping):
            flat.update(flat_record(value, f"{prefix}{name}_"))
        elif isinstance(value, list):
            flat[prefix + name] = ", ".join(map(str, value))
        else:
            flat[prefix + name] = value
    return flat


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain-text table with its columns lined up.

    Example:
        >>> print(aligned(("layer", "CKA"), [("conv1", "0.99")]))
        layer  CKA
        conv1  0.99
    """
    # Each column is as wide as its widest cell.
    columns = zip(header, *rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in (header, *rows):
        cells = map(str.ljust, row, widths)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def plain(value: Any) -> Any:
    """Any result of this package as JSON-able values.

    Dataclasses and named tuples become dictionaries, tensors and arrays lists, NaN and infinity
    None.

    Example:
        >>> plain({"layer1": [0.5, float("nan")], "images": np.array([3, 4])})
        {'layer1': [0.5, None], 'images': [3, 4]}
    """
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if hasattr(value, "__dataclass_fields__"):
        return {key: plain(getattr(value, key)) for key in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()  # numbers of Python's own
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # JSON has no NaN and no infinity
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)
