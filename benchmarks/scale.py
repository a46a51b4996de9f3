"""How does the cost of a meta-gradient, and of testing, grow?

    python -m benchmarks.scale

Conv4-64, 28x28 images, 1 shot, 15 queries a class, second-order MAML (random images: the cost does
not depend on what they show). From one base (5 ways, 1 step, 8 tasks), one quantity is changed at a
time: tasks, ways, inner steps or processes. Every point is measured in a fresh process with one
thread: the time of one meta-gradient, and the peak of memory above what was held before, beside the
forecast. Processes: one against two that share the same meta-batch as torchrun's ranks do, each
with one thread; both are alive throughout, and the sides take turns. Test tasks (glyphs, 32
channels) are shared in the same way, one count of processes after the other, and every task's
accuracy is compared. `--results benchmarks/results/scale.jsonl` adds a JSON line a point to that
file.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from torch.optim import SGD

from metalearn import MAML, Episode, evaluate, meta_backward
from metalearn.engine.memory import forecast, size
from metalearn.episodes import stack, unstack
from metalearn.models import Conv4
from metalearn.runtime import distributed
from metalearn.runtime.options import Listed, numbers
from metalearn.tasks import FewShot, glyphs

from .engine import episodes
from .harness.clock import take_turns
from .harness.markdown import table
from .harness.memory import GIVE_BACK, TOP, peak_above
from .harness.rows import Row, append, keep_in, origin, run_benchmark

BASE = {"tasks": 8, "ways": 5, "steps": 1}


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
        measure(json.loads(point))
        return
    keep_in(results)
    lines = []
    for name, values in (("tasks", tasks), ("ways", ways), ("steps", steps)):
        for value in numbers(values, name):
            settings = {**BASE, name: value, "rounds": rounds, "hidden": hidden}
            lines.append(recorded(name, value, in_fresh_processes(settings)[0]))
    counts = numbers(processes, "processes")
    if counts:
        settings = {"rounds": rounds, "meta_batch": meta_batch, "hidden": hidden}
        sharing = in_fresh_processes({**settings, "counts": counts}, max(counts))
        for figures in sorted(sharing, key=lambda row: row["processes"]):
            lines.append(recorded("processes", figures["processes"], figures))
    if counts and test_tasks:
        sides = [in_fresh_processes({"test_tasks": test_tasks}, count)[0] for count in counts]
        for figures in compared(sides):
            lines.append(recorded("processes, testing", figures["processes"], figures))
    print(f"base: {BASE}")
    print(table(("changed", "to", "time, s (min / median)", "peak memory", "forecast"), lines))


def measure(settings: Row) -> None:
    """What a fresh process measures and prints."""
    if "counts" in settings:
        figures: Any = shared_meta_batch(**settings)
    elif "test_tasks" in settings:
        figures = shared_testing(**settings)
    else:
        figures = single_point(**settings)
    if figures:
        print(json.dumps(figures))


def in_fresh_processes(settings: Row, processes: int = 1) -> list[Row]:
    """Measure in fresh processes with one thread each -> what the first of them prints, as a list.

    Raises:
        RuntimeError: a process failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **GIVE_BACK}
    if processes > 1:
        # Ask the system for a free port.
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free.getsockname()[1]),
                "WORLD_SIZE": str(processes),
            }
    command = [sys.executable, "-m", "benchmarks.scale", "--point", json.dumps(settings)]
    started = []
    for rank in range(processes):
        variables = {**environment, "RANK": str(rank)}
        started.append(
            subprocess.Popen(command, cwd=TOP, env=variables, stdout=subprocess.PIPE, text=True)
        )
    outputs = [process.communicate()[0] for process in started]
    for process in started:
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed with exit code {process.returncode}")
    figures = json.loads(outputs[0])
    if isinstance(figures, dict):
        return [figures]
    return figures


def single_point(tasks: int, ways: int, steps: int, rounds: int, hidden: int) -> Row:
    """Time, memory and forecast of one meta-gradient."""
    learner = _learner(ways, steps, hidden)
    stacked = episodes(tasks, ways)
    expected = forecast(learner, unstack(stacked)[0], tasks=tasks)
    # Load the libraries and start their threads.
    meta_backward(_learner(ways, 1, 2), episodes(2, ways, queries=1))
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    peak = peak_above(lambda: meta_backward(learner, stacked))
    sides = {"ours": lambda: meta_backward(learner, stacked)}
    return {
        "seconds": take_turns(sides, rounds, uncounted=0)["ours"],
        "peak_bytes": peak,
        "forecast_bytes": expected.total,
        "way": expected.way,
        "in_flight": expected.in_flight,
    }


