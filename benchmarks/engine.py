"""What does `meta_backward` cost, in time and memory, beside a plain loop of `torch.autograd.grad`
over tasks?

    python -m benchmarks.engine

Conv4-64, Omniglot 5-way 1-shot, 15 queries a class, one inner step, 32 tasks (random images: the
cost does not depend on what they show). Time: both sides in turn, several rounds, min and median.
Memory: the peak of a fresh process above what it held before the first task, for one task, for 32
and for 128 tasks. Also the episodes per second of `FewShot[i]` with one thread, and the second
start of Omniglot where METALEARN_DATA names it. `--results benchmarks/results/engine.jsonl` adds a
JSON line a figure to that file.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.func import functional_call

from metalearn import MAML, Episode, Examples, meta_backward
from metalearn.engine.execution import choose_execution
from metalearn.episodes import unstack
from metalearn.models import Conv4
from metalearn.runtime.options import Listed, listed
from metalearn.runtime.provenance import commit, machine, now, versions
from metalearn.tasks import FewShot, LabelledImages, omniglot

from .harness.rows import append, keep_in, run_benchmark


def episodes(tasks: int, ways: int = 5, queries: int = 15) -> Episode:
    """A stack of 1-shot tasks of random 28x28 images."""
    generator = torch.Generator().manual_seed(0)

    def examples(each: int) -> Examples:
        images = torch.rand(tasks, ways * each, 1, 28, 28, generator=generator)
        return Examples(images, torch.arange(ways).repeat_interleave(each).repeat(tasks, 1))

    return Episode(examples(1), examples(queries))


def plain_loop(model: torch.nn.Module, tasks: Episode, lr: float) -> None:
    """MAML's meta-gradient as one would write it by hand: task by task, gradients added up."""
    weights: dict[str, torch.Tensor] = dict(model.named_parameters())
    for task in unstack(tasks):
        loss = F.cross_entropy(
            functional_call(model, weights, (task.support.inputs,)), task.support.targets
        )
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        adapted = {
            name: w - lr * g for (name, w), g in zip(weights.items(), gradients, strict=True)
        }
        outer = F.cross_entropy(
            functional_call(model, adapted, (task.query.inputs,)), task.query.targets
        )
        for parameter, gradient in zip(
            weights.values(), torch.autograd.grad(outer, list(weights.values())), strict=True
        ):
            parameter.grad = (
                gradient / len(tasks.query.inputs)
                if parameter.grad is None
                else parameter.grad + gradient / len(tasks.query.inputs)
            )


def engine(
    rounds: int = 7,
    tasks: int = 32,
    figures: Listed = "time,memory,sampling,start",
    peak_of: str | None = None,
    results: str | None = None,
) -> None:
    """Measure time, memory, sampling and start-up.

    Args:
        rounds: how often each side is timed, in turn, after one round that is not counted.
        tasks: the meta-batch.
        figures: which of time, memory, sampling and start, with commas.
        peak_of: used by the benchmark itself, in a fresh process: "way,tasks,threads", whose peak
            of memory is printed in bytes.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    if peak_of:
        way, count, threads = peak_of.split(",")
        print(_peak(way, int(count), int(threads)))
        return
    keep_in(results)
    asked = listed(figures)
    parts = {"time": lambda: _time(rounds, tasks), "memory": lambda: _memory(tasks)}
    parts |= {"sampling": lambda: _sampling(rounds), "start": lambda: _start(rounds)}
    for name in asked:
        if name not in parts:
            raise ValueError(f"there is no figure {name!r}; choose from {', '.join(parts)}")
        parts[name]()


def _time(rounds: int, count: int) -> None:
    torch.manual_seed(0)
    model, stacked = Conv4(5), episodes(count)
    learner = MAML(model, 0.4)
    sides = {
        "meta_backward": lambda: meta_backward(learner, stacked),
        "plain loop": lambda: plain_loop(model, stacked, 0.4),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            model.zero_grad()
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    ratios = [
        theirs / ours
        for ours, theirs in zip(seconds["meta_backward"], seconds["plain loop"], strict=True)
    ]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    _report(
        "time of one meta-gradient",
        f"{medians['meta_backward']:.3f} s, plain loop {medians['plain loop']:.3f} s: median ratio"
        f" {statistics.median(ratios):.2f}",
        {
            "seconds": seconds,
            "median_ratio": statistics.median(ratios),
            "execution": choose_execution(learner),
            "threads": torch.get_num_threads(),
            "tasks": count,
        },
    )


def _memory(count: int) -> None:
    def peak(way: str, tasks: int, threads: int) -> int:
        command = [
            sys.executable,
            "-m",
            "benchmarks.engine",
            "--peak_of",
            f"{way},{tasks},{threads}",
        ]
        # Every larger block goes back to the system when it is freed, so that the peak is of what
        # is in use, not of what the heap holds.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        return int(
            subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            ).stdout
        )

    one = peak("loop", 1, 1)
    for way, tasks, threads in (
        ("loop", count, 1),
        ("loop", 4 * count, 1),
        ("threads", count, 2),
        ("threads", 4 * count, 2),
    ):
        found = peak(way, tasks, threads)
        _report(
            f"peak memory, {tasks} tasks, {way}",
            f"{found / 2**20:.0f} MiB with {threads} in flight, one task {one / 2**20:.0f} MiB: "
            f"{found / one / threads:.2f} x tasks in flight x one task",
            {
                "bytes": found,
                "one_task_bytes": one,
                "in_flight": threads,
                "way": way,
                "tasks": tasks,
                "ratio": found / one / threads,
            },
        )


def _peak(way: str, count: int, threads: int) -> int:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    small, learner, stacked = (
        MAML(Conv4(5, hidden=2), 0.4, execution=way),
        MAML(Conv4(5), 0.4, execution=way),
        episodes(count),
    )
    meta_backward(small, episodes(2, queries=1))  # libraries and threads are there now
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _memory_now("VmRSS")
    meta_backward(learner, stacked)
    return _memory_now("VmHWM") - before


def _memory_now(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def _sampling(rounds: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = torch.randint(256, (4112 * 20, 1, 28, 28), dtype=torch.uint8)
    drawn = FewShot(
        LabelledImages(images, torch.arange(4112).repeat_interleave(20)), 5, 1, 15, tasks=10**6
    )
    rates = []
    for number in range(rounds):
        started = time.perf_counter()
        for index in range(5000 * number, 5000 * (number + 1)):
            drawn[index]
        rates.append(5000 / (time.perf_counter() - started))
    torch.set_num_threads(threads)
    _report(
        "episodes per second, FewShot[i], one thread",
        f"median {statistics.median(rates):,.0f}",
        {"rates": rates},
    )


def _start(rounds: int) -> None:
    root = os.environ.get("METALEARN_DATA")
    if not root:
        print("second start of Omniglot: METALEARN_DATA is not set")
        return
    omniglot(root, "train")
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        omniglot(root, "train")
        seconds.append(time.perf_counter() - started)
    _report(
        "second start of Omniglot, imports apart",
        f"median {statistics.median(seconds):.2f} s",
        {"seconds": seconds},
    )


def _report(what: str, said: str, facts: dict[str, object]) -> None:
    print(f"{what}: {said}", flush=True)
    about = {
        "command": " ".join(["python -m benchmarks.engine", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
    }
    row = {
        "benchmark": "engine",
        "figure": what,
        "said": said,
        **facts,
        **about,
        "commit": commit(),
        "time": now(),
    }
    append(row)


if __name__ == "__main__":
    run_benchmark(engine)
