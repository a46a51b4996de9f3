"""Executors of others run jobs: results, workers that die, and a CUDA device for each process."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from importlib.util import find_spec
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.runtime import executors
from metalearn.runtime.devices import own_device
from metalearn.runtime.parallel import call_in_worker


def die_at(number: int) -> int:
    """The number; the process is killed at 2."""
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * number


def stopped() -> None:
    raise SystemExit(143)


def results(executor: Any, work: Any, jobs: list[tuple[Any, ...]]) -> dict[Any, Any]:
    outcomes = {}
    for job, result in executors.perform(executor, work, jobs):
        try:
            outcomes[job] = result()
        except Exception as error:
            outcomes[job] = type(error)
    return outcomes


class Direct:
    """An executor that calls at once, with a future of its own, as submitit's jobs are."""

    def __init__(self) -> None:
        self.cancelled = 0

    def submit(self, function: Any, *arguments: Any) -> Any:
        executor = self

        class Done:
            def done(self) -> bool:
                return True

            def result(self) -> Any:
                return function(*arguments)

            def cancel(self) -> None:
                executor.cancelled += 1

        return Done()


def test_any_object_with_submit_will_do_and_what_is_left_is_cancelled() -> None:
    executor = Direct()
    assert results(executor, divmod, [(7, 2), (9, 4)]) == {(7, 2): (3, 1), (9, 4): (2, 1)}
    finished = executors.perform(executor, divmod, [(7, 2), (9, 4), (1, 1)])
    next(finished)
    finished.close()  # type: ignore[attr-defined]
    assert executor.cancelled == 2


def test_a_worker_that_dies_fails_its_job_and_not_the_call(processes: BaseContext) -> None:
    with ProcessPoolExecutor(1, processes) as executor:
        outcomes = results(executor, die_at, [(1,), (2,), (3,)])
    assert outcomes[1,] == 10
    assert outcomes[2,].__name__ == outcomes[3,].__name__ == "BrokenProcessPool"
    # Jobs that the broken executor does not take are named in the same way.
    assert issubclass(results(executor, die_at, [(1,)])[1,], RuntimeError)


def test_a_worker_that_is_stopped_does_not_stop_the_parent() -> None:
    with pytest.raises(ChildProcessError, match=r"was stopped \(SystemExit\(143\)\)"):
        call_in_worker(stopped)


def test_what_is_no_executor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"without submit\(function, \*arguments\)"):
        executors.check_executor(4)
    with ThreadPoolExecutor(1) as threads, pytest.raises(ValueError, match="share one random"):
        executors.check_executor(threads)

    class Immediate:
        def submit(self, function: Any, *arguments: Any) -> Any:
            return function(*arguments)

    with pytest.raises(TypeError, match=r"returned a tuple without done\(\) and result\(\)"):
        results(Immediate(), divmod, [(7, 2)])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("slurm", "no executor 'slurm'; choose processes, loky, dask, ray, submitit"),
        ("tests.helpers:nothing", "tests.helpers has no nothing"),
    ],
)
def test_a_name_that_is_no_executor(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message), executors.named(name, 1):
        pass


def test_a_missing_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="pip install ray"), executors.named("ray", 1):
        pass


def direct() -> Direct:
    return Direct()


def test_a_callable_by_name() -> None:
    with executors.named("tests.runtime.test_executors:direct", 1) as executor:
        assert results(executor, divmod, [(7, 2)]) == {(7, 2): (3, 1)}


# Engines that exist; each is skipped where it is not installed


def test_loky() -> None:
    if find_spec("loky") is None:
        pytest.importorskip("joblib")  # which has a copy
    with executors.named("loky", 1) as executor:
        assert results(executor, divmod, [(7, 2), (9, 4)]) == {(7, 2): (3, 1), (9, 4): (2, 1)}


@pytest.mark.slow  # a cluster takes long to start
@pytest.mark.filterwarnings("ignore")
def test_dask() -> None:
    pytest.importorskip("dask.distributed")
    with executors.named("dask", 1) as executor:
        assert results(executor, divmod, [(7, 2), (9, 4)]) == {(7, 2): (3, 1), (9, 4): (2, 1)}


@pytest.mark.filterwarnings("ignore")
def test_ray() -> None:
    pytest.importorskip("ray")
    with executors.named("ray", 1) as executor:
        assert results(executor, divmod, [(7, 2), (9, 4)]) == {(7, 2): (3, 1), (9, 4): (2, 1)}


@pytest.mark.filterwarnings("ignore")
def test_submitit(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with executors.named(f"submitit:{tmp_path}", 1) as executor:
        assert results(executor, divmod, [(7, 2), (9, 4)]) == {(7, 2): (3, 1), (9, 4): (2, 1)}
    # Submitit's own limit is five minutes.
    assert executor._executor.parameters["timeout_min"] == 24 * 60


def test_a_wrapper_of_a_few_lines_runs_ray_against_a_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reference:
        def __init__(self, value: Any) -> None:
            self.value = value

        def future(self) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result(self.value)
            return future

    class Remote:
        def __init__(self, function: Any) -> None:
            self.function = function

        def remote(self, *arguments: Any) -> Reference:
            return Reference(self.function(*arguments))

    class FakeRay:
        options: dict[str, Any]

        def remote(self, **options: Any) -> Any:
            self.options = options
            return Remote

    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    assert results(executors.RayExecutor(num_gpus=1), divmod, [(7, 2)]) == {(7, 2): (3, 1)}
    assert fake.options == {"num_cpus": 1, "num_gpus": 1}


# CUDA devices


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Two CUDA devices, as torch reports them; the devices that were set."""
    chosen = [0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return chosen


def test_each_process_has_a_device_of_its_own(two_devices: list[int]) -> None:
    with own_device() as first, own_device() as second:
        assert (first, second) == (0, 1)
        assert two_devices == [0, 0, 1]
        # More processes than devices share them.
        with own_device() as third:
            assert third in (0, 1)
    assert two_devices[-1] == 0
    # A device is free again after its process.
    with own_device() as again:
        assert again == 0
    assert call_in_worker(torch.cuda.current_device) == 0


def test_processes_that_see_different_devices_do_not_wait_for_each_other(
    two_devices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with own_device() as first:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
        with own_device() as second, own_device() as third:
            assert (first, second, third) == (0, 0, 1)


def test_without_several_devices_nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with own_device() as number:
        assert number is None
