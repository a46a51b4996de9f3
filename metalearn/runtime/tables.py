"""Results as tables: plain text, HTML, CSV, LaTeX, Markdown, data frames and JSON-able values."""

from __future__ import annotations

import csv
import html
import io
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

LATEX = {
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


FORMS = {
    ".txt": "__str__",
    ".csv": "to_csv",
    ".md": "to_markdown",
    ".tex": "to_latex",
    ".html": "to_html",
}


@dataclass(frozen=True)
class Table:
    """A header and rows of text; prints with its columns lined up.

    Args:
        columns: the header.
        rows: one text for each column.
        title: stands above the table.
        note: stands below it.

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
                    f"a row has {len(row)} cells for {len(self.columns)} columns: {tuple(row)!r:.200}"
                )

    def __str__(self) -> str:
        return "\n".join(
            part for part in (self.title, aligned(self.columns, self.rows), self.note) if part
        )

    def to_csv(self) -> str:
        """Comma-separated values, the header first."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """A table of GitHub's Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        drawn = []
        for number, line in enumerate(lines):
            if number == 1:
                drawn.append("|" + "|".join(line) + "|")
                continue
            cells = (str(cell).replace("|", r"\|").replace("\n", " ") for cell in line)
            drawn.append("| " + " | ".join(cells) + " |")
        return "\n".join(drawn)

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
        """Write the table, whole or not at all; the ending of `path` says how.

        Raises:
            ValueError: the ending is not .txt, .csv, .md, .tex or .html.
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
            f"{fspath(path)!r} does not end in a kind of table; use {', '.join(FORMS)}"
        )
    if not file.parent.is_dir():
        raise ValueError(
            f"there is no folder {str(file.parent)!r} for the table {file.name}; make it first, or"
            " name another"
        )
    if file.is_dir():
        raise ValueError(f"{fspath(path)!r} is a folder; name a file")


def _latex_row(cells: Sequence[str]) -> str:
    escaped = ("".join(LATEX.get(letter, letter) for letter in str(cell)) for cell in cells)
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
                "a data frame needs pandas; install it with pip install 'metalearn-transfer[pandas]'"
            ) from error
        return pandas.DataFrame([flat_record(record) for record in self.records()])


def flat_record(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """One level of names, those inside joined with "_"; a list becomes a text.

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
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    )


def plain(value: Any) -> Any:
    """Anything here as JSON-able values: dataclasses and named tuples as dictionaries, NaN and
    infinity as None.

    Example:
        >>> plain({"layer1": [0.5, float("nan")]})
        {'layer1': [0.5, None]}
    """
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if hasattr(value, "__dataclass_fields__"):
        return {key: plain(getattr(value, key)) for key in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray | Tensor):
        return [plain(item) for item in (value.tolist() if isinstance(value, Tensor) else value)]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
