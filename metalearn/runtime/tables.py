"""Results as aligned plain text and as JSON-able values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    pass


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
