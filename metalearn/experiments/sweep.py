"""Many runs in one call: problems x algorithms, over processes or torchrun's ranks, into one result
file that says what is done.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, fields
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from rich.table import Table

from metalearn.engine.execution import in_flight
from metalearn.runtime import distributed, parallel
from metalearn.runtime.files import Record
from metalearn.runtime.progress import duration
from metalearn.runtime.provenance import machine, now, versions

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
STARTED = "started"  # a worker's first message


class Job(NamedTuple):
    """One training run, and the algorithms that are tested on what it trained."""

    experiment: Experiment
    algorithms: tuple[str, ...]

    def __str__(self) -> str:
        own = self.experiment
        return (
            f"{'+'.join(self.algorithms)}, {own.dataset} {own.ways}-way {own.shots}-shot, seed"
            f" {own.seed}"
        )


def sweep(
    problems: Iterable[Experiment],
    algorithms: Iterable[str],
    results: str | os.PathLike[str],
    *,
    processes: int = 1,
    progress: bool = True,
) -> list[Record]:
    """Train and test each algorithm on each problem -> a row for each, in the order asked for.

    What `results` holds already is not repeated, and a run that was interrupted goes on from its
    checkpoint, so that the same call resumes. A run that fails (or whose process dies) leaves a row
    with its "error", does not stop the others, and is tried again by the next call. Under torchrun
    the ranks share out the runs, each rank its next one when it is free, in a folder that all of
    them see. As with all of Python's processes, a script that asks for several has to make this
    call under `if __name__ == "__main__":`.

    Args:
        problems: experiments; one a data set, ways, shots and seed.
        algorithms: names as for `metalearn reuse`.
        results: a file of JSON lines, added to.
        processes: runs at once on this machine, each with one intra-op thread where there are
            several.
        progress: say when runs start and end.

    Raises ValueError for an unknown algorithm, no process, or processes under torchrun;
    RuntimeError for a script without that guard.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     quick = {"steps": 2, "hidden": 4, "meta_batch": 2, "test_tasks": 5, "runs": folder}
        ...     rows = sweep([Experiment(seed=s, **quick) for s in (0, 1)], ["protonet"], f"{folder}/rows.jsonl", progress=False)
        >>> [(row["algorithm"], row["seed"]) for row in rows]
        [('protonet', 0), ('protonet', 1)]
    """
    names, asked = parse(",".join(algorithms)), list(problems)
    if processes < 1:
        raise ValueError(f"processes={processes} must be at least 1")
    parallel.check_startable("sweep()", processes)
    distributed.join(torch.device("cpu"))
    rank, count = distributed.rank(), distributed.world_size()
    if count > 1 and processes > 1:
        raise ValueError(f"torchrun has started {count} processes already; leave processes out")
    path = Path(results)
    if path.is_dir():
        raise ValueError(f"results={str(path)!r} is a folder; name a file, such as sweep.jsonl")
    jobs = distributed.broadcast(_jobs(asked, names, _done(path)) if rank == 0 else [])
    if progress and rank == 0:
        print(
            f"sweep: {sum(len(job.algorithms) for job in jobs)} of {len(asked) * len(names)}"
            " figures to go",
            file=sys.stderr,
            flush=True,
        )
    found = [] if rank else list(_done(path).values())
    # A single process leaves SIGTERM to training, which finishes its step.
    with (
        parallel.sigterm_exits() if processes > 1 else nullcontext(),
        closing(_performed(jobs, processes, progress)) as performed,
    ):
        for number, rows in enumerate(performed, 1):
            append(path, rows)
            found += rows
            if progress:
                for row in rows:
                    print(
                        f"sweep: {number} of {len(jobs)}: {_said(row)}", file=sys.stderr, flush=True
                    )
    ordered = {
        key: row
        for rows in distributed.all_gather(found)
        for row in rows
        if (key := _key(row["settings"]))
    }
    return [
        ordered[key]
        for problem in asked
        for name in names
        if (key := _key(decisive(problem, name))) in ordered
    ]


def decisive(experiment: Experiment, algorithm: str) -> Record:
    """All that decides a figure, the preset's values included; rows are told apart by it."""
    # Not asdict(), which would copy the images that the experiment has loaded.
    names = [
        setting.name
        for setting in fields(experiment)
        if setting.init and setting.name not in ELSEWHERE
    ]
    own = {name: getattr(experiment, name) for name in names} | experiment.division()
    try:
        chosen = asdict(experiment.settings(trained_by(algorithm)))
        own |= {name: value for name, value in chosen.items() if name not in ("follows", "differs")}
    except ValueError as error:  # there is no such preset: the run will say so in its turn
        own["error"] = str(error)
    return {"algorithm": algorithm, **own}


