"""A time limit: a training ends in time, with its checkpoint written."""

from __future__ import annotations

import time

from metalearn.runtime.checks import positive_number
from metalearn.runtime.progress import duration

from .callback import Callback, Status, StopTraining


class TimeLimit(Callback):
    """Stops a training after so many seconds, counted from the start of this call.

    The checkpoint is written, and the same call continues with as many seconds more. Leave time for
    one step and the checkpoint: a scheduler's limit of an hour is `TimeLimit(3500)`.

    Args:
        seconds: of wall-clock time.

    Example:
        >>> TimeLimit(3500).seconds
        3500.0
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = positive_number("seconds", seconds, "leave it out to train without a limit")
        self._started = 0.0

    def on_start(self, status: Status) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_step(self, status: Status) -> None:
        """Stop if the time is over, unless this is the last step."""
        if time.monotonic() - self._started >= self.seconds and status.step < status.steps:
            raise StopTraining(f"the time limit of {duration(self.seconds)} is over")
