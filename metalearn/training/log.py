"""What is written down of every training step: a line of JSON, and curves for TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from metalearn.runtime.files import Record, unwritable, write_atomically


@contextmanager
def records(
    log: str | os.PathLike[str] | None,
    tensorboard: str | os.PathLike[str] | None = None,
    step: int = 0,
) -> Iterator[Callable[[Record], None]]:
    """Yield `write(record)`, to be called once a step, from the one after `step` on.

    Of a log that is there, lines up to `step` stay; where `step` is 0 it is another run's and moves
    to `<log>.previous`. Raises ImportError, with the cure, where TensorBoard is asked for and not
    installed.

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
        board = (
            opened.enter_context(_open_tensorboard(os.fspath(tensorboard), step))
            if tensorboard
            else None
        )

        def write(record: Record) -> None:
            if file:
                _append(file, f"{json.dumps(record)}\n".encode())
            if board:
                for name in record.keys() & {"loss", "accuracy", "lr"}:
                    board.add_scalar(f"training/{name}", record[name], record["step"])
                if "validation" in record:
                    board.add_scalar(
                        f"validation/{record['validation']['measure']}",
                        record["validation"]["mean"],
                        record["step"],
                    )

        yield write


def _open_log(path: Path, step: int) -> FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    if path.is_file() and step:
        kept = [line for line in path.read_bytes().split(b"\n") if _step_of(line) <= step]
        write_atomically(path, b"".join(line + b"\n" for line in kept))
    elif path.is_file() and path.stat().st_size:
        os.replace(path, f"{path}.previous")
    return path.open("ab", buffering=0)  # a full disk is then an error of the write, not of closing


def _append(file: FileIO, line: bytes) -> None:
    """Add a whole line. Raises OSError naming the file; a resume drops a line that is torn."""
    try:
        while line:
            line = line[file.write(line) :]
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write the log {file.name} ({error.strerror}); free some space, and the same"
            " call goes on from the last checkpoint, or name another log",
        ) from error


def _step_of(line: bytes) -> float:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):  # torn by a kill
        return math.inf
    return step if isinstance(step, int) else math.inf


def _open_tensorboard(folder: str, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"tensorboard={folder!r} needs the extra: pip install"
            " 'metalearn-transfer[tensorboard]', or leave it out"
        ) from error
    return SummaryWriter(folder, purge_step=step + 1)
