"""Fixtures of all tests."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

# One thread a process, and threads that wait give their core away: tests run beside each other.
# Both are read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same random numbers, alone or among others."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator, which some code under test draws from
    torch.manual_seed(0)


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
