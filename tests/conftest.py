"""Fixtures of all tests."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import socket
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# One thread a process, and threads that wait give their core away: tests run beside each other.
# Both are read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch

from tests.helpers import as_rank, send_result


def pytest_collection() -> None:
    """Collect no garbage while tests are collected: all of them live as long as the process."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of every later garbage collection.

    These are a million objects that live as long as the process.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same random numbers, alone or among others.

    The seed is none that a test names, so what a test draws unseeded differs from what it seeds.
    """
    seed = 2017
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global generator, which code under test may use
    torch.manual_seed(seed)


@pytest.fixture
def data() -> Path:
    """The folder of real data sets, or a skip."""
    folder = os.environ.get("METALEARN_DATA")
    if not folder:
        pytest.skip("METALEARN_DATA is not set: it names the folder with the real data sets")
    return Path(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one during the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Threads are only taken if torch may use more than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def processes() -> BaseContext:
    """Starts processes from another one that has imported what they need, in milliseconds."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # torch imports torch._dynamo at the first step of an optimizer, which takes seconds.
    context.set_forkserver_preload(
        [
            "metalearn.__main__",
            "metalearn.tasks",
            "metalearn.training",
            "scipy.stats",
            "torch._dynamo",
            "transfer",
        ]
    )
    return context


@pytest.fixture
def start(processes: BaseContext) -> Iterator[Callable[..., BaseProcess]]:
    """Calls a function of a module in a process of its own; the end of the test ends it too."""
    started: list[BaseProcess] = []

    def begin(function: Callable[..., None], *arguments: Any) -> BaseProcess:
        started.append(processes.Process(target=function, args=arguments))
        started[-1].start()
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def fresh_process(processes: BaseContext) -> Callable[..., Any]:
    """What a function returns in a process of its own."""

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        receiver, sender = processes.Pipe(duplex=False)
        process = processes.Process(target=send_result, args=(sender, function, arguments))
        process.start()
        sender.close()
        result = receiver.recv()
        process.join()
        return result

    return call


@pytest.fixture
def start_ranks(
    start: Callable[..., BaseProcess], tmp_path: Path
) -> Callable[..., list[BaseProcess]]:
    """Calls a function of (rank, folder) in two processes, under what a scheduler sets for ranks.

    What they print and return lies in the folder; see `as_rank`.
    """

    def begin(work: Callable[[int, Path], Any], **settings: str) -> list[BaseProcess]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [start(as_rank, rank, port, tmp_path, settings, work) for rank in (0, 1)]

    return begin