def append(path: Path, rows: Iterable[Record]) -> None:
    """Add rows as lines of JSON at the end of the file; several processes may do so at once.

    A line that a kill or a full disk left without its end is ended first. What another process is
    still writing looks like one, so that each waits for its turn, at a lock beside the file.
    """
    text = "".join(f"{json.dumps(row, sort_keys=True)}\n" for row in rows).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"), path.open("ab+", buffering=0) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else b"\n" + text
            while text:
                text = text[file.write(text) :]
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write the results {path} ({error.strerror}); the checkpoints are kept: free"
            " some space or name another file, and the same command goes on from there",
        ) from error


def table(rows: Iterable[Record]) -> Table:
    """The rows as a table, seeds together."""
    drawn = Table("data", "learner", "accuracy %", "±", "seeds", "training", "failed")
    groups: dict[tuple[str, str], list[Record]] = {}
    for row in rows:
        groups.setdefault(
            (f"{row['dataset']} {row['ways']}-way {row['shots']}-shot", row["algorithm"]), []
        ).append(row)
    for (data, algorithm), members in groups.items():
        good = [row for row in members if "error" not in row]
        means = torch.tensor([row["accuracy"] for row in good], dtype=torch.float64)
        mean = f"{100 * float(means.mean()):.2f}" if good else "-"
        spread = "-"
        if len(good) > 1:
            spread = f"{100 * float(means.std(correction=1)):.2f} (std over seeds)"
        elif good and good[0]["interval"] is not None:
            spread = f"{100 * good[0]['interval']:.2f} (95 % over tasks)"
        taken = duration(sum(row["training_seconds"] for row in good) / len(good)) if good else "-"
        seeds = ",".join(str(row["seed"]) for row in good) or "-"
        failed = ",".join(f"seed {row['seed']}" for row in members if "error" in row)
        drawn.add_row(data, algorithm, mean, spread, seeds, taken, failed)
    return drawn


def _key(settings: Record) -> str:
    decisive = {name: value for name, value in settings.items() if not name.startswith("_")}
    return json.dumps(decisive, sort_keys=True)


def _done(path: Path) -> dict[str, Record]:
    """The rows without an error by what decides them; a line that a kill has torn is not one."""
    found = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            row = json.loads(line)
            if "error" not in row and _is_figure(row):
                found[_key(row["settings"])] = row
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return found


def _is_figure(row: Record) -> bool:
    """Whether a line of a result file has what the table shows."""
    numbers = [row["accuracy"], row["training_seconds"], row["interval"] or 0.0]
    return all(isinstance(number, int | float) for number in numbers)


def _jobs(problems: list[Experiment], names: list[str], done: dict[str, Record]) -> list[Job]:
    """What is left to do, a job a training run: NIL is tested on the body that ANIL trains."""
    jobs = []
    for problem in problems:
        left = [name for name in names if _key(decisive(problem, name)) not in done]
        for by in dict.fromkeys(map(trained_by, left)):
            jobs.append(Job(problem, tuple(name for name in left if trained_by(name) == by)))
    return jobs


def _performed(
    jobs: list[Job], processes: int, progress: bool
) -> Generator[list[Record], None, None]:
    """The rows of every job that this process (or rank) performs."""
    if processes > 1:
        yield from _in_processes(jobs, processes, progress)
        return
    mine = distributed.tickets(f"sweep of {len(jobs)}")
    alone = distributed.world_size() == 1
    with distributed.standalone():
        for number in mine:
            if number >= len(jobs):
                return
            _say(jobs[number], progress)
            yield perform(jobs[number], progress=progress and alone)


