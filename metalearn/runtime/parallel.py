"""Worker processes on one machine: how they start, and how they end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from _thread import interrupt_main
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any

import torch

from .devices import own_device

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


Job = tuple[Any, ...]
"""The arguments of one job."""


class Workers:
    """Processes on this machine that share out independent jobs; a context manager.

    Each process is the only one of a `concurrent.futures.ProcessPoolExecutor`. If it dies, only its
    own job fails, and another process takes its place. Processes start when there is work. If the
    machine has several CUDA devices, each process has one of its own (see `own_device`).

    Args:
        processes: how many jobs run at once.
        call: the function that the user called, for error messages.
        preload: the module that a new process has imported already, if the system can do that.
        packed: a pickled tuple of arguments that every job has in common. They are sent to each
            process once.
        threads: torch's intra-op threads in each process.
        patience: seconds that running jobs have to stop by themselves, as after Ctrl-C, if the
            `with` block ends before them. After that, they are terminated.

    Example:
        >>> with Workers(2, "example()", "metalearn.runtime.parallel") as workers:
        ...     finished = list(workers.perform(divmod, [(7, 2), (9, 4)]))
        >>> sorted((job, future.result()) for job, future in finished)
        [((7, 2), (3, 1)), ((9, 4), (2, 1))]
    """

    def __init__(
        self,
        processes: int,
        call: str,
        preload: str,
        *,
        packed: bytes = pickle.dumps(()),
        threads: int = 1,
        patience: float = 0.0,
    ) -> None:
        self.processes = processes
        self.call = call
        self.preload = preload
        self.packed = packed
        self.threads = threads
        self.patience = patience
        self._checked = False
        self._idle: list[_Worker] = []
        self._busy: dict[Future[Any], _Worker] = {}

    def start(self) -> None:
        """Start the first process, unless one has started; it unpacks the common arguments.

        Raises:
            RuntimeError: it could not import the script that started it.
            Exception: what unpacking raised, such as ImportError.
        """
        if self._checked:
            return
        self._idle.append(self._worker())
        try:
            self._idle[0].ready.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process could not import this script; in a script file, put the call of"
                f" {self.call} under `{GUARD}`, or pass processes=1"
            ) from error
        self._checked = True

    def _worker(self) -> _Worker:
        return _Worker(start_method(self.preload), self.packed, self.threads)

    def perform(
        self,
        work: Callable[..., Any],
        jobs: Iterable[Job],
        *,
        started: Callable[[Job], None] = lambda job: None,
    ) -> Iterator[tuple[Job, Future[Any]]]:
        """Call `work(*common, *job)` for every job, where `common` is what `packed` holds.

        Args:
            work: a function at the top of a module.
            jobs: the arguments of each call.
            started: called with each job when a process takes it.

        Yields:
            Each job with its finished future, in the order in which they finish. The future raises
            ChildProcessError if the process died or was interrupted.

        Raises:
            RuntimeError: as `start` does.
        """
        waiting = deque(jobs)
        running: dict[Future[Any], Job] = {}
        while waiting or running:
            while waiting and len(running) < self.processes:
                self.start()
                worker = self._idle.pop() if self._idle else self._worker()
                job = waiting.popleft()
                future = worker.pool.submit(_call, work, job)
                running[future] = job
                self._busy[future] = worker
                started(job)
            for future in wait_for(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), self._finished(future)

    def _finished(self, future: Future[Any]) -> Future[Any]:
        """The future of a job; its worker is free for the next one, unless it died."""
        worker = self._busy.pop(future)
        if not isinstance(future.exception(), BrokenProcessPool):
            self._idle.append(worker)
            return future
        worker.close()
        failed: Future[Any] = Future()
        failed.set_exception(
            ChildProcessError(
                f"its process ended with exit code {worker.process.exitcode} (a negative one is a"
                " signal, -9 often memory)"
            )
        )
        return failed

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._busy and self.patience:
                for worker in self._busy.values():
                    worker.interrupt()
                wait_for(self._busy, timeout=self.patience)
        finally:
            for future, worker in self._busy.items():
                if not future.done():
                    worker.process.terminate()
            for worker in (*self._busy.values(), *self._idle):
                worker.close()


class _Worker:
    """A pool of one process, and the pipe whose closing interrupts that process."""

    def __init__(self, context: BaseContext, packed: bytes, threads: int) -> None:
        listening, self._lifeline = context.Pipe(duplex=False)
        self.pool = ProcessPoolExecutor(1, context, _begin, (listening, packed, threads))
        others = set(multiprocessing.active_children())
        self.ready = self.pool.submit(_unpack)
        (self.process,) = set(multiprocessing.active_children()) - others
        listening.close()  # the process has its own copy

    def interrupt(self) -> None:
        """Interrupt the running job, as Ctrl-C does."""
        self._lifeline.close()

    def close(self) -> None:
        """Wait until the process has ended."""
        self.pool.shutdown(cancel_futures=True)
        self._lifeline.close()


_common: list[Any] = []  # in a worker: what all jobs have in common, packed until it is needed


def _begin(lifeline: Connection, packed: bytes, threads: int) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the parent alone, which then stops every worker once
    end_with_parent(lifeline)
    torch.set_num_threads(threads)
    _common[:] = [packed]


def _unpack() -> None:
    if isinstance(_common[0], bytes):
        _common[:] = [pickle.loads(_common[0])]


def _call(work: Callable[..., Any], job: Job) -> Any:
    _unpack()
    return call_in_worker(work, *_common[0], *job)


def call_in_worker(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call `work(*arguments)` in a worker process, on a CUDA device of its own.

    Raises:
        ChildProcessError: the process was stopped by Ctrl-C or SIGTERM.
    """
    try:
        with own_device():
            return work(*arguments)
    except (KeyboardInterrupt, SystemExit) as stopped:
        # These would end the parent's own work if they reached it.
        raise ChildProcessError(f"its process was stopped ({stopped!r})") from None
