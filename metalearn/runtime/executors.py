"""Jobs on any executor: anything with `submit(function, *arguments)` that returns a future.

A future has `done()` and `result()`, as those of `concurrent.futures`, submitit, Dask and loky:

    concurrent.futures.ProcessPoolExecutor(4)         # processes of this machine
    joblib.externals.loky.get_reusable_executor(4)    # the same, which start again if they die
    dask.distributed.Client("tcp://host:8786")        # a cluster of Dask, one thread a worker
    submitit.AutoExecutor("logs")                     # SLURM, after executor.update_parameters(...)
    RayExecutor(num_gpus=1)                           # a cluster of Ray
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from .parallel import Job, call_in_worker

LONGEST_WAIT = 1.0  # seconds between two looks at the futures
SUBMITIT_MINUTES = 24 * 60  # the limit of a job, for an executor by name
NAMES = ("processes", "loky", "dask", "ray", "submitit")


class RayExecutor:
    """Ray as an executor.

    Args:
        options: of `ray.remote`, such as num_cpus, num_gpus, max_retries.

    Example:
        ray.init(address="auto")
        sweep(problems, ["maml"], "rows.jsonl", executor=RayExecutor(num_gpus=1))
    """

    def __init__(self, **options: Any) -> None:
        self.options = {"num_cpus": 1, **options}

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call the function on the cluster."""
        import ray

        return ray.remote(**self.options)(function).remote(*arguments).future()


def check_executor(executor: Any) -> None:
    """Raise an error for what cannot run jobs.

    Raises:
        TypeError: it has no `submit`.
        ValueError: it runs jobs in threads of one process.

    Example:
        >>> check_executor(4)
        Traceback (most recent call last):
        ...
        TypeError: executor=4 is a int without submit(function, *arguments); ...
    """
    if not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor={executor!r} is a {type(executor).__name__} without submit(function,"
            " *arguments); give an executor such as concurrent.futures.ProcessPoolExecutor(4)"
        )
    if isinstance(executor, ThreadPoolExecutor):
        raise ValueError(
            "executor is a ThreadPoolExecutor, whose threads share one random generator, so seeds"
            " would not decide the results; give a ProcessPoolExecutor"
        )


def perform(
    executor: Any,
    work: Callable[..., Any],
    jobs: Iterable[Job],
    *,
    started: Callable[[Job], None] = lambda job: None,
) -> Iterator[tuple[Job, Callable[[], Any]]]:
    """Call `work(*job)` for every job on an executor; each process has a CUDA device of its own.

    If the iteration ends early, jobs that have not started are cancelled.

    Args:
        executor: checked.
        work: a function at the top of a module that the workers can import.
        jobs: the arguments of each call.
        started: called with each job when it is submitted.

    Yields:
        Each job, in the order in which they finish, with a function that returns its result, or
        raises what the job or its worker raised.

    Example:
        >>> from concurrent.futures import ProcessPoolExecutor
        >>> from multiprocessing import get_context
        >>> with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        ...     finished = list(perform(executor, divmod, [(7, 2), (9, 4)]))
        >>> sorted((job, result()) for job, result in finished)
        [((7, 2), (3, 1)), ((9, 4), (2, 1))]
    """
    futures: dict[int, tuple[Job, Any]] = {}
    try:
        for number, job in enumerate(jobs):
            futures[number] = job, _submit(executor, work, job)
            started(job)
        wait = 0.001
        while futures:
            finished = [number for number, (_, future) in futures.items() if future.done()]
            for number in finished:
                job, future = futures.pop(number)
                yield job, future.result
            # Not every future can call back when it is done.
            wait = 0.001 if finished else min(2 * wait, LONGEST_WAIT)
            time.sleep(wait)
    finally:
        for _, future in futures.values():
            with suppress(Exception):
                future.cancel()


def _submit(executor: Any, work: Callable[..., Any], job: Job) -> Any:
    """The future of a job; one that has failed if the executor takes no more jobs."""
    try:
        future = executor.submit(call_in_worker, work, *job)
    except Exception as error:  # such as BrokenProcessPool, after another job's process has died
        failed: Future[Any] = Future()
        failed.set_exception(error)
        return failed
    if not (hasattr(future, "done") and hasattr(future, "result")):
        raise TypeError(
            f"{type(executor).__name__}.submit returned a {type(future).__name__} without done()"
            " and result(); wrap it so that it returns a concurrent.futures.Future"
        )
    return future


@contextmanager
def named(name: str, processes: int) -> Iterator[Any]:
    """An executor by its name, which ends with the block.

    Args:
        name: loky, dask, ray or submitit; dask:ADDRESS and ray:ADDRESS for a cluster that runs, and
            submitit:FOLDER for its logs (jobs may take a day); or package.module:callable, which is
            called without arguments and sets what a cluster needs (partition, GPUs, time).
        processes: workers on this machine, for loky, dask and ray without an address.

    Raises:
        ValueError: there is no such executor.
        ImportError: its package is not installed.
    """
    kind, _, argument = name.partition(":")
    with ExitStack() as stack:
        try:
            if kind == "loky":
                yield _loky(processes)
            elif kind == "dask":
                yield _dask(argument, processes, stack)
            elif kind == "ray":
                yield _ray(argument, processes, stack)
            elif kind == "submitit":
                yield _submitit(argument)
            else:
                yield _imported(name)
        except ModuleNotFoundError as error:
            if kind not in NAMES or error.name not in (kind, "joblib", "distributed"):
                raise
            raise ImportError(
                f"executor {name!r} needs the package {kind}: pip install {kind}"
                + ("[distributed]" if kind == "dask" else "")
            ) from error


def _loky(processes: int) -> Any:
    try:
        import loky
    except ImportError:
        from joblib.externals import loky  # joblib has a copy
    return loky.get_reusable_executor(max_workers=processes)


def _dask(address: str, processes: int, stack: ExitStack) -> Any:
    from dask.distributed import Client, LocalCluster

    if not address:
        # Threads of one worker would share its random generators.
        address = stack.enter_context(
            LocalCluster(n_workers=processes, threads_per_worker=1, dashboard_address=None)
        )
    client = stack.enter_context(Client(address))
    # A job that failed before runs again, although its arguments are the same.
    return client.get_executor(pure=False)


def _ray(address: str, processes: int, stack: ExitStack) -> RayExecutor:
    import ray

    if address:
        ray.init(address=address)
    else:
        ray.init(num_cpus=processes, include_dashboard=False)
    stack.callback(ray.shutdown)
    return RayExecutor()


def _submitit(folder: str) -> Any:
    import submitit

    executor = submitit.AutoExecutor(folder or "submitit")
    # Submitit's own limit of five minutes would end a training.
    executor.update_parameters(timeout_min=SUBMITIT_MINUTES)
    return executor


def _imported(name: str) -> Any:
    """What a `package.module:callable` returns."""
    module, colon, function = name.partition(":")
    if not colon or not function:
        raise ValueError(
            f"there is no executor {name!r}; choose {', '.join(NAMES)}, or name a"
            " package.module:callable that returns one"
        )
    made = getattr(importlib.import_module(module), function, None)
    if made is None:
        raise ValueError(f"executor {name!r}: the module {module} has no {function}")
    return made()
