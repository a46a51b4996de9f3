"""What is written down of every training step: a line of JSON, and curves for TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from metalearn.files import Record, write_atomically


@contextmanager
def records(
    log: str | os.PathLike[str] | None, tensorboard: str | os.PathLike[str] | None = None, step: int = 0
) -> Iterator[Callable[[Record], None]]:
    """Yield `write(record)`, to be called once a step, from the one after `step` on.

    Of a log that is there, lines up to `step` stay; where `step` is 0 it is another run's and moves to `<log>.previous`. Raises
    ImportError, with the cure, where TensorBoard is asked for and not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with records(f"{folder}/log.jsonl") as write:
        ...         write({"step": 1, "loss": 0.5})
        ...     print(Path(f"{folder}/log.jsonl").read_text(), end="")
        {"step": 1, "loss": 0.5}
    """
    with ExitStack() as opened:
        file = opened.enter_context(_open_log(Path(log), step)) if log else None
        board = opened.enter_context(_open_tensorboard(os.fspath(tensorboard), step)) if tensorboard else None

        def write(record: Record) -> None:
            if file:
                print(json.dumps(record), file=file)
            if board:
                for name in record.keys() & {"loss", "accuracy", "lr"}:
                    board.add_scalar(f"training/{name}", record[name], record["step"])
                if "validation" in record:
                    board.add_scalar(f"validation/{record['validation']['measure']}", record["validation"]["mean"], record["step"])

        yield write


def _open_log(path: Path, step: int) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and step:
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
        write_atomically(path, "".join(f"{line}\n" for line in kept).encode())
    elif path.exists() and path.stat().st_size:
        os.replace(path, f"{path}.previous")
    return path.open("a", buffering=1)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # torn by a kill
        return math.inf


def _open_tensorboard(folder: str, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"tensorboard={folder!r} needs the extra: pip install 'metalearn-transfer[tensorboard]', or leave it out"
        ) from error
    return SummaryWriter(folder, purge_step=step + 1)
