"""Many runs in one call: problems x algorithms, over processes or torchrun's ranks, into one file.

The result file records what is done, so the same call resumes.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock

from metalearn.engine.execution import in_flight
from metalearn.runtime import distributed, executors, parallel
from metalearn.runtime.files import Record
from metalearn.runtime.progress import duration
from metalearn.runtime.provenance import machine, now, versions
from metalearn.runtime.tables import Table

from .experiment import Experiment, parse, trained_by
from .runs import Run, compare

# Settings that decide no figure, or are resolved.
ELSEWHERE = (
    "root",
    "download",
    "preset",
    "execution",
    "device",
    "runs",
    "splits",
    "split_ratio",
    "_loaded",
)
COLUMNS = ("data", "learner", "accuracy %", "±", "seeds", "training", "failed")


class Job(NamedTuple):
    """One training run, and the algorithms that are tested on what it trained."""

    experiment: Experiment
    algorithms: tuple[str, ...]

    def __str__(self) -> str:
        name = "+".join(self.algorithms)
        return f"{name}, {_problem(vars(self.experiment))}, seed {self.experiment.seed}"


def sweep(
    problems: Iterable[Experiment],
    algorithms: Iterable[str],
    results: str | os.PathLike[str],
    *,
    processes: int = 1,
    executor: Any = None,
    progress: bool = True,
) -> list[Record]:
    """Train and test each algorithm on each problem.

    What `results` holds already is not repeated. A run that was interrupted goes on from its
    checkpoint, so the same call resumes. A run that fails (or whose process dies) leaves a row with
    its "error" and does not stop the others. The next call tries it again. Under torchrun the ranks
    share out the runs: each takes its next one when it is free. The folder must be visible to all
    of them. A script that asks for several processes must make this call under
    `if __name__ == "__main__":`.

    Args:
        problems: experiments, one for each data set, ways, shots and seed.
        algorithms: names as for `metalearn reuse`.
        results: a file of JSON lines; rows are added to it.
        processes: runs at once on this machine. If there are several, each has one intra-op thread,
            and a CUDA device of its own where there are enough.
        executor: runs the jobs instead: anything with `submit(function, *arguments)` that returns a
            future, such as a `concurrent.futures.ProcessPoolExecutor`, a submitit executor or a
            client of Dask; or a name (see `metalearn.runtime.executors`). Its workers must see the
            folder of the runs.
        progress: print when runs start and end.

    Returns:
        A row for each problem and algorithm, in the order given.

    Raises:
        ValueError: an unknown algorithm, no process, or several processes or an executor under
            torchrun.
        TypeError: the executor has no `submit`.
        RuntimeError: the script lacks that guard.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     quick = {"steps": 2, "hidden": 4, "meta_batch": 2, "test_tasks": 5, "runs": folder}
        ...     problems = [Experiment(seed=seed, **quick) for seed in (0, 1)]
        ...     rows = sweep(problems, ["protonet"], f"{folder}/rows.jsonl", progress=False)
        >>> [(row["algorithm"], row["seed"]) for row in rows]
        [('protonet', 0), ('protonet', 1)]
    """
    # All that can be wrong with the call is found before the first run.
    names = parse(",".join(algorithms))
    problems = list(problems)
    if processes < 1:
        raise ValueError(f"processes={processes} must be at least 1")
    parallel.check_startable("sweep()", processes)
    distributed.join(torch.device("cpu"))
    rank = distributed.rank()
    ranks = distributed.world_size()
    if ranks > 1 and (processes > 1 or executor is not None):
        raise ValueError(
            f"torchrun has started {ranks} processes already; leave processes and executor out"
        )
    if executor == "processes":  # the default
        executor = None
    if executor is not None and not isinstance(executor, str):
        executors.check_executor(executor)
        if processes > 1:
            raise ValueError(
                f"processes={processes} and an executor: the executor decides how many run at once;"
                " leave processes out"
            )
    path = Path(results)
    if path.is_dir():
        raise ValueError(f"results={str(path)!r} is a folder; name a file, such as sweep.jsonl")

    # The first rank reads the file, so that all ranks agree on what is left.
    rows: list[Record] = []
    jobs: list[Job] = []
    if rank == 0:
        done = _done(path)
        rows = list(done.values())
        jobs = _jobs(problems, names, done)
    jobs = distributed.broadcast(jobs)
    if progress and rank == 0:
        missing = sum(len(job.algorithms) for job in jobs)
        _print(f"sweep: {missing} of {len(problems) * len(names)} figures to go")

    # A single process leaves SIGTERM to training, which finishes its step.
    elsewhere = processes > 1 or executor is not None
    exiting = parallel.sigterm_exits() if elsewhere else nullcontext()
    with (
        exiting,
        _executor(executor, processes) as runs,
        closing(_performed(jobs, processes, runs, progress=progress)) as performed,
    ):
        for number, new_rows in enumerate(performed, 1):
            append(path, new_rows)
            rows += new_rows
            if progress:
                for row in new_rows:
                    _print(f"sweep: {number} of {len(jobs)}: {_outcome(row)}")

    # A figure that was repeated has its last row.
    by_key: dict[str, Record] = {}
    for rows_of_rank in distributed.all_gather(rows):
        by_key |= {_key(row["settings"]): row for row in rows_of_rank}
    ordered = []
    for problem in problems:
        keys = [_key(decisive(problem, name)) for name in names]
        ordered += [by_key[key] for key in keys if key in by_key]
    return ordered


def decisive(experiment: Experiment, algorithm: str) -> Record:
    """All settings that decide a figure, with the preset's values; they tell rows apart."""
    # Not asdict(), which would copy the images that the experiment has loaded.
    names = [
        setting.name
        for setting in fields(experiment)
        if setting.init and setting.name not in ELSEWHERE
    ]
    settings = {name: getattr(experiment, name) for name in names} | experiment.division()
    try:
        chosen = asdict(experiment.settings(trained_by(algorithm)))
        settings |= {
            name: value for name, value in chosen.items() if name not in ("follows", "differs")
        }
    except ValueError as error:  # there is no such preset: the run itself reports that later
        settings["error"] = str(error)
    return {"algorithm": algorithm, **settings}


