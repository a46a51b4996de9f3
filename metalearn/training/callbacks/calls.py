"""Calls callbacks, and keeps what they raise until the checkpoint is written."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from metalearn.runtime import distributed, random_state

from .callback import EVENTS, Callback, Status, StopTraining


def check_callbacks(callbacks: Any) -> tuple[Any, ...]:
    """The callbacks as a tuple.

    Raises:
        TypeError: they are no sequence, or one is a class or has no method of a callback.
        ValueError: one has a method whose name begins with `on_` and is none of a callback's.
    """
    if isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
        raise TypeError(
            f"callbacks={callbacks!r} is a {type(callbacks).__name__}; give a list, such as"
            " [EarlyStopping(5)]"
        )
    for callback in callbacks:
        _check_callback(callback)
    return tuple(callbacks)


def _check_callback(callback: Any) -> None:
    if isinstance(callback, type):
        raise TypeError(
            f"callbacks holds the class {callback.__name__}; give an object, {callback.__name__}()"
        )
    names = [name for name in dir(callback) if name.startswith("on_")]
    if not names:
        raise TypeError(
            f"callbacks holds {callback!r}, a {type(callback).__name__} without a method of a"
            f" callback; give it one or more of {', '.join(EVENTS)}"
        )
    for name in names:
        if name not in EVENTS:
            close = difflib.get_close_matches(name, EVENTS, 1) or EVENTS
            raise ValueError(
                f"{type(callback).__name__}.{name} is never called; a callback has"
                f" {', '.join(close)}. Rename it"
            )


class Callbacks:
    """The callbacks of one training, on the first rank alone.

    Args:
        callbacks: checked.
        device: of the training, whose random generator callbacks leave as it was.
        status: makes the status, from the value of its `end`.
    """

    def __init__(
        self, callbacks: Sequence[Any], device: torch.device, status: Callable[[str], Status]
    ) -> None:
        self.callbacks = list(callbacks) if distributed.rank() == 0 else []
        self.device = device
        self.status = status
        self.raised: Exception | None = None
        self.end = "finished"

    @property
    def stops(self) -> bool:
        """Whether a callback of this rank has raised something."""
        return self.raised is not None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start and end the callbacks around a training.

        An error of `on_start` is raised at once, on every rank. After the block, the error that a
        callback raised inside is raised on every rank.
        """
        started: list[Any] = []
        failure: BaseException | None = None
        try:
            with distributed.failing_together():
                for callback in self.callbacks:
                    started.append(callback)
                    self._call_one(callback, "on_start", self.status(""))
                    self._raise_error()
            yield
            # A rank without the error would go on alone.
            with distributed.failing_together():
                self._raise_error()
            if self.raised is not None:
                self.end = f"stopped: {self.raised}"
        except BaseException as error:
            failure = error
            self.end = f"failed: {type(error).__name__}: {error}"
            raise
        finally:
            self._end(started, failure)

    def call(self, event: str) -> None:
        """Call a method of every callback; what one raises is kept."""
        if not self.callbacks:
            return
        status = self.status("")
        for callback in self.callbacks:
            self._call_one(callback, event, status)

    def reason(self) -> str:
        """Why `StopTraining` was raised, on every rank; "" if it was not."""
        return distributed.broadcast("" if self.raised is None else str(self.raised) or "stopped")

    def _call_one(self, callback: Any, event: str, status: Status) -> None:
        method = getattr(callback, event, None)
        if method is None:
            return
        # After a resume these may be called more or less often than without an interruption.
        # Keeping the generators takes too long for every step.
        keeping = nullcontext() if event == "on_step" else random_state.preserved(self.device)
        try:
            with keeping:
                method(status)
        except Exception as error:
            self._keep(error)

    def _keep(self, error: Exception) -> None:
        """Keep the first error; any error counts more than `StopTraining`."""
        if self.raised is None or (
            isinstance(self.raised, StopTraining) and not isinstance(error, StopTraining)
        ):
            self.raised = error

    def _raise_error(self) -> None:
        if self.raised is not None and not isinstance(self.raised, StopTraining):
            raise self.raised

    def _end(self, started: list[Any], failure: BaseException | None) -> None:
        """End those that started; their errors do not replace the one that ended the training."""
        status = self.status(self.end)
        before = self.raised
        self.raised = None
        for callback in started:
            self._call_one(callback, "on_end", status)
        at_end, self.raised = self.raised, before
        if at_end is None:
            return
        if failure is None:
            raise at_end
        failure.add_note(f"a callback's on_end failed too: {type(at_end).__name__}: {at_end}")


__all__ = ["Callback", "Callbacks", "check_callbacks"]
