"""Worker processes on one machine: how they start, and how they end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext

PATIENCE = 60.0  # seconds that a worker has for its step after its parent was stopped
GRACE = 2.0  # the same after its parent has died
GUARD = 'if __name__ == "__main__":'


def start_method(preload: str) -> BaseContext:
    """The context that starts processes.

    If the system can, they are forked from a process that has imported the module `preload`.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    return context


def check_startable(call: str, processes: int) -> None:
    """Raise an error if this process cannot start workers.

    A worker imports the script that started it. A script without a guard then makes the same call
    again, in the worker.

    Args:
        call: what the user called, for the message.
        processes: how many processes the user wants.

    Raises:
        RuntimeError: this process is a worker that still imports such a script.
        ValueError: this process is a daemon, which Python does not let start processes.
    """
    current = multiprocessing.current_process()
    if getattr(current, "_inheriting", False):  # Process.start() itself refuses by this sign
        raise RuntimeError(
            f"{call} was called while a worker process imports this script; put the call under"
            f" `{GUARD}`"
        )
    if processes > 1 and current.daemon:
        raise ValueError(
            f"processes={processes} inside a daemon process, which may not start others; pass"
            " processes=1"
        )


def end_with_parent(connection: Connection | None = None) -> None:
    """End this worker when its parent dies, or closes the other end of `connection`.

    The main thread is interrupted as by Ctrl-C, so training can finish its step and write its
    checkpoint.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    # A command that a shell script runs with `&` ignores SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    closed = connection or parent.sentinel
    threading.Thread(target=_end_after, args=(closed,), daemon=True).start()


def _end_after(closed: Connection | int) -> None:
    """Wait until `closed` is closed, interrupt the main thread, and later end the process."""
    wait([closed])  # a pipe is ready when its other end is closed, and a sentinel when it died
    interrupt_main()
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join(PATIENCE)
    time.sleep(GRACE)
    os._exit(1)


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Let SIGTERM raise SystemExit with code 143, so that workers end and files are closed.

    A program that handles SIGTERM in its own way keeps its handler.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: object) -> None:
    # A scheduler may send several, and the workers need time to finish.
    signal.signal(number, signal.SIG_IGN)
    os.write(2, b"\nstopped by SIGTERM; the same command goes on from there\n")
    raise SystemExit(128 + number)
