"""Processes that share out work on one machine: how they start, and that none outlives the process
that started it.
"""

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
    """How processes are started: from one that has imported `preload` already, if the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    source = multiprocessing.get_context("forkserver")
    source.set_forkserver_preload([preload])
    return source


def check_startable(call: str, processes: int) -> None:
    """Raise before work starts that this process cannot do or share out.

    A new process imports the script that started it. A script without a guard then makes the same
    call again, in the new process.

    Raises:
        RuntimeError: this process is still importing such a script.
        ValueError: this process is a daemon, which Python lets start no processes of its own.
    """
    current = multiprocessing.current_process()
    if getattr(current, "_inheriting", False):  # the sign by which Process.start() itself refuses
        raise RuntimeError(
            f"{call} was called while a worker process imports this script; put the call under"
            f" `{GUARD}`"
        )
    if processes > 1 and current.daemon:
        raise ValueError(
            f"processes={processes} inside a daemon process, which may start none of its own; pass"
            " processes=1"
        )


def end_with_parent(connection: Connection | None = None) -> None:
    """End this worker once its parent dies, or closes the other end of `connection`.

    The main thread is interrupted as by Ctrl-C, so training can finish its step and write its
    checkpoint.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # a command that a script runs with `&` ignores it
        threading.Thread(
            target=_end_after, args=(connection or parent.sentinel,), daemon=True
        ).start()


def _end_after(closed: Connection | int) -> None:
    wait([closed])
    interrupt_main()
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join(PATIENCE)
    time.sleep(GRACE)
    os._exit(1)


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Let SIGTERM raise SystemExit with code 143, which ends workers and closes files, unless the
    program handles it in its own way.
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
    signal.signal(
        number, signal.SIG_IGN
    )  # a scheduler may send several, and workers need their time
    os.write(2, b"\nstopped by SIGTERM; the same command goes on from there\n")
    raise SystemExit(128 + number)
