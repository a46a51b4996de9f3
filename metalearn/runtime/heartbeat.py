"""Tells a dead rank from one that is still at work.

torch's own limit, `init_process_group(timeout=...)`, also ends a wait for a living rank. But ranks
may wait for hours, for example while the first one trains a network for all of them. torchrun's
agent notices a process that ends, but not one that falls silent, and not ranks that wait for each
other.

So each rank reports two numbers to the store that all ranks share: its beats, which a thread of its
own counts, and its calls of other ranks. A rank that waits stops if

- the beats of another rank have not changed for `patience` seconds: it is dead or out of reach;
- all ranks wait, and none of their calls has changed for so long: they make different calls.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

import torch.distributed as dist

CURE = "Start all of them again with the same command: training goes on from the last checkpoint"
PATIENCE = 30.0  # seconds of silence after which a rank counts as dead


@dataclass
class _Report:
    """The last report of one rank, and the times when its two numbers last changed."""

    beats: int
    calls: int
    beats_changed: float
    calls_changed: float

    def update(self, beats: int, calls: int, now: float) -> None:
        if beats != self.beats:
            self.beats = beats
            self.beats_changed = now
        if calls != self.calls:
            self.calls = calls
            self.calls_changed = now


class Heartbeat:
    """Reports that this rank is alive, and ends the process if it waits in vain.

    Reports and checks have a thread each: a call to the store blocks if the process that holds the
    store is silent.

    Args:
        store: shared by all ranks. It needs a connection of its own: a thread that waits for a key
            blocks all others that use the same connection.
        rank: this rank.
        world_size: the number of ranks.
        patience: seconds of silence after which a rank counts as dead.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, patience: float) -> None:
        self.store = store
        self.rank = rank
        self.world_size = world_size
        self.patience = patience
        self.calls = 0  # how often a wait began or ended: odd while this rank waits
        self.wait_began = 0.0
        self.ended = Event()
        self.threads = [Thread(target=loop, daemon=True) for loop in (self._report, self._check)]
        now = time.monotonic()
        self.reports = [_Report(0, 0, now, now) for _ in range(world_size)]
        self._send(beats=0)

    def start(self) -> None:
        """Start both threads."""
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End both threads."""
        self.ended.set()
        for thread in self.threads:
            thread.join(self.patience)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context for everything that needs the other ranks."""
        self.wait_began = time.monotonic()
        self.calls += 1
        try:
            yield
        finally:
            self.calls += 1

    def _report(self) -> None:
        """Exchange reports with the other ranks, ten times in every `patience` seconds."""
        for beats in itertools.count(1):
            if self.ended.wait(self.patience / 10):
                return
            try:
                self._send(beats)
                self._receive()
            except RuntimeError:
                return  # the process that holds the store has ended: from now on all are silent

    def _check(self) -> None:
        """End the process, with a message, once this rank waits in vain."""
        while not self.ended.wait(self.patience / 10):
            reason = self._reason_to_stop()
            if reason:
                print(
                    f"metalearn: rank {self.rank} of {self.world_size} stops: {reason}. {CURE}",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)  # the main thread waits inside a library and cannot be interrupted

    def _send(self, beats: int) -> None:
        self.store.set(f"rank {self.rank}", f"{beats} {self.calls}")

    def _receive(self) -> None:
        messages = self.store.multi_get([f"rank {other}" for other in range(self.world_size)])
        now = time.monotonic()
        for report, message in zip(self.reports, messages, strict=True):
            beats, calls = message.split()
            report.update(int(beats), int(calls), now)

    def _reason_to_stop(self) -> str:
        """Why waiting is in vain; "" if this rank does not wait or may go on waiting."""
        if self.calls % 2 == 0:  # even: not waiting
            return ""
        now = time.monotonic()
        silent = [
            str(other)
            for other, report in enumerate(self.reports)
            if other != self.rank and now - report.beats_changed > self.patience
        ]
        # A lost store silences all ranks, but calls that still return show that they are alive.
        if silent and now - self.wait_began > min(self.patience, 5):
            return (
                f"rank {', '.join(silent)} has not been heard of for {self.patience:g} s, so it"
                " died or cannot be reached"
            )
        if all(
            report.calls % 2 == 1 and now - report.calls_changed > self.patience
            for report in self.reports
        ):
            return (
                f"each rank has waited for another for {self.patience:g} s, so they do not make"
                " the same calls"
            )
        return ""


def patience() -> float:
    """Seconds of silence after which a rank counts as dead: `METALEARN_RANK_TIMEOUT`, or 30.

    Raises:
        ValueError: `METALEARN_RANK_TIMEOUT` is not a number of seconds above 0.

    Example:
        >>> patience()
        30.0
    """
    text = os.environ.get("METALEARN_RANK_TIMEOUT", str(PATIENCE))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(
            f"METALEARN_RANK_TIMEOUT={text!r} must be a number of seconds above 0, such as"
            f" {PATIENCE:g}"
        )
    return seconds