def shared_meta_batch(counts: list[int], rounds: int, meta_batch: int, hidden: int) -> list[Row]:
    """One outer step of so many ranks, those beyond them waiting; the sides take turns."""
    distributed.join(torch.device("cpu"))
    rank = distributed.rank()
    learner = _learner(5, 1, hidden)
    stacked = episodes(meta_batch)
    optimizer = SGD(learner.parameters(), lr=0.01)
    sides = {}
    for sharing in counts:
        sides[str(sharing)] = lambda sharing=sharing: _outer_step(
            learner, optimizer, stacked, rank, sharing
        )
    # All ranks begin a turn together; those that do not share in it wait for the next.
    seconds = take_turns(sides, rounds, before=lambda: distributed.all_gather(None))
    if rank:
        return []
    first = statistics.median(seconds[str(counts[0])])
    figures = []
    for count, values in seconds.items():
        faster = first / statistics.median(values)
        figures.append(
            {
                "processes": int(count),
                "seconds": values,
                "tasks": meta_batch,
                "times_faster": faster,
            }
        )
    return figures


def shared_testing(test_tasks: int) -> Row:
    """Test one network on so many tasks, with as many processes as there are."""
    distributed.join(torch.device("cpu"))
    torch.manual_seed(0)
    learner = MAML(Conv4(5, hidden=32), 0.4)
    images = glyphs("test")
    evaluate(learner, FewShot(images, 5, 1, 15, tasks=4, seed=1), progress=False)
    tasks = FewShot(images, 5, 1, 15, tasks=test_tasks, seed=0)
    distributed.all_gather(None)
    started = time.perf_counter()
    evaluation = evaluate(learner, tasks, progress=False)
    seconds = time.perf_counter() - started
    return {
        "processes": distributed.world_size(),
        "tasks": test_tasks,
        "seconds": [seconds],
        "per_episode": evaluation.per_episode.tolist(),
    }


def compared(sides: list[Row]) -> list[Row]:
    """How many times as fast as the first each is, and whether every task's accuracy is the same.

    Example:
        >>> first = {"seconds": [4.0], "per_episode": [0.5]}
        >>> compared([first, {"seconds": [2.0], "per_episode": [0.5]}])[1]
        {'seconds': [2.0], 'times_faster': 2.0, 'same': True}
    """
    first = sides[0]
    rows = []
    for side in sides:
        figures = {name: value for name, value in side.items() if name != "per_episode"}
        faster = statistics.median(first["seconds"]) / statistics.median(side["seconds"])
        same = side["per_episode"] == first["per_episode"]
        rows.append({**figures, "times_faster": faster, "same": same})
    return rows


def _outer_step(learner: MAML, optimizer: SGD, stacked: Episode, rank: int, sharing: int) -> None:
    """As `meta_train` does it; if one process has all the tasks, nothing is added up."""
    learner.zero_grad()
    if rank < sharing:
        tasks = unstack(stacked)[rank::sharing]
        meta_backward(learner, stack(tasks), scale=1 / len(stacked.query.inputs))
    if sharing > 1:
        distributed.all_reduce_gradients(learner.meta_parameters().values())
    if rank < sharing:
        optimizer.step()


def _learner(ways: int, steps: int, hidden: int) -> MAML:
    torch.manual_seed(0)
    return MAML(Conv4(ways, hidden=hidden), 0.4, steps)


def recorded(name: str, value: int, figures: Row) -> tuple[str, ...]:
    """Append the row of a point -> its line of the printed table."""
    median = statistics.median(figures["seconds"])
    changed = {name: value} if name in BASE else {}
    point = {"benchmark": "scale", "changed": name, "value": value, **BASE, **changed}
    append({**point, **figures, "median": median, "threads": 1, **origin("scale")})
    text = f"{min(figures['seconds']):.3f} / {median:.3f}"
    if figures.get("times_faster", 1) != 1:
        text += f" ({figures['times_faster']:.2f} x as fast as one)"
    if not figures.get("same", True):
        text += ", other accuracies"
    sizes = []
    for measured in ("peak_bytes", "forecast_bytes"):
        sizes.append(size(figures[measured]) if measured in figures else "")
    return (name, str(value), text, *sizes)


if __name__ == "__main__":
    run_benchmark(scale)