def append(path: Path, rows: Iterable[Record]) -> None:
    """Add rows as lines of JSON at the end of the file; several processes may do so at once.

    A line that a kill or a full disk left without its end is ended first. A line that another
    process is still writing looks the same, so each process waits for a lock beside the file.

    Raises:
        OSError: the file cannot be written.
    """
    text = "".join(f"{json.dumps(row, sort_keys=True)}\n" for row in rows).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"), path.open("ab+", buffering=0) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    text = b"\n" + text
            while text:  # an unbuffered write may take a part only
                text = text[file.write(text) :]
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write the results {path} ({error.strerror}); the checkpoints are kept: free"
            " some space or name another file, and the same command goes on from there",
        ) from error


def table(rows: Iterable[Record]) -> Table:
    """The rows as a table; the seeds of one data set and algorithm share a line."""
    # (problem, algorithm) -> the rows of all its seeds
    groups: dict[tuple[str, str], list[Record]] = {}
    for row in rows:
        groups.setdefault((_problem(row), row["algorithm"]), []).append(row)
    cells = [(*group, *_summary(members)) for group, members in groups.items()]
    return Table(COLUMNS, cells)


def _summary(rows: list[Record]) -> tuple[str, str, str, str, str]:
    """Mean, spread, seeds, training time and failures of one algorithm on one problem."""
    failed = ",".join(f"seed {row['seed']}" for row in rows if "error" in row)
    good = [row for row in rows if "error" not in row]
    if not good:
        return "-", "-", "-", "-", failed
    accuracies = torch.tensor([row["accuracy"] for row in good], dtype=torch.float64)
    # Between seeds it is a standard deviation, within one an interval over tasks.
    spread = "-"
    if len(good) > 1:
        spread = f"{100 * float(accuracies.std(correction=1)):.2f} (std over seeds)"
    elif good[0]["interval"] is not None:
        spread = f"{100 * good[0]['interval']:.2f} (95 % over tasks)"
    seconds = sum(row["training_seconds"] for row in good) / len(good)
    seeds = ",".join(str(row["seed"]) for row in good)
    return f"{100 * float(accuracies.mean()):.2f}", spread, seeds, duration(seconds), failed


def _key(settings: Record) -> str:
    # A settings name with an underscore is a note, which decides nothing.
    public = {name: value for name, value in settings.items() if not name.startswith("_")}
    return json.dumps(public, sort_keys=True)


def _done(path: Path) -> dict[str, Record]:
    """The rows without an error by their keys; a line that a kill has torn is skipped."""
    if not path.exists():
        return {}
    rows = {}
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
            if "error" not in row and _is_figure(row):
                rows[_key(row["settings"])] = row
        # Whatever else stands in the file is none of our rows.
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return rows


def _is_figure(row: Record) -> bool:
    """Whether a line of a result file has what the table shows."""
    numbers = [row["accuracy"], row["training_seconds"], row["interval"] or 0.0]
    return all(isinstance(number, int | float) for number in numbers)


def _jobs(problems: list[Experiment], names: list[str], done: dict[str, Record]) -> list[Job]:
    """A job for each training run that is left; NIL is tested on the body that ANIL trains."""
    jobs = []
    for problem in problems:
        left = [name for name in names if _key(decisive(problem, name)) not in done]
        for trainer in dict.fromkeys(map(trained_by, left)):
            tested = tuple(name for name in left if trained_by(name) == trainer)
            jobs.append(Job(problem, tested))
    return jobs


