"""The log of a training run: a line of JSON for every step, and curves for TensorBoard."""

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
    """Open the log of a run that is at `step`.

    Lines of an existing log stay up to `step`. At step 0 it is another run's and moves to
    `<log>.previous`.

    Args:
        log: a path of JSON lines, if any.
        tensorboard: a folder for TensorBoard, if any.
        step: how many steps are done.

    Yields:
        A function of a step's record, to be called once a step.

    Raises:
        ImportError: TensorBoard is requested and not installed.
        OSError: the log cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with records(f"{folder}/log.jsonl") as write:
        ...         write({"step": 1, "loss": 0.5})
        ...     print(Path(f"{folder}/log.jsonl").read_text(), end="")
        {"step": 1, "loss": 0.5}
    """
    with ExitStack() as opened:
        file = None
        board = None
        if log:
            file = opened.enter_context(_open_log(Path(log), step))
        if tensorboard:
            board = opened.enter_context(_open_tensorboard(os.fspath(tensorboard), step))

        def write(record: Record) -> None:
            if file:
                _append(file, f"{json.dumps(record)}\n".encode())
            if board:
                _draw(board, record)

        yield write


def _draw(board: Any, record: Record) -> None:
    """Add a step's figures to TensorBoard's curves."""
    for name in record.keys() & {"loss", "accuracy", "lr"}:
        board.add_scalar(f"training/{name}", record[name], record["step"])
    if "validation" in record:
        validation = record["validation"]
        board.add_scalar(f"validation/{validation['measure']}", validation["mean"], record["step"])


def _open_log(path: Path, step: int) -> FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    if path.is_file() and step:
        lines = path.read_bytes().split(b"\n")
        # Steps after the checkpoint run again. A line torn by a kill counts as one of them.
        done = [line + b"\n" for line in lines if _step_of(line) <= step]
        write_atomically(path, b"".join(done))
    elif path.is_file() and path.stat().st_size:
        os.replace(path, f"{path}.previous")
    # Without a buffer a full disk is an error of the write, not of closing.
    return path.open("ab", buffering=0)


def _append(file: FileIO, line: bytes) -> None:
    """Add a whole line, or raise OSError naming the file; a resume drops a torn line."""
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
            " 'metalearn-transfer[tensorboard]', or omit tensorboard="
        ) from error
    return SummaryWriter(folder, purge_step=step + 1)
