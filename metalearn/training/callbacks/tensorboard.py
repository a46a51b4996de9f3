"""Curves for TensorBoard."""

from __future__ import annotations

import os
from typing import Any

from .callback import Status
from .metrics import MetricLogger, import_error


class TensorBoard(MetricLogger):
    """Writes loss, accuracy, rate, validations and scores as events for TensorBoard.

    A resumed run goes on in the same folder: TensorBoard drops the events of steps that run again.

    Args:
        folder: of the event files.
        every: steps from one event to the next. Validations and the last step are always written.

    Raises:
        ImportError: TensorBoard is not installed (the extra `tensorboard`).
    """

    def __init__(self, folder: str | os.PathLike[str], every: int = 1) -> None:
        super().__init__(every)
        self.folder = os.fspath(folder)
        self._writer: Any = None

    def open(self, status: Status) -> None:
        """Open the event file."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise import_error("TensorBoard", "tensorboard", "tensorboard") from error
        self._writer = SummaryWriter(self.folder, purge_step=status.step + 1)

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Add a point to each curve."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self, status: Status) -> None:
        """Write what is buffered."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
