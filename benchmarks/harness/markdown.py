"""Tables of Markdown, and how numbers are written in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import Table

Cells = Sequence[str]
NONE = "-"  # a cell without a number


def table(columns: Cells, rows: Iterable[Cells]) -> Table:
    """A table; its `to_markdown()` is what a page holds.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """
    return Table(tuple(columns), tuple(tuple(row) for row in rows))


def number(value: float | None, scale: float = 1, digits: int = 3, *, sign: bool = False) -> str:
    """A number, or a dash if there is none.

    Example:
        >>> number(0.98765), number(0.5, 100, 1), number(None), number(0.02, 100, 1, sign=True)
        ('0.988', '50.0', '-', '+2.0')
    """
    if value is None:
        return NONE
    form = f"+.{digits}f" if sign else f".{digits}f"
    return format(scale * value, form)


def mean_std(
    value: Mapping[str, Any], scale: float = 1, digits: int = 3, unit: str = "seed"
) -> str:
    """A recorded mean with its standard deviation over units; a single one has none.

    Example:
        >>> mean_std({"mean": 0.5, "std": 0.01}, 100, 1)
        '50.0 ± 1.0'
        >>> mean_std({"mean": 0.5, "std": None}, 100, 1)
        '50.0 (one seed)'
    """
    mean = number(value["mean"], scale, digits)
    if value["std"] is None:
        return f"{mean} (one {unit})"
    return f"{mean} ± {number(value['std'], scale, digits)}"


def estimate(
    value: Mapping[str, Any], scale: float = 1, digits: int = 3, *, sign: bool = False
) -> str:
    """A recorded mean with its 95 % interval; a single value has none.

    Example:
        >>> estimate({"mean": 0.5, "interval": 0.01}, 100, 1)
        '50.0 ± 1.0'
    """
    mean = number(value["mean"], scale, digits, sign=sign)
    if value["interval"] is None:
        return mean
    return f"{mean} ± {number(value['interval'], scale, digits)}"


def over_seeds(
    values: Iterable[float | None], scale: float = 1, digits: int = 3, *, counted: bool = False
) -> str:
    """The mean and the standard deviation of one value a seed; a dash if there is none.

    Args:
        values: one a seed.
        scale: a factor for all values.
        digits: behind the point.
        counted: the table has a column for the number of seeds, so one seed is not marked.

    Example:
        >>> over_seeds([0.5, 0.7]), over_seeds([0.5]), over_seeds([None])
        ('0.600 ± 0.141', '0.500 (one seed)', '-')
        >>> over_seeds([0.5], counted=True)
        '0.500'
    """
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    if counted and len(known) == 1:
        return number(scale * known[0], digits=digits)
    return MeanStd.of(known).text(scale, digits, "seed")


def seconds(value: float) -> str:
    """Seconds in words: in ms below one.

    Example:
        >>> seconds(1.234), seconds(0.0123)
        ('1.23 s', '12.3 ms')
    """
    if value >= 1:
        return f"{value:.2f} s"
    return f"{1000 * value:.1f} ms"


def mebibytes(count: float) -> str:
    """Bytes in MiB.

    Example:
        >>> mebibytes(53 * 2**20)
        '53 MiB'
    """
    return f"{count / 2**20:,.0f} MiB"


def multiple(ratio: float) -> str:
    """A ratio of two times.

    Example:
        >>> multiple(2.005), multiple(float("nan"))
        ('2.00 x', '-')
    """
    if math.isnan(ratio):
        return NONE
    return f"{ratio:.2f} x"


def percent(share: float, digits: int = 2) -> str:
    """A share in per cent, without the sign.

    Example:
        >>> percent(0.9876)
        '98.76'
    """
    return f"{100 * share:.{digits}f}"
