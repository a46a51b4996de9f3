"""A file for each task that is learned."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from metalearn.runtime import files, provenance
from metalearn.runtime.files import Damaged, Record, _checksum
from metalearn.runtime.tables import plain
from transfer.continual.task_sequence import Stage, Weights
from transfer.finetuning.curve import Curve


def digest(tensors: Weights) -> str:
    """A checksum of weights."""
    return _checksum({name: tensor.detach().cpu() for name, tensor in tensors.items()}, "")[:16]


def file_name(text: str) -> str:
    """A text as a part of a file name, with a checksum that keeps it unique."""
    stem = re.sub(r"[^\w.=+-]+", "-", text).strip("-")[:40]
    return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def write_stage(path: Path, stage: Stage, settings: Record) -> None:
    """Write a stage, whole or not at all.

    Args:
        path: the file.
        stage: what was learned.
        settings: all that decides it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Files that a kill left half written.
    for torn in path.parent.glob(f".{path.name}.*"):
        torn.unlink(missing_ok=True)
    tensors = {f"weights.{name}": tensor for name, tensor in stage.weights.items()}
    for task, head in enumerate(stage.heads):
        tensors |= {f"heads.{task}.{name}": tensor for name, tensor in head.items()}
    record = {
        "settings": settings,
        "curve": stage.curve.to_dict(),
        "accuracy": plain(stage.accuracy),
        "course": plain(stage.course),
    }
    files.save(path, tensors, record)


def read_stage(path: Path, settings: Record) -> Stage | None:
    """The stage in a file; None if there is none, or it is damaged.

    Raises:
        ValueError: the file is of a stage with other settings.
    """
    try:
        tensors, record = files.load(path)
    except FileNotFoundError:
        return None
    except Damaged as error:
        print(f"{error}: the task is learned again", file=sys.stderr, flush=True)
        return None
    provenance.check_same(settings, record["settings"], path)
    weights: dict[str, Tensor] = {}
    heads: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        # Copies: what was read shares memory with the file, which may be replaced.
        if kind == "weights":
            weights[name] = tensor.clone()
        else:
            task, _, name = name.partition(".")
            heads.setdefault(int(task), {})[name] = tensor.clone()
    return Stage(
        weights=weights,
        heads=tuple(heads[task] for task in sorted(heads)),
        accuracy=_with_nan(record["accuracy"]),
        curve=Curve.from_dict(record["curve"]),
        course={int(step): _with_nan(values) for step, values in record["course"].items()},
    )


def _with_nan(values: Sequence[float | None]) -> tuple[float, ...]:
    """JSON has no NaN."""
    return tuple(float("nan") if value is None else value for value in values)
