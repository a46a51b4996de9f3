"""How does the cost of a meta-gradient, and of testing, grow with tasks, ways, inner steps and
processes?

    python -m benchmarks.scale

Conv4-64, 28x28 images, 1 shot, 15 queries a class, second-order MAML (random images: the cost does
not depend on what they show). From one base (5 ways, 1 step, 8 tasks), one quantity is changed at a
time. Every point is measured in a fresh process with one thread: the time of one meta-gradient, and
the peak of memory above what was held before, beside the forecast. Processes: one against two that
share out the same meta-batch as torchrun's ranks do, each with one thread; both are alive
throughout, and the sides are timed in turn. Test tasks (glyphs, 32 channels) are shared out in the
same way, one count of processes after the other, and every task's accuracy is compared. `--results
benchmarks/results/scale.jsonl` adds a JSON line a point to that file.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.optim import SGD

from metalearn import MAML, Episode, evaluate, meta_backward
from metalearn.engine.memory import forecast, size
from metalearn.episodes import stack, unstack
from metalearn.models import Conv4
from metalearn.runtime import distributed
from metalearn.runtime.options import Listed, numbers
from metalearn.runtime.provenance import commit, machine, now, versions
from metalearn.tasks import FewShot, glyphs

from .engine import episodes
from .harness.memory import resident as _memory_now
from .harness.rows import append, keep_in, run_benchmark

BASE = {"tasks": 8, "ways": 5, "steps": 1}
TOP = Path(__file__).parents[1]


def scale(
    rounds: int = 7,
    tasks: Listed = "1,4,8,32",
    ways: Listed = "2,5,10,20",
    steps: Listed = "1,2,5,10",
    processes: Listed = "1,2",
    meta_batch: int = 32,
    test_tasks: int = 10_000,
    hidden: int = 64,
    point: str | None = None,
    results: str | None = None,
) -> None:
    """Measure how the cost grows, and print it as a table.

    Args:
        rounds: how often each point is timed, after one round that is not counted.
        tasks: meta-batches, with commas.
        ways: classes per task, with commas.
        steps: inner steps, with commas.
        processes: how many processes share out the meta-batch, with commas; empty for none.
        meta_batch: tasks that the processes share out.
        test_tasks: test tasks that they share out; 0 for none.
        hidden: channels of the network.
        point: used by the benchmark itself, in a fresh process: what to measure, as JSON; the
            figures are printed as JSON.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    if point:
        asked = json.loads(point)
        found = (
            _in_turn(**asked)
            if "counts" in asked
            else _tested(**asked)
            if "test_tasks" in asked
            else _point(**asked)
        )
        if found:
            print(json.dumps(found))
        return
    keep_in(results)
    table = Table(
        "changed", "to", "time, s (min / median)", "peak memory", "forecast", title=f"base: {BASE}"
    )
    for name, values in (("tasks", tasks), ("ways", ways), ("steps", steps)):
        for value in numbers(values, name):
            _add(
                table,
                name,
                value,
                _fresh({**BASE, name: value, "rounds": rounds, "hidden": hidden})[0],
            )
    counts = numbers(processes, "processes")
    if counts:
        asked = {"rounds": rounds, "meta_batch": meta_batch, "hidden": hidden, "counts": counts}
        for found in sorted(_fresh(asked, max(counts)), key=lambda row: row["processes"]):
            _add(table, "processes", found["processes"], found)
    if counts and test_tasks:
        for found in compared([_fresh({"test_tasks": test_tasks}, count)[0] for count in counts]):
            _add(table, "processes, testing", found["processes"], found)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _fresh(asked: dict[str, Any], processes: int = 1) -> list[dict[str, Any]]:
    """Measure in fresh processes with one thread each -> what the first of them prints, as a list."""
    # Every larger block goes back to the system when it is freed, so that the peak is of what is in
    # use, not of what the heap holds.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free.getsockname()[1]),
                "WORLD_SIZE": str(processes),
            }
    command = [sys.executable, "-m", "benchmarks.scale", "--point", json.dumps(asked)]
    started = [
        subprocess.Popen(
            command,
            cwd=TOP,
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [process.communicate()[0] for process in started]
    for process in started:
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed with exit code {process.returncode}")
    found = json.loads(said[0])
    return found if isinstance(found, list) else [found]


def _point(tasks: int, ways: int, steps: int, rounds: int, hidden: int) -> dict[str, Any]:
    learner, stacked = _learner(ways, steps, hidden), episodes(tasks, ways)
    expected = forecast(learner, unstack(stacked)[0], tasks=tasks)
    meta_backward(_learner(ways, 1, 2), episodes(2, ways, queries=1))  # libraries are there now
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _memory_now("VmRSS")
    meta_backward(learner, stacked)
    peak, seconds = _memory_now("VmHWM") - before, []
    for _ in range(rounds):
        started = time.perf_counter()
        meta_backward(learner, stacked)
        seconds.append(time.perf_counter() - started)
    return {
        "seconds": seconds,
        "peak_bytes": peak,
        "forecast_bytes": expected.total,
        "way": expected.way,
        "in_flight": expected.in_flight,
    }


def _in_turn(counts: list[int], rounds: int, meta_batch: int, hidden: int) -> list[dict[str, Any]]:
    """One outer step of so many ranks, those beyond them waiting: the sides in turn, so that
    whatever else runs slows all of them.
    """
    distributed.join(torch.device("cpu"))
    rank, learner, stacked = distributed.rank(), _learner(5, 1, hidden), episodes(meta_batch)
    optimizer = SGD(learner.parameters(), lr=0.01)
    seconds: dict[int, list[float]] = {sharing: [] for sharing in counts}
    for number in range(rounds + 1):
        for sharing in counts:
            distributed.all_gather(None)
            started = time.perf_counter()
            _outer_step(learner, optimizer, stacked, rank, sharing)
            if number:
                seconds[sharing].append(time.perf_counter() - started)
    if rank:
        return []
    one = statistics.median(seconds[counts[0]])
    return [
        {
            "processes": sharing,
            "seconds": values,
            "tasks": meta_batch,
            "times_faster": one / statistics.median(values),
        }
        for sharing, values in seconds.items()
    ]


def _tested(test_tasks: int) -> dict[str, Any]:
    """Test one network on so many tasks, with as many processes as there are."""
    distributed.join(torch.device("cpu"))
    torch.manual_seed(0)
    learner, images = MAML(Conv4(5, hidden=32), 0.4), glyphs("test")
    evaluate(learner, FewShot(images, 5, 1, 15, tasks=4, seed=1), progress=False)
    tasks = FewShot(images, 5, 1, 15, tasks=test_tasks, seed=0)
    distributed.all_gather(None)
    started = time.perf_counter()
    found = evaluate(learner, tasks, progress=False)
    seconds = time.perf_counter() - started
    return {
        "processes": distributed.world_size(),
        "tasks": test_tasks,
        "seconds": [seconds],
        "per_episode": found.per_episode.tolist(),
    }


def compared(sides: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times as fast as the first each is, and whether every task's accuracy is the first's
    to the last bit.

    Example:
        >>> compared([{"seconds": [4.0], "per_episode": [0.5]}, {"seconds": [2.0], "per_episode": [0.5]}])[1]
        {'seconds': [2.0], 'times_faster': 2.0, 'same': True}
    """
    first, rows = sides[0], []
    for side in sides:
        own = {name: value for name, value in side.items() if name != "per_episode"}
        faster = statistics.median(first["seconds"]) / statistics.median(side["seconds"])
        rows.append(
            {**own, "times_faster": faster, "same": side["per_episode"] == first["per_episode"]}
        )
    return rows


def _outer_step(learner: MAML, optimizer: SGD, stacked: Episode, rank: int, sharing: int) -> None:
    """As `meta_train` does it; where one process has all the tasks, it adds nothing up."""
    learner.zero_grad()
    if rank < sharing:
        mine = unstack(stacked)[rank::sharing]
        meta_backward(learner, stack(mine), scale=1 / len(stacked.query.inputs))
    if sharing > 1:
        distributed.all_reduce_gradients(learner.meta_parameters().values())
    if rank < sharing:
        optimizer.step()


def _learner(ways: int, steps: int, hidden: int) -> MAML:
    torch.manual_seed(0)
    return MAML(Conv4(ways, hidden=hidden), 0.4, steps)


def _add(table: Table, name: str, value: int, found: dict[str, Any]) -> None:
    least, median = min(found["seconds"]), statistics.median(found["seconds"])
    said = f"{least:.3f} / {median:.3f}"
    if found.get("times_faster", 1) != 1:
        said += f" ({found['times_faster']:.2f} x as fast as one)"
    if not found.get("same", True):
        said += ", other accuracies"
    peak, expected = found.get("peak_bytes"), found.get("forecast_bytes")
    table.add_row(
        name, str(value), said, size(peak) if peak else "", size(expected) if expected else ""
    )
    about = {
        "command": " ".join(["python -m benchmarks.scale", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "threads": 1,
    }
    point = BASE | ({name: value} if name in BASE else {})
    row = {
        "benchmark": "scale",
        "changed": name,
        "value": value,
        **point,
        **found,
        "median": median,
        **about,
    }
    append({**row, "commit": commit(), "time": now()})


if __name__ == "__main__":
    run_benchmark(scale)