def _in_processes(jobs: list[Job], processes: int, progress: bool) -> Iterator[list[Record]]:
    """A process a job, so many at once. One that dies takes nothing else with it."""
    source, left = parallel.start_method(__name__), deque(jobs)
    busy: dict[Connection, tuple[BaseProcess, Job]] = {}
    try:
        while left or busy:
            while left and len(busy) < processes:
                job = left.popleft()
                ours, theirs = source.Pipe()
                start = source.Process  # type: ignore[attr-defined]
                process: BaseProcess = start(target=_worker, args=(theirs, job), daemon=True)
                process.start()
                theirs.close()
                busy[ours] = process, job
                if job is jobs[0]:
                    _check_started(ours)
                _say(job, progress)
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                process, job = busy[ready]
                try:
                    rows = ready.recv()
                    if rows == STARTED:
                        continue
                except (EOFError, ConnectionError):
                    process.join()
                    rows = _failed(
                        job,
                        f"its process ended with exit code {process.exitcode} (a negative one is a"
                        " signal, -9 often memory)",
                    )
                process.join()
                del busy[ready]
                yield rows
    finally:
        for connection in busy:  # each worker finishes its step and writes its checkpoint
            connection.close()
        for process, _ in busy.values():
            process.join(parallel.PATIENCE)
            process.terminate()


def _check_started(worker: Connection) -> None:
    """Wait until a worker runs; one that cannot even import the script that started it says why on
    standard error.
    """
    try:
        worker.recv()
    except (EOFError, ConnectionError) as error:
        raise RuntimeError(
            "a worker process could not import this script; in a script file, put the call of"
            f" sweep() under `{parallel.GUARD}`, or pass processes=1"
        ) from error


def _worker(parent: Connection, job: Job) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the parent alone, which then stops every worker once
    parallel.end_with_parent(parent)
    parent.send(STARTED)
    torch.set_num_threads(1)
    try:
        parent.send(perform(job, progress=False))
    except KeyboardInterrupt:
        sys.exit(130)


def perform(job: Job, *, progress: bool = False) -> list[Record]:
    """Train (or go on, or load what is done) and test -> a row an algorithm; of whatever goes
    wrong, rows that say so.
    """
    try:
        done = compare(job.experiment, job.algorithms, progress=progress)
        return [
            {
                **_about(job.experiment, name),
                "accuracy": found.mean,
                "interval": None if math.isnan(found.interval) else found.interval,
                "test_tasks": len(found.per_episode),
                **_training(done.runs[name]),
            }
            for name, found in done.evaluations.items()
        ]
    except Exception as error:  # the other runs are no worse for it
        return _failed(job, f"{type(error).__name__}: {error}")


def _training(run: Run) -> Record:
    way, at_once = in_flight(run.learner, run.experiment.settings(run.algorithm).meta_batch)
    return {
        "trained_by": run.algorithm,
        "trained_steps": len(run.curve.losses),
        "training_seconds": round(run.curve.seconds, 1),
        "tasks_run": f"{way}, {at_once} at once",
        "checkpoint": os.fspath(run.experiment.checkpoint(run.algorithm)),
        "training_command": run.command(),
    }


def _failed(job: Job, error: str) -> list[Record]:
    return [{**_about(job.experiment, name), "error": error} for name in job.algorithms]


def _about(experiment: Experiment, algorithm: str) -> Record:
    own = {name: getattr(experiment, name) for name in ("dataset", "ways", "shots", "seed")}
    ran = {
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "machine": machine(),
        "time": now(),
    }
    return {"algorithm": algorithm, **own, "settings": decisive(experiment, algorithm), **ran}


def _say(job: Job, progress: bool) -> None:
    if progress:
        print(f"sweep: {time.strftime('%H:%M:%S')} {job}: started", file=sys.stderr, flush=True)


def _said(row: Record) -> str:
    which = (
        f"{row['algorithm']}, {row['dataset']} {row['ways']}-way {row['shots']}-shot, seed"
        f" {row['seed']}"
    )
    return (
        f"{which}: failed: {row['error']}"
        if "error" in row
        else f"{which}: {100 * row['accuracy']:.2f} %"
    )