def _executor(executor: Any, processes: int) -> AbstractContextManager[Any]:
    """The executor, made here if it is a name; None without one."""
    if isinstance(executor, str):
        return executors.named(executor, processes)
    return nullcontext(executor)


def _performed(
    jobs: list[Job], processes: int, executor: Any, *, progress: bool
) -> Generator[list[Record], None, None]:
    """The rows of every job that this process (or rank) performs."""
    if executor is not None:
        yield from _on_executor(jobs, executor, progress=progress)
        return
    if processes > 1:
        yield from _in_processes(jobs, processes, progress=progress)
        return
    # Under torchrun each number goes to one rank: the first one that is free.
    tickets = distributed.tickets(f"sweep of {len(jobs)}")
    several_ranks = distributed.world_size() > 1
    with distributed.standalone():
        for number in tickets:
            if number >= len(jobs):
                return
            _print_started(jobs[number], progress=progress)
            yield perform(jobs[number], progress=progress and not several_ranks)


def _in_processes(jobs: list[Job], processes: int, *, progress: bool) -> Iterator[list[Record]]:
    """The rows of every job, performed by worker processes that finish their step when stopped."""
    with parallel.Workers(processes, "sweep()", __name__, patience=parallel.PATIENCE) as workers:
        finished = workers.perform(
            perform,
            [(job,) for job in jobs],
            started=lambda arguments: _print_started(*arguments, progress=progress),
        )
        for (job,), future in finished:
            error = future.exception()
            if isinstance(error, ChildProcessError):
                yield _failed(job, str(error))
            else:
                yield future.result()


def _on_executor(jobs: list[Job], executor: Any, *, progress: bool) -> Iterator[list[Record]]:
    """The rows of every job, performed by the workers of an executor."""
    # Copies without the images that an experiment has loaded, which each worker loads itself.
    sent = [(Job(replace(job.experiment), job.algorithms),) for job in jobs]
    finished = executors.perform(
        executor,
        perform,
        sent,
        started=lambda arguments: _print_started(*arguments, progress=progress, what="submitted"),
    )
    for (job,), result in finished:
        try:
            yield result()
        except Exception as error:  # of the worker: `perform` itself raises nothing
            yield _failed(job, f"its worker failed: {type(error).__name__}: {error}")


def perform(job: Job, *, progress: bool = False) -> list[Record]:
    """Train (or resume, or load what is done) and test.

    Returns:
        A row for each algorithm; if anything goes wrong, rows with the error.
    """
    rows = []
    try:
        compared = compare(job.experiment, job.algorithms, progress=progress)
        for name, evaluation in compared.evaluations.items():
            interval = evaluation.interval  # NaN for a single task, which JSON does not have
            row = {
                **_about(job.experiment, name),
                "accuracy": evaluation.mean,
                "interval": None if math.isnan(interval) else interval,
                "test_tasks": len(evaluation.per_episode),
                **_training(compared.runs[name]),
            }
            rows.append(row)
    except Exception as error:  # the other runs do not suffer from it
        return _failed(job, f"{type(error).__name__}: {error}")
    return rows


def _training(run: Run) -> Record:
    execution, at_once = in_flight(run.learner, run.experiment.settings(run.algorithm).meta_batch)
    return {
        "trained_by": run.algorithm,
        "trained_steps": len(run.curve.losses),
        "training_seconds": round(run.curve.seconds, 1),
        "tasks_run": f"{execution}, {at_once} at once",
        "checkpoint": os.fspath(run.experiment.checkpoint(run.algorithm)),
        "training_command": run.command(),
    }


def _failed(job: Job, error: str) -> list[Record]:
    return [{**_about(job.experiment, name), "error": error} for name in job.algorithms]


def _about(experiment: Experiment, algorithm: str) -> Record:
    problem = {name: getattr(experiment, name) for name in ("dataset", "ways", "shots", "seed")}
    # Two numbers of threads may add up a sum in two orders.
    provenance: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "machine": machine(),
        "time": now(),
    }
    settings = decisive(experiment, algorithm)
    return {"algorithm": algorithm, **problem, "settings": settings, **provenance}


def _problem(settings: Mapping[str, Any]) -> str:
    return f"{settings['dataset']} {settings['ways']}-way {settings['shots']}-shot"


def _outcome(row: Record) -> str:
    """What one row says, for the progress on standard error."""
    name = f"{row['algorithm']}, {_problem(row)}, seed {row['seed']}"
    if "error" in row:
        return f"{name}: failed: {row['error']}"
    return f"{name}: {100 * row['accuracy']:.2f} %"


def _print_started(job: Job, *, progress: bool, what: str = "started") -> None:
    if progress:
        _print(f"sweep: {time.strftime('%H:%M:%S')} {job}: {what}")


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
