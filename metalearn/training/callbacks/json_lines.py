"""A log of JSON lines, one a step, also after resumes."""

from __future__ import annotations

import json
import math
import os
from io import FileIO
from pathlib import Path

from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import file_path, unwritable, write_atomically

from .callback import Callback, Status
from .metrics import is_due


class JsonLines(Callback):
    """Writes a line of JSON for every step: step, loss, lr, seconds, accuracy, validation, scores.

    Lines of an existing log stay up to the step of a resumed run. At step 0 the log is another
    run's and moves to `<path>.previous`.

    Args:
        path: the file.
        every: steps from one line to the next. Validations and the last step are always written.

    Raises:
        OSError: the log cannot be written; it is named.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = JsonLines(f"{folder}/log.jsonl")
        ...     log.on_start(Status("meta_train", 0, 1, model=None, settings={}))
        ...     log.on_step(Status("meta_train", 1, 1, model=None, settings={}, step_loss=0.5))
        ...     log.on_end(Status("meta_train", 1, 1, model=None, settings={}, end="finished"))
        ...     print(Path(f"{folder}/log.jsonl").read_text(), end="")
        {"step": 1, "loss": 0.5, "seconds": 0.0}
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1) -> None:
        self.path = file_path(path)
        self.every = whole_number("every", every)
        self._file: FileIO | None = None

    def on_start(self, status: Status) -> None:
        """Open the log."""
        self._file = _open(self.path, status.step)

    def on_validation(self, status: Status) -> None:
        """Write the scores before the first step; others are written with their step."""
        if status.step == 0:
            self._write(status)

    def on_step(self, status: Status) -> None:
        """Write a line if it is due."""
        if is_due(status, self.every):
            self._write(status)

    def on_end(self, status: Status) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, status: Status) -> None:
        assert self._file is not None
        line = f"{json.dumps(status.record())}\n".encode()
        try:
            while line:  # an unbuffered write may take a part only
                line = line[self._file.write(line) :]
        except OSError as error:
            raise OSError(
                error.errno,
                f"could not write the log {self.path} ({error.strerror}); free some space, and the"
                " same call goes on from the last checkpoint, or name another log",
            ) from error


def _open(path: Path, step: int) -> FileIO:
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


def _step_of(line: bytes) -> float:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):  # torn by a kill
        return math.inf
    return step if isinstance(step, int) else math.inf
