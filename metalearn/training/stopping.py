"""Ctrl-C and SIGTERM during training: the step is finished and the checkpoint written first."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import torch

from metalearn.runtime import distributed

from .state import NOT_SAVED, TrainingState


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], signal.Signals | None]]:
    """Let Ctrl-C and SIGTERM wait for the end of the step.

    A second Ctrl-C stops at once. A second SIGTERM does not: a scheduler and torchrun may each send
    one.

    Yields:
        A function that returns the signal received, or None.
    """
    received: list[signal.Signals] = []

    def receive(number: int, frame: object) -> None:
        again = ""
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            again = "; Ctrl-C again stops at once"
        if not received:
            with contextlib.suppress(OSError):
                os.write(2, f"\nfinishing this step, then stopping{again}\n".encode())
        received.append(signal.Signals(number))

    defaults: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    # A signal that the program handles itself is left to it. Only the main thread receives any.
    in_main = threading.current_thread() is threading.main_thread()
    handled = [
        number
        for number, default in defaults.items()
        if in_main and signal.getsignal(number) == default
    ]
    for number in handled:
        signal.signal(number, receive)
    try:
        yield lambda: max(received, default=None)
    finally:
        for number in handled:
            signal.signal(number, defaults[number])


class Agreed(NamedTuple):
    """What the ranks agree on after a step.

    Attributes:
        signal: that stops every rank, or None.
        stops: whether a callback stops the training.
    """

    signal: signal.Signals | None
    stops: bool

    def __bool__(self) -> bool:
        return self.signal is not None or self.stops


def agreed_stop(
    state: TrainingState, rates: list[float], received: signal.Signals | None, *, stops: bool
) -> Agreed:
    """What stops every rank after this step, if anything.

    Args:
        state: after a step.
        rates: the outer rates of the step.
        received: the signal that this rank received.
        stops: whether a callback of this rank stops the training.

    Raises:
        ValueError: the ranks took this step at different rates.
    """
    rank = distributed.rank()
    count = distributed.world_size()
    # (ranks, signal, callback and rates)
    rows = torch.zeros(count, 2 + len(rates), dtype=torch.float64)
    # 0 stands for no signal.
    rows[rank] = torch.tensor([received or 0, stops, *rates])
    rows = distributed.all_reduce(rows)
    if not rows[:, 2:].equal(rows[:1, 2:].expand(count, -1)):
        distributed.check_same(
            {f"at step {state.step} the outer rate": rates}, "Give every rank the same schedule"
        )
    highest = int(rows[:, 0].max())
    return Agreed(signal.Signals(highest) if highest else None, stops=bool(rows[:, 1].any()))


def stop(received: signal.Signals, step: int, steps: int, saved: str, keeping: str) -> NoReturn:
    """Raise what the signal means, naming the last checkpoint.

    Args:
        received: the signal.
        step: the number of steps done.
        steps: the number of steps in all.
        saved: the last checkpoint.
        keeping: how to keep a checkpoint, if there is none.
    """
    text = f"stopped after step {step} of {steps}; last checkpoint: {saved}"
    if received == signal.SIGINT:
        raise KeyboardInterrupt(text)
    if distributed.rank() == 0:
        cure = f"This command goes on from there: {shlex.join(sys.orig_argv)}"
        if distributed.world_size() > 1:
            cure = distributed.CURE
        if saved == NOT_SAVED:
            cure = f"{keeping} to keep what is trained"
        print(f"training: SIGTERM: {text}. {cure}", file=sys.stderr, flush=True)
    raise SystemExit(128 + received)
